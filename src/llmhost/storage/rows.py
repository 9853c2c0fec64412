"""Many rows in few statements."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from llmhost.storage.connect import Connection

AT_ONCE = 32
"""So many rows are one statement, and with more they are several: each is a turn of the interpreter's lock, which a
busy event loop wants as well."""
_SIZES = (64, *range(AT_ONCE, 0, -1))
"""Rows per statement: so few texts that each stays prepared, and so many that few statements do."""

_FEW = 16
_TEXTS = 1_024
"""So many texts of statements are kept: sizes, times the columns that are there."""


def insert_rows(
    connection: Connection,
    table: str,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
    *,
    or_else: str = "",
) -> None:
    """Insert rows in order, up to 64 by one statement. Names are ours, never a caller's, and columns that may be null
    have no other default.

    `or_else` says what becomes of a row that is there already: an `ON CONFLICT` clause.
    """
    if rows and not or_else:
        columns, rows = _without_nulls(columns, rows)
    at, left = 0, len(rows)
    for size in _SIZES:
        while left >= size:
            values = tuple(chain.from_iterable(rows[at : at + size]))
            connection.execute(_statement(table, columns, size, or_else), values)
            at += size
            left -= size
        if not left:
            return


def _without_nulls(
    columns: tuple[str, ...], rows: Sequence[Sequence[Any]]
) -> tuple[tuple[str, ...], Sequence[Sequence[Any]]]:
    """Only the columns that are not null in all rows: `sqlite3` asks a None how it wants to be stored, which takes
    four times as long as to store a number."""
    count = len(rows)
    kept = {
        name: values
        for name, values in zip(columns, zip(*rows, strict=True), strict=False)
        if values[0] is not None or values.count(None) < count
    }
    if len(kept) == len(columns) or not kept:
        return columns, rows
    return tuple(kept), list(zip(*kept.values(), strict=True))


def select_among(
    connection: Connection, select: str, column: str, wanted: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """The rows of `select` whose `column` is one of `wanted`. Names are ours, never a caller's."""
    at, left = 0, len(wanted)
    while left:
        size = _SIZES[0] if left > _SIZES[0] else left
        # With the last one again and again, where there is no statement for so few.
        places = size if size <= _FEW else _SIZES[0]
        values = (*wanted[at : at + size], *[wanted[at + size - 1]] * (places - size))
        yield from connection.execute(_selection(select, column, places), values)
        at += size
        left -= size


@lru_cache(_TEXTS)
def _selection(select: str, column: str, places: int) -> str:
    return f"{select} WHERE {column} IN ({', '.join('?' * places)})"


@lru_cache(_TEXTS)
def _statement(table: str, columns: tuple[str, ...], size: int, or_else: str) -> str:
    row = f"({', '.join('?' * len(columns))})"
    rows = ", ".join([row] * size)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows} {or_else}"
