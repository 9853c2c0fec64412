"""True cost while a node runs: who is in flight, which engines use which device, what loads took, and whether it all
adds up.

Steps are priced by their lane and split by the scheduler; this adds the pools around them. For the event loop's
thread. With nothing configured it costs nothing, and records nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llmhost.core.errors import LlmhostError
from llmhost.core.ids import new_request_id
from llmhost.core.meter import Meter
from llmhost.core.output import Usage
from llmhost.core.ports import Clock, EngineLoad, Lane
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.conservation import Reading, read_device
from llmhost.cost.costbook import CostBook
from llmhost.cost.pools import Booked, Infrastructure, LoadShare, Ticket
from llmhost.cost.rates import NodeRates
from llmhost.cost.rows import Load
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.cost")

FRESH_NS = 10 * 10**9
"""So old may a report of devices be."""
TRIES, TRY_S = 200, 0.01
"""A step's cost is split a moment after its time was measured: a device is read when nothing lies in between."""

ReadLoad = Callable[[], EngineLoad]


@dataclass(slots=True)
class _Device:
    """What is known of one device beside its lane."""

    meter: Meter
    """Of loads."""
    booked: Booked = field(default_factory=Booked)
    unborne_nano: int = 0
    """Of what callers' sequences cost, what no request bears."""
    engines: list[ReadLoad] = field(default_factory=list)
    ended: list[EngineLoad] = field(default_factory=list)
    """Of engines that are gone, added up."""
    before: Reading | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, and how long each device had been idle by then."""

    at_ns: int
    idle_ns: Mapping[str, int]
    """Not of devices whose turns overlap."""


@dataclass(frozen=True, slots=True)
class LoadBegun:
    """A load that is under way."""

    device: str
    began_ns: int
    """By `_time_for_loads`."""


class TrueCosts:
    """The running node's costs. `book` keeps them; without one they are only counted."""

    def __init__(
        self,
        rates: NodeRates,
        clock: Clock,
        book: CostBook | None = None,
        *,
        lanes: Callable[[], Mapping[str, Lane]] = dict,
        sent_bytes: Callable[[], int] = lambda: 0,
        is_shown: bool = True,
    ) -> None:
        self.rates = rates
        self.is_shown = is_shown
        """Whether callers may see what their requests cost."""
        self.infrastructure = Infrastructure(rates, clock, sent_bytes)
        self.readings: dict[str, Reading] = {}
        """Of the last check."""
        self._clock = clock
        self._book = book
        self._lanes = lanes
        self._is_free = rates.is_free
        self._loads: dict[str, LoadShare] = {}
        self._devices: dict[str, _Device] = {}
        self._checked_ns: int | None = None

    # ------------------------------------------------------------ requests

    def join(self) -> Ticket | None:
        """A request is in flight from now on. None where nothing is configured."""
        return None if self._is_free else self.infrastructure.join()

    def join_all(self, count: int) -> Sequence[Ticket | None]:
        """As `join`, for so many that come at one moment."""
        return [None] * count if self._is_free else self.infrastructure.join_all(count)

    def settle(
        self,
        usage: Usage,
        ticket: Ticket | None,
        load_id: str | None,
        *,
        safety_nano: int = 0,
        is_now: bool = False,
    ) -> Breakdown | None:
        """What a request has cost that ends now; None for one that never was in flight. `safety_nano` is what guards
        took for it. `is_now` says that `infrastructure` was brought up to date in this moment."""
        if ticket is None:
            return None
        share = self._loads.get(load_id or "")
        load_nano, load_ns = (0, 0) if share is None else share.take()
        return Breakdown(
            gpu_compute_nano=usage.cost_nano,
            input_nano=usage.input_cost_nano,
            infrastructure_nano=self.infrastructure.leave(ticket, is_now=is_now),
            model_loading_nano=load_nano,
            safety_moderation_nano=safety_nano,
            load_id=None if share is None else share.load_id,
            load_ns=load_ns,
        )

    def bear(self, device: str, usage: Usage) -> None:
        """What a sequence has cost that belongs to no request any more: it is the operator's."""
        self._device(device).unborne_nano += usage.cost_nano

    # ------------------------------------------------------------ engines and loads

    def moment(self) -> Moment:
        """Now, for a load of which it is not known yet on which device it will be."""
        now_ns = (
            self._clock.monotonic_ns()
        )  # before the accounts, so that no idle time is taken back
        return Moment(
            now_ns,
            {
                device: lane.account().idle_at(now_ns)
                for device, lane in self._lanes().items()
                if lane.opened_ns is not None
            },
        )

    def begin_load(self, device: str, since: Moment | None = None) -> LoadBegun:
        """A load that begins now, or began at an earlier moment."""
        return LoadBegun(device, self._time_for_loads(device, since or self.moment()))

    def engine_started(self, device: str, read: ReadLoad) -> None:
        """From now on an engine uses the device; `read` says what it has cost."""
        self._device(device).engines.append(read)

    def engine_ended(self, device: str, read: ReadLoad) -> None:
        """Its steps are over. Unknown engines are ignored."""
        books = self._device(device)
        if read in books.engines:
            books.engines.remove(read)
            books.ended = [_added(*books.ended, read())]

    async def end_load(self, load: LoadBegun, model: str, read: ReadLoad) -> str | None:
        """Book a load that was measured up to now. Its id; None where it costs nothing, or can't be kept."""
        nano, load_ns = self._load_cost(load)
        nano += read().probe_nano
        if self.rates.is_free or self._book is None:
            return None
        load_id = f"load_{new_request_id().removeprefix('req_')}"
        row = Load(
            load_id=load_id,
            utc_ns=self._clock.utc_ns(),
            model=model,
            device=load.device,
            load_ns=load_ns,
            cost_nano=nano,
            expected_requests=self.rates.requests_per_load,
        )
        try:
            await self._book.add_load(row)
        except LlmhostError as error:  # a model that could be loaded is not given up for that
            log.error("cost.load_unrecorded model=%s error=%s", model, error)
            return None
        self._loads[load_id] = LoadShare(load_id, nano, self.rates.requests_per_load, load_ns)
        return load_id

    def bear_load(self, load: LoadBegun) -> None:
        """Book the time of a load that no request bears: one that failed, or a model's waking."""
        self._load_cost(load)

    async def unload(self, load_id: str | None) -> None:
        """Have the requests bear of the load what they were."""
        if load_id is None or self._book is None:
            return
        self._loads.pop(load_id, None)
        try:
            await self._book.end_load(load_id)
        except LlmhostError as error:
            log.error(
                "cost.load_open load=%s error=%s: it is ended at the next start", load_id, error
            )

    def _load_cost(self, load: LoadBegun) -> tuple[int, int]:
        """(nano-dollars, nanoseconds) of the load's time in which the device did nothing else."""
        books, now_ns = self._device(load.device), self._time_for_loads(load.device, self.moment())
        load_ns = books.booked.add(load.began_ns, now_ns)
        return books.meter.take(load_ns), load_ns

    def _time_for_loads(self, device: str, moment: Moment) -> int:
        """How much time a device had had that loads may be booked with: idle time, or all of it where turns overlap.

        A device that was not known by then had had none.
        """
        lane = self._lanes().get(device)
        is_tiled = lane is not None and lane.opened_ns is not None
        return moment.idle_ns.get(device, 0) if is_tiled else moment.at_ns

    def _device(self, device: str) -> _Device:
        if device not in self._devices:
            self._devices[device] = _Device(Meter(self.rates.of_device(device)))
        return self._devices[device]

    # ------------------------------------------------------------ conservation

    async def bring_up_to_date(self) -> None:
        """Check, unless that was done a moment ago."""
        now_ns = self._clock.monotonic_ns()
        if self._checked_ns is None or now_ns - self._checked_ns >= FRESH_NS:
            await self.check()

    async def check(self) -> list[Reading]:
        """Read every device, say whether it adds up, and keep what came since the last check."""
        self._checked_ns = self._clock.monotonic_ns()
        self.infrastructure.bring_up_to_date()
        readings = [await self._read_in_peace(device) for device in self._lanes()]
        news = []
        for reading in readings:
            books = self._device(reading.device)
            news.append(reading.since(books.before))
            books.before = self.readings[reading.device] = reading
        if not self.rates.is_free:
            for row in news:
                level = logging.ERROR if row["error_nano"] else logging.INFO
                log_event(log, "cost.checked", level=level, **row)
            self._check_pools()
            await self._keep(news)
        return readings

    def _check_pools(self) -> None:
        pools = self.infrastructure
        for name, pool in (("host", pools.host), ("egress", pools.egress)):
            level = logging.ERROR if pool.error_nano else logging.INFO
            log_event(
                log,
                "cost.pool_checked",
                level=level,
                pool=name,
                requests_nano=pool.borne_nano + pool.open_nano,
                nobodys_nano=pool.unowned_nano + pool.rest,
                error_nano=pool.error_nano,
            )

    async def _keep(self, news: list[dict[str, object]]) -> None:
        if self._book is None:
            return
        try:
            await self._book.add_checks(news)
        except LlmhostError as error:
            log.error("cost.check_unrecorded error=%s", error)

    async def _read_in_peace(self, device: str) -> Reading:
        reading = self.read(device)
        for _ in range(TRIES):
            if not reading.error_nano:
                break
            await asyncio.sleep(TRY_S)
            reading = self.read(device)
        return reading

    def read(self, device: str) -> Reading:
        """A device as it is now. A step that has just ended may show as an error for a moment."""
        lane, books = self._lanes()[device], self._device(device)
        now_ns = self._clock.monotonic_ns()  # before the account: it may be of a moment later
        nano = books.unborne_nano
        moved = EngineLoad(callers_nano=-nano, operator_nano=nano)
        engines = [moved, *books.ended, *(read() for read in books.engines)]
        return read_device(
            device,
            lane.account(),
            engines,
            rate=self.rates.of_device(device),
            opened_ns=lane.opened_ns,
            now_ns=now_ns,
            load_ns=books.meter.units,
            load_nano=books.meter.nano,
        )


def _added(*loads: EngineLoad) -> EngineLoad:
    return EngineLoad(
        callers_nano=sum(load.callers_nano for load in loads),
        operator_nano=sum(load.operator_nano for load in loads),
        probe_nano=sum(load.probe_nano for load in loads),
    )
