"""Entries as they are told to those whose they are: some tenants', of some time, in order of time."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from llmhost.cost.entries import COLUMNS, exported
from llmhost.cost.query import WITHIN, Bounds, Query
from llmhost.cost.reports import Reports
from llmhost.storage.connect import Connection

_ROWS = f"""
    SELECT prev_hash, hash, {", ".join(COLUMNS)} FROM entries
    WHERE {WITHIN} AND (utc_ns > :since OR seq > :after) ORDER BY utc_ns, seq LIMIT 1000
"""


def export(reports: Reports, query: Query) -> Iterator[dict[str, Any]]:
    """Entries of the query's time and filters as plain values; tokens are a table per dimension. Blocks."""
    query.checked()
    for piece in reports.pieces("entries", query):
        bounds: dict[str, Any] = {**piece, "after": 0}
        while rows := reports.read(partial(_page, bounds=bounds)):
            for prev_hash, this_hash, *values in rows:
                row = dict(zip(COLUMNS, values, strict=True))
                bounds["since"], bounds["after"] = row["utc_ns"], row["seq"]
                yield {**exported(row), "prev_hash": prev_hash.hex(), "hash": this_hash.hex()}


def _page(connection: Connection, *, bounds: Bounds) -> list[tuple[Any, ...]]:
    return connection.execute(_ROWS, bounds).fetchall()
