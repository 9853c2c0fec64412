"""Many rows in few statements."""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

from llmhost.storage.connect import Connection

_SIZES = (64, 16, 4, 1)
"""Rows per statement: a handful of texts, so that each stays prepared."""


def insert_rows(
    connection: Connection, table: str, columns: tuple[str, ...], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert rows in order, up to 64 by one statement. Names are ours, never a caller's."""
    at = 0
    for size in _SIZES:
        while len(rows) - at >= size:
            values = tuple(chain.from_iterable(rows[at : at + size]))
            connection.execute(_statement(table, columns, size), values)
            at += size


@cache
def _statement(table: str, columns: tuple[str, ...], size: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * size)}"
