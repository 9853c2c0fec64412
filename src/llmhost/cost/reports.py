"""What was used and charged, and what it cost: sums of the ledger for any groups, filters and buckets of time.

Use is added up from the sums by quarter of an hour, in one read of one moment. What those don't tell is read from the
entries, a day at a time: no long read keeps the writer's log from being folded in. Then the last entry that counts is
fixed first, so that the report is of one moment too.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from functools import partial
from typing import Any, Literal, TypeVar, cast

from llmhost.core.errors import InvalidValue
from llmhost.cost import periods
from llmhost.cost.chain import GENESIS
from llmhost.cost.entries import COSTS, DIMENSIONS
from llmhost.cost.lines import CORRECTION, CREDIT, FREE, USE, Charge
from llmhost.cost.periods import QUARTER_NS, SECOND_NS, UNITS, Span
from llmhost.cost.query import ENTRY_GROUPS, GROUPS, POOLS, THEIRS, USED, WITHIN, Bounds, Query
from llmhost.cost.sums import AMOUNTS, IS_USE, of_entries, quarters_of
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader

T = TypeVar("T")
Key = tuple[str | int | None, ...]
Found = dict[Key, list[int]]
Only = Literal["completions", "embeddings", "decisions", "moderations"]

assert USED == AMOUNTS, "sums by quarter have just these columns"

MOST_GROUPS = 100_000
"""Of one report."""
_RUN = 1_000
_SLICE_NS = 86_400 * SECOND_NS
_IS_BILLED = (
    f"ifnull(debit, '') <> '{COSTS}'"  # what loads turned out to cost is no tenant's business
)
_MINUTE_NS = 60 * SECOND_NS
_IS_PAID = "(outcome IN ('answered', 'cancelled') OR (outcome IN ('failed', 'refused') AND amount_nano <> 0))"
"""What was delivered of an answer that failed may be charged; then its entry has an amount."""
_TOKENS = [f"ifnull({name}_tokens, 0)" for name in DIMENSIONS]
_ENTRY_SUMS = ", ".join(
    (
        "sum(kind = 'request')",
        *(f"sum({tokens})" for tokens in _TOKENS),
        "sum(engine_ns)",
        "sum(amount_nano)",
    )
)
_COST_SUMS = ", ".join(
    (
        *(f"sum({name})" for name in POOLS[:-1]),
        "sum(CASE WHEN load_id IN (SELECT load_id FROM load_ends) THEN 0 ELSE model_loading_nano END)",
    )
)
_CHARGE_GROUPS: Mapping[str, str] = {
    "sort": f"CASE WHEN NOT {IS_USE} THEN '{CREDIT}' WHEN kind <> 'request' THEN '{CORRECTION}'"
    f" WHEN {_IS_PAID} THEN '{USE}' ELSE '{FREE}' END",
    "kind": "kind",
    "price": "price_version",
}
_CHARGE_SUMS = ", ".join(
    (
        "count(*)",
        f"sum({' + '.join(_TOKENS)} > 0)",
        *(f"sum({tokens})" for tokens in _TOKENS),
        "sum(amount_nano)",
    )
)
_ONLY: Mapping[Only | None, str] = {
    None: IS_USE,
    "completions": "kind = 'request' AND outcome <> 'refused' AND embedding_tokens IS NULL AND task IS NULL",
    "decisions": "kind = 'request' AND outcome <> 'refused' AND task = 'decisions'",
    "moderations": "kind = 'request' AND outcome <> 'refused' AND task = 'moderations'",
    "embeddings": "kind = 'request' AND outcome <> 'refused' AND embedding_tokens IS NOT NULL",
}
_BEGINS: Mapping[str, Callable[[int, tzinfo], int]] = {
    "day": periods.day_start,
    "month": periods.month_start,
}
_LASTS = "SELECT (SELECT max(seq) FROM entries), (SELECT max(seq) FROM request_costs)"
_HEAD = "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class Line:
    """One group's sums; `groups` are as in the query's `by`, a bucket of time by its beginning."""

    groups: Key
    sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry, by its number and its hash in hexadecimal."""

    seq: int
    hash: str


