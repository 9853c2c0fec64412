"""API keys: what is stored of them, and who a bearer is.

Only HMACs of secrets are stored. All of it is held in memory, found by that digest: no request's bytes ever reach SQL,
and how long a lookup takes says nothing about a secret, because the digest depends on a pepper the caller can't know.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmhost.core.caller import NO_LIMITS, Caller, Limits, Role
from llmhost.core.errors import Conflict, InvalidValue, NotFound, Unauthenticated
from llmhost.core.ports import Clock
from llmhost.core.world import World
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.tenants import rows
from llmhost.tenants.digests import Hmac
from llmhost.tenants.periods import EVER_NS
from llmhost.tenants.records import KeyRecord, Org, check_key
from llmhost.tenants.rows import Secret
from llmhost.tenants.schema import SCHEMA
from llmhost.tenants.teams import Desk, Directory
from llmhost.tenants.tokens import PREFIX, check_form, new_secret, new_token

__all__ = ["LONGEST_OVERLAP_NS", "SCHEMA", "KeyRecord", "KeyStore", "Org"]

LONGEST_OVERLAP_NS = 366 * 86_400 * 10**9


class KeyStore:
    """Owns keys, and the directory of whom they belong to. Loads all of them when made, which waits for the disk.

    Changes are made from one event loop; they are committed before they are answered.
    """

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        *,
        pepper: bytes,
        node_id: str,
        clock: Clock,
        world: World | None = None,
    ) -> None:
        """`world` is told of every change."""
        self._desk = Desk(writer, node_id, clock)
        self._world = world or World()
        self._hmac = Hmac(pepper)
        self._turn = asyncio.Lock()
        self._callers: dict[str, Caller] = {}
        self._valid: dict[bytes, tuple[int, Caller]] = {}
        """Secrets that were found to be right, until when they are if nothing changes, and whose they are."""
        self.directory = Directory(self._desk, reader, self._forget_callers)
        self._records: dict[str, KeyRecord] = {
            record.id: record for record in reader.read_now(lambda c: tuple(rows.load_keys(c)))
        }
        self._secrets: dict[bytes, Secret] = reader.read_now(rows.load_secrets)

    @property
    def has_keys(self) -> bool:
        """A key was made: from then on every request needs one, even when all keys have been revoked again."""
        return bool(self._records)

    def utc_ns(self) -> int:
        """Now, as expiry is judged."""
        return self._desk.clock.utc_ns()

    def find(self, bearer: str | None) -> Caller:
        """Who holds this key. Raises Unauthenticated, saying what is wrong with it.

        That a key was revoked or has expired is said only to who has the whole of it.
        """
        if not bearer:
            raise Unauthenticated(
                "No API key was given. Send it as 'Authorization: Bearer <key>';"
                " `llmhost keys create --org NAME` makes one."
            )
        digest = self._digest(bearer)
        known = self._valid.get(digest)
        if known is not None and self.utc_ns() < known[0]:
            return known[1]
        secret = self._secrets.get(digest)
        if secret is None:
            check_form(bearer)
            raise Unauthenticated(
                "This API key is not known here. Ask the operator for one, or make one with"
                " `llmhost keys create --org NAME`."
            )
        record = self._records[secret.key_id]
        why = self._why_not(record, secret)
        if why is not None:
            raise Unauthenticated(f"{why}. Ask the operator for a new one.")
        caller = self._callers.get(record.id) or self._remember_caller(record)
        ends_ns = self.ends_ns(bearer)
        self._valid[digest] = (EVER_NS if ends_ns is None else ends_ns), caller
        return caller

    def check_still(self, caller: Caller, bearer: str | None) -> None:
        """Raises Unauthenticated when the key that a caller was found by has ended since. Costs next to nothing while
        nothing has changed; callers that a plugin knows are none of ours."""
        record = self._records.get(caller.key_id or "")
        if record is None or bearer is None:
            return
        is_timed = record.expires_ns is not None or record.rotated_ns is not None
        if self._callers.get(record.id) is caller and not is_timed:
            return
        secret = self._secrets.get(self._digest(bearer))
        if secret is not None and secret.key_id == record.id:
            self.find(bearer)

    def ends_ns(self, bearer: str | None) -> int | None:
        """When a key that is valid now ends by itself, or its secret does; None for never, and where there are none."""
        secret = self._secrets.get(self._digest(bearer)) if bearer else None
        if secret is None:
            return None
        ends = (secret.ends_ns, self._records[secret.key_id].expires_ns)
        return min((end for end in ends if end is not None), default=None)

    def caller(self, key_id: str) -> Caller | None:
        """Who a key is as it is now, for what its holder left here to be done; None for a key that is not ours.

        Raises Unauthenticated when it has ended.
        """
        record = self._records.get(key_id)
        if record is None:
            return None
        why = self._why_ended(record)
        if why is not None:
            raise Unauthenticated(f"{why}.")
        return self._callers.get(record.id) or self._remember_caller(record)

    def list(self) -> tuple[KeyRecord, ...]:
        """All keys, revoked ones too, oldest first."""
        return tuple(self._records.values())

    def named(self, key: str, org: str | None = None) -> KeyRecord:
        """The key whose public id this is, or the unique beginning of one, among those of one organisation if given.

        Raises NotFound, or Conflict when several keys begin like that.
        """
        start = key.removeprefix(PREFIX)
        exact = self._records.get(start)
        if exact is not None and org in (None, exact.org):
            return exact
        found = [
            record
            for record in self._records.values()
            if start and record.id.startswith(start) and org in (None, record.org)
        ]
        if not found:
            raise NotFound(
                f"No API key's id is or begins with {start[:80]!r}. `llmhost keys list` lists them."
            )
        if len(found) > 1:
            ids = ", ".join(record.id for record in found[:3])
            raise Conflict(
                f"{len(found)} API keys begin with {start!r} ({ids} ...). Give more of the id."
            )
        return found[0]

    def list_orgs(self) -> tuple[Org, ...]:
        """All organisations, oldest first."""
        return self.directory.orgs()

    async def create_org(self, name: str, limits: Limits = NO_LIMITS) -> Org:
        """Raises InvalidValue for what it can't have, Conflict for one that exists."""
        return await self.directory.create_org(name, limits)

    async def create(
        self,
        *,
        org: str,
        team: str | None = None,
        name: str | None = None,
        role: Role = Role.MEMBER,
        limits: Limits = NO_LIMITS,
        models: Sequence[str] | None = None,
        expires_ns: int | None = None,
    ) -> tuple[KeyRecord, str]:
        """A new key, and its whole text, which is not kept and can't be shown again. A new team is made with it.

        Raises NotFound for an unknown organisation, InvalidValue for anything that a key can't have, Conflict
        for a team that is archived.
        """
        public_id, token = new_token()
        record = KeyRecord(
            id=public_id,
            org=self.directory.org(org).name,
            team=team,
            name=name,
            role=role,
            limits=limits,
            models=None if models is None else tuple(models),
            created_ns=self.utc_ns(),
            expires_ns=expires_ns,
        )
        check_key(record)
        self._check_expiry(expires_ns)
        if team is not None:
            await self.directory.ensure_team(org, team)
        digest = self._digest(token)
        await self._desk.writer.run(
            lambda connection: rows.insert_key(connection, self._desk.node_id, record, digest)
        )
        self._records[record.id] = record
        self._secrets[digest] = Secret(record.id)
        self._changed()  # the first key ends that everybody is let in
        return record, token

    async def update(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        """Change a key's settings; the next request meets them. A revoked key can't be changed.

        Raises NotFound, Conflict, and InvalidValue for anything that a key can't have.
        """
        async with self._turn:
            before = self._unrevoked(key_id)
            after = change(before)
            check_key(after)
            if after.expires_ns != before.expires_ns:
                self._check_expiry(after.expires_ns)
            await self._desk.writer.run(lambda connection: rows.update_key(connection, after))
            return self._remember(replace(after, revoked_ns=self._records[key_id].revoked_ns))

    async def rotate(self, key_id: str, overlap_ns: int) -> tuple[KeyRecord, str]:
        """A new secret for a key, and its whole text; older ones end after `overlap_ns`.

        Id and settings stay, and so do usage and limits. Raises NotFound, Conflict for a key that is revoked,
        InvalidValue for an overlap that is none.
        """
        if not 0 <= overlap_ns <= LONGEST_OVERLAP_NS:
            raise InvalidValue("The overlap may last 0 seconds to 366 days.", param="overlap_s")
        async with self._turn:
            self._unrevoked(key_id)
            _, token = new_secret(key_id)
            now_ns, digest = self.utc_ns(), self._digest(token)
            ends_ns = now_ns + overlap_ns
            await self._desk.writer.run(
                lambda connection: rows.replace_secrets(
                    connection, self._desk.node_id, now_ns, digest, key_id, ends_ns=ends_ns
                )
            )
            self._end_secrets(key_id, ends_ns)
            self._secrets[digest] = Secret(key_id)
            return self._remember(replace(self._records[key_id], rotated_ns=now_ns)), token

    async def revoke(self, key: str) -> KeyRecord:
        """End a key, named by its public id or the beginning of it; refused from this moment on.

        Repeating it changes nothing. Raises NotFound, or Conflict when several keys begin like that. When it
        can't be stored the key stays refused until the next start, and the error is raised.
        """
        record = self.named(key)
        revoked_ns = record.revoked_ns or self.utc_ns()
        record = self._remember(replace(record, revoked_ns=revoked_ns))
        await self._desk.writer.run(
            lambda connection: rows.insert_revocation(
                connection, self._desk.node_id, revoked_ns, record.id
            )
        )
        return record

    def _changed(self) -> None:
        self._valid.clear()
        self._world.changed()

    def _digest(self, token: str) -> bytes:
        return self._hmac(token.encode())

    def _remember(self, record: KeyRecord) -> KeyRecord:
        self._records[record.id] = record
        self._callers.pop(record.id, None)
        self._changed()
        return record

    def _forget_callers(self) -> None:
        self._callers.clear()
        self._changed()

    def _remember_caller(self, record: KeyRecord) -> Caller:
        directory = self.directory
        caller = Caller(
            key_id=record.id,
            org=record.org,
            team=record.team,
            models=record.models,
            role=record.role,
            limits=record.limits,
            team_limits=(
                NO_LIMITS if record.team is None else directory.team(record.org, record.team).limits
            ),
            org_limits=directory.org(record.org).limits,
        )
        self._callers[record.id] = caller
        return caller

    def _end_secrets(self, key_id: str, ends_ns: int) -> None:
        for digest, secret in self._secrets.items():
            if secret.key_id == key_id:
                earlier = ends_ns if secret.ends_ns is None else min(secret.ends_ns, ends_ns)
                self._secrets[digest] = replace(secret, ends_ns=earlier)

    def _why_not(self, record: KeyRecord, secret: Secret) -> str | None:
        """Why a key whose secret is right is refused all the same."""
        state = record.state(self.utc_ns())
        is_replaced = secret.ends_ns is not None and self.utc_ns() >= secret.ends_ns
        if state == "active" and is_replaced:
            return "This API key's secret has been replaced by a newer one, and the overlap is over"
        return self._why_ended(record)

    def _why_ended(self, record: KeyRecord) -> str | None:
        state = record.state(self.utc_ns())
        if state != "active":
            return f"This API key {_ENDED[state]}"
        if self.directory.org(record.org).disabled_ns is not None:
            return "The organisation of this API key has been disabled"
        if record.team is not None:
            team = self.directory.team(record.org, record.team)
            if team.archived_ns is not None:
                return "The team of this API key has been archived"
        return None

    def _unrevoked(self, key_id: str) -> KeyRecord:
        record = self.named(key_id)
        if record.revoked_ns is not None:
            raise Conflict(f"The key {record.id} has been revoked, which is for ever.")
        return record

    def _check_expiry(self, expires_ns: int | None) -> None:
        if expires_ns is not None and expires_ns <= self.utc_ns():
            raise InvalidValue("The key would have expired already.", param="expires_at")


_ENDED = {
    "revoked": "has been revoked",
    "expired": "has expired",
    "disabled": "has been disabled",
}
