"""How long a run on a lent machine may take, and that it is kept: nothing begins that can't end in time."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

import psutil
from tests.gpu.report import Report

LAST_S = 3.0
"""For the table, and for ending processes."""


class Budget:
    """So many seconds from now on."""

    def __init__(self, most_s: float) -> None:
        self.most_s = most_s
        self._ends = time.monotonic() + most_s

    @property
    def left_s(self) -> float:
        return max(self._ends - time.monotonic() - LAST_S, 0.0)

    def within(self, wanted_s: float) -> float:
        """How long somebody who would wait for `wanted_s` may do so."""
        return max(min(wanted_s, self.left_s), 1.0)


def end_late(report: Report, budget: Budget) -> threading.Timer:
    """A run that hangs still shows what it has, and where each of its threads is."""

    def end() -> None:
        report.say(f"stopped after {budget.most_s:.0f} s")
        sys.stdout.write(report.table() + "\n")
        sys.stdout.flush()
        faulthandler.dump_traceback(all_threads=True)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(3)

    timer = threading.Timer(budget.most_s, end)
    timer.daemon = True
    timer.start()
    return timer


def tell_compiles(say: Callable[[str], None], least_s: float = 0.2) -> None:
    """From now on have Triton tell of each kernel that this process compiles: a step that should take milliseconds
    and takes seconds is explained."""
    import triton

    def listen(*, src: object, times: object, cache_hit: bool, **_: object) -> None:
        spent_s = getattr(times, "total", 0) / 1e6
        if not cache_hit and spent_s >= least_s:
            say(f"    compiled {getattr(src, 'name', src)} in {spent_s:.1f} s")

    triton.knobs.compilation.listener = listen
