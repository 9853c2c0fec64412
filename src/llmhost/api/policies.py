"""Safety policies of organisations: what can be seen and done of them, and the routes.

The operator makes policies and puts them in force, since a policy may be laxer than the node's own; an organisation's
admins see theirs, and may try out what another would do.
"""

import asyncio
import re
from typing import Annotated

import msgspec
from litestar import get, post
from litestar.types import Guard
from msgspec import Meta

from llmhost.api.admin_access import Visitor
from llmhost.api.admin_tenants import PAGE_ROWS, page_of
from llmhost.api.params import FromPath, FromQuery, JSONBody
from llmhost.api.report_wire import time_ns
from llmhost.api.router import Router
from llmhost.core.errors import InvalidValue, NotFound
from llmhost.safety.audit import AuditLog
from llmhost.safety.dry_run import DryRun, dry_run
from llmhost.safety.policy import PolicyBody, check_policy
from llmhost.safety.policy_store import PolicyStore, PolicyVersion
from llmhost.storage.audit import LARGEST, Wanted
from llmhost.tenants.roles import OPERATOR, Access, Right
from llmhost.tenants.teams import Directory, no_org

DEFAULT = "default"
"""In the place of a version: what the node says for organisations without a policy."""
ACTIVE = "active"
_NUMBER = re.compile(r"[1-9]\d{0,8}")


class NewPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that makes a version, in force at once unless `activate` is false."""

    policy: PolicyBody
    note: Annotated[str, Meta(max_length=500)] | None = None
    activate: bool = True


class PolicyTrial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to try out: a `version` that there is or a `policy` that is not, on screenings of since <= time < until."""

    version: int | None = None
    policy: PolicyBody | None = None
    since: str | None = None
    until: str | None = None


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version. It never changes; `active` says whether it is in force."""

    id: str
    org: str
    version: int
    active: bool
    created_at: int
    made_by: str
    note: str | None
    policy: PolicyBody


class PolicyPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[PolicyRow]
    has_more: bool
    last_id: str | None


class PolicyInForce(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for an organisation; `version` is null for the node's own policy."""

    id: str
    org: str
    version: int | None


class PolicyMove(msgspec.Struct, frozen=True, kw_only=True):
    before: str
    after: str
    count: int


