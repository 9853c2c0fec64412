"""Telling observers what has happened, so that the request never feels them.

Each observer has its own bounded queue and task: one that is slow misses its own events and nobody else's. Called on
the HTTP loop only.
"""

import asyncio
import logging
from contextlib import suppress
from contextvars import Context

from llmhost.hooks.call import HookFailed, attempt
from llmhost.hooks.registry import Implementation, Plugins

log = logging.getLogger("llmhost.hooks")

QUEUE = 1024
"""Events that may wait for one observer."""


class Observers:
    """The `observe` implementations of one host."""

    def __init__(self, plugins: Plugins, *, queue: int = QUEUE) -> None:
        self._plugins = plugins
        self._queues: dict[Implementation, asyncio.Queue[object]] = {
            implementation: asyncio.Queue(queue)
            for implementation in plugins.implementations("observe")
        }
        self._tasks: list[asyncio.Task[None]] = []

    def tell(self, event: object) -> None:
        """Hand over one event and come back at once; never raises. Without observers it does nothing."""
        if self._queues and not self._tasks:
            # An empty context: an observer's log lines must not carry the id of whichever request came first.
            self._tasks = [
                asyncio.create_task(self._deliver(one), context=Context()) for one in self._queues
            ]
        for implementation, queue in self._queues.items():
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                _note_drop(implementation, 1, why="queue_full")

    async def close(self, timeout_s: float = 5.0) -> None:
        """Deliver what waits, for so long, then stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for queue in self._queues.values():
                    await queue.join()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for implementation, queue in self._queues.items():
            if left := queue.qsize():
                _note_drop(implementation, left, why="closing")
        self._queues.clear()

    async def _deliver(self, implementation: Implementation) -> None:
        queue = self._queues[implementation]
        while True:
            event = await queue.get()
            with suppress(HookFailed):
                await attempt(self._plugins, implementation, {"event": event})
            queue.task_done()


def _note_drop(implementation: Implementation, count: int, *, why: str) -> None:
    """Logged whenever the total has doubled: a stuck observer must not flood the log."""
    stats = implementation.stats
    before, stats.dropped = stats.dropped, stats.dropped + count
    if stats.dropped.bit_length() > before.bit_length():
        log.warning(
            "hook.dropped hook=observe plugin=%s events=%d why=%s",
            implementation.plugin,
            stats.dropped,
            why,
        )
