"""Responses in the background: they run on nobody's connection, and whoever asks reads their events, from any place.

What keeps one is its reader: no client that leaves ends it. All of it happens on the HTTP loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from llmhost.api.errors import forget_frames, known_error
from llmhost.api.responses.events import DONE
from llmhost.api.responses.frames import ResponseFrames
from llmhost.core.errors import LlmhostError
from llmhost.pipeline.exchange import Exchange

if TYPE_CHECKING:
    from llmhost.api.responses.desk import Desk, Order

log = logging.getLogger("llmhost.responses")

CLOSING_S = 5.0
"""How long responses may take to be kept when all that runs has been cut."""
SETTLING_S = 2.0
"""How long it may take until what a cancelled response has used is known: a step or two."""
AGAIN_S = 1.0
"""How long one waits that the disk or a full queue refused."""


class Run:
    """One response."""

    def __init__(self, order: "Order", exchange: Exchange, frames: ResponseFrames) -> None:
        self.order = order
        self.frames = frames
        self.is_ended = False
        self.events: list[bytes] = []
        """By their numbers."""
        self._exchange = exchange
        self._is_cancelled = False
        self._waiting: set[asyncio.Future[None]] = set()

    def cancel(self) -> None:
        """Its sequence stops; what it used is billed. Idempotent."""
        self._is_cancelled = True
        self._exchange.leave()

    async def play(self, desk: "Desk") -> None:
        """Run it to its end, and have that kept before anybody sees it."""
        frames, context = self.frames, self._exchange.context
        frames.begin()
        self._push(frames.fresh())
        try:
            while deltas := await self._exchange.read():
                frames.take(deltas)
                self._push(frames.fresh())
            if self._is_cancelled:
                frames.cancel(await self._exchange.used(SETTLING_S))
            else:
                frames.end(context.usage, frames.extras())
        except Exception as error:  # boundary: whoever asks for it hears what became of it
            known = known_error(error)
            if not isinstance(error, LlmhostError):
                log.error("api.failed request=%s", context.request.request_id, exc_info=error)
            frames.say_error(known)
            frames.fail(known)
            forget_frames(error)
        finally:
            self._exchange.leave()
        frames.say_end()
        last = frames.fresh()
        events = b"".join([*self.events, *last])
        # Until it is kept it is known as one that runs, and whoever asks for it has nothing else.
        while not await desk.keep(self.order, frames.resource, events=events):
            frames.resource["store"] = True
            await asyncio.sleep(AGAIN_S)
        self.is_ended = True
        self._push(last)

    async def ended(self) -> None:
        """Wait for its end."""
        while not self.is_ended:
            await self._news(None)

    async def read(self, after: int, silence_s: float | None) -> AsyncIterator[bytes]:
        """Events whose numbers are larger, as they come, and nothing where for so long none did."""
        place = after + 1
        while True:
            if place < len(self.events):
                fresh = b"".join(self.events[place:])
                place = len(self.events)
                yield fresh
            elif self.is_ended:
                yield DONE
                return
            elif not await self._news(silence_s):
                yield b""

    def _push(self, events: Sequence[bytes]) -> None:
        self.events += events
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def _news(self, silence_s: float | None) -> bool:
        """Wait for more; whether it came in time."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await asyncio.wait_for(waiter, silence_s)
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiter)
        return True


class Runs:
    """All that run now, by their ids."""

    def __init__(self) -> None:
        self._live: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Run, desk: "Desk") -> "asyncio.Task[None]":
        name = run.frames.begun["id"]
        self._live[name] = run
        task = asyncio.create_task(run.play(desk))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(name, done))
        return task

    def find(self, scope: str, name: str) -> Run | None:
        run = self._live.get(name)
        return run if run is not None and run.order.scope == scope else None

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        del self._live[name]
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("response.bug response=%s", name, exc_info=failure)

    async def close(self) -> None:
        """Nothing is computed any more: let what has ended be kept."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSING_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
