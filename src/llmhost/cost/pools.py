"""Costs that belong to no step: the host around the devices, bytes sent, and loads. Each pool adds up by itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from llmhost.core.meter import Meter, Rate
from llmhost.core.ports import Clock
from llmhost.cost.rates import NodeRates


class SharedPool:
    """A cost that is shared evenly by whoever is in flight while it arises; what arises for nobody is the operator's.

    `meter.nano` = `borne_nano` of those who left + `open_nano` of those in flight + `rest` + `unowned_nano`.
    """

    def __init__(self, rate: Rate) -> None:
        self.meter = Meter(rate)
        self.heads = 0
        self.level = 0
        """What somebody who had been in flight from the first moment would have to bear."""
        self.rest = 0
        """Too little to give each a nano-dollar: kept for the next time."""
        self.unowned_nano = 0
        self.borne_nano = 0
        self._joined = 0
        """The levels at which those in flight have joined, added up."""

    @property
    def open_nano(self) -> int:
        return self.heads * self.level - self._joined

    @property
    def error_nano(self) -> int:
        """What does not add up: 0."""
        whose = self.borne_nano + self.open_nano + self.rest + self.unowned_nano
        twice_nano = max(-self.open_nano, 0)  # somebody has left more than once
        return abs(self.meter.nano - whose) + abs(self.meter.error_nano) + twice_nano

    def use(self, units: int) -> None:
        heads = self.heads
        if not units and self.rest < heads:
            return
        meter = self.meter
        meter.units += units  # as `Meter.take`, without a call
        nano, rate = self.rest, meter.rate
        if rate.nano:
            total = meter.rest + units * rate.nano
            fresh = total // rate.per
            meter.rest = total - fresh * rate.per
            meter.nano += fresh
            nano += fresh
        if heads:
            share = nano // heads
            self.rest = nano - share * heads
            self.level += share
        else:
            self.unowned_nano += nano
            self.rest = 0

    def join(self) -> int:
        """The level to be handed to `leave`."""
        self.heads += 1
        self._joined += self.level
        return self.level

    def leave(self, level: int) -> int:
        """The nano-dollars that arose for one who joined at `level`."""
        self.heads -= 1
        self._joined -= level
        self.borne_nano += self.level - level
        return self.level - level


class Ticket(msgspec.Struct, gc=False):
    """A request's stay in flight."""

    levels: tuple[int, int]
    has_left: bool = False


class Infrastructure:
    """Host time and bytes sent, shared by the requests in flight. For one thread."""

    def __init__(
        self, rates: NodeRates, clock: Clock, sent_bytes: Callable[[], int] = lambda: 0
    ) -> None:
        self.host = SharedPool(rates.host)
        self.egress = SharedPool(rates.egress)
        self._clock = clock
        self._sent_bytes = sent_bytes
        self._at_ns = clock.monotonic_ns()
        self._at_bytes = sent_bytes()

    def join(self) -> Ticket:
        self.bring_up_to_date()
        return Ticket((self.host.join(), self.egress.join()))

    def join_all(self, count: int) -> list[Ticket]:
        """As `join`, for so many that come at one moment."""
        self.bring_up_to_date()
        host, egress = self.host, self.egress
        for pool in (host, egress):
            pool.heads += count
            pool._joined += count * pool.level
        return [Ticket((host.level, egress.level)) for _ in range(count)]

    def leave(self, ticket: Ticket, *, is_now: bool = False) -> int:
        """The nano-dollars of a stay; nothing for one that is over already. `is_now` says that this was brought up to
        date in the same moment, in which several leave."""
        if ticket.has_left:
            return 0
        ticket.has_left = True
        if not is_now:
            self.bring_up_to_date()
        nano = 0
        for pool, level in zip((self.host, self.egress), ticket.levels, strict=True):
            pool.heads -= 1  # as `leave`, without a call
            pool._joined -= level
            borne = pool.level - level
            pool.borne_nano += borne
            nano += borne
        return nano

    def bring_up_to_date(self) -> None:
        now_ns, now_bytes, egress = self._clock.monotonic_ns(), self._sent_bytes(), self.egress
        self.host.use(now_ns - self._at_ns)
        self._at_ns = now_ns
        if now_bytes != self._at_bytes or egress.rest >= egress.heads:
            egress.use(now_bytes - self._at_bytes)
            self._at_bytes = now_bytes


MOST_STRETCHES = 256
"""Of time, that are remembered: no load lasts while so many others come and go."""


class Booked:
    """The stretches of time that loads were booked with: where loads overlap, the time is booked once."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int]] = []  # in order, none touching the next

    def add(self, since: int, until: int) -> int:
        """Book what of a stretch is not booked yet, and say how much that is. None ends before one that was added."""
        fresh, merged = max(until - since, 0), since
        while self._stretches and self._stretches[-1][1] >= since:
            start, end = self._stretches.pop()
            fresh -= max(min(end, until) - max(start, since), 0)
            merged, until = min(start, merged), max(end, until)
        self._stretches.append((merged, max(until, merged)))
        del self._stretches[:-MOST_STRETCHES]
        return fresh


@dataclass(slots=True)
class LoadShare:
    """What the requests to a loaded model bear of its load, before it is known how many they are."""

    load_id: str
    cost_nano: int
    expected_requests: int
    load_ns: int = 0
    taken: int = field(default=0)

    def take(self) -> tuple[int, int]:
        """The next request's part in nano-dollars, and of the time. Nothing is left for those beyond the expected
        number."""
        if self.taken >= self.expected_requests:
            return 0, 0
        place, self.taken = self.taken, self.taken + 1
        return self._part(self.cost_nano, place), self._part(self.load_ns, place)

    def _part(self, whole: int, place: int) -> int:
        count = self.expected_requests
        return whole * (place + 1) // count - whole * place // count
