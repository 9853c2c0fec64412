"""What the HTTP loop wants an engine's thread to do, and where that thread sleeps meanwhile."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable

from llmhost.schedule.scheduler import Emission

Command = Callable[[], list[Emission]]


class Inbox:
    """Commands from an event loop's thread for another one, which takes them.

    That one is woken once for all that a turn of the loop brings: it wants the interpreter as soon as it wakes, and
    would take it from the loop with each command.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wake = threading.Condition()
        self._commands: deque[tuple[Command, bool]] = deque()
        self._has_rung = False

    def post(self, command: Command, *, between_steps: bool = False) -> None:
        """Have `command` run before the next step; `between_steps`: while none is on the device."""
        self._commands.append((command, between_steps))
        if self._loop.is_closed():
            self._ring()
        elif not self._has_rung:
            self._has_rung = True
            self._loop.call_soon(self._ring)

    def take(self) -> tuple[list[Command], bool]:
        """All that came, in order, and whether no step may be on the device for it."""
        taken = [self._commands.popleft() for _ in range(len(self._commands))]
        return [command for command, _ in taken], any(between for _, between in taken)

    def wait(self, is_awake: Callable[[], bool], timeout_s: float | None) -> bool:
        """Sleep until a command comes. False after so long without one, and nothing else to do."""
        with self._wake:
            return self._wake.wait_for(lambda: bool(self._commands) or is_awake(), timeout_s)

    def gather(self, pause_s: float, most_s: float) -> None:
        """Sleep until nothing more comes for `pause_s`, or for `most_s` in all."""
        with self._wake:
            deadline_s = time.monotonic() + most_s
            while self._commands and time.monotonic() < deadline_s:
                if not self._wake.wait_for(self._grown_from(len(self._commands)), pause_s):
                    return

    def _grown_from(self, count: int) -> Callable[[], bool]:
        return lambda: len(self._commands) > count

    def _ring(self) -> None:
        """Without the lock a thread that is about to sleep would miss it."""
        self._has_rung = False
        with self._wake:
            self._wake.notify()
