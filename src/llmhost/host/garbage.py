"""When Python looks for garbage in cycles: where no step waits for it.

Its collector stops all threads, and a full collection goes through everything that was ever imported or loaded, which
is some tenths of a second with torch and a model. Every token makes a few objects that live as long as their answer,
so left alone it would come in the midst of steps. Here what came with a model is set aside, young objects are looked at
less often, and all the rest is done while nobody asks anything.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable

from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.host")

THRESHOLDS = (10_000, 10, 100_000)
"""Allocations before the young are looked at, and how often before the older are. The last one means never."""
LOOK_S = 5.0
STALE_S = 600.0
"""After so long what is not set aside is looked at even if there never is a quiet moment."""


class Garbage:
    """Decides every few seconds. `loaded` names the models in memory; `is_idle` says that nobody waits, and that nobody
    has asked lately."""

    def __init__(self, loaded: Callable[[], frozenset[str]], is_idle: Callable[[], bool]) -> None:
        self._loaded = loaded
        self._is_idle = is_idle
        self._known: frozenset[str] = frozenset()
        self._is_due = True
        self._looked_s = time.monotonic()

    async def tend(self) -> None:
        """Until cancelled."""
        gc.set_threshold(*THRESHOLDS)
        while True:
            await asyncio.sleep(LOOK_S)
            self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        if (loaded := self._loaded()) != self._known:
            if loaded - self._known:
                gc.freeze()
            self._known, self._is_due = loaded, True
        is_stale = now_s - self._looked_s >= STALE_S
        if self._is_idle() and (self._is_due or is_stale):
            gc.unfreeze()
            self._collect(now_s)
            gc.freeze()
            self._is_due = False
        elif is_stale:
            self._collect(now_s)

    def _collect(self, now_s: float) -> None:
        self._looked_s = now_s
        began_s = time.monotonic()
        found = gc.collect()
        took_ms = round(1000 * (time.monotonic() - began_s), 1)
        log_event(log, "garbage.collected", level=logging.DEBUG, objects=found, took_ms=took_ms)
