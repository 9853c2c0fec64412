"""`audit.db`: rows that are added, chained under a key, and never changed; and what is left of those that were pruned.

What rows mean is not known here. Every commit is forced to disk, then the end of the chain is written to a small file
of its own, so that rows which are cut off at the end are missed as well.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Clock
from llmhost.observe.logs import log_event
from llmhost.storage.audit_chain import DAMAGED, GENESIS, Head, Verdict, mark_of, missing
from llmhost.storage.audit_prune import ChainBroken, prune
from llmhost.storage.audit_verify import COLUMNS, PAGE_ROWS, SELECT, HeadFile, verify
from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

log = logging.getLogger("llmhost.audit")

T = TypeVar("T")

SCHEMA = Schema(
    "audit",
    {
        "rows_and_checkpoints": (
            """CREATE TABLE rows (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                at_ns INTEGER NOT NULL,
                kind TEXT NOT NULL,
                org TEXT,
                actor TEXT NOT NULL,
                action TEXT NOT NULL,
                target TEXT NOT NULL,
                request_id TEXT,
                detail TEXT NOT NULL,
                mark BLOB NOT NULL
            ) STRICT""",
            "CREATE INDEX rows_by_org ON rows (org, seq)",
            "CREATE INDEX rows_by_time ON rows (at_ns)",
            """CREATE TABLE checkpoints (
                first_seq INTEGER PRIMARY KEY,
                last_seq INTEGER NOT NULL,
                before BLOB NOT NULL,
                mark BLOB NOT NULL,
                seal BLOB NOT NULL
            ) STRICT""",
            "CREATE TRIGGER rows_no_update BEFORE UPDATE ON rows"
            " BEGIN SELECT RAISE(ABORT, 'rows are only ever added'); END",
        ),
        "texts": (
            """CREATE TABLE texts (
                seq INTEGER PRIMARY KEY, -- of the row that tells of it
                node_id TEXT NOT NULL,
                at_ns INTEGER NOT NULL,
                ends_ns INTEGER NOT NULL,
                sealed BLOB NOT NULL
            ) STRICT""",
            "CREATE INDEX texts_by_end ON texts (ends_ns)",
        ),
    },
)

_INSERT = (
    f"INSERT INTO rows ({', '.join(COLUMNS)}, mark) VALUES ({', '.join('?' * len(COLUMNS))}, ?)"
)
_INSERT_TEXT = "INSERT INTO texts (seq, node_id, at_ns, ends_ns, sealed) VALUES (?, ?, ?, ?, ?)"
_TEXT = "SELECT sealed, ends_ns FROM texts WHERE seq = ?"
_ERASE_TEXTS = "DELETE FROM texts WHERE ends_ns <= ?"
_PRUNED = "SELECT 1 FROM checkpoints WHERE ? BETWEEN first_seq AND last_seq"
_HEAD = "SELECT seq, mark FROM rows ORDER BY seq DESC LIMIT 1"
_MATCHING = (
    "(:org IS NULL OR org = :org) AND (:kind IS NULL OR kind = :kind)"
    " AND (:action IS NULL OR action = :action) AND (:actor IS NULL OR actor = :actor)"
    " AND at_ns >= :since_ns AND at_ns < :until_ns"
)
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SealedText:
    """A text beside a row, encrypted, which is erased before the row is. The row's detail has its digest."""

    sealed: bytes
    ends_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One thing that happened. It never holds a prompt or an answer."""

    at_ns: int
    """UTC, nanoseconds since 1970."""
    kind: str
    actor: str
    """The id of a key, `operator`, or who else did it."""
    action: str
    target: str
    org: str | None = None
    """Whose admins may see it; None: the operator alone."""
    request_id: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    text: SealedText | None = None
    """What is to be kept beside it; not there where a row is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A row in its place."""

    seq: int
    mark: bytes
    row: AuditRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows are asked for; None asks for any."""

    org: str | None = None
    kind: str | None = None
    action: str | None = None
    actor: str | None = None
    since_ns: int = 0
    until_ns: int = LARGEST