class PolicyExample(msgspec.Struct, frozen=True, kw_only=True):
    """A text of which something else would have become; `row` is that of the audit log."""

    row: int
    request_id: str | None
    direction: str
    before: str
    after: str
    rule: str | None
    score: float | None


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy would have done with screenings that are in the audit log; `examples` are the first of them."""

    org: str
    screenings: int
    changed: int
    before: dict[str, int]
    after: dict[str, int]
    moves: list[PolicyMove]
    examples: list[PolicyExample]


class PolicyAdmin:
    """Acts and lists on policies."""

    def __init__(self, store: PolicyStore, audit: AuditLog, directory: Directory) -> None:
        self._store = store
        self._audit = audit
        self._directory = directory

    def list(
        self,
        org: str,
        access: Access = OPERATOR,
        *,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> PolicyPage:
        found = self._store.versions(self._own(org, access))
        rows, has_more = page_of(found, _id, limit, after)
        return PolicyPage(
            data=[self._row(one) for one in rows],
            has_more=has_more,
            last_id=_id(rows[-1]) if rows else None,
        )

    def show(self, org: str, version: str, access: Access = OPERATOR) -> PolicyRow:
        """A number, or `active`. Raises NotFound."""
        name = self._own(org, access)
        if version != ACTIVE:
            return self._row(self._store.version(name, _number(version)))
        number = self._store.in_force(name)
        if number is None:
            raise NotFound(f"{org!r} has no policy in force; the node's own holds for it.")
        return self._row(self._store.version(name, number))

    async def create(self, org: str, new: NewPolicy, access: Access = OPERATOR) -> PolicyRow:
        name = self._own(org, access)
        made = await self._store.create(
            name, new.policy, who=access.who, note=new.note, activate=new.activate
        )
        return self._row(made)

    async def activate(self, org: str, version: str, access: Access = OPERATOR) -> PolicyInForce:
        """A number, or `default`. Raises NotFound."""
        name = self._own(org, access)
        number = None if version == DEFAULT else _number(version)
        await self._store.activate(name, number, who=access.who)
        policy = self._store.default.name if number is None else f"{name}@{number}"
        return PolicyInForce(id=policy, org=name, version=number)

    def try_out(self, org: str, trial: PolicyTrial, access: Access = OPERATOR) -> TrialResult:
        """Blocks."""
        name = self._own(org, access)
        if (trial.version is None) == (trial.policy is None):
            raise InvalidValue("Give either a 'version' or a 'policy'.", param="version")
        if trial.policy is not None:
            check_policy(trial.policy)
            policy = self._store.made_of(name, 0, trial.policy)
        else:
            known = self._store.version(name, trial.version or 0)
            policy = self._store.made_of(name, known.version, known.body)
        until_ns = time_ns(trial.until, "until")
        wanted = Wanted(
            org=name,
            kind="screening",
            since_ns=time_ns(trial.since, "since") or 0,
            until_ns=LARGEST if until_ns is None else until_ns,
        )
        return _result(name, dry_run(self._audit.oldest(wanted), policy))

    def _row(self, found: PolicyVersion) -> PolicyRow:
        return PolicyRow(
            id=_id(found),
            org=found.org,
            version=found.version,
            active=self._store.in_force(found.org) == found.version,
            created_at=found.at_ns // 10**9,
            made_by=found.made_by,
            note=found.note,
            policy=found.body,
        )

    def _own(self, org: str, access: Access) -> str:
        if access.org not in (None, org):
            raise no_org(org)
        return self._directory.org(org).name


def policy_router(policies: PolicyAdmin, guard: Guard) -> Router:
    """The routes."""

    @get("/orgs/{org:str}/policies", sync_to_thread=False, needs=Right.MANAGE)
    def list_policies(
        request: Visitor,
        org: FromPath[str],
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> PolicyPage:
        """An organisation's policies, oldest first."""
        return policies.list(org, request.user, limit=limit, after=after)

    @post("/orgs/{org:str}/policies")
    async def create_policy(org: FromPath[str], data: JSONBody[NewPolicy]) -> PolicyRow:
        """Make a new version, and put it in force."""
        return await policies.create(org, data)

    @get("/orgs/{org:str}/policies/{version:str}", sync_to_thread=False, needs=Right.MANAGE)
    def show_policy(request: Visitor, org: FromPath[str], version: FromPath[str]) -> PolicyRow:
        """One version by its number, or the one that is `active`."""
        return policies.show(org, version, request.user)

    @post("/orgs/{org:str}/policies/{version:str}/activate", status_code=200)
    async def activate_policy(org: FromPath[str], version: FromPath[str]) -> PolicyInForce:
        """Put a version in force, an older one too; `default` is the node's own policy."""
        return await policies.activate(org, version)

    @post("/orgs/{org:str}/policies/dry-run", status_code=200, needs=Right.MANAGE)
    async def try_policy(
        request: Visitor, org: FromPath[str], data: JSONBody[PolicyTrial]
    ) -> TrialResult:
        """Say what a policy would have done with what was screened."""
        return await asyncio.to_thread(policies.try_out, org, data, request.user)

    return Router(
        "/admin/v1",
        guards=[guard],
        tags=["admin"],
        route_handlers=[list_policies, create_policy, show_policy, activate_policy, try_policy],
    )


def _id(found: PolicyVersion) -> str:
    return f"{found.org}@{found.version}"


def _number(version: str) -> int:
    if not _NUMBER.fullmatch(version):
        raise NotFound(f"{version[:80]!r} is no version of a policy; they are numbers.")
    return int(version)


def _result(org: str, run: DryRun) -> TrialResult:
    return TrialResult(
        org=org,
        screenings=run.screenings,
        changed=run.changed,
        before=dict(run.before),
        after=dict(run.after),
        moves=[
            PolicyMove(before=before, after=after, count=count)
            for (before, after), count in run.moves.most_common()
        ],
        examples=[
            PolicyExample(
                row=one.row,
                request_id=one.request_id,
                direction=one.direction,
                before=one.before,
                after=one.after,
                rule=one.rule,
                score=one.score,
            )
            for one in run.examples
        ],
    )
