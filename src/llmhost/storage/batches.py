"""Batches and what became of their lines, in the state file.

A line's row holds its answer, and beside it the ledger's entry until the ledger has that: who is killed in between
finds it there. What records and entries say is not known here.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmhost.core.errors import InvalidValue, RateLimited
from llmhost.core.ports import Clock
from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.files import Owner, StoredFile, hold_file, insert_file, let_go_of_file
from llmhost.storage.keyed_calls import Note, unmake
from llmhost.storage.schema import Schema
from llmhost.storage.state import State

log = logging.getLogger("llmhost.batches")

SCHEMA = Schema(
    "batches",
    {
        "batches_and_their_lines": (
            """CREATE TABLE batches (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                org TEXT NOT NULL,
                team TEXT,
                input_file_id TEXT NOT NULL,
                is_live INTEGER NOT NULL DEFAULT 1,
                record BLOB NOT NULL
            ) STRICT""",
            "CREATE INDEX batches_by_owner ON batches (org, team, seq)",
            "CREATE INDEX live_batches ON batches (seq) WHERE is_live",
            """CREATE TABLE batch_lines (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                batch TEXT NOT NULL,
                line INTEGER NOT NULL,
                is_error INTEGER NOT NULL,
                input_tokens INTEGER NOT NULL,
                cached_tokens INTEGER NOT NULL,
                output_tokens INTEGER NOT NULL,
                reasoning_tokens INTEGER NOT NULL,
                text BLOB NOT NULL,
                entry BLOB,
                UNIQUE (batch, line)
            ) STRICT""",
            "CREATE INDEX unbooked_lines ON batch_lines (seq) WHERE entry IS NOT NULL",
        )
    },
)

_DELETED_AT_ONCE = 500
_READ_AT_ONCE = 200
_OWNED = "org = ? AND team IS ?"
_SELECT = "SELECT seq, record FROM batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """What became of one line. Lines count from 1."""

    batch: str
    line: int
    is_error: bool
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    text: bytes
    """Its line of the output."""
    entry: bytes | None
    """What the ledger still has to be given."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines that have ended and are booked, and what they used."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Unbooked:
    batch: str
    line: int
    entry: bytes


_RESULT = (
    "INSERT INTO batch_lines (node_id, utc_ns, batch, line, is_error, input_tokens, cached_tokens,"
    " output_tokens, reasoning_tokens, text, entry) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (batch, line) DO NOTHING"
)
_COUNTS = (
    "SELECT coalesce(sum(NOT is_error), 0), coalesce(sum(is_error), 0), coalesce(sum(input_tokens), 0),"
    " coalesce(sum(cached_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(reasoning_tokens), 0)"
    " FROM batch_lines WHERE batch = ? AND entry IS NULL"
)


