"""Finished answers under the name of the call that they belong to, for whoever makes that call again.

What a name or an answer is is not known here. Nothing here is money: a power cut may lose the last moment, and a call
that is made again then runs again. Neither age nor bytes go beyond their bounds; the oldest goes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from llmhost.core.ports import Clock
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

SCHEMA = Schema(
    "answers",
    {
        "answers_and_their_bytes": (
            # AUTOINCREMENT: old rows are deleted, and their numbers must not come back
            """CREATE TABLE answers (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                name BLOB NOT NULL UNIQUE,
                body_hash BLOB NOT NULL,
                request_id TEXT NOT NULL,
                status INTEGER NOT NULL,
                headers BLOB NOT NULL,
                body BLOB NOT NULL
            ) STRICT""",
            "CREATE TABLE held (bytes INTEGER NOT NULL) STRICT",
            "INSERT INTO held VALUES (0)",
            """CREATE TRIGGER answer_comes AFTER INSERT ON answers BEGIN
                UPDATE held SET bytes = bytes + length(NEW.body);
            END""",
            """CREATE TRIGGER answer_goes AFTER DELETE ON answers BEGIN
                UPDATE held SET bytes = bytes - length(OLD.body);
            END""",
        )
    },
)

_DELETED_AT_ONCE = 500
"""Rows deleted by one job: forgetting must not hold up who waits for an answer's end."""
_COLUMNS = "node_id, utc_ns, name, body_hash, request_id, status, headers, body"
_INSERT = f"INSERT INTO answers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_FIND = (
    "SELECT body_hash, request_id, status, headers, body FROM answers WHERE name = ? AND utc_ns > ?"
)
_FORGET = (
    "DELETE FROM answers WHERE seq IN"
    f" (SELECT seq FROM answers WHERE utc_ns <= ? ORDER BY seq LIMIT {_DELETED_AT_ONCE})"
)

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer."""

    body_hash: bytes
    """Of the request's body."""
    request_id: str
    status: int
    headers: Headers
    body: bytes


class Answers:
    """Owns the file through its writer, which should be a NORMAL one."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        *,
        node_id: str,
        clock: Clock,
        kept_s: float,
        most_bytes: int,
    ) -> None:
        """`most_bytes` bounds all bodies together."""
        self._writer = writer
        self._reader = reader
        self._node_id = node_id
        self._clock = clock
        self._kept_ns = int(kept_s * 10**9)
        self._most_bytes = most_bytes

    async def find(self, name: bytes) -> Answer | None:
        """The answer of that name, unless it is too old. Raises StorageFailed."""
        row = await self._reader.read(partial(_find, name=name, after_ns=self._oldest_ns))
        if row is None:
            return None
        body_hash, request_id, status, headers, body = row
        return Answer(
            body_hash=body_hash,
            request_id=request_id,
            status=status,
            headers=msgspec.msgpack.decode(headers, type=Headers),
            body=body,
        )

    async def keep(self, name: bytes, answer: Answer) -> None:
        """Done when it will outlive this process; what has the name already makes way.

        Raises StorageFailed or Overloaded.
        """
        row = (
            self._node_id,
            self._clock.utc_ns(),
            name,
            answer.body_hash,
            answer.request_id,
            answer.status,
            msgspec.msgpack.encode(answer.headers),
            answer.body,
        )
        await self._writer.run(partial(_keep, name=name, row=row, most_bytes=self._most_bytes))

    async def forget(self) -> int:
        """Delete what is too old, a few at a time; returns how many."""
        count = 0
        while deleted := await self._writer.run(partial(_forget, until_ns=self._oldest_ns)):
            count += deleted
        return count

    @property
    def _oldest_ns(self) -> int:
        """Answers of this moment or before are too old."""
        return self._clock.utc_ns() - self._kept_ns


def _find(connection: Connection, *, name: bytes, after_ns: int) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = connection.execute(_FIND, (name, after_ns)).fetchone()
    return row


def _keep(connection: Connection, *, name: bytes, row: Sequence[Any], most_bytes: int) -> None:
    connection.execute("DELETE FROM answers WHERE name = ?", (name,))
    connection.execute(_INSERT, row)
    while _held_bytes(connection) > most_bytes:
        connection.execute("DELETE FROM answers WHERE seq = (SELECT min(seq) FROM answers)")


def _held_bytes(connection: Connection) -> int:
    held: int = connection.execute("SELECT bytes FROM held").fetchone()[0]
    return held


def _forget(connection: Connection, *, until_ns: int) -> int:
    return connection.execute(_FORGET, (until_ns,)).rowcount
