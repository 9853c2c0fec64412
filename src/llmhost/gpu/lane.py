"""A device's time lane: busy intervals never overlap, idle is what lies between, so the two tile the time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmhost.core.meter import FREE, Meter, Rate
from llmhost.core.ports import Clock, LaneAccount, Turn


class DeviceLane:
    """One device's lane; models that share the device take turns, step by step, in the order in which they come."""

    def __init__(self, device: str, clock: Clock, rate: Rate = FREE) -> None:
        self.device = device
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._asked = 0  # turns that were asked for, and of those the ones that are over
        self._over = 0
        self._opened_ns = clock.monotonic_ns()
        self._meter = Meter(rate)  # whoever has the turn is the only one to read it
        # Replaced whole, so that a reader waits for nobody's turn.
        self._account = LaneAccount(last_ns=self._opened_ns)

    @property
    def is_wanted(self) -> bool:
        return self._asked > self._over + 1

    def take(self) -> Turn:
        with self._changed:
            place = self._asked
            self._asked += 1
            self._changed.wait_for(lambda: self._over == place)
        return self._begin(self._clock.monotonic_ns())

    def split(self, turn: Turn) -> Turn:
        self._end(turn)
        return self._begin(turn.ended_ns)

    def give(self, turn: Turn) -> None:
        self._end(turn)
        with self._changed:
            self._over += 1
            self._changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        turn = self.take()
        try:
            yield turn
        finally:
            self.give(turn)

    def totals(self) -> tuple[int, int]:
        """(busy, idle) nanoseconds up to the end of the last turn; together they are the time since opening."""
        return self._account.busy_ns, self._account.idle_ns

    def account(self) -> LaneAccount:
        return self._account

    @property
    def opened_ns(self) -> int:
        return self._opened_ns

    def _begin(self, now_ns: int) -> Turn:
        self._account = self._account._replace(since_ns=now_ns)
        return Turn(started_ns=now_ns)

    def _end(self, turn: Turn) -> None:
        turn.ended_ns = self._clock.monotonic_ns()
        before = self._account
        turn.nano = self._meter.take(turn.ended_ns - turn.started_ns)
        self._account = LaneAccount(
            before.busy_ns + turn.ended_ns - turn.started_ns,
            before.idle_ns + turn.started_ns - before.last_ns,
            before.nano + turn.nano,
            turn.ended_ns,
        )


class FreeLane:
    """The lane of a runner that uses no device: turns are measured and exclude nobody."""

    is_wanted = False

    def __init__(self, clock: Clock, rate: Rate = FREE) -> None:
        self._clock = clock
        self._meter = Meter(rate)
        self._turn = threading.Lock()

    def account(self) -> LaneAccount:
        with self._turn:
            return LaneAccount(busy_ns=self._meter.units, nano=self._meter.nano)

    @property
    def opened_ns(self) -> None:
        """What overlaps does not tile the time, so nobody needs to know when it began."""
        return None

    def take(self) -> Turn:
        return Turn(started_ns=self._clock.monotonic_ns())

    def split(self, turn: Turn) -> Turn:
        self.give(turn)
        return Turn(started_ns=turn.ended_ns)

    def give(self, turn: Turn) -> None:
        turn.ended_ns = self._clock.monotonic_ns()
        with self._turn:
            turn.nano = self._meter.take(turn.ended_ns - turn.started_ns)

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        turn = self.take()
        try:
            yield turn
        finally:
            self.give(turn)
