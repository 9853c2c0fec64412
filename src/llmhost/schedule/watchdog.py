"""Notices a step that does not come back. It is asked from another thread than the one that hangs.

A step that holds Python's lock while it hangs stops this process as a whole, and nothing in it can tell. What calls
a device's driver gives that lock away.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Callable

from llmhost.schedule.stepping import Stepper

log = logging.getLogger("llmhost.schedule")

FIRST_STEPS = 8
"""A model's first steps may compile kernels, and have `FIRST_STEPS_FACTOR` times as long."""
FIRST_STEPS_FACTOR = 5


class Watchdog:
    """Watches one model's engine thread."""

    def __init__(
        self,
        name: str,
        stepper: Stepper,
        thread: threading.Thread,
        *,
        timeout_s: float,
        now_ns: Callable[[], int],
    ) -> None:
        self._name = name
        self._stepper = stepper
        self._thread = thread
        self._timeout_s = timeout_s
        self._now_ns = now_ns
        self._told_ns: int | None = None  # when the step began that was reported

    @property
    def running_s(self) -> float | None:
        """How long a step that has hung has been running; None while none has."""
        began_ns = self._stepper.began_ns
        if began_ns is None:
            return None
        is_first = self._stepper.steps < FIRST_STEPS
        limit_s = self._timeout_s * (FIRST_STEPS_FACTOR if is_first else 1)
        running_s = (self._now_ns() - began_ns) / 1e9
        return running_s if running_s > limit_s else None

    def look(self) -> None:
        """Report a hung step once, with the place where it hangs, and that it has come back."""
        began_ns, running_s = self._stepper.began_ns, self.running_s
        if self._told_ns is not None and began_ns != self._told_ns:
            self._told_ns = None
            log.warning("engine.moves_again model=%s", self._name)
        if running_s is not None and self._told_ns is None:
            self._told_ns = began_ns
            log.critical(
                "engine.hangs model=%s step_s=%.0f\n%s", self._name, running_s, self._stack()
            )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "its thread is gone"
