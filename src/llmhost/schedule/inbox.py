"""What the HTTP loop wants an engine's thread to do, and where that thread sleeps meanwhile."""

import threading
from collections import deque
from collections.abc import Callable

from llmhost.schedule.scheduler import Emission

Command = Callable[[], list[Emission]]


class Inbox:
    """Commands from any thread for one that takes them."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._commands: deque[Command] = deque()
        self._is_rest_needed = False

    def post(self, command: Command, *, between_steps: bool = False) -> None:
        """Have `command` run before the next step; `between_steps`: while none is on the device."""
        with self._wake:
            self._commands.append(command)
            self._is_rest_needed |= between_steps
            self._wake.notify()

    def take(self) -> tuple[list[Command], bool]:
        """All that came, in order, and whether no step may be on the device for it."""
        with self._wake:
            commands, is_rest_needed = list(self._commands), self._is_rest_needed
            self._commands.clear()
            self._is_rest_needed = False
        return commands, is_rest_needed

    def wait(self, is_awake: Callable[[], bool], timeout_s: float | None) -> bool:
        """Sleep until a command comes. False after so long without one, and nothing else to do."""
        with self._wake:
            return self._wake.wait_for(lambda: bool(self._commands) or is_awake(), timeout_s)
