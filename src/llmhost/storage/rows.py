"""Many rows in few statements."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from llmhost.storage.connect import Connection

_SIZES = (64, 32, *range(16, 0, -1))
"""Rows per statement: so few texts that each stays prepared, and so many that few statements do."""

_FEW = 16


def insert_rows(
    connection: Connection,
    table: str,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
    *,
    or_else: str = "",
) -> None:
    """Insert rows in order, up to 64 by one statement. Names are ours, never a caller's.

    `or_else` says what becomes of a row that is there already: an `ON CONFLICT` clause.
    """
    at, left = 0, len(rows)
    for size in _SIZES:
        while left >= size:
            values = tuple(chain.from_iterable(rows[at : at + size]))
            connection.execute(_statement(table, columns, size, or_else), values)
            at += size
            left -= size
        if not left:
            return


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


@cache
def _selection(select: str, column: str, places: int) -> str:
    return f"{select} WHERE {column} IN ({', '.join('?' * places)})"


@cache
def _statement(table: str, columns: tuple[str, ...], size: int, or_else: str) -> str:
    row = f"({', '.join('?' * len(columns))})"
    rows = ", ".join([row] * size)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows} {or_else}"
