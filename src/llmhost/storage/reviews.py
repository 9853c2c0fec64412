"""Texts that wait for a human's decision, and what was decided: `reviews.db`.

An act is a compare-and-set: it is made of the row as it is within the transaction, and is refused where the row has
moved on. What records say is not known here, and texts come encrypted or redacted.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from llmhost.storage import review_rows as rows
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.review_rows import SCHEMA, Act, Event, NewReview, Ruling, Texts
from llmhost.storage.writer import Writer

T = TypeVar("T")


class ReviewStore:
    """Owns the file. A change is on disk before whoever made it hears of it."""

    def __init__(self, path: Path, *, node_id: str) -> None:
        """Blocks. Raises StorageFailed, ConfigError."""
        self._node_id = node_id
        self._writer = Writer(path, synchronous="FULL", migrations=[SCHEMA])
        self._reader = Reader(path)
        # What is erased is overwritten, and not only forgotten.
        self._writer.submit(rows.erase_for_good).result()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    # ------------------------------------------------------------ reviews

    async def add(self, new: NewReview, event: Event) -> None:
        await self.write(partial(rows.add, node_id=self._node_id, new=new, event=event))

    async def act(self, review_id: str, act: Act, org: str | None = None) -> bytes:
        """The record afterwards. Raises NotFound, also for another organisation's; Conflict; and what `act` raises."""
        return await self.write(
            partial(rows.act, node_id=self._node_id, review_id=review_id, act=act, org=org)
        )

    async def act_on_first(
        self, org: str | None, suits: Callable[[bytes], bool], act: Act
    ) -> bytes | None:
        """The same for the pending one that suits and is due first; None where none does."""
        return await self.write(
            partial(rows.act_on_first, node_id=self._node_id, org=org, suits=suits, act=act)
        )

    async def note(self, review_id: str, event: Event) -> None:
        """Add to its history."""
        await self.write(
            partial(rows.note, node_id=self._node_id, review_id=review_id, event=event)
        )

    async def find(
        self, review_id: str, *, org: str | None = None, owner: str | None = None
    ) -> bytes | None:
        """The record; None for another organisation's or another owner's."""
        return await self.read(partial(rows.find, review_id=review_id, org=org, owner=owner))

    async def page(
        self,
        *,
        org: str | None,
        states: Sequence[str],
        category: str | None,
        now_ns: int,
        after: str | None,
        limit: int,
    ) -> list[bytes]:
        """Records, the oldest first. Raises InvalidValue for an `after` that there is not."""
        return await self.read(
            partial(
                rows.page,
                org=org,
                states=tuple(states),
                category=category,
                now_ns=now_ns,
                after=after,
                limit=limit,
            )
        )

    async def texts(self, review_id: str) -> Texts:
        return await self.read(partial(rows.texts, review_id=review_id))

    async def events(self, review_id: str) -> list[Event]:
        return await self.read(partial(rows.events, review_id=review_id))

    async def decided(self, org: str | None, since_ns: int) -> list[bytes]:
        """Records of what was decided since."""
        return await self.read(partial(rows.decided, org=org, since_ns=since_ns))

    async def labels(
        self, org: str | None, since_ns: int
    ) -> list[tuple[str, str, str, float, bool]]:
        """(category, rule, tier, score, whether it was rejected) of what was decided since."""
        return await self.read(partial(rows.labels, org=org, since_ns=since_ns))

    def pending(self) -> list[tuple[bytes, bytes | None]]:
        """Record and digest of all that are undecided. Blocks."""
        return self._reader.read_now(rows.pending)

    def rulings(self, since_ns: int) -> list[Ruling]:
        """What was decided since, of those with a digest. Blocks."""
        return self._reader.read_now(partial(rows.rulings, since_ns=since_ns))

    async def late(self, now_ns: int) -> list[str]:
        """Undecided ones whose time is over."""
        return await self.read(partial(rows.late, now_ns=now_ns))

    async def erase(self, *, originals_before_ns: int, redacted_before_ns: int) -> int:
        """Erase texts of reviews from before, and what is held for them; returns how many rows it were."""
        count = 0
        job = partial(rows.erase, originals_ns=originals_before_ns, redacted_ns=redacted_before_ns)
        while gone := await self.write(job):
            count += gone
        return count

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job of nothing but SQL; done when it is on disk. Raises StorageFailed, Overloaded."""
        return await self._writer.run(job)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Raises StorageFailed."""
        return await self._reader.read(query)
