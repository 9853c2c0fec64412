"""Signed statements and exported entries, and the routes for them: an organisation gets its own, the operator all."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from litestar import get
from litestar.response import Stream
from litestar.types import ControllerRouterHandler

from llmhost.api.admin_access import Visitor
from llmhost.api.invoice_wire import PublicKey, SignedStatement
from llmhost.api.params import FromPath, FromQuery
from llmhost.api.reports import ReportDesk, query_of
from llmhost.api.router import Router
from llmhost.core.errors import InvalidValue
from llmhost.cost import periods
from llmhost.cost.exports import export
from llmhost.cost.focus import focus
from llmhost.cost.query import Query
from llmhost.cost.reports import Reports
from llmhost.cost.statement import Statements
from llmhost.tenants.roles import OPERATOR, Access, Right
from llmhost.tenants.teams import Directory, no_org

NDJSON = "application/x-ndjson"


class InvoiceDesk:
    """Statements and exports for whoever may see them. All but `key` blocks."""

    def __init__(
        self,
        statements: Statements,
        reports: Reports,
        directory: Directory,
    ) -> None:
        self._statements = statements
        self._reports = reports
        self._directory = directory

    def key(self) -> PublicKey:
        return msgspec.convert(self._statements.key, PublicKey)

    def statement(
        self, org: str, month: str, timezone: str = "UTC", access: Access = OPERATOR
    ) -> SignedStatement:
        """Raises NotFound for an organisation that is not within sight, InvalidValue for a month that can't be."""
        if access.org not in (None, org):
            raise no_org(org)
        found = self._statements.make(org, month, timezone)
        is_known = org in {known.name for known in self._directory.orgs()}
        if not is_known and not found["statement"]["entries"]["count"]:
            raise no_org(org)
        return msgspec.convert(found, SignedStatement)

    def focus(self, query: Query, access: Access = OPERATOR) -> Iterator[dict[str, str | None]]:
        """Charges in the columns of FOCUS, of an organisation or of all."""
        own = replace(query, by=(), within_org=access.org, within_key=access.usage_key)
        return focus(self._reports, self._statements, own)

    def entries(self, query: Query, access: Access = OPERATOR) -> Iterator[dict[str, Any]]:
        """An organisation's entries, or all, in order of time."""
        own = replace(query, by=(), within_org=access.org, within_key=access.usage_key)
        return export(self._reports, own)


def invoice_routes(invoices: InvoiceDesk, desk: ReportDesk) -> list[ControllerRouterHandler]:
    """Among the admin routes, some of which keys reach."""

    @get("/invoices/{org:str}", needs=Right.ORG_USAGE)
    async def invoice(
        request: Visitor,
        org: FromPath[str],
        month: FromQuery[str],
        timezone: FromQuery[str] = "UTC",
    ) -> SignedStatement:
        """An organisation's signed statement of a month such as 2026-11, as the time zone has it."""
        return await desk.in_thread(lambda: invoices.statement(org, month, timezone, request.user))

    @get("/ledger/entries", media_type=NDJSON, needs=Right.ORG_USAGE)
    async def entries(
        request: Visitor,
        month: FromQuery[str | None] = None,
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
        timezone: FromQuery[str] = "UTC",
        org: FromQuery[list[str] | None] = None,
        team: FromQuery[list[str] | None] = None,
        key: FromQuery[list[str] | None] = None,
        model: FromQuery[list[str] | None] = None,
    ) -> Stream:
        """Entries of a month or of any time, in order of time, one JSON object a line; a key gets those of its
        organisation."""
        query = query_of(
            by="",
            since=since,
            until=until,
            timezone=timezone,
            org=org,
            team=team,
            key=key,
            model=model,
        )
        if month is not None:
            query = within_month(query, month)
        return Stream(_lines(invoices.entries(query, request.user)), media_type=NDJSON)

    @get("/usage/focus", media_type=NDJSON, needs=Right.ORG_USAGE)
    async def focus_rows(
        request: Visitor,
        month: FromQuery[str | None] = None,
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
        timezone: FromQuery[str] = "UTC",
        org: FromQuery[list[str] | None] = None,
        team: FromQuery[list[str] | None] = None,
        key: FromQuery[list[str] | None] = None,
        model: FromQuery[list[str] | None] = None,
    ) -> Stream:
        """Charges of a month or of any time in the columns of FOCUS 1.2, one JSON object a line: a row for each day,
        organisation, team, key, model, price and dimension."""
        query = query_of(
            by="",
            since=since,
            until=until,
            timezone=timezone,
            org=org,
            team=team,
            key=key,
            model=model,
        )
        if month is not None:
            query = within_month(query, month)
        access = request.user
        rows = await desk.in_thread(lambda: list(invoices.focus(query, access)))
        return Stream(_lines(iter(rows)), media_type=NDJSON)

    return [invoice, entries, focus_rows]


def key_router(invoices: InvoiceDesk) -> Router:
    """What needs nothing: the key that statements are checked with is everybody's to know."""

    @get("/public-key", sync_to_thread=True)
    def public_key() -> PublicKey:
        """What statements of this node are checked with."""
        return invoices.key()

    return Router("/v1/billing", tags=["billing"], route_handlers=[public_key])


def within_month(query: Query, month: str) -> Query:
    """Of a month and nothing else. Raises InvalidValue."""
    if query.since_ns is not None or query.until_ns is not None:
        raise InvalidValue("Give a month, or 'since' and 'until', and not both.", param="month")
    span = periods.month_of(month, periods.zone_of(query.zone))
    return replace(query, since_ns=span.start_ns, until_ns=span.end_ns)


def _lines(entries: Iterator[Mapping[str, Any]]) -> Iterator[bytes]:
    for entry in entries:
        yield msgspec.json.encode(entry) + b"\n"
