"""What was used and charged, and what it cost: sums of the ledger for any groups, filters and buckets of time.

A report is of one moment: entries that come while it is read are not in it. It is read a piece of time at a time, so
that no long read keeps the writer's log from being folded in, and so that much of it can be read while others work.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from llmhost.core.errors import InvalidValue
from llmhost.cost import periods
from llmhost.cost.periods import QUARTER_NS, SECOND_NS, UNITS, Span
from llmhost.cost.sums import IS_USE
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader

T = TypeVar("T")
Bounds = Mapping[str, str | int | None]

GROUPS: Mapping[str, str] = {
    "org": "org",
    "team": "CASE WHEN team IS NULL THEN org ELSE org || '/' || team END",
    "key": "key_id",
    "model": "model",
}
"""What rows can be added up for, beside the time, and where that stands in both tables."""
ENTRY_GROUPS: Mapping[str, str] = {
    "kind": "kind",
    "outcome": "outcome",
    "price": "price_version",
}
"""The same for what only entries have."""
NAMES = (*GROUPS, *ENTRY_GROUPS, *UNITS)

TOKENS = ("fresh_input_tokens", "cached_input_tokens", "output_tokens")
"""The dimensions of an entry. They are disjoint."""
USED = ("requests", *TOKENS, "engine_ns", "amount_nano")
POOLS = (
    "gpu_compute_nano",
    "infrastructure_nano",
    "model_loading_nano",
    "safety_moderation_nano",
    "provisional_nano",
)

_LARGEST = 2**63 - 1
_SLICE_NS = 86_400 * SECOND_NS
_MINUTE_NS = 60 * SECOND_NS
_WITHIN = """
    utc_ns >= :since AND utc_ns < :until AND seq <= :last
    AND (:within_org IS NULL OR org = :within_org) AND (:within_key IS NULL OR key_id = :within_key)
    AND (:orgs IS NULL OR org IN (SELECT value FROM json_each(:orgs)))
    AND (:teams IS NULL OR team IN (SELECT value FROM json_each(:teams))
        OR org || '/' || team IN (SELECT value FROM json_each(:teams)))
    AND (:keys IS NULL OR key_id IN (SELECT value FROM json_each(:keys)))
    AND (:models IS NULL OR model IN (SELECT value FROM json_each(:models))
        OR substr(model, 1, instr(model, '@') - 1) IN (SELECT value FROM json_each(:models)))
"""
_AS_USED = {
    "fresh_input_tokens": "fresh_input_tokens + ifnull(embedding_tokens, 0)",
    "output_tokens": "output_tokens + ifnull(reasoning_tokens, 0)",
    "amount_nano": f"CASE WHEN {IS_USE} THEN amount_nano ELSE 0 END",
}
_ENTRY_SUMS = ", ".join(
    (
        "count(*) FILTER (WHERE kind = 'request')",
        *(f"sum({_AS_USED.get(name, name)})" for name in USED[1:]),
    )
)
_COST_SUMS = ", ".join(
    (
        *(f"sum({name})" for name in POOLS[:-1]),
        "sum(CASE WHEN load_id IN (SELECT load_id FROM load_ends) THEN 0 ELSE model_loading_nano END)",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to add up, of since <= time < until, and for whom. No names in a filter: all."""

    by: tuple[str, ...] = ("org",)
    """Of `NAMES`, at most one of them a unit of time."""
    zone: str = "UTC"
    since_ns: int | None = None
    until_ns: int | None = None
    orgs: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    """`TEAM` or `ORG/TEAM`."""
    keys: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """With or without version."""
    within_org: str | None = None
    """Whoever asks sees nothing else, whatever the filters say."""
    within_key: str | None = None

    @property
    def unit(self) -> str | None:
        return next((name for name in self.by if name in UNITS), None)

    def checked(self, names: Iterable[str] = NAMES) -> "Query":
        """Itself. Raises InvalidValue for what can't be asked."""
        known = tuple(names)
        for name in self.by:
            if name not in known:
                raise InvalidValue(
                    f"'by' is {name[:80]!r}; it may be {', '.join(known)}, or several with commas between.",
                    param="by",
                )
        if len(set(self.by)) < len(self.by):
            raise InvalidValue("'by' has a name twice.", param="by")
        if sum(name in UNITS for name in self.by) > 1:
            raise InvalidValue(
                f"'by' has several units of time; give one of {', '.join(UNITS)}.", param="by"
            )
        for bound in (self.since_ns, self.until_ns):
            if bound is not None and abs(bound) > LAST_NS:
                raise InvalidValue(f"A time is out of range: {bound} ns.", param="since")
        if None not in (self.since_ns, self.until_ns) and self.span.end_ns < self.span.start_ns:
            raise InvalidValue("'since' lies behind 'until'.", param="since")
        periods.zone_of(self.zone)
        return self

    @property
    def span(self) -> Span:
        return Span(
            -_LARGEST if self.since_ns is None else self.since_ns,
            _LARGEST if self.until_ns is None else self.until_ns,
        )

    def bounds(self, last: int) -> Bounds:
        filters = {
            name: json.dumps(found) if (found := getattr(self, name)) else None
            for name in ("orgs", "teams", "keys", "models")
        }
        within = {"within_org": self.within_org, "within_key": self.within_key}
        return {**filters, **within, "last": last}