class Batches:
    """Owns the tables of the state file. Records are bytes that whoever runs batches understands."""

    def __init__(self, state: State, *, node_id: str, clock: Clock) -> None:
        self._state = state
        self._node_id = node_id
        self._clock = clock

    async def add(
        self,
        batch_id: str,
        owner: Owner,
        record: bytes,
        *,
        input_file_id: str,
        most_live: int,
        note: Note | None = None,
    ) -> None:
        """Done when it will outlive this process. Its input can't be deleted from then on.

        Raises InvalidValue where the owner has no such file, RateLimited where it has `most_live` that have not ended,
        and what `note` does.
        What it raised for is not there: the next process must not run what its caller was told is not taken.
        """
        await self._state.write(
            partial(
                _add,
                row=(self._node_id, self._clock.utc_ns(), batch_id, *owner, input_file_id, record),
                owner=owner,
                input_file_id=input_file_id,
                most_live=most_live,
                now_ns=self._clock.utc_ns(),
                note=note,
            )
        )
        try:
            await self._state.force()
        except StorageFailed:
            await self._state.write(
                partial(
                    _undo,
                    batch_id=batch_id,
                    input_file_id=input_file_id,
                    is_noted=note is not None,
                )
            )
            raise

    async def update(self, batch_id: str, record: bytes) -> None:
        """What is said of a batch that goes on."""
        await self._state.write_through(partial(_update, batch_id=batch_id, record=record))

    async def end(
        self, batch_id: str, record: bytes, input_file_id: str, files: Sequence[StoredFile]
    ) -> None:
        """A batch has ended: its record, rows of the files that it made, and its hold on its input, all or nothing.

        Once there it stays: where the disk refuses to have it forced, a power cut makes it one that has not ended.
        """
        await self._state.write(
            partial(
                _end,
                batch_id=batch_id,
                record=record,
                input_file_id=input_file_id,
                files=tuple(files),
                node_id=self._node_id,
            )
        )
        try:
            await self._state.force()
        except StorageFailed as error:
            log.warning("batch.end_not_forced batch=%s error=%s", batch_id, error)

    async def find(self, batch_id: str, owner: Owner | None = None) -> bytes | None:
        """The record; None for another owner's."""
        found = await self._state.read(partial(_find, batch_id=batch_id, owner=owner))
        return None if found is None else found[1]

    async def page(
        self,
        owner: Owner | None,
        *,
        org: str | None = None,
        after: str | None = None,
        before: str | None = None,
        limit: int,
        mark: str = "",
    ) -> list[bytes]:
        """Records of batches, the newest first: of an owner, an organisation, or everybody; of those whose ids begin
        with `mark`. Those that are older than `after`, or the ones just newer than `before`.

        Raises InvalidValue.
        """
        page = partial(
            _page, owner=owner, org=org, after=after, before=before, limit=limit, mark=mark
        )
        return await self._state.read(page)

    async def live(self) -> list[bytes]:
        """Records of those that have not ended, the oldest first."""
        return await self._state.read(_live)

    async def settle_down(self) -> None:
        """Until all that was begun to be written is there for readers, whoever waits for it no longer."""
        await self._state.write(lambda _: None)

    async def delete(self, batch_id: str, owner: Owner) -> bool:
        """Forget one that has ended, and what is left of its lines; whether it was there."""
        return await self._state.write_through(partial(_delete, batch_id=batch_id, owner=owner))

    async def forget(self, before_ns: int) -> int:
        """Delete records of batches that were made before and have ended, a few at a time; returns how many."""
        count = 0
        while gone := await self._state.write(partial(_forget_old, before_ns=before_ns)):
            count += gone
        return count

    # ------------------------------------------------------------ lines

    async def keep(self, result: LineResult) -> None:
        """Done when it can't be lost. The first result of a line stays, whatever is kept of it later."""
        row = (
            self._node_id,
            self._clock.utc_ns(),
            result.batch,
            result.line,
            result.is_error,
            result.input_tokens,
            result.cached_tokens,
            result.output_tokens,
            result.reasoning_tokens,
            result.text,
            result.entry,
        )
        await self._state.write_through(partial(_keep, row=row))

    async def booked(self, batch_id: str, line: int) -> None:
        """The ledger has its entry."""
        await self._state.write(partial(_booked, batch_id=batch_id, line=line))

    async def done_lines(self, batch_id: str) -> set[int]:
        """Those that have a result, booked or not."""
        return await self._state.read(partial(_done, batch_id=batch_id))

    async def counts(self, batch_id: str) -> Counts:
        return await self._state.read(partial(_counts, batch_id=batch_id))

    async def unbooked(self, batch_id: str | None = None, limit: int = 1_000) -> list[Unbooked]:
        """Lines whose entries the ledger may not have, the oldest first; of one batch, or of all."""
        return await self._state.read(partial(_unbooked, batch_id=batch_id, limit=limit))

    def results(self, batch_id: str) -> Iterator[tuple[int, bool, bytes]]:
        """(line, whether it failed, its text), in the order of lines. Blocks."""
        after = 0
        while rows := self._state.read_now(partial(_texts, batch_id=batch_id, after=after)):
            yield from rows
            after = rows[-1][0]

    async def forget_lines(self) -> int:
        """Delete the lines of batches that have ended, a few at a time; returns how many."""
        count = 0
        while gone := await self._state.write(_forget):
            count += gone
        return count


def _add(
    connection: Connection,
    *,
    row: tuple[Any, ...],
    owner: Owner,
    input_file_id: str,
    most_live: int,
    now_ns: int,
    note: Note | None,
) -> None:
    if note is not None:
        note(connection, row[2])
    (live,) = connection.execute(
        f"SELECT count(*) FROM batches WHERE is_live AND {_OWNED}", owner
    ).fetchone()
    if live >= most_live:
        raise RateLimited(
            f"You have {live} batches that have not ended, and may have {most_live}. Wait for one, or cancel it."
        )
    if not hold_file(connection, input_file_id, owner, now_ns, purpose="batch"):
        raise InvalidValue(
            f"There is no file {input_file_id[:80]!r} of purpose 'batch'. Upload it with that purpose first.",
            param="input_file_id",
        )
    connection.execute(
        "INSERT INTO batches (node_id, utc_ns, id, org, team, input_file_id, record)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        row,
    )


def _undo(connection: Connection, *, batch_id: str, input_file_id: str, is_noted: bool) -> None:
    if connection.execute("DELETE FROM batches WHERE id = ?", (batch_id,)).rowcount:
        let_go_of_file(connection, input_file_id)
    if is_noted:
        unmake(connection, batch_id)


def _update(connection: Connection, *, batch_id: str, record: bytes) -> None:
    connection.execute("UPDATE batches SET record = ? WHERE id = ?", (record, batch_id))


