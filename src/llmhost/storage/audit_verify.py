"""How the audit log's file is checked, and the small file that says where it ends."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Any

from llmhost.storage.audit_chain import (
    DAMAGED,
    Broken,
    Checkpoint,
    Head,
    Link,
    Verdict,
    behind,
    check,
    head_line,
    read_head,
)
from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.reader import Reader

COLUMNS = (
    *("seq", "node_id", "at_ns", "kind", "org"),
    *("actor", "action", "target", "request_id", "detail"),
)
"""What is chained of a row, in this order; a new one goes to the end, and only for rows that have it."""
SELECT = f"SELECT mark, {', '.join(COLUMNS)} FROM rows"
PAGE_ROWS = 1_000

_PAGE = f"{SELECT} WHERE seq > ? ORDER BY seq LIMIT {PAGE_ROWS}"
_CHECKPOINTS = "SELECT first_seq, last_seq, before, mark, seal FROM checkpoints ORDER BY first_seq"
_TEXTS = "SELECT texts.seq, sealed, detail FROM texts LEFT JOIN rows USING (seq) ORDER BY seq"
_MARK_AT = (
    "SELECT mark FROM rows WHERE seq = ? UNION SELECT mark FROM checkpoints WHERE last_seq = ?"
)
_ACTION = COLUMNS.index("action")
_DETAIL = COLUMNS.index("detail")
_LEAST = -(2**63)


class HeadFile:
    """One line of text, written in place: shorter than a sector, so that it is there whole or not at all."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key
        self._fd: int | None = None

    @property
    def is_written(self) -> bool:
        return self._fd is not None

    def read(self) -> Head | None:
        """None when it is not there, or was not written by this node."""
        try:
            return read_head(self._key, self.path.read_bytes())
        except OSError:
            return None

    def write(self, head: Head) -> None:
        """Not forced to disk: after a power cut it may be older than the log, which is no damage."""
        try:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._fd, head_line(self._key, head), 0)
        except OSError:  # said by whoever checks the log: its end is not what is known of it
            return

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def verify(reader: Reader, key: bytes, head_file: HeadFile, kept: Head | None) -> Verdict:
    """Nothing may be pruned meanwhile."""
    known, walk = head_file.read(), _Walk(reader)
    try:
        verdict = check(key, walk)
        wrong = verdict.broken or walk.found_before
        wrong = wrong or _wrong_end(reader, verdict, known, kept, head_file.path.name)
        wrong = wrong or reader.read_now(_wrong_text)
        wrong = wrong or _wrong_file(reader, verdict)
    except StorageFailed as error:
        wrong = Broken(
            seq=walk.last + 1, reason=f"from here on it can't be read: {error.__cause__}"
        )
        return Verdict(rows=walk.rows, pruned=0, head=Head(), broken=wrong)
    return Verdict(rows=verdict.rows, pruned=verdict.pruned, head=verdict.head, broken=wrong)


class _Walk:
    """Rows and checkpoints in the order of their numbers, a page at a time: one long read would keep the writer's log
    from being folded in."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.last, self.rows = 0, 0
        self.found_before: Broken | None = None
        """What the node itself found wrong in the past."""

    def __iter__(self) -> Iterator[Link | Checkpoint]:
        return merge(self._checkpoints(), self._rows(), key=lambda part: part.first)

    def _rows(self) -> Iterator[Link]:
        after = _LEAST
        while page := self._reader.read_now(partial(_page, after=after)):
            for mark, *values in page:
                self.last, self.rows = values[0], self.rows + 1
                if values[_ACTION] == DAMAGED and self.found_before is None:
                    self.found_before = _noted(values[0], values[_DETAIL])
                yield Link(values, mark)
            after = page[-1][1]

    def _checkpoints(self) -> Iterator[Checkpoint]:
        found = self._reader.read_now(lambda c: c.execute(_CHECKPOINTS).fetchall())
        return (Checkpoint(*row) for row in found)


def _page(connection: Connection, *, after: int) -> list[Any]:
    # Text that is none shall differ from what was recorded, and not be an error that has no place.
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    return connection.execute(_PAGE, (after,)).fetchall()


def _mark_at(connection: Connection, *, seq: int) -> bytes | None:
    found = connection.execute(_MARK_AT, (seq, seq)).fetchone()
    return None if found is None else bytes(found[0])


def _noted(seq: int, detail: str) -> Broken:
    try:
        reason = str(json.loads(detail)["reason"])
    except (ValueError, KeyError, TypeError):
        reason = "something was wrong"
    return Broken(seq=seq, reason=f"the node found when it wrote it: {reason}")


def _wrong_end(
    reader: Reader, verdict: Verdict, known: Head | None, kept: Head | None, name: str
) -> Broken | None:
    for head in filter(None, (known, kept)):
        if (
            wrong := behind(verdict, head, reader.read_now(partial(_mark_at, seq=head.seq)))
        ) is not None:
            return wrong
    if known is None and verdict.head.seq:
        return Broken(
            seq=verdict.head.seq, reason=f"{name}, which says that it is the last, is not whole"
        )
    return None


def _wrong_file(reader: Reader, verdict: Verdict) -> Broken | None:
    problem = reader.read_now(_integrity)
    if problem is None:
        return None
    return Broken(
        seq=verdict.head.seq, reason=f"up to it all rows are whole, but the file is not: {problem}"
    )


def _wrong_text(connection: Connection) -> Broken | None:
    """A text whose row does not tell of it; those that were erased are missed by nobody."""
    for seq, sealed, detail in connection.execute(_TEXTS):
        told = {} if detail is None else json.loads(detail).get("prompt", {})
        if told.get("sha256") != hashlib.sha256(sealed).hexdigest():
            return Broken(seq=seq, reason="its prompt is not what was recorded")
    return None


def _integrity(connection: Connection) -> str | None:
    (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    return None if said == "ok" else str(said)