class Reports:
    """Reads the ledger and true costs. Blocks: off the event loop, call it in a thread."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def usage(self, query: Query, *, only: Only | None = None) -> list[Line]:
        """`USED` of each group, buckets of time in order, else the largest amount first. Raises InvalidValue.

        With `only` of one sort of requests, refused ones left out.
        """
        query.checked()
        is_summed = query.unit != "minute" and query.last is None and only is None
        if is_summed and not set(query.by) & set(ENTRY_GROUPS):
            found = self._of_quarters(query)
        else:
            found = self._of_rows(
                "entries", {**GROUPS, **ENTRY_GROUPS}, _ENTRY_SUMS, query, _ONLY[only]
            )
        lines = [Line(groups, tuple(sums)) for groups, sums in found.items()]
        return _sorted(lines, query, weight=lambda line: (line.sums[-1], line.sums[0]))

    def costs(self, query: Query) -> list[Line]:
        """`USED` and then `POOLS` of each group, the dearest first. Raises InvalidValue."""
        query.checked((*GROUPS, *UNITS))
        entries, costs = self._reader.read_now(lambda c: c.execute(_LASTS).fetchone())
        used = self._of_rows(
            "entries", GROUPS, _ENTRY_SUMS, replace(query, last=entries or 0), IS_USE
        )
        cost = self._of_rows("request_costs", GROUPS, _COST_SUMS, replace(query, last=costs or 0))
        lines = [
            Line(group, (*used.get(group, _NOTHING), *cost.get(group, _NO_COST)))
            for group in dict.fromkeys((*used, *cost))
        ]
        return _sorted(lines, query, weight=lambda line: (cost_of(line), line.sums[0]))

    def charges(self, query: Query) -> list[Charge]:
        """What a bill is made of: entries by sort, kind and price, within the query's groups. Raises InvalidValue."""
        query.checked()
        width = len(query.by)
        columns = {**GROUPS, **ENTRY_GROUPS, **_CHARGE_GROUPS}
        asked = replace(query, by=(*query.by, *_CHARGE_GROUPS))
        found = self._of_rows("entries", columns, _CHARGE_SUMS, asked, _IS_BILLED)
        return [
            Charge(
                key=group[:width],
                sort=str(group[width]),
                kind=str(group[width + 1]),
                price=cast(str | None, group[width + 2]),
                entries=sums[0],
                paid_requests=sums[1],
                tokens=tuple(sums[2:-1]),
                amount_nano=sums[-1],
            )
            for group, sums in found.items()
        ]

    def head(self) -> Head:
        """The newest entry; number 0 while there is none."""
        seq, row_hash = self.read(lambda c: c.execute(_HEAD).fetchone()) or (0, GENESIS)
        return Head(seq, row_hash.hex())

    def read(self, query: Callable[[Connection], T]) -> T:
        """By a read of its own."""
        return self._reader.read_now(query)

    def pieces(self, table: str, query: Query) -> Iterator[dict[str, str | int | None]]:
        """The values of WITHIN for each piece of the query's time that has rows, in order."""
        span, last = query.span, query.last
        if last is None:
            last = self.read(partial(_last_seq, table=table))
        at = self.read(partial(_next_ns, table=table, since_ns=span.start_ns))
        while at is not None and at < span.end_ns:
            until = min(at - at % _SLICE_NS + _SLICE_NS, span.end_ns)
            yield {**query.theirs(), "last": last, "since": at, "until": until}
            at = self.read(partial(_next_ns, table=table, since_ns=until))

    def _of_quarters(self, query: Query) -> Found:
        """From the sums, and from entries where a bound is within a quarter: one statement, and so one moment."""
        within = quarters_of(query.since_ns, query.until_ns)
        parts = ["SELECT * FROM sums WHERE quarter >= :first AND quarter < :end"]
        values: dict[str, Any] = {"first": within.first, "end": within.last, **query.theirs()}
        for place, (start, end) in enumerate(within.edges):
            where = f"utc_ns >= :start{place} AND utc_ns < :end{place}"
            parts.append(f"SELECT * FROM ({of_entries('sums', where)})")
            values |= {f"start{place}": start, f"end{place}": end}
        rows = (
            f"SELECT quarter * {QUARTER_NS} AS utc_ns, org, nullif(team, '') AS team,"
            f" nullif(key_id, '') AS key_id, model, {', '.join(AMOUNTS)}"
            f" FROM ({' UNION ALL '.join(parts)})"
        )
        sums = ", ".join(f"sum({name})" for name in AMOUNTS)
        groups, order = self._grouped("entries", query, GROUPS)
        text = f"SELECT {groups}, {sums} FROM ({rows}) WHERE {THEIRS} GROUP BY {order}"
        found: Found = {}
        _fold(found, query, self.read(partial(_rows, text=text, bounds=values)))
        return found

    def _of_rows(
        self, table: str, columns: Mapping[str, str], sums: str, query: Query, where: str = "TRUE"
    ) -> Found:
        """From single rows, a piece at a time."""
        groups, order = self._grouped(table, query, columns)
        text = f"SELECT {groups}, {sums} FROM {table} WHERE {where} AND {WITHIN} GROUP BY {order}"
        found: Found = {}
        for bounds in self.pieces(table, query):
            _fold(found, query, self.read(partial(_rows, text=text, bounds=bounds)))
        return found

    def _grouped(self, table: str, query: Query, columns: Mapping[str, str]) -> tuple[str, str]:
        """What is selected before the sums: the time, as `_fold` reads it, and then the groups."""
        names = [columns[name] for name in query.by if name != query.unit]
        order = ", ".join(str(place + 1) for place in range(len(names) + 1))
        time = _time_of(query, self._reach(table, query)) if query.unit else "0"
        return ", ".join((time, *names)), order

    def _reach(self, table: str, query: Query) -> Span:
        """From the first row of the query's time to its last."""
        text = f"SELECT min(utc_ns), max(utc_ns) FROM {table}"
        first, last = self.read(lambda c: c.execute(text).fetchone())
        span = query.span
        if first is None:
            return Span(0, 1)
        start_ns = min(max(first - first % QUARTER_NS, span.start_ns), last)
        return Span(start_ns, max(min(last + 1, span.end_ns), start_ns + 1))


