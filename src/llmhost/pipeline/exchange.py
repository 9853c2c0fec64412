"""A request that was let in, as its caller has it."""

import asyncio
from contextlib import suppress

from llmhost.core.errors import LlmhostError
from llmhost.core.output import Delta, Outcome, Usage
from llmhost.pipeline.generation import Generation
from llmhost.pipeline.replay import Replay
from llmhost.pipeline.stream import Outbox, Take

Running = Generation | Replay
"""A request that was let in: its answer is made, or it is another one's."""


class Exchange:
    """An accepted request, from its caller's side: read what comes, or leave."""

    def __init__(self, generation: Running, outbox: Outbox | None = None) -> None:
        self.context = generation.context
        self._ended = generation.ended
        self._stream = generation.stream
        self._reader = generation.stream.reader(outbox=outbox)

    async def read(
        self, timeout_s: float | None = None, take: Take | None = None
    ) -> list[Delta] | None:
        """Everything that came since the last read; empty at the end, None when nothing came in time.

        What comes while it waits goes to `take`, for as long as that takes it. Raises the error that ended the answer.
        """
        return await self._reader.next(timeout_s, take)

    async def read_whole(self) -> list[Delta]:
        """Everything, once the answer has ended. Raises the error that ended it."""
        return await self._reader.rest()

    async def read_left(self) -> list[Delta] | None:
        """Of a caller that has left: the whole answer where a reviewer is to let it out later; else None."""
        if not self.context.can_wait:
            return None
        with suppress(LlmhostError):
            said = await self._stream.reader().rest()
            is_whole = self.context.outcome is Outcome.ANSWERED
            return said if is_whole and self.context.held_by is not None else None
        return None

    async def used(self, within_s: float) -> Usage | None:
        """Of one that was stopped: what it has used, once its sequences have ended; None where that takes longer."""
        done, _ = await asyncio.wait({self._ended}, timeout=within_s)
        return self.context.usage if done else None

    def told(self) -> list[Delta]:
        """Everything that the caller has been told so far."""
        return self._reader.told()

    def leave(self) -> None:
        """The caller is gone. The last one to leave stops the sequences; what they used is billed. Idempotent."""
        self._reader.close()
