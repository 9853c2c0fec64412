"""What every request used and cost, one row each: appended, chained, and never changed.

Quantities are kept per dimension beside the amount, so that a period can be rated again. Prices are rows too: a
changed price is a new version, and an entry names the one that it was made with. Sums are written with the entries
that they add up.
"""

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import astuple

from llmhost.core.ports import Clock
from llmhost.cost.accounts import Account, accounts
from llmhost.cost.audit import changed_cost, drift, last_cost, rebuild, stray_cost
from llmhost.cost.chain import GENESIS, VerifyReport, struct_hash, verify
from llmhost.cost.entries import COLUMNS, Entry, EntryRow, Recorded, entry_of, exported, row_of
from llmhost.cost.rows import CostRow, cost_row, insert_costs
from llmhost.cost.sums import Level, add_up, spent_nano
from llmhost.cost.tables import SCHEMA
from llmhost.observe.logs import log_event
from llmhost.storage.connect import Clash, Connection
from llmhost.storage.doorbell import Hear, HearAll
from llmhost.storage.reader import Reader
from llmhost.storage.rows import AT_ONCE, insert_rows, select_among
from llmhost.storage.writer import Writer

__all__ = ["SCHEMA", "Entry", "Ledger", "Recorded"]

log = logging.getLogger("llmhost.ledger")