class AuditTrail:
    """Owns the file's rows. Safe to call from any thread. What reads waits for the disk."""

    def __init__(
        self,
        path: Path,
        head_path: Path,
        *,
        key: bytes,
        node_id: str,
        clock: Clock,
        more: Sequence[Schema] = (),
    ) -> None:
        """`more` are tables of others in the same file, who change them by `together`."""
        self._key = key
        self._node_id = node_id
        self._clock = clock
        self._chain = threading.Lock()  # a walk of the chain and pruning take turns
        self._head_file = HeadFile(head_path, key)
        self._known = self._head_file.read()
        self._writer = Writer(
            path, synchronous="FULL", migrations=(SCHEMA, *more), on_commit=self._committed
        )
        self.reader = Reader(path)
        self._writer.submit(self._look_back).result()

    @property
    def health(self) -> Exception | None:
        """Why no row can be written now; None while rows can."""
        return self._writer.health

    @property
    def head(self) -> Head:
        """Where the log ends, as far as it is on disk."""
        return self._known or Head()

    def add(self, row: AuditRow) -> "Future[Recorded]":
        """Append a row; the future has it when it is on disk. Raises Overloaded, and the future StorageFailed."""
        return self._writer.append(self._append, row)

    def add_here(self, row: AuditRow) -> "asyncio.Future[Recorded]":
        """As `add`, for the running event loop."""
        return self._writer.append_here(self._append, row)

    def tell(
        self, row: AuditRow, complain: Callable[[], None], stored: Callable[[], None] | None = None
    ) -> None:
        """As `add`, for nobody who waits; `complain` is called on another thread if it could not be stored, and
        `stored` if it could."""
        self._writer.tell(self._append, row, complain, stored)

    async def together(self, act: Callable[[Connection], tuple[T, AuditRow]]) -> T:
        """Change other tables of this file and append the row that tells of it: both or neither."""

        def job(connection: Connection) -> T:
            result, row = act(connection)
            self._append(connection, [row])
            return result

        return await self._writer.run(job)

    def verify(self, kept: Head | None = None) -> Verdict:
        """Check each row against the chain, and its end against the file beside it and the head that somebody kept."""
        with self._chain:
            self._writer.submit(lambda _: None).result()
            return verify(self.reader, self._key, self._head_file, kept)

    def prune(self, before_ns: Mapping[str, int], rest_before_ns: int) -> int:
        """Delete rows that are older than their organisation's time says; the chain stays whole. How many there were.

        Rows of organisations that are not named go by `rest_before_ns`. Raises StorageFailed when one of them is not
        what was recorded: nothing that is damaged is deleted. Blocks.
        """
        job = partial(
            prune,
            key=self._key,
            select_rows=SELECT,
            before_ns=before_ns,
            rest_before_ns=rest_before_ns,
        )
        count, has_more = 0, True
        with self._chain:
            while has_more:
                try:
                    done = self._writer.submit(job).result()
                except ChainBroken as error:
                    raise StorageFailed(self._writer.path, error) from error
                count, has_more = count + done.rows, done.has_more
        return count

    def erase_texts(self, now_ns: int) -> int:
        """Those whose time is over, overwritten in the file; how many. Blocks. Raises StorageFailed."""

        def job(connection: Connection) -> int:
            connection.execute("PRAGMA secure_delete = ON")
            return connection.execute(_ERASE_TEXTS, (now_ns,)).rowcount

        return self._writer.submit(job).result()

    def text(self, seq: int) -> SealedText | None:
        """What is kept beside a row. Blocks."""
        self._catch_up()
        found = self.reader.read_now(lambda c: c.execute(_TEXT, (seq,)).fetchone())
        return None if found is None else SealedText(*found)

    def row(self, seq: int) -> Recorded | None:
        """Blocks."""
        self._catch_up()
        found = self.reader.read_now(
            lambda c: c.execute(f"{SELECT} WHERE seq = ?", (seq,)).fetchone()
        )
        return None if found is None else _recorded(found)

    def newest(self, wanted: Wanted, *, limit: int, before: int = LARGEST) -> list[Recorded]:
        """Rows with smaller numbers than `before`, the newest first; all that was told before is among them."""
        self._catch_up()
        query = f"{SELECT} WHERE {_MATCHING} AND seq < :before ORDER BY seq DESC LIMIT :limit"
        return self._found(query, wanted, before=before, limit=limit)

    def oldest(self, wanted: Wanted) -> Iterator[Recorded]:
        """All that is asked for, the oldest first, a page at a time; all that was told before is among them."""
        self._catch_up()
        query = f"{SELECT} WHERE {_MATCHING} AND seq > :after ORDER BY seq LIMIT :limit"
        after = 0
        while page := self._found(query, wanted, after=after, limit=PAGE_ROWS):
            yield from page
            after = page[-1].seq

    def close(self) -> None:
        """Write what is queued. Idempotent."""
        self._writer.close()
        self.reader.close()
        self._head_file.close()

    def _catch_up(self) -> None:
        with suppress(LlmhostError):  # who can't write can still read
            self._writer.submit(lambda _: None).result()

    def _found(self, query: str, wanted: Wanted, **place: int) -> list[Recorded]:
        facts = {name: getattr(wanted, name) for name in Wanted.__slots__} | place
        rows = self.reader.read_now(lambda c: c.execute(query, facts).fetchall())
        return [_recorded(row) for row in rows]

    def _append(self, connection: Connection, rows: Sequence[AuditRow]) -> list[Recorded]:
        # The head is read anew: remembered, it would be wrong after a group that could not be committed.
        head = _head(connection)
        lost = _lost(self._known, head)
        results: list[Recorded] = []
        for row in rows if lost is None else (self._damage(lost), *rows):
            values = (head.seq + 1, self._node_id, *_values(row))
            head = Head(head.seq + 1, mark_of(self._key, head.mark, values))
            results.append(Recorded(seq=head.seq, mark=head.mark, row=row))
            connection.execute(_INSERT, (*values, head.mark))
            if row.text is not None:
                text = (head.seq, self._node_id, row.at_ns, row.text.ends_ns, row.text.sealed)
                connection.execute(_INSERT_TEXT, text)
        return results[len(results) - len(rows) :]

    def _look_back(self, connection: Connection) -> None:
        """Before anything is added: rows that are gone would be written over, and never missed again."""
        head, known = _head(connection), self._known
        reason = _lost(known, head)
        if known is None and head.seq:
            reason = f"{self._head_file.path.name}, which says where the log ends, was not there or not whole"
        elif known is not None and reason is None and not _has(connection, known):
            reason = f"row {known.seq} was another one than the node had written"
        self._known = head
        if reason is not None:
            self._append(connection, [self._damage(reason)])

    def _damage(self, reason: str) -> AuditRow:
        log_event(log, "audit.damaged", level=logging.ERROR, reason=reason)
        return AuditRow(
            at_ns=self._clock.utc_ns(),
            kind="audit",
            actor="node",
            action=DAMAGED,
            target="audit.db",
            detail={"reason": reason},
        )

    def _committed(self, connection: Connection) -> None:
        head = _head(connection)
        if head != self._known or not self._head_file.is_written:
            self._known = head
            self._head_file.write(head)


