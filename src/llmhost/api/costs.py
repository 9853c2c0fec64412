"""What requests cost the operator, and what they brought in: plain data, and the admin routes that answer it."""

import asyncio
from typing import Any, cast, get_args

from litestar import Router, get
from litestar.params import FromQuery
from litestar.types import Guard

from llmhost.api.admin_routes import utc_ns
from llmhost.api.admin_wire import LAST_S
from llmhost.core.errors import InvalidValue
from llmhost.core.units import nano_to_dollars
from llmhost.cost.costbook import CostBook, CostRow
from llmhost.cost.ledger import By


class CostReports:
    """Reports of true cost, for a running node and a stopped one. Both block."""

    def __init__(self, book: CostBook) -> None:
        self._book = book

    def by_group(self, by: str, since_ns: int | None, until_ns: int | None) -> list[dict[str, Any]]:
        """Cost by pool, charges and margin of since <= time < until. Raises InvalidValue."""
        if by not in get_args(By):
            known = ", ".join(get_args(By))
            raise InvalidValue(f"'by' is {by!r}; it may be {known}.", param="by")
        _check(since_ns, until_ns)
        rows = self._book.sums(cast(By, by), since_ns=since_ns, until_ns=until_ns)
        return [_row(by, row) for row in rows]

    def devices(self, since_ns: int | None, until_ns: int | None) -> list[dict[str, Any]]:
        """What the hourly checks of that time found. Raises InvalidValue."""
        _check(since_ns, until_ns)
        return self._book.devices(since_ns=since_ns, until_ns=until_ns)


def cost_router(reports: CostReports, guard: Guard) -> Router:
    """The routes, which no key reaches."""

    @get("/")
    async def costs(
        by: FromQuery[str] = "org",
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
    ) -> dict[str, Any]:
        """What requests cost by pool, what was charged, and the margin, by key, team, org, model or day."""
        bounds = utc_ns(since, "since"), utc_ns(until, "until")
        return {"data": await asyncio.to_thread(reports.by_group, by, *bounds)}

    @get("/devices")
    async def devices(
        since: FromQuery[str | None] = None, until: FromQuery[str | None] = None
    ) -> dict[str, Any]:
        """Busy, load and idle time of each device and what it cost, as the hourly checks found it."""
        bounds = utc_ns(since, "since"), utc_ns(until, "until")
        return {"data": await asyncio.to_thread(reports.devices, *bounds)}

    return Router(
        "/admin/v1/costs", guards=[guard], tags=["admin"], route_handlers=[costs, devices]
    )


def _check(*bounds_ns: int | None) -> None:
    for bound in bounds_ns:
        if bound is not None and abs(bound) > LAST_S * 10**9:
            raise InvalidValue(f"A time is out of range: {bound} ns.", param="since")


def _row(by: str, row: CostRow) -> dict[str, Any]:
    return {
        by: row.group,
        "requests": row.requests,
        "gpu_compute_nano": row.gpu_compute_nano,
        "infrastructure_nano": row.infrastructure_nano,
        "model_loading_nano": row.model_loading_nano,
        "safety_moderation_nano": row.safety_moderation_nano,
        "provisional_nano": row.provisional_nano,
        "cost_nano": row.cost_nano,
        "cost_usd": nano_to_dollars(row.cost_nano),
        "amount_nano": row.amount_nano,
        "amount_usd": nano_to_dollars(row.amount_nano),
        "margin_nano": row.margin_nano,
        "margin_usd": nano_to_dollars(row.margin_nano),
    }