_SELECT = f"SELECT prev_hash, hash, {', '.join(COLUMNS)} FROM entries"
_HEAD = "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"
_STORED = ("prev_hash", "hash", *EntryRow.__struct_fields__)
_RARE = (
    *("adapter", "code", "embedding_tokens", "from_cache"),
    *("reasoning_tokens", "run_id", "safety_units", "task"),
)
"""Columns that say nothing of most entries."""
_PAGE_ROWS = 1_000
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found wrong with the ledger, if anything was."""

    chain: VerifyReport
    wrong_cost: str | None
    drift: dict[str, int]
    """How many sums of each table are not what their entries add up to."""

    @property
    def is_intact(self) -> bool:
        return self.problem is None

    @property
    def problem(self) -> str | None:
        if (broken := self.chain.broken) is not None:
            return f"entry {broken.seq}: {broken.reason}"
        if self.wrong_cost is not None:
            return self.wrong_cost
        if any(self.drift.values()):
            tables = ", ".join(
                f"{count} rows of {table}" for table, count in self.drift.items() if count
            )
            return f"{tables}: they are not what the entries add up to; `llmhost ledger check --rebuild` mends that"
        return None


class Ledger:
    """Owns the entries. What reads waits for the disk: off the event loop, call it in a thread."""

    def __init__(self, writer: Writer, reader: Reader, *, node_id: str, clock: Clock) -> None:
        self._writer = writer
        self._reader = reader
        self._node_id = node_id
        self._clock = clock
        self._append = partial(append, node_id=node_id)
        self.drifted = 0
        """Sums that were not what their entries add up to when they were last compared."""

    @property
    def health(self) -> Exception | None:
        """Why the ledger can't be written now; None while it can."""
        return self._writer.health

    @property
    def waiting(self) -> int:
        """Entries that the disk has not been given yet."""
        return self._writer.waiting

    def record(self, entry: Entry) -> Future[Recorded]:
        """Append an entry; the future resolves when it is on disk.

        A second entry of the same identity changes nothing and resolves to the first. Raises Overloaded when
        too many wait, and the future StorageFailed when the disk refuses.
        """
        return self._writer.append(self._append, entry)

    def settle(self, entry: Entry) -> "asyncio.Future[Recorded]":
        """As `record`, for the running event loop. Cancelling the wait does not cancel the entry."""
        return self._writer.append_here(self._append, entry)

    def settle_then(self, entry: Entry, hear: Hear) -> None:
        """As `settle`, without a future: `hear` is told in a later turn of the loop."""
        self._writer.append_then(self._append, entry, hear)

    def settle_together(self, entries: Sequence[Entry], hear: HearAll) -> None:
        """As `settle_then`, of a few at once: `hear` is told all their results."""
        self._writer.append_together(self._append, entries, hear)

    def settle_all(self, entries: Sequence[Entry]) -> "asyncio.Future[None]":
        """As `settle`, of several at once; fails where any of them does, though others may be recorded."""
        return self._writer.append_all_here(self._append, entries)

    def known(self, request_ids: Sequence[str]) -> set[str]:
        """Which of these requests have their entry on disk, once all that was given before is. Raises StorageFailed."""
        self._writer.submit(lambda _: None).result()
        return self._reader.read_now(partial(_known, request_ids=request_ids))

    def verify(self) -> VerifyReport:
        """Check every row against the chain, in constant memory."""
        return verify(
            (row[0], row[1], dict(zip(COLUMNS, row[2:], strict=True))) for row in self._rows()
        )

    def audit(self) -> Audit:
        """As `verify`, and whether sums and rows of true cost say what the entries say."""
        chain = self.verify()
        checks = [
            partial(changed_cost, after=at, last=min(at + _PAGE_ROWS, chain.rows))
            for at in range(0, chain.rows, _PAGE_ROWS)
        ]
        checks += [
            partial(stray_cost, after=at, last=at + _PAGE_ROWS)
            for at in range(0, self._reader.read_now(last_cost), _PAGE_ROWS)
        ]
        problem = next(filter(None, map(self._reader.read_now, checks)), None)
        return Audit(chain=chain, wrong_cost=problem, drift=self.drift())

    def drift(self) -> dict[str, int]:
        """How many sums of each table are not what their entries add up to."""
        found = self._reader.read_now(drift)
        self.drifted = sum(found.values())
        return found

    def check(self) -> None:
        """`drift`, for the log."""
        found = self.drift()
        level = logging.ERROR if self.drifted else logging.INFO
        log_event(log, "ledger.checked", level=level, **found)

    async def rebuild_sums(self) -> None:
        """Make the sums anew from the entries. Nothing else is written meanwhile."""
        await self._writer.run(rebuild)

    def accounts(self) -> list[Account]:
        """Each account and what it holds, by name."""
        return self._reader.read_now(accounts)

    def export(self) -> Iterator[dict[str, Any]]:
        """Every entry in order, as plain values; tokens are a table per dimension."""
        for prev_hash, this_hash, *values in self._rows():
            row = exported(dict(zip(COLUMNS, values, strict=True)))
            yield {**row, "prev_hash": prev_hash.hex(), "hash": this_hash.hex()}

    def spent_nano(
        self,
        level: Level,
        who: str | Sequence[str | None],
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> int:
        """What somebody was charged for since <= time < until, as far as it is on disk.

        `who` is an organisation, (organisation, team), a key's id, or (organisation, team, key id, run).
        """
        return self._reader.read_now(lambda c: spent_nano(c, level, who, since_ns, until_ns))

    def spent(
        self,
        level: Level,
        who: str | Sequence[str | None],
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Future[int]:
        """As `spent_nano`, with all that was recorded before this call, on disk or not. Raises Overloaded."""
        return self._writer.submit(lambda c: spent_nano(c, level, who, since_ns, until_ns))

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        # Page by page: one long read would keep the writer's log from being folded in.
        last = -_LARGEST
        while True:
            page = self._reader.read_now(partial(_page, after=last))
            if not page:
                return
            yield from page
            last = page[-1][2]


def _known(connection: Connection, *, request_ids: Sequence[str]) -> set[str]:
    query = (
        "SELECT request_id FROM entries WHERE kind = 'request'"
        " AND request_id IN (SELECT value FROM json_each(?))"
    )
    return {row[0] for row in connection.execute(query, (json.dumps(list(request_ids)),))}


def _page(connection: Connection, *, after: int) -> list[tuple[Any, ...]]:
    query = f"{_SELECT} WHERE seq > ? ORDER BY seq LIMIT {_PAGE_ROWS}"
    return connection.execute(query, (after,)).fetchall()


class _Batch(NamedTuple):
    """What is written of some entries, one after the other."""

    rows: list[tuple[Any, ...]]
    added: list[Entry]
    costs: list[CostRow]
    results: list[Recorded]


def append(connection: Connection, entries: Sequence[Entry], *, node_id: str) -> list[Recorded]:
    # The head is read anew: remembered, it would be wrong after a group that could not be committed.
    head = connection.execute(_HEAD).fetchone() or (0, GENESIS)
    batch = _batch(entries, {}, head, node_id) if len(entries) <= AT_ONCE else None
    if batch is None or not _are_new(connection, batch.rows):
        known = _recorded(connection, [entry.request_id for entry in entries])
        batch = _batch(entries, known, head, node_id)
        insert_rows(connection, "entries", _STORED, batch.rows, rare=_RARE)
    add_up(connection, batch.added)
    insert_costs(connection, batch.costs)
    return batch.results


def _are_new(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> bool:
    """Add rows as one statement, which adds nothing where one of them is there already, or can't be."""
    try:
        insert_rows(connection, "entries", _STORED, rows, rare=_RARE)
    except Clash:
        return False
    return True


def _batch(
    entries: Sequence[Entry],
    known: Mapping[tuple[str, str], Recorded],
    head: tuple[int, bytes],
    node_id: str,
) -> _Batch:
    """Those that are not `known`, each once, chained behind the `head`."""
    last, last_hash = head
    stored = bytearray(last_hash)  # bytes are asked how they want to be stored, as nulls are
    known = dict(known)
    batch = rows, added, costs, results = _Batch([], [], [], [])
    for entry in entries:
        identity = (entry.request_id, entry.kind)
        recorded = known.get(identity)
        if recorded is None:
            last += 1
            row = row_of(entry, last, node_id)
            this_hash = struct_hash(last_hash, row)
            before, stored = stored, bytearray(this_hash)
            rows.append((before, stored, *astuple(row)))
            added.append(entry)
            if entry.costs is not None:
                costs.append(cost_row(entry, entry.costs, node_id))
            last_hash = this_hash
            recorded = known[identity] = Recorded(
                node_id=node_id, seq=last, hash=this_hash, entry=entry
            )
        results.append(recorded)
    return batch


def _recorded(
    connection: Connection, request_ids: Sequence[str]
) -> dict[tuple[str, str], Recorded]:
    """What is in the ledger already of these requests."""
    found: dict[tuple[str, str], Recorded] = {}
    for _, this_hash, *values in select_among(connection, _SELECT, "request_id", request_ids):
        row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
        seq, node_id = row.pop("seq"), row.pop("node_id")
        entry = entry_of(row)
        found[entry.request_id, entry.kind] = Recorded(
            node_id=node_id, seq=seq, hash=this_hash, entry=entry
        )
    return found
