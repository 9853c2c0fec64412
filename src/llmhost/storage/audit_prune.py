"""Deleting old rows of the audit log so that its chain can still be checked: each run of them leaves a checkpoint.

What is deleted is checked first, row by row: whoever changed a row can't have it pruned away.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmhost.storage.audit_chain import GENESIS, Checkpoint, Link, mark_of, seal_of, sealed
from llmhost.storage.connect import Connection

MOST_ROWS = 2_000
"""Deleted by one job: pruning must not hold up what is being recorded."""

_CHECKPOINT = "SELECT first_seq, last_seq, before, mark, seal FROM checkpoints WHERE"
_OF_ORG = "SELECT seq FROM rows WHERE org IS ? AND at_ns < ? AND seq < ? ORDER BY seq LIMIT ?"
_OF_REST = (
    "SELECT seq FROM rows WHERE at_ns < ? AND seq < ?"
    " AND (org IS NULL OR org NOT IN (SELECT value FROM json_each(?))) ORDER BY seq LIMIT ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How many rows were deleted, and whether others are as old."""

    rows: int
    has_more: bool


class ChainBroken(Exception):
    """A row that is to be deleted is not what was recorded."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"row {seq} is not what was recorded, and nothing from it on is deleted")


def prune(
    connection: Connection,
    *,
    key: bytes,
    select_rows: str,
    before_ns: Mapping[str, int],
    rest_before_ns: int,
) -> Pruned:
    """Delete some rows. `select_rows` gives a mark and a row's values. Raises ChainBroken."""
    found = _due(connection, before_ns, rest_before_ns)
    for first, last in _runs(found[:MOST_ROWS]):
        _fold(connection, key, select_rows, first, last)
    return Pruned(rows=min(len(found), MOST_ROWS), has_more=len(found) > MOST_ROWS)


def _due(connection: Connection, before_ns: Mapping[str, int], rest_ns: int) -> list[int]:
    """Numbers of rows that are too old, in order; never the newest row, which says where the log ends."""
    (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM rows").fetchone()
    most = MOST_ROWS + 1
    found = connection.execute(
        _OF_REST, (rest_ns, newest, json.dumps(sorted(before_ns)), most)
    ).fetchall()
    for org, limit_ns in before_ns.items():
        found += connection.execute(_OF_ORG, (org, limit_ns, newest, most)).fetchall()
    return sorted(seq for (seq,) in found)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of neighbours."""
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last


def _fold(connection: Connection, key: bytes, select_rows: str, first: int, last: int) -> None:
    left = _checkpoint(connection, key, "last_seq = ?", first - 1)
    right = _checkpoint(connection, key, "first_seq = ?", last + 1)
    before = left.mark if left is not None else _mark_before(connection, first)
    mark = before
    rows = connection.execute(
        f"{select_rows} WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
    )
    for found, *values in rows:
        link = Link(values, found)
        mark = mark_of(key, mark, values)
        if mark != found:
            raise ChainBroken(link.first)
    if right is not None and right.before != mark:
        raise ChainBroken(right.first)
    whole = sealed(
        key,
        first if left is None else left.first,
        last if right is None else right.last,
        before if left is None else left.before,
        mark if right is None else right.mark,
    )
    for table in ("rows", "texts"):
        connection.execute(f"DELETE FROM {table} WHERE seq BETWEEN ? AND ?", (first, last))
    connection.execute(
        "DELETE FROM checkpoints WHERE first_seq BETWEEN ? AND ?", (whole.first, whole.last)
    )
    connection.execute(
        "INSERT INTO checkpoints (first_seq, last_seq, before, mark, seal) VALUES (?, ?, ?, ?, ?)",
        (whole.first, whole.last, whole.before, whole.mark, whole.seal),
    )


def _mark_before(connection: Connection, first: int) -> bytes:
    if first == 1:
        return GENESIS
    found = connection.execute("SELECT mark FROM rows WHERE seq = ?", (first - 1,)).fetchone()
    if found is None:
        raise ChainBroken(first - 1)
    return bytes(found[0])


def _checkpoint(connection: Connection, key: bytes, where: str, seq: int) -> Checkpoint | None:
    found = connection.execute(f"{_CHECKPOINT} {where}", (seq,)).fetchone()
    if found is None:
        return None
    one = Checkpoint(*found)
    if one.seal != seal_of(key, one.first, one.last, one.before, one.mark):
        raise ChainBroken(one.first)
    return one
