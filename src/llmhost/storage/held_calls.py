"""Calls that are held until a review is decided, and their answers until they are fetched, in `reviews.db`.

What was asked and answered comes encrypted. An answer's row has the ledger's entry beside it until the ledger has that.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from llmhost.storage.connect import Connection
from llmhost.storage.review_rows import Event, note
from llmhost.storage.reviews import ReviewStore


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call that waits, or its answer. `call` and `answer` are encrypted."""

    review: str
    call: bytes | None
    status: int | None
    answer: bytes | None


@dataclass(frozen=True, slots=True)
class UnbookedCall:
    review: str
    entry: bytes


class HeldCalls:
    """Owns the table; a change is on disk before whoever made it hears of it."""

    def __init__(self, store: ReviewStore, *, node_id: str) -> None:
        self._store = store
        self._node_id = node_id

    async def hold(
        self, review_id: str, at_ns: int, call: bytes | None, answer: tuple[int, bytes] | None
    ) -> None:
        """Keep a call that waits for the review, or its answer. The first one stays."""
        row = (self._node_id, at_ns, review_id, call, *(answer or (None, None)))
        await self._store.write(partial(_hold, row=row))

    async def held(self, review_id: str) -> HeldCall | None:
        return await self._store.read(partial(_held, review_id=review_id))

    async def keep_answer(
        self, review_id: str, status: int, answer: bytes, entry: bytes | None, event: Event
    ) -> None:
        """Keep what a held call was answered, with the entry that the ledger has to be given, and note it in the
        review's history. The first one stays."""
        facts = (review_id, status, answer, entry)
        await self._store.write(partial(_answer, facts=facts, event=event, node_id=self._node_id))

    async def booked(self, review_id: str) -> None:
        await self._store.write(partial(_booked, review_id=review_id))

    async def unbooked(self) -> list[UnbookedCall]:
        return await self._store.read(_unbooked)

    async def runnable(self) -> list[str]:
        """Ids of approved reviews whose held calls have no answer."""
        return await self._store.read(_runnable)


def _hold(connection: Connection, *, row: tuple[Any, ...]) -> None:
    connection.execute(
        "INSERT INTO held_calls (node_id, utc_ns, review, call, status, answer) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (review) DO NOTHING",
        row,
    )


def _held(connection: Connection, *, review_id: str) -> HeldCall | None:
    row = connection.execute(
        "SELECT review, call, status, answer FROM held_calls WHERE review = ?", (review_id,)
    ).fetchone()
    return None if row is None else HeldCall(*row)


def _answer(
    connection: Connection,
    *,
    facts: tuple[str, int, bytes, bytes | None],
    event: Event,
    node_id: str,
) -> None:
    review_id, *answered = facts
    changed = connection.execute(
        "UPDATE held_calls SET status = ?, answer = ?, entry = ?, call = NULL WHERE review = ? AND answer IS NULL",
        (*answered, review_id),
    )
    if changed.rowcount:
        note(connection, node_id=node_id, review_id=review_id, event=event)


def _booked(connection: Connection, *, review_id: str) -> None:
    connection.execute("UPDATE held_calls SET entry = NULL WHERE review = ?", (review_id,))


def _unbooked(connection: Connection) -> list[UnbookedCall]:
    rows = connection.execute(
        "SELECT review, entry FROM held_calls WHERE entry IS NOT NULL ORDER BY seq"
    )
    return [UnbookedCall(*row) for row in rows]


def _runnable(connection: Connection) -> list[str]:
    rows = connection.execute(
        "SELECT review FROM held_calls JOIN reviews ON reviews.id = held_calls.review"
        " WHERE answer IS NULL AND call IS NOT NULL AND state = 'approved' ORDER BY held_calls.seq"
    )
    return [row[0] for row in rows]
