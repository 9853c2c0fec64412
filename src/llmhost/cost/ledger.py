"""What every request used and cost, one row each: appended, chained, and never changed.

Quantities are kept per dimension beside the amount, so that a period can be rated again. Prices are rows too: a
changed price is a new version, and an entry names the one that it was made with.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from llmhost.core.events import RequestEnded
from llmhost.core.ports import Clock
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.chain import GENESIS, VerifyReport, row_hash, verify
from llmhost.cost.rows import RequestCost, insert_costs
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.rows import insert_rows
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

SCHEMA = Schema(
    "cost",
    {
        "entries_and_prices": (
            """CREATE TABLE prices (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                version TEXT NOT NULL UNIQUE,
                model TEXT NOT NULL,
                input_nano INTEGER NOT NULL CHECK (input_nano >= 0),
                cached_input_nano INTEGER NOT NULL CHECK (cached_input_nano >= 0),
                output_nano INTEGER NOT NULL CHECK (output_nano >= 0),
                effective_from_ns INTEGER NOT NULL
            ) STRICT""",
            "CREATE INDEX prices_by_model ON prices (model, seq)",
            """CREATE TABLE entries (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                kind TEXT NOT NULL,
                request_id TEXT NOT NULL,
                key_id TEXT,
                org TEXT NOT NULL,
                team TEXT,
                model TEXT NOT NULL,
                outcome TEXT NOT NULL,
                code TEXT,
                fresh_input_tokens INTEGER NOT NULL CHECK (fresh_input_tokens >= 0),
                cached_input_tokens INTEGER NOT NULL CHECK (cached_input_tokens >= 0),
                output_tokens INTEGER NOT NULL CHECK (output_tokens >= 0),
                engine_ns INTEGER NOT NULL CHECK (engine_ns >= 0),
                price_version TEXT,
                amount_nano INTEGER NOT NULL,
                prev_hash BLOB NOT NULL,
                hash BLOB NOT NULL,
                UNIQUE (request_id, kind)
            ) STRICT""",
            "CREATE INDEX entries_by_time ON entries (utc_ns)",
            *(
                f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
                for table in ("entries", "prices")
                for verb in ("UPDATE", "DELETE")
            ),
        ),
    },
)

By = Literal["key", "team", "org", "model", "day"]

_COLUMNS = (
    "seq",
    "node_id",
    "utc_ns",
    "kind",
    "request_id",
    "key_id",
    "org",
    "team",
    "model",
    "outcome",
    "code",
    "fresh_input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "engine_ns",
    "price_version",
    "amount_nano",
)
"""What a row says and its hash covers; a column of a later step goes at the end and is null in older rows."""

_SELECT = f"SELECT prev_hash, hash, {', '.join(_COLUMNS)} FROM entries"
_SELECT_SAME = f"{_SELECT} WHERE request_id IN (SELECT value FROM json_each(?))"
_HEAD = "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"
_PAGE_ROWS = 1_000
_GROUPS: Mapping[By, str] = {
    "key": "key_id",
    "team": "CASE WHEN team IS NULL THEN org ELSE org || '/' || team END",
    "org": "org",
    "model": "model",
    "day": "strftime('%Y-%m-%d', utc_ns / 1000000000, 'unixepoch')",
}
_USAGE = """
    SELECT {group}, count(*) FILTER (WHERE kind = 'request'), sum(fresh_input_tokens), sum(cached_input_tokens),
        sum(output_tokens), sum(engine_ns), sum(amount_nano)
    FROM entries
    WHERE utc_ns >= :since AND utc_ns < :until AND (:org IS NULL OR org = :org) AND (:key IS NULL OR key_id = :key)
    GROUP BY 1
