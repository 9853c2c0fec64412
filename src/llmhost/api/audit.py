"""What can be seen of the audit log: by the operator all of it, by an organisation's admins what is of theirs."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import get
from litestar.response import Stream
from litestar.types import Guard

from llmhost.api.admin_access import Visitor
from llmhost.api.admin_tenants import MOST_ROWS, PAGE_ROWS
from llmhost.api.params import FromPath, FromQuery
from llmhost.api.report_wire import time_ns
from llmhost.api.router import Router
from llmhost.core.errors import InvalidValue, NotFound
from llmhost.safety.audit import AuditLog
from llmhost.storage.audit import LARGEST, Recorded, Wanted
from llmhost.storage.audit_chain import Head
from llmhost.tenants.roles import OPERATOR, Access, Right
from llmhost.tenants.teams import no_org

NDJSON = "application/x-ndjson"
_NUMBER = re.compile(r"[1-9]\d{0,17}")
_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `detail` depends on the action; no row has a prompt or an answer in it."""

    id: str
    at_ns: int
    kind: str
    org: str | None
    actor: str
    action: str
    target: str
    request_id: str | None
    detail: dict[str, Any]
    mark: str


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[AuditEntry]
    has_more: bool
    last_id: str | None


class AuditVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` were found good and `pruned` were deleted when they were old, up to `head`: a number and a mark."""

    ok: bool
    rows: int
    pruned: int
    head: str
    row: int | None
    """The first place that is wrong."""
    problem: str | None


class AuditPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt that a policy has kept, by its row; times are Unix seconds."""

    id: str
    request_id: str | None
    text: str
    ends_at: int


class AuditDesk:
    """Reads the log. All of it blocks."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    def list(
        self,
        access: Access = OPERATOR,
        *,
        limit: int = PAGE_ROWS,
        after: str | None = None,
        **wanted: str | None,
    ) -> AuditPage:
        """The newest first; `after` is the id of the last that is known."""
        if not 1 <= limit <= MOST_ROWS:
            raise InvalidValue(f"'limit' is {limit}; it may be 1 to {MOST_ROWS}.", param="limit")
        if after is not None and not (after.isdecimal() and len(after) < 19):
            raise InvalidValue(
                f"'after' is {after[:80]!r}, which is no id of this list.", param="after"
            )
        found = self._audit.newest(
            _wanted(access, **wanted), limit=limit + 1, before=None if after is None else int(after)
        )
        rows = found[:limit]
        return AuditPage(
            data=[entry_of(row) for row in rows],
            has_more=len(found) > limit,
            last_id=str(rows[-1].seq) if rows else None,
        )

    def export(self, access: Access = OPERATOR, **wanted: str | None) -> Iterator[AuditEntry]:
        """The oldest first."""
        return map(entry_of, self._audit.oldest(_wanted(access, **wanted)))

    def prompt(self, row_id: str, access: Access = OPERATOR) -> AuditPrompt:
        """Raises NotFound where none is kept, or any more."""
        found = self._audit.trail.row(int(row_id)) if _NUMBER.fullmatch(row_id) else None
        if found is None or access.org not in (None, found.row.org):
            raise NotFound(f"There is no row {row_id[:80]!r} in the audit log.")
        kept = self._audit.prompt(found)
        if kept is None:
            raise NotFound(f"No prompt is kept of row {row_id}, or not any more.")
        text, ends_ns = kept
        return AuditPrompt(
            id=row_id, request_id=found.row.request_id, text=text, ends_at=ends_ns // 10**9
        )

    def verify(self, head: str | None = None) -> AuditVerdict:
        """`head` is one that was kept from an earlier check, as NUMBER:MARK."""
        found = self._audit.verify(None if head is None else _head(head))
        return AuditVerdict(
            ok=found.broken is None,
            rows=found.rows,
            pruned=found.pruned,
            head=f"{found.head.seq}:{found.head.mark.hex()}",
            row=None if found.broken is None else found.broken.seq,
            problem=None if found.broken is None else str(found.broken),
        )


def audit_router(desk: AuditDesk, guard: Guard) -> Router:
    """The routes. Reading changes nothing, and is not written down."""

    @get("/audit", needs=Right.MANAGE)
    async def list_audit(
        request: Visitor,
        org: FromQuery[str | None] = None,
        kind: FromQuery[str | None] = None,
        action: FromQuery[str | None] = None,
        actor: FromQuery[str | None] = None,
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> AuditPage:
        """Rows of the audit log, newest first."""
        asked = {"org": org, "kind": kind, "action": action, "actor": actor}
        asked |= {"since": since, "until": until}
        return await asyncio.to_thread(desk.list, request.user, limit=limit, after=after, **asked)

    @get("/audit/export", media_type=NDJSON, sync_to_thread=False, needs=Right.MANAGE)
    def export_audit(
        request: Visitor,
        org: FromQuery[str | None] = None,
        kind: FromQuery[str | None] = None,
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
    ) -> Stream:
        """Rows of the audit log as JSON lines, oldest first."""
        rows = desk.export(request.user, org=org, kind=kind, since=since, until=until)
        return Stream((msgspec.json.encode(row) + b"\n" for row in rows), media_type=NDJSON)

    @get("/audit/verify")
    async def verify_audit(head: FromQuery[str | None] = None) -> AuditVerdict:
        """Check each row of the audit log against its chain, and its end against what is known of it."""
        return await asyncio.to_thread(desk.verify, head)

    @get("/audit/{row_id:str}/prompt", needs=Right.MANAGE, leaves_row=True)
    async def read_prompt(request: Visitor, row_id: FromPath[str]) -> AuditPrompt:
        """A prompt that a policy has kept. Who reads it is written down first."""
        return await asyncio.to_thread(desk.prompt, row_id, request.user)

    return Router(
        "/admin/v1",
        guards=[guard],
        tags=["admin"],
        route_handlers=[list_audit, export_audit, verify_audit, read_prompt],
    )


def entry_of(found: Recorded) -> AuditEntry:
    row = found.row
    return AuditEntry(
        id=str(found.seq),
        at_ns=row.at_ns,
        kind=row.kind,
        org=row.org,
        actor=row.actor,
        action=row.action,
        target=row.target,
        request_id=row.request_id,
        detail=dict(row.detail),
        mark=found.mark.hex(),
    )


def _wanted(
    access: Access,
    *,
    org: str | None = None,
    since: str | None = None,
    until: str | None = None,
    **more: str | None,
) -> Wanted:
    if org is not None and access.org not in (None, org):
        raise no_org(org)
    until_ns = time_ns(until, "until")
    return Wanted(
        org=org or access.org,
        since_ns=time_ns(since, "since") or 0,
        until_ns=LARGEST if until_ns is None else until_ns,
        **more,
    )


def _head(text: str) -> Head:
    found = _HEAD.fullmatch(text)
    if found is None:
        raise InvalidValue(
            "'head' is written NUMBER:MARK, as an earlier check said it.", param="head"
        )
    return Head(int(found[1]), bytes.fromhex(found[2]))
