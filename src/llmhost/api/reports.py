"""Reports of usage and cost, for a running node and a stopped one, and the routes that answer them.

Whoever asks sees what its role lets it see: a member its own key, an accountant its organisation, the operator all.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from litestar import get
from litestar.types import ControllerRouterHandler, Guard

from llmhost.api.admin_access import Visitor
from llmhost.api.admin_tenants import PAGE_ROWS, page_of
from llmhost.api.params import FromQuery
from llmhost.api.report_wire import (
    CostedPage,
    UsedPage,
    costed_row,
    line_id,
    names_in,
    time_ns,
    used_row,
)
from llmhost.api.router import Router
from llmhost.cost.query import Query
from llmhost.cost.reports import Line, Reports
from llmhost.tenants.roles import OPERATOR, Access, Right

T = TypeVar("T")

KEPT = 2
"""Reports that are remembered for those who read them page by page."""

AT_ONCE = 2
"""Reports that are made at the same time; others wait. The threads that they take are everybody's."""


class ReportDesk:
    """Makes reports for whoever may see them. What does not say `async` blocks."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._pages: dict[tuple[str, Query], list[Line]] = {}

    async def in_thread(self, make: Callable[[], T]) -> T:
        """Off the event loop, a few at a time."""
        async with self._turns:
            return await asyncio.to_thread(make)

    def usage(
        self,
        query: Query,
        access: Access = OPERATOR,
        *,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> UsedPage:
        """Requests, tokens and money. Raises InvalidValue."""
        query = seen_by(access, query)
        lines = self._kept("usage", query, self._reports.usage, after)
        page, has_more = page_of(lines, lambda line: line_id(line, query), limit, after)
        data = [used_row(line, query) for line in page]
        return UsedPage(data=data, has_more=has_more, last_id=data[-1].id if data else None)

    def costs(
        self,
        query: Query,
        access: Access = OPERATOR,
        *,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> CostedPage:
        """The same with cost by pool and margin. Raises InvalidValue."""
        query = seen_by(access, query)
        lines = self._kept("costs", query, self._reports.costs, after)
        page, has_more = page_of(lines, lambda line: line_id(line, query), limit, after)
        data = [costed_row(line, query) for line in page]
        return CostedPage(data=data, has_more=has_more, last_id=data[-1].id if data else None)

    def _kept(
        self, kind: str, query: Query, make: Callable[[Query], list[Line]], after: str | None
    ) -> list[Line]:
        """A new report, or for a later page the one that the pages before it were of, while it is kept."""
        known = self._pages.pop((kind, query), None)
        lines = known if known is not None and after is not None else make(query)
        self._pages[kind, query] = lines
        while len(self._pages) > KEPT:
            self._pages.pop(next(iter(self._pages)), None)
        return lines


def seen_by(access: Access, query: Query) -> Query:
    """The query, of no more than one may see."""
    return replace(query, within_org=access.org, within_key=access.usage_key)


def query_of(
    *,
    by: str,
    since: str | None = None,
    until: str | None = None,
    timezone: str = "UTC",
    org: Sequence[str] | None = None,
    team: Sequence[str] | None = None,
    key: Sequence[str] | None = None,
    model: Sequence[str] | None = None,
) -> Query:
    """From text. Raises InvalidValue."""
    return Query(
        by=names_in(by),
        zone=timezone,
        since_ns=time_ns(since, "since", timezone),
        until_ns=time_ns(until, "until", timezone),
        orgs=tuple(org or ()),
        teams=tuple(team or ()),
        keys=tuple(key or ()),
        models=tuple(model or ()),
    ).checked()


def usage_router(desk: ReportDesk, guard: Guard) -> Router:
    """Usage where keys are at home: of the key itself, or of its organisation if its role sees that."""
    usage, _ = report_routes(desk)
    return Router("/v1", guards=[guard], tags=["usage"], route_handlers=[usage])


def report_routes(desk: ReportDesk) -> list[ControllerRouterHandler]:
    """Usage for keys as far as their roles go, costs for the operator."""

    @get("/usage", needs=Right.OWN_USAGE)
    async def usage(  # noqa: PLR0913 - its query
        request: Visitor,
        by: FromQuery[str] = "org",
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
        timezone: FromQuery[str] = "UTC",
        org: FromQuery[list[str] | None] = None,
        team: FromQuery[list[str] | None] = None,
        key: FromQuery[list[str] | None] = None,
        model: FromQuery[list[str] | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> UsedPage:
        """Requests, tokens and money, by any of org, team, key, model, run, adapter, kind, outcome and price, and by
        minute, hour, day or month of a time zone: one, or several with commas between."""
        query = query_of(
            by=by,
            since=since,
            until=until,
            timezone=timezone,
            org=org,
            team=team,
            key=key,
            model=model,
        )
        return await desk.in_thread(
            lambda: desk.usage(query, request.user, limit=limit, after=after)
        )

    @get("/costs")
    async def costs(  # noqa: PLR0913 - its query
        by: FromQuery[str] = "org",
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
        timezone: FromQuery[str] = "UTC",
        org: FromQuery[list[str] | None] = None,
        team: FromQuery[list[str] | None] = None,
        key: FromQuery[list[str] | None] = None,
        model: FromQuery[list[str] | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> CostedPage:
        """What requests cost by pool, what was charged, and the margin; as usage, by org, team, key, model and time."""
        query = query_of(
            by=by,
            since=since,
            until=until,
            timezone=timezone,
            org=org,
            team=team,
            key=key,
            model=model,
        )
        return await desk.in_thread(lambda: desk.costs(query, limit=limit, after=after))

    return [usage, costs]
