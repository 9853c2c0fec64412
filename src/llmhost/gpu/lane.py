"""A device's time lane: busy intervals never overlap, idle is what lies between, so the two tile the time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmhost.core.ports import Clock, Turn


class DeviceLane:
    """One device's lane; models that share the device take turns, step by step, in the order in which they come."""

    def __init__(self, device: str, clock: Clock) -> None:
        self.device = device
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._asked = 0  # turns that were asked for, and of those the ones that are over
        self._over = 0
        self._last_ns = clock.monotonic_ns()
        self._totals = (0, 0)  # replaced whole, so that a reader waits for nobody's turn

    @property
    def is_wanted(self) -> bool:
        return self._asked > self._over + 1

    def take(self) -> Turn:
        with self._changed:
            place = self._asked
            self._asked += 1
            self._changed.wait_for(lambda: self._over == place)
        return Turn(started_ns=self._clock.monotonic_ns())

    def split(self, turn: Turn) -> Turn:
        self._end(turn)
        return Turn(started_ns=turn.ended_ns)

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
        return self._totals

    def _end(self, turn: Turn) -> None:
        turn.ended_ns = self._clock.monotonic_ns()
        busy_ns, idle_ns = self._totals
        busy_ns += turn.ended_ns - turn.started_ns
        idle_ns += turn.started_ns - self._last_ns
        self._totals, self._last_ns = (busy_ns, idle_ns), turn.ended_ns


class FreeLane:
    """The lane of a runner that uses no device: turns are measured and exclude nobody."""

    is_wanted = False

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def take(self) -> Turn:
        return Turn(started_ns=self._clock.monotonic_ns())

    def split(self, turn: Turn) -> Turn:
        self.give(turn)
        return Turn(started_ns=turn.ended_ns)

    def give(self, turn: Turn) -> None:
        turn.ended_ns = self._clock.monotonic_ns()

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        turn = self.take()
        try:
            yield turn
        finally:
            self.give(turn)
