"""Blocking work in threads that nobody has to wait for: a load or a download that is under way can't be stopped.

asyncio's own threads would be joined at the end of the process, however long they read.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from llmhost.core.errors import ShuttingDown

T = TypeVar("T")


class OffLoop:
    """Runs each act in a daemon thread of its own. Methods are called on the loop."""

    def __init__(self) -> None:
        self._running: set[threading.Thread] = set()
        self._awaited: set[asyncio.Future[Any]] = set()
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """A thread is at work, whether or not somebody waits for it."""
        return any(thread.is_alive() for thread in self._running)

    async def run(self, act: Callable[[], T]) -> T:
        """What `act` returns or raises. Raises ShuttingDown once this is closed, even while `act` goes on."""
        if self._is_closed:
            raise shutting_down()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                value = context.run(act)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                tell(future.set_exception, error)
            else:
                tell(future.set_result, value)

        def tell(settle: Callable[[Any], None], outcome: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(lambda: None if future.done() else settle(outcome))

        thread = threading.Thread(target=work, name="load", daemon=True)
        self._running = {one for one in self._running if one.is_alive()} | {thread}
        self._awaited.add(future)
        thread.start()
        try:
            return await future
        finally:
            self._awaited.discard(future)

    def close(self) -> None:
        """Whoever waits is refused, now and from now on; the threads are left to themselves. Idempotent."""
        self._is_closed = True
        for future in self._awaited:
            if not future.done():
                future.set_exception(shutting_down())


def shutting_down() -> ShuttingDown:
    return ShuttingDown(
        "The server is shutting down and does not wait for the model to load. Ask again.",
        retry_after_s=1,
    )
