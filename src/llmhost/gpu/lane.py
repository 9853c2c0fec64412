"""A device's time lane: busy intervals never overlap, idle is what lies between, so the two tile the time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmhost.core.ports import Clock, Turn


class DeviceLane:
    """One device's lane; models that share the device take turns, step by step."""

    def __init__(self, device: str, clock: Clock) -> None:
        self.device = device
        self._clock = clock
        self._turn = threading.Lock()
        self._last_ns = clock.monotonic_ns()
        self._totals = (0, 0)  # replaced whole, so that a reader waits for nobody's turn

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        with self._turn:
            turn = Turn(started_ns=self._clock.monotonic_ns())
            try:
                yield turn
            finally:
                turn.ended_ns = self._clock.monotonic_ns()
                busy_ns, idle_ns = self._totals
                busy_ns += turn.ended_ns - turn.started_ns
                idle_ns += turn.started_ns - self._last_ns
                self._totals, self._last_ns = (busy_ns, idle_ns), turn.ended_ns

    def totals(self) -> tuple[int, int]:
        """(busy, idle) nanoseconds up to the end of the last turn; together they are the time since opening."""
        return self._totals


class FreeLane:
    """The lane of a runner that uses no device: turns are measured and exclude nobody."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        turn = Turn(started_ns=self._clock.monotonic_ns())
        try:
            yield turn
        finally:
            turn.ended_ns = self._clock.monotonic_ns()
