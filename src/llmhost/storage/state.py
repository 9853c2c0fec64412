"""`state.db`: what callers have the server keep for them, such as responses and conversations.

One writer and some readers, shared by all who keep something here; each brings tables of its own. A commit is with the
operating system at once, which survives the end of the process, and on disk a moment later; who promised more waits for
`write_through`.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

T = TypeVar("T")


class State:
    """Opens the file, and owns it until `close`. Raises StorageFailed or ConfigError, as Writer does."""

    def __init__(self, path: Path, migrations: Sequence[Schema]) -> None:
        self._writer = Writer(path, synchronous="NORMAL", migrations=migrations)
        self._reader = Reader(path)
        self._log = path.with_name(path.name + "-wal")
        self._forcing: asyncio.Future[None] | None = None
        self._next: asyncio.Future[None] | None = None

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query off the event loop. Raises StorageFailed."""
        return await self._reader.read(query)

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """The same as `read` in the calling thread, which waits. Raises StorageFailed."""
        return self._reader.read_now(query)

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job, which does nothing but SQL, and have it committed. Raises StorageFailed or Overloaded."""
        return await self._writer.run(job)

    async def write_through(self, job: Callable[[Connection], T]) -> T:
        """As `write`, and done when a power cut can't undo it. Neighbours share the wait."""
        result = await self._writer.run(job)
        await self.force()
        return result

    def write_now(self, job: Callable[[Connection], T]) -> T:
        """The same as `write` in the calling thread, which waits; for start-up and commands."""
        return self._writer.submit(job).result()

    def close(self) -> None:
        """Carry out what is queued. Idempotent."""
        self._reader.close()
        self._writer.close()

    async def force(self) -> None:
        """Have the log on disk as it is now: what is being forced already may be older, so the next one counts.

        Raises StorageFailed, which undoes nothing: what was committed is there, and may be gone after a power cut.
        """
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.create_task(self._force_next(self._forcing))
        await asyncio.shield(self._next)

    async def _force_next(self, before: "asyncio.Future[None] | None") -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._forcing, self._next = self._next, None
        await asyncio.to_thread(_force, self._log)


def _force(path: Path) -> None:
    """SQLite has no locks on its log, which is why we may open and close it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageFailed(path, error) from error
