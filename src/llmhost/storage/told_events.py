"""Up to which event of reviews somebody was told: a place in `review_events`, for each URL."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llmhost.storage.connect import Connection
from llmhost.storage.reviews import ReviewStore


@dataclass(frozen=True, slots=True)
class Telling:
    """An event that is to be told, with the record of its review as that is now."""

    seq: int
    at_ns: int
    event: str
    record: bytes


class ToldEvents:
    """Owns the table; a place is on disk before whoever moved it goes on."""

    def __init__(self, store: ReviewStore, url: str, *, node_id: str) -> None:
        self._store = store
        self._url = url
        self._node_id = node_id

    async def place(self, utc_ns: int) -> int:
        """Where to go on. A URL that is new begins at the end: what was before it is not told."""
        return await self._store.write(
            partial(_place, url=self._url, node_id=self._node_id, utc_ns=utc_ns)
        )

    async def move(self, seq: int, utc_ns: int) -> None:
        row = (self._url, self._node_id, utc_ns, seq)
        await self._store.write(partial(_move, row=row))

    async def next(self, after: int, events: Sequence[str]) -> Telling | None:
        """The first of these events after a place."""
        return await self._store.read(partial(_next, after=after, events=tuple(events)))


def _place(connection: Connection, *, url: str, node_id: str, utc_ns: int) -> int:
    connection.execute(
        "INSERT INTO told_events (url, node_id, utc_ns, seq)"
        " SELECT ?, ?, ?, coalesce(max(seq), 0) FROM review_events WHERE true"
        " ON CONFLICT (url) DO NOTHING",
        (url, node_id, utc_ns),
    )
    (seq,) = connection.execute("SELECT seq FROM told_events WHERE url = ?", (url,)).fetchone()
    return int(seq)


def _move(connection: Connection, *, row: tuple[str, str, int, int]) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO told_events (url, node_id, utc_ns, seq) VALUES (?, ?, ?, ?)", row
    )


def _next(connection: Connection, *, after: int, events: tuple[str, ...]) -> Telling | None:
    marks = ", ".join("?" * len(events))
    row = connection.execute(
        "SELECT review_events.seq, review_events.utc_ns, event, record FROM review_events"
        f" JOIN reviews ON reviews.id = review_events.review WHERE review_events.seq > ? AND event IN ({marks})"
        " ORDER BY review_events.seq LIMIT 1",
        (after, *events),
    ).fetchone()
    return None if row is None else Telling(*row)
