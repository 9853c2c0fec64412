"""Many rows in few statements."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Any

from llmhost.storage.connect import Connection

AT_ONCE = 32
"""So many rows are one statement, and with more they are several: each is a turn of the interpreter's lock, which a
busy event loop wants as well."""
_SIZES = (64, *range(AT_ONCE, 0, -1))
"""Rows per statement: so few texts that each stays prepared, and so many that few statements do."""

_FEW = 16
_PartOf = Callable[[tuple[Any, ...]], tuple[Any, ...]]


def insert_rows(
    connection: Connection,
    table: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    *,
    or_else: str = "",
    rare: tuple[str, ...] = (),
) -> None:
    """Insert rows in order, up to 64 by one statement. Names are ours, never a caller's.

    `or_else` says what becomes of a row that is there already: an `ON CONFLICT` clause. `rare` are columns
    that are null in most rows and have no other default: where they are so in all, nothing is said of them. There are
    two of them at least, and as many others.
    """
    if rare:
        columns, rows = _without(rare, columns, rows)
    at, left = 0, len(rows)
    for size in _SIZES:
        while left >= size:
            values = tuple(chain.from_iterable(rows[at : at + size]))
            connection.execute(_statement(table, columns, size, or_else), values)
            at += size
            left -= size
        if not left:
            return


def _without(
    rare: tuple[str, ...], columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]:
    """`sqlite3` asks a None how it wants to be stored, which takes four times as long as to store a number."""
    usual, rare_of, usual_of = _parts(rare, columns)
    nulls = (None,) * len(rare)
    if list(map(rare_of, rows)).count(nulls) < len(rows):
        return columns, rows
    return usual, list(map(usual_of, rows))


@cache
def _parts(
    rare: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[tuple[str, ...], _PartOf, _PartOf]:
    """The other columns, and where these and those are in a row."""
    usual = tuple(name for name in columns if name not in rare)
    return usual, itemgetter(*map(columns.index, rare)), itemgetter(*map(columns.index, usual))


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