"""
_LARGEST = 2**63 - 1
_MODEL_CHARS = 200
"""Of a model that was asked for and does not exist, this much of the name is kept: callers make it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing to record. `kind` and `request_id` together are its identity."""

    request_id: str
    kind: str = "request"
    utc_ns: int
    key_id: str | None
    org: str
    team: str | None = None
    model: str
    """`name@version`."""
    outcome: str
    code: str | None = None
    fresh_input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    engine_ns: int = 0
    price_version: str | None = None
    amount_nano: int = 0
    costs: Breakdown | None = None
    """What it cost the operator, where that is known: a row of its own beside the entry, written with it."""

    @classmethod
    def of(
        cls, event: RequestEnded, *, price_version: str | None, costs: Breakdown | None = None
    ) -> "Entry":
        """A request's entry. It has a caller: without one there is no account to book to."""
        caller = event.caller
        assert caller is not None, "strangers are counted, and not booked"
        return cls(
            request_id=event.request_id,
            utc_ns=event.utc_ns,
            key_id=caller.key_id,
            org=caller.org,
            team=caller.team,
            model=event.model.encode("utf-8", "replace").decode()[:_MODEL_CHARS],
            outcome=event.outcome.value,
            code=event.code,
            fresh_input_tokens=event.usage.prompt_tokens - event.usage.cached_tokens,
            cached_input_tokens=event.usage.cached_tokens,
            output_tokens=event.usage.completion_tokens,
            engine_ns=event.usage.engine_ns,
            price_version=price_version,
            amount_nano=event.amount_nano,
            costs=costs,
        )

    def cost_row(self) -> RequestCost | None:
        if self.costs is None:
            return None
        return RequestCost(
            request_id=self.request_id,
            kind=self.kind,
            utc_ns=self.utc_ns,
            key_id=self.key_id,
            org=self.org,
            team=self.team,
            model=self.model,
            costs=self.costs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An entry's place in the chain."""

    node_id: str
    seq: int
    hash: bytes
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Sums over one group; `group` is None for requests without a key."""

    group: str | None
    requests: int
    fresh_input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    engine_ns: int
    amount_nano: int


class Ledger:
    """Owns the entries. What reads waits for the disk: off the event loop, call it in a thread."""

    def __init__(self, writer: Writer, reader: Reader, *, node_id: str, clock: Clock) -> None:
        self._writer = writer
        self._reader = reader
        self._node_id = node_id
        self._clock = clock
        self._append = partial(_append, node_id=node_id)

    @property
    def health(self) -> Exception | None:
        """Why the ledger can't be written now; None while it can."""
        return self._writer.health

    def record(self, entry: Entry) -> Future[Recorded]:
        """Append an entry; the future resolves when it is on disk.

        A second entry of the same identity changes nothing and resolves to the first. Raises Overloaded when
        too many wait, and the future StorageFailed when the disk refuses.
        """
        return self._writer.append(self._append, entry)

    def settle(self, entry: Entry) -> "asyncio.Future[Recorded]":
        """As `record`, for the running event loop. Cancelling the wait does not cancel the entry."""
        return self._writer.wait(self.record(entry))

    def verify(self) -> VerifyReport:
        """Check every row against the chain, in constant memory."""
        return verify(
            (row[0], row[1], dict(zip(_COLUMNS, row[2:], strict=True))) for row in self._rows()
        )

    def export(self) -> Iterator[dict[str, Any]]:
        """Every entry in order, as plain values; tokens are a table per dimension."""
        for prev_hash, this_hash, *values in self._rows():
            row: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
            row["tokens"] = {
                dimension: row.pop(f"{dimension}_tokens")
                for dimension in ("fresh_input", "cached_input", "output")
            }
            yield {**row, "prev_hash": prev_hash.hex(), "hash": this_hash.hex()}

    def usage(
        self,
        by: By,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        org: str | None = None,
        key_id: str | None = None,
    ) -> list[UsageRow]:
        """Sums per group over since <= time < until, the largest amount first; days in order.

        With `org` or `key_id` of their entries only.
        """
        order = "1" if by == "day" else "7 DESC, 2 DESC, 1"
        query = f"{_USAGE.format(group=_GROUPS[by])} ORDER BY {order}"
        bounds = {
            "since": -_LARGEST if since_ns is None else since_ns,
            "until": _LARGEST if until_ns is None else until_ns,
            "org": org,
            "key": key_id,
        }
        rows = self._reader.read_now(lambda c: c.execute(query, bounds).fetchall())
        names = UsageRow.__dataclass_fields__
        return [UsageRow(**dict(zip(names, row, strict=True))) for row in rows]

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        # Page by page: one long read would keep the writer's log from being folded in.
        last = -_LARGEST
        while True:
            page = self._reader.read_now(partial(_page, after=last))
            if not page:
                return
            yield from page
            last = page[-1][2]


def _page(connection: Connection, *, after: int) -> list[tuple[Any, ...]]:
    query = f"{_SELECT} WHERE seq > ? ORDER BY seq LIMIT {_PAGE_ROWS}"
    return connection.execute(query, (after,)).fetchall()


def group_of(by: By) -> str:
    """The SQL expression of a group, over the columns that say whose a row is."""
    return _GROUPS[by]


def _append(connection: Connection, entries: Sequence[Entry], *, node_id: str) -> list[Recorded]:
    # The head is read anew: remembered, it would be wrong after a group that could not be committed.
    last, head = connection.execute(_HEAD).fetchone() or (0, GENESIS)
    known = _recorded(connection, [entry.request_id for entry in entries])
    rows: list[tuple[Any, ...]] = []
    costs: list[RequestCost] = []
    results: list[Recorded] = []
    for entry in entries:
        identity = (entry.request_id, entry.kind)
        if identity not in known:
            last += 1
            row = {"seq": last, "node_id": node_id}
            row |= {name: getattr(entry, name) for name in _COLUMNS[2:]}
            this_hash = row_hash(head, row)
            rows.append((head, this_hash, *row.values()))
            if (cost := entry.cost_row()) is not None:
                costs.append(cost)
            known[identity] = Recorded(node_id=node_id, seq=last, hash=this_hash, entry=entry)
            head = this_hash
        results.append(known[identity])
    insert_rows(connection, "entries", ("prev_hash", "hash", *_COLUMNS), rows)
    if costs:
        insert_costs(connection, costs, node_id=node_id)
    return results


def _recorded(
    connection: Connection, request_ids: Sequence[str]
) -> dict[tuple[str, str], Recorded]:
    """What is in the ledger already of these requests."""
    found: dict[tuple[str, str], Recorded] = {}
    for _, this_hash, *values in connection.execute(_SELECT_SAME, (json.dumps(request_ids),)):
        row: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
        seq, node_id = row.pop("seq"), row.pop("node_id")
        entry = Entry(**row)
        found[entry.request_id, entry.kind] = Recorded(
            node_id=node_id, seq=seq, hash=this_hash, entry=entry
        )
    return found
