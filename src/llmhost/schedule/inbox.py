"""What the HTTP loop wants an engine's thread to do, and where that thread sleeps meanwhile."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from llmhost.core.sequence import SequenceSpec
from llmhost.schedule.scheduler import Emission

Act = Callable[[], list[Emission]]

Arrival = tuple[int, SequenceSpec]
"""A sequence that is to run, and its id."""

Command = Act | Arrival


@dataclass(frozen=True, slots=True)
class AtRest:
    """A command for which no step may be on the device."""

    act: Act


class Inbox:
    """Commands from an event loop's thread for another one, which takes them.

    That one is woken once for all that a turn of the loop brings: it wants the interpreter as soon as it wakes, and
    would take it from the loop with each command.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bell: SimpleQueue[None] = SimpleQueue()  # a condition's own way is in Python
        self._is_ringing = False
        """The bell has rung, and nobody has heard it yet."""
        self._commands: deque[Command | AtRest] = deque()
        self._has_rung = False
        """It will, in this turn of the loop."""

    @property
    def has_any(self) -> bool:
        """Something waits to be taken."""
        return bool(self._commands)

    def post(self, command: Command | AtRest) -> None:
        """Have it done before the next step."""
        self._commands.append(command)
        if self._loop.is_closed():
            self._ring()
        elif not self._has_rung:
            self._has_rung = True
            self._loop.call_soon(self._ring)

    def take(self) -> list[Command | AtRest]:
        """All that came, in order."""
        take = self._commands.popleft
        return [take() for _ in range(len(self._commands))]

    def wait(self, is_awake: Callable[[], bool], timeout_s: float | None) -> bool:
        """Sleep until a command comes. False after so long without one, and nothing else to do."""
        if self._commands or is_awake():
            return True
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._sleep(until_s):
            if self._commands or is_awake():
                return True
        return bool(self._commands) or is_awake()

    def gather(self, pause_s: float, most_s: float) -> None:
        """Sleep until nothing more comes for `pause_s`, or for `most_s` in all."""
        deadline_s = time.monotonic() + most_s
        while self._commands and (now_s := time.monotonic()) < deadline_s:
            count = len(self._commands)
            while len(self._commands) <= count:
                if not self._sleep(now_s + pause_s):
                    break
            if len(self._commands) <= count:
                return

    def _sleep(self, until_s: float | None) -> bool:
        """Until the bell rings, which may be for what has been taken since. False when that took too long."""
        try:
            if until_s is None:
                self._bell.get()
            else:
                self._bell.get(timeout=max(until_s - time.monotonic(), 0.0))
        except Empty:
            return False
        self._is_ringing = False  # before it is looked what came: whoever comes then rings again
        return True

    def _ring(self) -> None:
        """What is put into the bell is kept for a thread that is only about to sleep."""
        self._has_rung = False
        if not self._is_ringing:
            self._is_ringing = True
            self._bell.put(None)
