"""How long a thread may keep the interpreter while another one wants it.

Each time that it changes hands costs a switch and warm caches, so in general a thread may keep it for a while. But
where the steps of a model go in and out of the interpreter many times, its device waits whenever they do: while such a
model has work, threads hand it on sooner.
"""

import sys
import threading

RELAXED_S = 0.002
"""What a node's process begins with."""
QUICK_S = 0.0005


class Haste:
    """Counts those who are in a hurry, in all threads. The interval is the process's own, so there is one of it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._hurrying = 0
        self._before_s = RELAXED_S

    def begin(self) -> None:
        with self._turn:
            self._hurrying += 1
            if self._hurrying == 1:
                self._before_s = sys.getswitchinterval()
                sys.setswitchinterval(min(QUICK_S, self._before_s))

    def end(self) -> None:
        """Of one that has begun."""
        with self._turn:
            self._hurrying -= 1
            if not self._hurrying:
                sys.setswitchinterval(self._before_s)


_HASTE = Haste()


class Hurry:
    """One thread's: in a hurry or not."""

    def __init__(self, *, is_ever: bool) -> None:
        """`is_ever` is false of a thread that can wait, whatever it has to do."""
        self._is_ever = is_ever
        self._is_on = False

    def set(self, is_on: bool) -> None:
        """Idempotent."""
        if self._is_ever and is_on is not self._is_on:
            self._is_on = is_on
            (_HASTE.begin if is_on else _HASTE.end)()
