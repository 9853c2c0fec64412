"""Results of another thread, brought to an event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

AT_ONCE = 64
"""Results in one turn of the loop, which takes some milliseconds at most: others shall have theirs."""

Hear = Callable[[Any, BaseException | None], None]
"""Told a result, or why there is none."""
Result = tuple[Any, Exception | None]
HearAll = Callable[[Sequence[Result], BaseException | None], None]
"""Told the results of several things, each of which may be why there is none; the second is None."""


class Doorbell:
    """Wakes one event loop once for all results that are ready, where `asyncio.wrap_future` would for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready: deque[tuple[Hear, Any, BaseException | None, int]] = deque()
        self._has_rung = False

    def promise(self) -> "Promise[Any]":
        """For a result that is meant for the loop alone; called on it."""
        return Promise(self, self.loop.create_future())

    def errand(self, hear: Hear) -> "Errand":
        """For a result that `hear` is told on the loop, without a future and its turn; called on it."""
        return Errand(self, hear)

    def parcel(self, hear: HearAll) -> "Parcel":
        """For the results of several things, which `hear` is told on the loop at once; called on it."""
        return Parcel(self, hear)

    def tally(self, count: int) -> "Tally":
        """For the end of so many things; called on the loop."""
        return Tally(self, self.loop.create_future(), count)

    def wait(self, future: Future[T]) -> asyncio.Future[T]:
        """The same result for the loop; called on it. Cancelling this leaves `future` as it is."""
        promise = self.promise()
        future.add_done_callback(promise.keep)
        return promise.waiter

    def ring(
        self, hear: Hear, value: Any, error: BaseException | None, *, results: int = 1
    ) -> None:
        """Bring a result, or an error, from any thread; `results` is of how many things it tells."""
        self._ready.append((hear, value, error, results))
        # Set here and cleared before the answer below: what comes in between rings once too often, never too seldom.
        if not self._has_rung and not self.loop.is_closed():
            self._has_rung = True
            self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._has_rung = False
        try:
            left = AT_ONCE
            while left > 0 and self._ready:
                hear, value, error, results = self._ready.popleft()
                left -= results
                hear(value, error)
        finally:  # who fails when told is the loop's to log, and others wait for theirs behind him
            if self._ready and not self._has_rung:
                self._has_rung = True
                self.loop.call_soon(self._answer)


def _settle(waiter: asyncio.Future[T], value: T, error: BaseException | None) -> None:
    if waiter.done():  # nobody waits any more
        return
    if error is None:
        waiter.set_result(value)
    else:
        waiter.set_exception(error)


class Promise(Generic[T]):
    """What a thread resolves and a loop waits for: a tenth of what a concurrent future costs, for one reader."""

    __slots__ = ("_bell", "waiter")

    def __init__(self, bell: Doorbell, waiter: asyncio.Future[T]) -> None:
        self._bell = bell
        self.waiter = waiter

    def set_result(self, value: T) -> None:
        self._bell.ring(self._hear, value, None)

    def set_exception(self, error: BaseException) -> None:
        self._bell.ring(self._hear, None, error)

    def keep(self, done: Future[T]) -> None:
        """Say what a future says."""
        error = done.exception()
        self._bell.ring(self._hear, None if error else done.result(), error)

    def _hear(self, value: T, error: BaseException | None) -> None:
        _settle(self.waiter, value, error)


class Errand:
    """What a thread resolves and a function on the loop is told, with the context of whoever sent for it."""

    __slots__ = ("_bell", "_context", "_hear")

    def __init__(self, bell: Doorbell, hear: Hear) -> None:
        self._bell = bell
        self._hear = hear
        self._context = copy_context()

    def set_result(self, value: object) -> None:
        self._bell.ring(self._told, value, None)

    def set_exception(self, error: BaseException) -> None:
        self._bell.ring(self._told, None, error)

    def _told(self, value: object, error: BaseException | None) -> None:
        self._context.run(self._hear, value, error)


class Parcel:
    """What a thread resolves for several things at once, and a function on the loop is told."""

    __slots__ = ("_bell", "_hear")

    def __init__(self, bell: Doorbell, hear: HearAll) -> None:
        self._bell = bell
        self._hear: HearAll | None = hear

    def set_results(self, results: Sequence[Result]) -> None:
        """Once. What `hear` refers to is the loop's from now on, and no thread's to throw away."""
        hear, self._hear = self._hear, None
        assert hear is not None, "a parcel comes once"
        self._bell.ring(hear, results, None, results=len(results))


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
            self._bell.ring(partial(_settle, self.waiter), None, self._error)