def _end(
    connection: Connection,
    *,
    batch_id: str,
    record: bytes,
    input_file_id: str,
    files: Sequence[StoredFile],
    node_id: str,
) -> None:
    ended = connection.execute(
        "UPDATE batches SET record = ?, is_live = 0 WHERE id = ? AND is_live", (record, batch_id)
    )
    if ended.rowcount:
        for file in files:
            insert_file(connection, file=file, node_id=node_id)
        let_go_of_file(connection, input_file_id)


def _find(
    connection: Connection, *, batch_id: str, owner: Owner | None
) -> tuple[int, bytes] | None:
    where, values = ("", ()) if owner is None else (f" AND {_OWNED}", owner)
    row: tuple[int, bytes] | None = connection.execute(
        f"{_SELECT} WHERE id = ?{where}", (batch_id, *values)
    ).fetchone()
    return row


def _page(
    connection: Connection,
    *,
    owner: Owner | None,
    org: str | None,
    after: str | None,
    before: str | None,
    limit: int,
    mark: str,
) -> list[bytes]:
    older_than, newer_than = 2**63 - 1, 0
    if after is not None:
        older_than = _place(connection, after, owner, "after")
    if before is not None:
        newer_than = _place(connection, before, owner, "before")
    where, values = ("", ()) if owner is None else (f" AND {_OWNED}", owner)
    order = "DESC" if before is None else "ASC"
    query = (
        f"{_SELECT} WHERE seq < ? AND seq > ? AND org = coalesce(?, org) AND substr(id, 1, ?) = ?{where}"
        f" ORDER BY seq {order} LIMIT ?"
    )
    bounds = (older_than, newer_than, org, len(mark), mark)
    rows = connection.execute(query, (*bounds, *values, limit)).fetchall()
    return [row[1] for row in (rows if before is None else reversed(rows))]


def _place(connection: Connection, batch_id: str, owner: Owner | None, param: str) -> int:
    found = _find(connection, batch_id=batch_id, owner=owner)
    if found is None:
        raise InvalidValue(f"No batch has the id {batch_id[:80]!r}.", param=param)
    return found[0]


def _live(connection: Connection) -> list[bytes]:
    return [row[1] for row in connection.execute(f"{_SELECT} WHERE is_live ORDER BY seq")]


def _keep(connection: Connection, *, row: tuple[Any, ...]) -> None:
    connection.execute(_RESULT, row)


def _booked(connection: Connection, *, batch_id: str, line: int) -> None:
    connection.execute(
        "UPDATE batch_lines SET entry = NULL WHERE batch = ? AND line = ?", (batch_id, line)
    )


def _done(connection: Connection, *, batch_id: str) -> set[int]:
    rows = connection.execute("SELECT line FROM batch_lines WHERE batch = ?", (batch_id,))
    return {row[0] for row in rows}


def _counts(connection: Connection, *, batch_id: str) -> Counts:
    return Counts(*connection.execute(_COUNTS, (batch_id,)).fetchone())


def _unbooked(connection: Connection, *, batch_id: str | None, limit: int) -> list[Unbooked]:
    rows = connection.execute(
        "SELECT batch, line, entry FROM batch_lines WHERE entry IS NOT NULL AND batch = coalesce(?, batch)"
        " ORDER BY seq LIMIT ?",
        (batch_id, limit),
    )
    return [Unbooked(*row) for row in rows]


def _texts(connection: Connection, *, batch_id: str, after: int) -> list[tuple[int, bool, bytes]]:
    rows = connection.execute(
        "SELECT line, is_error, text FROM batch_lines WHERE batch = ? AND line > ?"
        f" ORDER BY line LIMIT {_READ_AT_ONCE}",
        (batch_id, after),
    )
    return [(line, bool(is_error), text) for line, is_error, text in rows]


def _delete(connection: Connection, *, batch_id: str, owner: Owner) -> bool:
    gone = connection.execute(
        f"DELETE FROM batches WHERE NOT is_live AND id = ? AND {_OWNED}", (batch_id, *owner)
    )
    if is_gone := gone.rowcount > 0:
        # A line with an entry is still to be booked.
        connection.execute("DELETE FROM batch_lines WHERE batch = ? AND entry IS NULL", (batch_id,))
    return is_gone


def _forget_old(connection: Connection, *, before_ns: int) -> int:
    return connection.execute(
        "DELETE FROM batches WHERE seq IN (SELECT seq FROM batches WHERE NOT is_live AND utc_ns < ?"
        f" AND NOT EXISTS (SELECT 1 FROM batch_lines WHERE batch = batches.id) LIMIT {_DELETED_AT_ONCE})",
        (before_ns,),
    ).rowcount


def _forget(connection: Connection) -> int:
    return connection.execute(
        "DELETE FROM batch_lines WHERE seq IN (SELECT batch_lines.seq FROM batch_lines"
        " JOIN batches ON batches.id = batch_lines.batch WHERE NOT batches.is_live"
        f" AND entry IS NULL LIMIT {_DELETED_AT_ONCE})"
    ).rowcount
