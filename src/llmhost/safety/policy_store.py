"""Policies of organisations: versions that never change, and which of them is in force. All of it is held in memory.

They are in the audit log's file, so that a version or an activation is written together with the row that tells of it.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from llmhost.core.caller import Caller
from llmhost.core.errors import Conflict, InvalidValue, LlmhostError, NotFound
from llmhost.core.ports import Clock
from llmhost.core.world import World
from llmhost.observe.logs import log_event
from llmhost.safety.policy import OrgPolicy, PolicyBody, check_policy
from llmhost.safety.verdict import Policy
from llmhost.storage.audit import AuditRow, AuditTrail
from llmhost.storage.connect import Connection
from llmhost.storage.schema import Schema

log = logging.getLogger("llmhost.safety")

MOST_VERSIONS = 1_000
T = TypeVar("T")

SCHEMA = Schema(
    "policies",
    {
        "versions_and_activations": (
            """CREATE TABLE policies (
                org TEXT NOT NULL,
                version INTEGER NOT NULL,
                node_id TEXT NOT NULL,
                at_ns INTEGER NOT NULL,
                made_by TEXT NOT NULL,
                note TEXT,
                body TEXT NOT NULL,
                PRIMARY KEY (org, version)
            ) STRICT""",
            """CREATE TABLE policy_activations (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                at_ns INTEGER NOT NULL,
                org TEXT NOT NULL,
                version INTEGER, -- none: the node's own policy
                made_by TEXT NOT NULL
            ) STRICT""",
            *(
                f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
                for table in ("policies", "policy_activations")
                for verb in ("UPDATE", "DELETE")
            ),
        ),
    },
)
_LOAD = "SELECT org, version, at_ns, made_by, note, body FROM policies ORDER BY org, version"
_LOAD_ACTIVE = "SELECT org, version FROM policy_activations ORDER BY seq"
_ADD = (
    "INSERT INTO policies (org, version, node_id, at_ns, made_by, note, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_ACTIVATE = (
    "INSERT INTO policy_activations (node_id, at_ns, org, version, made_by) VALUES (?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """What was written, by whom and when."""

    org: str
    version: int
    at_ns: int
    made_by: str
    note: str | None
    body: PolicyBody


class PolicyStore:
    """Owns policies. Implements Policies. Loads all of them when made, which waits for the disk."""

    def __init__(
        self,
        trail: AuditTrail,
        default: Policy,
        *,
        node_id: str,
        clock: Clock,
        world: World | None = None,
    ) -> None:
        """`default` holds for organisations without a policy of their own; `world` is told of every change."""
        self._world = world or World()
        self._trail = trail
        self.default = default
        self._node_id = node_id
        self._clock = clock
        self._prepare: Callable[[Policy], object] = lambda _: None
        self._turn = asyncio.Lock()
        self._versions: dict[str, dict[int, PolicyVersion]] = {}
        self._in_force: dict[str, OrgPolicy] = {}
        self._load()

    def prepare_with(self, prepare: Callable[[Policy], object]) -> None:
        """Have a policy's rules compiled before it comes into force: now those that hold, later in a thread. Blocks.

        `prepare` raises an LlmhostError for words that are none."""
        for policy in self._in_force.values():
            prepare(policy)
        self._prepare = prepare

    def of(self, caller: Caller) -> Policy:
        """The policy in force for a caller's organisation."""
        return self._in_force.get(caller.org, self.default)

    def in_force(self, org: str) -> int | None:
        """The version that holds; None where the node's own policy does."""
        policy = self._in_force.get(org)
        return None if policy is None else policy.version

    def versions(self, org: str) -> Sequence[PolicyVersion]:
        """The oldest first."""
        return tuple(self._versions.get(org, {}).values())

    def version(self, org: str, version: int) -> PolicyVersion:
        """Raises NotFound."""
        found = self._versions.get(org, {}).get(version)
        if found is None:
            raise NotFound(
                f"{org!r} has no policy of version {version}. `llmhost safety policies list {org}` shows which it has."
            )
        return found

    def made_of(self, org: str, version: int, body: PolicyBody) -> OrgPolicy:
        """As it would be in force."""
        return OrgPolicy(org, version, body, self.default)

    def days(self) -> dict[str, int]:
        """How long rows of the audit log are kept, for organisations whose policy says it."""
        known = {org: policy.body.audit_days for org, policy in self._in_force.items()}
        return {org: days for org, days in known.items() if days is not None}

    async def create(
        self, org: str, body: PolicyBody, *, who: str, note: str | None = None, activate: bool
    ) -> PolicyVersion:
        """A new version, in force at once if wanted. Raises InvalidValue, Conflict, StorageFailed."""
        check_policy(body)
        await self._compile(self.made_of(org, 0, body))
        return await _to_its_end(self._create(org, body, who=who, note=note, activate=activate))

    async def _create(
        self, org: str, body: PolicyBody, *, who: str, note: str | None, activate: bool
    ) -> PolicyVersion:
        async with self._turn:
            version = len(self._versions.get(org, {})) + 1
            if version > MOST_VERSIONS:
                raise Conflict(f"{org!r} has {MOST_VERSIONS} policies, which is the limit.")
            record = PolicyVersion(
                org=org,
                version=version,
                at_ns=self._clock.utc_ns(),
                made_by=who,
                note=note,
                body=body,
            )
            await self._trail.together(lambda connection: self._add(connection, record))
            self._versions.setdefault(org, {})[version] = record
            if activate:
                await self._activate(org, version, who)
        return record

    async def activate(self, org: str, version: int | None, *, who: str) -> None:
        """Have a version in force from now on, an older one too; None: the node's own policy. Raises NotFound."""
        if version is not None:
            await self._compile(self.made_of(org, version, self.version(org, version).body))
        await _to_its_end(self._activate_in_turn(org, version, who))

    async def _activate_in_turn(self, org: str, version: int | None, who: str) -> None:
        async with self._turn:
            await self._activate(org, version, who)

    async def _activate(self, org: str, version: int | None, who: str) -> None:
        at_ns, before = self._clock.utc_ns(), self.in_force(org)

        def act(connection: Connection) -> tuple[None, AuditRow]:
            connection.execute(_ACTIVATE, (self._node_id, at_ns, org, version, who))
            detail = {"version": version, "before": before}
            return None, self._row(at_ns, org, who, "policy.activated", detail)

        await self._trail.together(act)
        self._put_in_force(org, version)
        log_event(log, "policy.activated", org=org, version=version or "default", by=who)

    async def _compile(self, policy: Policy) -> None:
        try:
            await asyncio.to_thread(self._prepare, policy)
        except LlmhostError as error:
            raise InvalidValue(str(error), param="policy.words") from None

    def _add(self, connection: Connection, record: PolicyVersion) -> tuple[None, AuditRow]:
        said = msgspec.json.encode(record.body)
        connection.execute(
            _ADD,
            (
                *(record.org, record.version, self._node_id, record.at_ns),
                *(record.made_by, record.note, said.decode()),
            ),
        )
        detail = {"version": record.version, "sha256": hashlib.sha256(said).hexdigest()}
        return None, self._row(record.at_ns, record.org, record.made_by, "policy.created", detail)

    def _row(
        self, at_ns: int, org: str, who: str, action: str, detail: Mapping[str, Any]
    ) -> AuditRow:
        return AuditRow(
            at_ns=at_ns, kind="policy", org=org, actor=who, action=action, target=org, detail=detail
        )

    def _load(self) -> None:
        rows = self._trail.reader.read_now(lambda c: c.execute(_LOAD).fetchall())
        for org, version, at_ns, made_by, note, body in rows:
            self._versions.setdefault(org, {})[version] = PolicyVersion(
                org=org,
                version=version,
                at_ns=at_ns,
                made_by=made_by,
                note=note,
                body=msgspec.json.decode(body, type=PolicyBody),
            )
        active = self._trail.reader.read_now(lambda c: c.execute(_LOAD_ACTIVE).fetchall())
        for org, version in dict(active).items():
            self._put_in_force(org, version)

    def _put_in_force(self, org: str, version: int | None) -> None:
        if version is None:
            self._in_force.pop(org, None)
        else:
            self._in_force[org] = self.made_of(org, version, self._versions[org][version].body)
        self._world.changed()


async def _to_its_end(act: Coroutine[Any, Any, T]) -> T:
    """Carried on where whoever asked has left: what is on disk is in memory as well, or in neither."""
    task = asyncio.create_task(act)
    _acts.add(task)
    task.add_done_callback(_forget)
    return await asyncio.shield(task)


_acts: set["asyncio.Task[Any]"] = set()
"""Asyncio itself keeps no task alive."""


def _forget(task: "asyncio.Task[Any]") -> None:
    _acts.discard(task)
    if not task.cancelled():
        task.exception()  # whoever waited has it; nobody may be left
