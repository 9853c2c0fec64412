"""Results of another thread, brought to an event loop."""

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Doorbell:
    """Wakes one event loop once for all results that are ready, where `asyncio.wrap_future` would for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._has_rung = False

    def wait(self, future: Future[T]) -> asyncio.Future[T]:
        """The same result for the loop; called on it. Cancelling this leaves `future` as it is."""
        waiter: asyncio.Future[T] = self.loop.create_future()
        future.add_done_callback(lambda done: self._ring(waiter, done))
        return waiter

    def _ring(self, waiter: asyncio.Future[Any], done: Future[Any]) -> None:
        self._ready.append((waiter, done))
        # Set here and cleared before the answer below: what comes in between rings once too often, never too seldom.
        if not self._has_rung and not self.loop.is_closed():
            self._has_rung = True
            self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._has_rung = False
        while self._ready:
            waiter, done = self._ready.popleft()
            if waiter.done():  # nobody waits any more
                continue
            error = done.exception()
            if error is None:
                waiter.set_result(done.result())
            else:
                waiter.set_exception(error)
