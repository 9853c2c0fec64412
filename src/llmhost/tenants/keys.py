"""Organisations and API keys: what is stored of them, and who a bearer is.

Only an HMAC of a key is stored. All of it is held in memory, found by that digest: no request's bytes ever reach SQL,
and how long a lookup takes says nothing about a secret, because the digest depends on a pepper the caller can't know.
"""

import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmhost.core.errors import Conflict, InvalidValue, NotFound, Unauthenticated
from llmhost.core.ports import Clock
from llmhost.core.request import Caller, Limits
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer
from llmhost.tenants.tokens import PREFIX, check_form, new_token

SCHEMA = Schema(
    "tenants",
    {
        "orgs_and_keys": (
            """CREATE TABLE orgs (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                name TEXT NOT NULL UNIQUE
            ) STRICT""",
            """CREATE TABLE keys (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                digest BLOB NOT NULL UNIQUE,
                org TEXT NOT NULL REFERENCES orgs(name),
                team TEXT,
                name TEXT,
                requests_per_minute INTEGER,
                models TEXT, -- a JSON list; NULL allows all
                expires_ns INTEGER
            ) STRICT""",
            """CREATE TABLE revocations (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                key_id TEXT NOT NULL UNIQUE REFERENCES keys(id)
            ) STRICT""",
        ),
    },
)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEYS = """
    SELECT k.digest, k.id, k.org, k.team, k.name, k.requests_per_minute, k.models, k.utc_ns, k.expires_ns, r.utc_ns
    FROM keys k LEFT JOIN revocations r ON r.key_id = k.id ORDER BY k.seq
"""
_INSERT_KEY = """
    INSERT INTO keys (node_id, utc_ns, id, digest, org, team, name, requests_per_minute, models, expires_ns)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Org:
    """An organisation: whom a bill goes to."""

    name: str
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is known of a key; nothing in it is secret. Times are UTC nanoseconds."""

    id: str
    """The public part, as logs and usage show it."""
    org: str
    team: str | None = None
    name: str | None = None
    requests_per_minute: int | None = None
    models: tuple[str, ...] | None = None
    """Names that the key may use; None allows all."""
    created_ns: int
    expires_ns: int | None = None
    revoked_ns: int | None = None

    def state(self, utc_ns: int) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_ns is not None:
            return "revoked"
        if self.expires_ns is not None and utc_ns >= self.expires_ns:
            return "expired"
        return "active"


