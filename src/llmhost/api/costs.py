"""What devices cost the operator, as the checks found it: plain data, and the admin route that answers it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar import get
from litestar.types import Guard

from llmhost.api.admin_tenants import PAGE_ROWS, page_of
from llmhost.api.params import FromQuery
from llmhost.api.report_wire import time_ns
from llmhost.api.router import Router
from llmhost.core.errors import InvalidValue
from llmhost.cost.costbook import CostBook
from llmhost.cost.query import LAST_NS


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A device's time and what it cost, as so many checks found it. `error_nano` is what does not add up: 0."""

    device: str
    checks: int
    busy_ns: int
    load_ns: int
    idle_ns: int
    callers_nano: int
    operator_nano: int
    load_nano: int
    idle_nano: int
    error_nano: int


class DevicePage(msgspec.Struct, frozen=True, kw_only=True):
    """Devices by name. The next page comes `after` `last_id`."""

    data: list[DeviceRow]
    has_more: bool
    last_id: str | None


class CostReports:
    """Reports of the checks, for a running node and a stopped one. Blocks.

    `bring_up_to_date` has a running node's devices read and kept.
    """

    def __init__(
        self, book: CostBook, bring_up_to_date: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._book = book
        self.bring_up_to_date = bring_up_to_date

    def devices(self, since_ns: int | None, until_ns: int | None) -> list[dict[str, Any]]:
        """What the checks of that time found. Raises InvalidValue."""
        for bound in (since_ns, until_ns):
            if bound is not None and abs(bound) > LAST_NS:
                raise InvalidValue(f"A time is out of range: {bound} ns.", param="since")
        return self._book.devices(since_ns=since_ns, until_ns=until_ns)


def cost_router(reports: CostReports, guard: Guard) -> Router:
    """The route, which no key reaches."""

    @get("/devices")
    async def devices(
        since: FromQuery[str | None] = None,
        until: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> DevicePage:
        """Busy, load and idle time of each device and what it cost, as the checks found it: once an hour, and now."""
        bounds = time_ns(since, "since"), time_ns(until, "until")
        if reports.bring_up_to_date is not None:
            await reports.bring_up_to_date()
        rows = await asyncio.to_thread(reports.devices, *bounds)
        page, has_more = page_of(rows, lambda row: str(row["device"]), limit, after)
        last = page[-1]["device"] if page else None
        data = msgspec.convert(page, list[DeviceRow])
        return DevicePage(data=data, has_more=has_more, last_id=last)

    return Router("/admin/v1/costs", guards=[guard], tags=["admin"], route_handlers=[devices])