LAST_NS = 9_000_000_000 * SECOND_NS
"""A time in the year 2255: 64 bits hold it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One group's sums; `groups` are as in the query's `by`, a bucket of time by its beginning."""

    groups: tuple[str | int | None, ...]
    sums: tuple[int, ...]


class Reports:
    """Reads the ledger and true costs. Blocks: off the event loop, call it in a thread."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def usage(self, query: Query) -> list[Line]:
        """`USED` of each group, buckets of time in order, else the largest amount first. Raises InvalidValue."""
        query.checked()
        found = self._sums("entries", {**GROUPS, **ENTRY_GROUPS}, _ENTRY_SUMS, query)
        lines = [Line(groups, tuple(sums)) for groups, sums in found.items()]
        return _sorted(lines, query, weight=lambda line: (line.sums[-1], line.sums[0]))

    def costs(self, query: Query) -> list[Line]:
        """`USED` and then `POOLS` of each group, the dearest first. Raises InvalidValue."""
        query.checked((*GROUPS, *UNITS))
        used = self._sums("entries", GROUPS, _ENTRY_SUMS, query)
        cost = self._sums("request_costs", GROUPS, _COST_SUMS, query)
        lines = [
            Line(group, (*used.get(group, _NOTHING), *cost.get(group, _NO_COST)))
            for group in dict.fromkeys((*used, *cost))
        ]
        return _sorted(lines, query, weight=lambda line: (cost_of(line), line.sums[0]))

    def pieces(
        self, table: str, query: Query, read: Callable[[Connection, Bounds], T]
    ) -> Iterator[T]:
        """What `read` finds of each piece of the query's time that has rows, each by a read of its own."""
        span = query.span
        last = self._reader.read_now(partial(_last_seq, table=table))
        at = self._reader.read_now(partial(_next_ns, table=table, since_ns=span.start_ns))
        while at is not None and at < span.end_ns:
            until = min(at - at % _SLICE_NS + _SLICE_NS, span.end_ns)
            bounds: Bounds = {**query.bounds(last), "since": at, "until": until}
            yield self._reader.read_now(_bound(read, bounds))
            at = self._reader.read_now(partial(_next_ns, table=table, since_ns=until))

    def _sums(
        self, table: str, columns: Mapping[str, str], sums: str, query: Query
    ) -> dict[tuple[str | int | None, ...], list[int]]:
        unit, zone = query.unit, periods.zone_of(query.zone)
        step_ns = _MINUTE_NS if unit == "minute" else QUARTER_NS
        time = f"utc_ns / {step_ns} * {step_ns}" if unit else "0"
        names = [columns[name] for name in query.by if name != unit]
        groups = ", ".join((time, *names))
        order = ", ".join(str(place + 1) for place in range(len(names) + 1))
        text = f"SELECT {groups}, {sums} FROM {table} WHERE {_WITHIN} GROUP BY {order}"
        width = len(names) + 1
        at = query.by.index(unit) if unit else 0
        found: dict[tuple[str | int | None, ...], list[int]] = {}

        def read(connection: Connection, bounds: Bounds) -> list[Any]:
            rows = connection.execute(text, bounds).fetchall()
            return [(bounds["since"], bounds["until"]), rows]

        for (since, until), rows in self.pieces(table, query, read):
            starts = periods.starts(unit, zone, Span(since, until)) if unit and rows else []  # type: ignore[arg-type]
            for row in rows:
                group = row[1:width]
                if unit:
                    # the first quarter may begin before the piece does
                    start_ns = starts[periods.place(starts, max(row[0], since))]
                    group = (*group[:at], start_ns, *group[at:])
                _add(found, group, row[width:])
        return found


_NOTHING = (0,) * len(USED)
_NO_COST = (0,) * len(POOLS)


def cost_of(line: Line) -> int:
    """All pools of a line of `costs`, in nano-dollars."""
    return sum(line.sums[len(USED) : len(USED) + len(POOLS) - 1])


def _bound(read: Callable[[Connection, Bounds], T], bounds: Bounds) -> Callable[[Connection], T]:
    return lambda connection: read(connection, bounds)


def _add(found: dict[Any, list[int]], group: Any, values: Sequence[int | None]) -> None:
    before = found.get(group)
    fresh = [value or 0 for value in values]
    if before is None:
        found[group] = fresh
    else:
        for place, value in enumerate(fresh):
            before[place] += value


def _sorted(
    lines: list[Line], query: Query, *, weight: Callable[[Line], tuple[int, int]]
) -> list[Line]:
    """In order of time where there is one; then the weightiest; then by name, so that the order is always the same."""
    at = query.by.index(query.unit) if query.unit else None

    def key(line: Line) -> Any:
        time = 0 if at is None else line.groups[at]
        money, requests = weight(line)
        names = tuple((group is not None, str(group)) for group in line.groups)
        return (
            (time, names)
            if at is not None and len(query.by) == 1
            else (time, -money, -requests, names)
        )

    return sorted(lines, key=key)


def _last_seq(connection: Connection, *, table: str) -> int:
    (last,) = connection.execute(f"SELECT coalesce(max(seq), 0) FROM {table}").fetchone()
    return int(last)


def _next_ns(connection: Connection, *, table: str, since_ns: int) -> int | None:
    """When the first row at or behind a time is: what lies between is not read."""
    (found,) = connection.execute(
        f"SELECT min(utc_ns) FROM {table} WHERE utc_ns >= ?", (since_ns,)
    ).fetchone()
    return None if found is None else int(found)