def _head(connection: Connection) -> Head:
    return Head(*(connection.execute(_HEAD).fetchone() or (0, GENESIS)))


def _lost(known: Head | None, head: Head) -> str | None:
    if known is None or known.seq <= head.seq:
        return None
    return f"{missing(head.seq + 1, known.seq)} gone, of which the last had the mark {known.mark.hex()}"


def _has(connection: Connection, known: Head) -> bool:
    if not known.seq:
        return True
    found = connection.execute("SELECT mark FROM rows WHERE seq = ?", (known.seq,)).fetchone()
    if found is not None:
        return bytes(found[0]) == known.mark
    return connection.execute(_PRUNED, (known.seq,)).fetchone() is not None


def _values(row: AuditRow) -> tuple[Any, ...]:
    detail = json.dumps(row.detail, separators=(",", ":"), ensure_ascii=False)
    return (
        *(row.at_ns, row.kind, row.org, row.actor, row.action),
        *(row.target, row.request_id, detail),
    )


def _recorded(found: Sequence[Any]) -> Recorded:
    mark, seq, _, *values = found
    names = COLUMNS[2:-1]
    row = AuditRow(**dict(zip(names, values[:-1], strict=True)), detail=json.loads(values[-1]))
    return Recorded(seq=seq, mark=mark, row=row)
