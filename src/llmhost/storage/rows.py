"""Many rows in few statements."""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

from llmhost.storage.connect import Connection

_SIZES = (64, 16, 4, 1)
"""Rows per statement: a handful of texts, so that each stays prepared."""


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
    at = 0
    for size in _SIZES:
        while len(rows) - at >= size:
            values = tuple(chain.from_iterable(rows[at : at + size]))
            connection.execute(_statement(table, columns, size, or_else), values)
            at += size


@cache
def _statement(table: str, columns: tuple[str, ...], size: int, or_else: str) -> str:
    row = f"({', '.join('?' * len(columns))})"
    rows = ", ".join([row] * size)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows} {or_else}"
