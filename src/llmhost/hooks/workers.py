"""Threads for sync implementations that block.

Not a ThreadPoolExecutor: its threads are joined when the interpreter exits, so that one plugin that never returns
would keep a drained server from ending. Each implementation has its own, so that it can only hold up itself.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any

LIMIT = 8
"""Threads of one implementation; further calls wait, and their timeout runs."""

_Job = tuple["Future[Any]", Context, Callable[..., Any], Sequence[Any]]


class Workers:
    """Up to `LIMIT` daemon threads, started as calls come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, function: Callable[..., Any], args: Sequence[Any]) -> "Future[Any]":
        """Run the function with the caller's context variables. A future cancelled in time is never run."""
        future: Future[Any] = Future()
        self._jobs.put((future, copy_context(), function, args))
        if not self._idle.acquire(blocking=False) and self._started < LIMIT:
            self._started += 1
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let idle threads end. A call that never returns keeps its thread, which nothing waits for."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, context, function, args = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(context.run(function, *args))
                except BaseException as error:  # noqa: BLE001 - boundary: the caller gets what the plugin raised
                    future.set_exception(error)
            del job, future, context, function, args
            self._idle.release()