class KeyStore:
    """Owns organisations and keys. Loads all of them when made, which waits for the disk.

    Changes are made from one event loop; they are committed before they are answered.
    """

    def __init__(
        self, writer: Writer, reader: Reader, *, pepper: bytes, node_id: str, clock: Clock
    ) -> None:
        self._writer = writer
        self._pepper = pepper
        self._node_id = node_id
        self._clock = clock
        self._orgs: dict[str, Org] = reader.read_now(_load_orgs)
        self._digests: dict[str, bytes] = {}
        self._known: dict[bytes, tuple[KeyRecord, Caller]] = {}
        for digest, record in reader.read_now(_load_keys):
            self._remember(digest, record)

    @property
    def has_keys(self) -> bool:
        """A key was made: from then on every request needs one, even when all keys have been revoked again."""
        return bool(self._known)

    def find(self, bearer: str | None) -> Caller:
        """Who holds this key. Raises Unauthenticated, saying what is wrong with it.

        That a key was revoked or has expired is said only to who has the whole of it.
        """
        if not bearer:
            raise Unauthenticated(
                "No API key was given. Send it as 'Authorization: Bearer <key>';"
                " `llmhost keys create --org NAME` makes one."
            )
        check_form(bearer)
        record, caller = self._known.get(self._digest(bearer), (None, None))
        if record is None or caller is None:
            raise Unauthenticated(
                "This API key is not known here. Ask the operator for one, or make one with"
                " `llmhost keys create --org NAME`."
            )
        state = record.state(self._clock.utc_ns())
        if state != "active":
            raise Unauthenticated(f"This API key {_ENDED[state]}. Ask the operator for a new one.")
        return caller

    def list(self) -> tuple[KeyRecord, ...]:
        """All keys, revoked ones too, oldest first."""
        return tuple(record for record, _ in self._known.values())

    def list_orgs(self) -> tuple[Org, ...]:
        """All organisations, oldest first."""
        return tuple(self._orgs.values())

    async def create_org(self, name: str) -> Org:
        """Raises InvalidValue for a name that can't be one, Conflict for one that exists."""
        _check_name(name, "name")
        org = Org(name=name, created_ns=self._clock.utc_ns())

        def insert(connection: Connection) -> None:
            done = connection.execute(
                "INSERT INTO orgs (node_id, utc_ns, name) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (self._node_id, org.created_ns, name),
            )
            if done.rowcount == 0:
                raise Conflict(f"The organisation {name!r} exists already.", param="name")

        await self._writer.run(insert)
        self._orgs[name] = org
        return org

    async def create(
        self,
        *,
        org: str,
        team: str | None = None,
        name: str | None = None,
        requests_per_minute: int | None = None,
        models: Sequence[str] | None = None,
        expires_ns: int | None = None,
    ) -> tuple[KeyRecord, str]:
        """A new key, and its whole text, which is not kept and can't be shown again.

        Raises NotFound for an unknown organisation, InvalidValue for anything that a key can't have.
        """
        public_id, token = new_token()
        record = KeyRecord(
            id=public_id,
            org=org,
            team=team,
            name=name,
            requests_per_minute=requests_per_minute,
            models=None if models is None else tuple(models),
            created_ns=self._clock.utc_ns(),
            expires_ns=expires_ns,
        )
        self._check(record)
        digest = self._digest(token)
        row = (
            self._node_id,
            record.created_ns,
            public_id,
            digest,
            org,
            team,
            name,
            requests_per_minute,
            None if record.models is None else json.dumps(record.models),
            expires_ns,
        )
        await self._writer.run(lambda connection: connection.execute(_INSERT_KEY, row).rowcount)
        self._remember(digest, record)
        return record, token

    async def revoke(self, key: str) -> KeyRecord:
        """End a key, named by its public id or the beginning of it; refused from this moment on.

        Repeating it changes nothing. Raises NotFound, or Conflict when several keys begin like that. When it
        can't be stored the key stays refused until the next start, and the error is raised.
        """
        record = self._named(key)
        if record.revoked_ns is None:
            record = replace(record, revoked_ns=self._clock.utc_ns())
            self._remember(self._digests[record.id], record)
        row = (self._node_id, record.revoked_ns, record.id)
        await self._writer.run(
            lambda connection: (
                connection.execute(
                    "INSERT INTO revocations (node_id, utc_ns, key_id) VALUES (?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    row,
                ).rowcount
            )
        )
        return record

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._pepper, token.encode(), "sha256")

    def _remember(self, digest: bytes, record: KeyRecord) -> None:
        caller = Caller(
            key_id=record.id,
            org=record.org,
            team=record.team,
            models=record.models,
            limits=Limits(requests_per_minute=record.requests_per_minute),
        )
        self._digests[record.id] = digest
        self._known[digest] = (record, caller)

    def _named(self, key: str) -> KeyRecord:
        start = key.removeprefix(PREFIX)
        found = [record for record in self.list() if start and record.id.startswith(start)]
        exact = [record for record in found if record.id == start]
        if not found:
            raise NotFound(
                f"No API key's id is or begins with {start!r}. `llmhost keys` lists them."
            )
        if len(found) > 1 and not exact:
            ids = ", ".join(record.id for record in found[:3])
            raise Conflict(
                f"{len(found)} API keys begin with {start!r} ({ids} ...). Give more of the id."
            )
        return (exact or found)[0]

    def _check(self, record: KeyRecord) -> None:
        if record.org not in self._orgs:
            raise NotFound(
                f"There is no organisation {record.org!r}. `llmhost orgs create NAME` makes one.",
                param="org",
            )
        if record.team is not None:
            _check_name(record.team, "team")
        if record.name is not None and not (record.name.isprintable() and len(record.name) <= 64):
            raise InvalidValue("A key's name is at most 64 printable characters.", param="name")
        if record.requests_per_minute is not None and record.requests_per_minute < 1:
            raise InvalidValue(
                "requests_per_minute must be 1 or more; leave it out for the server's default.",
                param="requests_per_minute",
            )
        if record.models is not None and (not record.models or not all(record.models)):
            raise InvalidValue(
                "models must name at least one model; leave it out to allow all.", param="models"
            )
        if record.expires_ns is not None and record.expires_ns <= record.created_ns:
            raise InvalidValue("The key would have expired already.", param="expires_at")


_ENDED = {"revoked": "has been revoked", "expired": "has expired"}


def _check_name(name: str, param: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidValue(
            f"{name[:80]!r} can't be a name: 1 to 64 letters, digits, '.', '_' or '-'.", param=param
        )


def _load_orgs(connection: Connection) -> dict[str, Org]:
    rows = connection.execute("SELECT name, utc_ns FROM orgs ORDER BY seq")
    return {name: Org(name=name, created_ns=utc_ns) for name, utc_ns in rows}


def _load_keys(connection: Connection) -> Sequence[tuple[bytes, KeyRecord]]:
    return [
        (
            digest,
            KeyRecord(
                id=public_id,
                org=org,
                team=team,
                name=name,
                requests_per_minute=rate,
                models=None if models is None else tuple(json.loads(models)),
                created_ns=created_ns,
                expires_ns=expires_ns,
                revoked_ns=revoked_ns,
            ),
        )
        for digest, public_id, org, team, name, rate, models, created_ns, expires_ns, revoked_ns in (
            connection.execute(_KEYS)
        )
    ]
