"""Results of another thread, brought to an event loop."""

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")

AT_ONCE = 500
"""Results in one turn of the loop, which takes less than a millisecond: others shall have theirs."""


class Doorbell:
    """Wakes one event loop once for all results that are ready, where `asyncio.wrap_future` would for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._has_rung = False

    def promise(self) -> "Promise[Any]":
        """For a result that is meant for the loop alone; called on it."""
        return Promise(self, self.loop.create_future())

    def tally(self, count: int) -> "Tally":
        """For the end of so many things; called on the loop."""
        return Tally(self, self.loop.create_future(), count)

    def wait(self, future: Future[T]) -> asyncio.Future[T]:
        """The same result for the loop; called on it. Cancelling this leaves `future` as it is."""
        promise = self.promise()
        future.add_done_callback(promise.keep)
        return promise.waiter

    def ring(self, waiter: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """Bring a result, or an error, from any thread."""
        self._ready.append((waiter, value, error))
        # Set here and cleared before the answer below: what comes in between rings once too often, never too seldom.
        if not self._has_rung and not self.loop.is_closed():
            self._has_rung = True
            self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._has_rung = False
        for _ in range(min(len(self._ready), AT_ONCE)):
            waiter, value, error = self._ready.popleft()
            if waiter.done():  # nobody waits any more
                continue
            if error is None:
                waiter.set_result(value)
            else:
                waiter.set_exception(error)
        if self._ready and not self._has_rung:
            self._has_rung = True
            self.loop.call_soon(self._answer)


class Promise(Generic[T]):
    """What a thread resolves and a loop waits for: a tenth of what a concurrent future costs, for one reader."""

    __slots__ = ("_bell", "waiter")

    def __init__(self, bell: Doorbell, waiter: asyncio.Future[T]) -> None:
        self._bell = bell
        self.waiter = waiter

    def set_result(self, value: T) -> None:
        self._bell.ring(self.waiter, value, None)

    def set_exception(self, error: BaseException) -> None:
        self._bell.ring(self.waiter, None, error)

    def keep(self, done: Future[T]) -> None:
        """Say what a future says."""
        error = done.exception()
        self._bell.ring(self.waiter, None if error else done.result(), error)


class Tally:
    """What a thread resolves once for each of several things, and a loop hears of at the end: the first failure, if
    there was one. For one thread."""

    __slots__ = ("_bell", "_error", "_left", "waiter")

    def __init__(self, bell: Doorbell, waiter: asyncio.Future[None], count: int) -> None:
        self._bell = bell
        self._left = count
        self._error: BaseException | None = None
        self.waiter = waiter

    def set_result(self, value: object) -> None:
        self._count()

    def set_exception(self, error: BaseException) -> None:
        self._error = self._error or error
        self._count()

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            self._bell.ring(self.waiter, None, self._error)
