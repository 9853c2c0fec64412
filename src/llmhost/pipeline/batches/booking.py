"""Lines whose answers are kept and whose entries may not be booked: a process was killed in between, or a disk full."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from llmhost.cost.entries import Entry
from llmhost.observe.logs import log_event
from llmhost.pipeline.batches.attempt import decode_entry, log
from llmhost.storage.batches import Batches

BookLate = Callable[[Entry], Awaitable[None]]
Known = Callable[[Sequence[str]], set[str]]


class Booking:
    """Compares lines with the ledger, and gives it what it lacks."""

    def __init__(self, store: Batches, book_late: BookLate, known: Known) -> None:
        """`known` says, and waits for the disk, which requests the ledger has."""
        self._store = store
        self._book_late = book_late
        self._known = known

    async def catch_up(self, batch_id: str | None = None) -> int:
        """Book what is not, of all batches or of one, of which no line may run; how many those were.

        An entry that the ledger has is not booked again, for then budgets have it, too. Raises StorageFailed.
        """
        count = 0
        await self._store.settle_down()
        while rows := await self._store.unbooked(batch_id):
            entries = [decode_entry(row.entry) for row in rows]
            known = await asyncio.to_thread(self._known, [entry.request_id for entry in entries])
            for row, entry in zip(rows, entries, strict=True):
                if entry.request_id not in known:
                    await self._book_late(entry)
                    count += 1
                    log_event(log, "batch.line_booked_late", request=entry.request_id)
                await self._store.booked(row.batch, row.line)
        return count