_NOTHING = (0,) * len(USED)
_NO_COST = (0,) * len(POOLS)


def cost_of(line: Line) -> int:
    """All pools of a line of `costs`, in nano-dollars."""
    return sum(line.sums[len(USED) : len(USED) + len(POOLS) - 1])


def _time_of(query: Query, reach: Span) -> str:
    """In SQL: when a bucket of minutes or hours begins, or the number of a day on the zone's clock.

    SQLite makes the buckets, and few rows come out: Python would hold up other threads with many.
    """
    zone = periods.zone_of(query.zone)
    if query.unit in ("minute", "hour"):
        step_ns = _MINUTE_NS if query.unit == "minute" else periods.HOUR_NS
        shift_ns = periods.hour_shift_ns(zone, reach.start_ns) % step_ns
        return f"(utc_ns + {shift_ns}) / {step_ns} * {step_ns} - {shift_ns}"
    changes = periods.offsets(zone, reach)
    offset = str(changes[0][1])
    for at_ns, offset_ns in changes[1:]:
        offset = f"CASE WHEN utc_ns >= {at_ns} THEN {offset_ns} ELSE {offset} END"
    return f"(utc_ns + {offset}) / {periods.DAY_NS}"


def _fold(found: Found, query: Query, rows: Iterable[Sequence[Any]]) -> None:
    """Add rows of (time, groups, sums) to what was found. Raises InvalidValue when there are too many groups."""
    unit, zone = query.unit, periods.zone_of(query.zone)
    begins = _BEGINS.get(unit or "")
    starts: dict[int, int] = {}
    width = len(query.by) + (0 if unit else 1)
    at = query.by.index(unit) if unit else 0
    for row in rows:
        group = tuple(row[1:width])
        if unit:
            start_ns = row[0]
            if begins is not None:
                if start_ns not in starts:
                    starts[start_ns] = begins(start_ns, zone)
                start_ns = starts[start_ns]
            group = (*group[:at], start_ns, *group[at:])
        _add(found, group, row[width:])
    if len(found) > MOST_GROUPS:
        raise InvalidValue(
            f"That is more than {MOST_GROUPS} groups. Ask for a shorter time, or by less.",
            param="by",
        )


def _add(found: Found, group: Key, values: Sequence[int | None]) -> None:
    before = found.get(group)
    if before is None:
        found[group] = [value or 0 for value in values]
        return
    for place, value in enumerate(values):
        before[place] += value or 0


def _sorted(
    lines: list[Line], query: Query, *, weight: Callable[[Line], tuple[int, int]]
) -> list[Line]:
    """In order of time where there is one; then the weightiest; then by name, so that the order is always the same."""
    bucket = query.by.index(query.unit) if query.unit else None

    def key(line: Line) -> tuple[Any, ...]:
        money, requests = weight(line)
        names = tuple((group is not None, str(group)) for group in line.groups)
        return 0 if bucket is None else line.groups[bucket], -money, -requests, names

    # a few at a time: one sort of all would hold up other threads
    runs = [sorted(lines[at : at + _RUN], key=key) for at in range(0, len(lines), _RUN)]
    return list(heapq.merge(*runs, key=key))


def _rows(connection: Connection, *, text: str, bounds: Bounds) -> list[tuple[Any, ...]]:
    return connection.execute(text, bounds).fetchall()


def _last_seq(connection: Connection, *, table: str) -> int:
    (last,) = connection.execute(f"SELECT coalesce(max(seq), 0) FROM {table}").fetchone()
    return int(last)


def _next_ns(connection: Connection, *, table: str, since_ns: int) -> int | None:
    """When the first row at or behind a time is: what lies between is not read."""
    (found,) = connection.execute(
        f"SELECT min(utc_ns) FROM {table} WHERE utc_ns >= ?", (since_ns,)
    ).fetchone()
    return None if found is None else int(found)
