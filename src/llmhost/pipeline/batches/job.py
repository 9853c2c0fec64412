"""One batch that has not ended, as its tasks know it."""

import asyncio

from llmhost.pipeline.batches.record import Batch, BatchStatus


class Job:
    """Of the event loop."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.ends_as = BatchStatus.COMPLETED
        """Where it goes when it stops, or when all lines have ended."""
        self.is_draining = False
        """The process ends: the batch stops where it is."""
        self.idle: set[asyncio.Task[None]] = set()
        """Workers that run no line."""
        self.turn = asyncio.Lock()
        """Of whoever has another state of it written."""
        self._stopped = asyncio.Event()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self, ends_as: BatchStatus | None) -> None:
        """No more lines begin; None for a drain. The first reason counts, but a drain is one, too."""
        if ends_as is None:
            self.is_draining = True
        elif not self.is_stopped:
            self.ends_as = ends_as
        self._stopped.set()

    async def stopped(self) -> None:
        await self._stopped.wait()

    async def pause(self, seconds: float) -> bool:
        """False, and at once, when the batch does not go on."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False
