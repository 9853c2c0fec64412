"""When a line may begin: at once while nobody else asks, and else in turns of work and rest.

A step of an engine is not shorter for who waits for it, however low the priority of what is in it. So lines leave
others alone for the greater part of the time: whoever asks then, as most do, finds the node as it is without batches.
"""

import asyncio
from collections.abc import Callable

from llmhost.core.ports import Clock

TURN_NS = 500_000_000
"""So long lines go on to begin in a turn; it ends when the last of them has ended."""
HEARD_NS = 2_000_000_000
"""So long after a request others still count as asking."""


class Pace:
    """Of all lines of a node. `heard_ns` says when somebody last asked who is no batch, None for never."""

    def __init__(
        self,
        share: float,
        clock: Clock,
        heard_ns: Callable[[], int | None],
        in_flight: Callable[[], int],
    ) -> None:
        """`share` is the part of the time that lines may run while others ask. `in_flight` counts all requests."""
        self.running = 0
        self._share = share
        self._clock = clock
        self._heard_ns = heard_ns
        self._in_flight = in_flight
        self._began_ns = 0
        """When the turn began, or others began to ask if that was later."""
        self._rest_ends_ns = 0
        self._is_disturbed = False
        self._turn_is_over = asyncio.Event()

    async def begin(self) -> None:
        """Wait until a line may begin, and count it."""
        while (wait_ns := self._wait_ns()) is not None:
            if wait_ns:
                await asyncio.sleep(wait_ns / 1e9)
            else:
                await self._turn_is_over.wait()
        if not self.running:
            self._began_ns = self._clock.monotonic_ns()
            self._turn_is_over.clear()
        self.running += 1

    def end(self) -> None:
        """A line has ended."""
        self.running -= 1
        if self.running:
            return
        if self._is_disturbed:
            now_ns = self._clock.monotonic_ns()
            worked_ns = now_ns - self._began_ns
            self._rest_ends_ns = now_ns + int(worked_ns * (1 / self._share - 1))
        self._turn_is_over.set()

    def _wait_ns(self) -> int | None:
        """None: begin. 0: when the lines that run have ended. Else so long, and then ask again."""
        now_ns = self._clock.monotonic_ns()
        if self._share >= 1 or not self._others_ask(now_ns):
            self._is_disturbed = False
            return None
        if not self._is_disturbed:
            self._is_disturbed = True
            self._began_ns, self._rest_ends_ns = now_ns, now_ns
        if self.running:
            return 0 if now_ns - self._began_ns >= TURN_NS else None
        # Not all at once, in case others fall silent.
        return min(self._rest_ends_ns - now_ns, HEARD_NS) if now_ns < self._rest_ends_ns else None

    def _others_ask(self, now_ns: int) -> bool:
        heard_ns = self._heard_ns()
        is_heard = heard_ns is not None and now_ns - heard_ns < HEARD_NS
        return is_heard or self._in_flight() > self.running
