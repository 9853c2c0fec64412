"""Sums of the ledger by quarter of an hour, written in the transaction of the entries that they add up.

A quarter of an hour, because every time zone's midnight is one: a day or a month anywhere is a range of whole
quarters. Bounds in between are exact too, from the entries themselves. Sums are derived: they can be made anew from
the entries, and are compared with them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from llmhost.cost.entries import Entry
from llmhost.storage.connect import Connection
from llmhost.storage.rows import insert_rows

QUARTER_NS = 900 * 10**9

Level = Literal["org", "team", "key", "run"]

IS_USE = "(credit IS NULL OR credit = 'revenue')"
"""Rows of use and of its corrections, among entries; those of an older version name no accounts."""

AMOUNTS = (
    "requests",
    "fresh_input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "embedding_tokens",
    "engine_ns",
    "amount_nano",
)
_GROUPS = {
    "sums": ("org", "quarter", "team", "key_id", "model"),
    "run_sums": ("org", "team", "key_id", "run_id", "quarter"),
}
"""Each table's primary key. What an entry has not is an empty text here."""

_AS_GROUP = {
    "org": "org",
    "quarter": f"utc_ns / {QUARTER_NS}",
    "team": "ifnull(team, '')",
    "key_id": "ifnull(key_id, '')",
    "model": "model",
    "run_id": "run_id",
}
_AS_AMOUNT = {
    "requests": "kind = 'request'",
    "reasoning_tokens": "ifnull(reasoning_tokens, 0)",
    "embedding_tokens": "ifnull(embedding_tokens, 0)",
}
"""How an entry's columns become those of sums, where they are not the same."""

_LEVELS: dict[Level, tuple[str, tuple[str, ...]]] = {
    "org": ("sums", ("org",)),
    "team": ("sums", ("org", "team")),
    "key": ("sums", ("key_id",)),
    "run": ("run_sums", ("org", "team", "key_id", "run_id")),
}
_ADD = "ON CONFLICT DO UPDATE SET " + ", ".join(f"{n} = {n} + excluded.{n}" for n in AMOUNTS)
_FIRST, _LAST = -(2**53), 2**53
"""Before and after every quarter that 64 bits of nanoseconds can tell."""

_Groups = dict[tuple[str | int, ...], list[Entry]]


@dataclass(frozen=True, slots=True)
class Quarters:
    """A stretch of time: the quarters that lie in it whole, `first` <= quarter < `last`, and its ends beside them."""

    first: int
    last: int
    edges: tuple[tuple[int, int], ...]
    """Of nanoseconds, since <= time < until."""


def quarters_of(since_ns: int | None, until_ns: int | None) -> Quarters:
    """None is for ever."""
    first = _FIRST if since_ns is None else -(-since_ns // QUARTER_NS)
    last = _LAST if until_ns is None else until_ns // QUARTER_NS
    if since_ns is not None and until_ns is not None and first > last:
        return Quarters(0, 0, ((since_ns, until_ns),))
    edges = []
    if since_ns is not None and since_ns < first * QUARTER_NS:
        edges.append((since_ns, first * QUARTER_NS))
    if until_ns is not None and last * QUARTER_NS < until_ns:
        edges.append((last * QUARTER_NS, until_ns))
    return Quarters(first, last, tuple(edges))


TABLES = tuple(_GROUPS)


def group_names(table: str) -> tuple[str, ...]:
    """The columns of a table's primary key."""
    return _GROUPS[table]


def of_entries(table: str, where: str = "TRUE") -> str:
    """The SELECT that says of entries what the table should say."""
    groups = ", ".join(f"{_AS_GROUP[name]} AS {name}" for name in _GROUPS[table])
    amounts = ", ".join(f"sum({_AS_AMOUNT.get(name, name)}) AS {name}" for name in AMOUNTS)
    has_run = " AND run_id IS NOT NULL" if table == "run_sums" else ""
    places = ", ".join(str(place + 1) for place in range(len(_GROUPS[table])))
    return (
        f"SELECT {groups}, {amounts} FROM entries WHERE {IS_USE}{has_run} AND {where}"
        f" GROUP BY {places}"
    )


def add_up(connection: Connection, entries: Iterable[Entry]) -> None:
    """Add new entries to the sums that they belong to: a statement or two for a whole group."""
    sums: _Groups = {}
    run_sums: _Groups = {}
    for entry in entries:
        if not entry.is_use:
            continue
        quarter = entry.utc_ns // QUARTER_NS
        team, key_id = entry.team or "", entry.key_id or ""
        _join(sums, (entry.org, quarter, team, key_id, entry.model), entry)
        if entry.run_id is not None:
            _join(run_sums, (entry.org, team, key_id, entry.run_id, quarter), entry)
    _upsert(connection, "sums", sums)
    _upsert(connection, "run_sums", run_sums)


def spent_nano(
    connection: Connection,
    level: Level,
    who: str | Sequence[str | None],
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> int:
    """What somebody was charged for since <= time < until, to the nano-dollar.

    `who` is an organisation, (organisation, team), a key's id, or (organisation, team, key id, run).
    """
    names = (who,) if isinstance(who, str) else tuple(name or "" for name in who)
    table, columns = _LEVELS[level]
    within = quarters_of(since_ns, until_ns)
    is_theirs = " AND ".join(f"{name} = ?" for name in columns)
    total = _sum(
        connection,
        f"{table} WHERE {is_theirs} AND quarter >= ? AND quarter < ?",
        (*names, within.first, within.last),
    )
    is_theirs = " AND ".join(f"{_AS_GROUP[name]} = ?" for name in columns)
    for edge in within.edges:
        where = f"{IS_USE} AND {is_theirs} AND utc_ns >= ? AND utc_ns < ?"
        total += _sum(connection, f"entries WHERE {where}", (*names, *edge))
    return total


def spent_by_run(
    connection: Connection,
    org: str,
    *,
    team: str | None = None,
    key_id: str | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
    most: int,
) -> dict[tuple[str | None, str | None, str], int]:
    """What each run of an organisation's keys, of one of its teams or of one key, was charged in a stretch of time.

    By (key id, team, run); at most so many, those that were last heard of.
    """
    within = quarters_of(since_ns, until_ns)
    is_theirs, names = "org = ?", [org]
    for column, name in (("team", team), ("key_id", key_id)):
        if name is not None:
            is_theirs += f" AND {column} = ?"
            names.append(name)
    parts = [f"SELECT {_RUN}, quarter * {QUARTER_NS} AS at, amount_nano FROM run_sums"]
    parts[0] += f" WHERE {is_theirs} AND quarter >= ? AND quarter < ?"
    values: list[str | int] = [*names, within.first, within.last]
    for edge in within.edges:
        groups = "ifnull(key_id, ''), ifnull(team, ''), run_id"
        parts.append(
            f"SELECT {groups}, utc_ns, amount_nano FROM entries WHERE {IS_USE} AND run_id IS NOT NULL"
            f" AND {is_theirs} AND utc_ns >= ? AND utc_ns < ?"
        )
        values += [*names, *edge]
    query = (
        f"SELECT {_RUN}, sum(amount_nano) FROM ({' UNION ALL '.join(parts)})"
        " GROUP BY 1, 2, 3 ORDER BY max(at) DESC LIMIT ?"
    )
    rows = connection.execute(query, (*values, most))
    return {(key or None, of_team or None, run): nano for key, of_team, run, nano in rows}


_RUN = "key_id, team, run_id"


def _sum(connection: Connection, rows: str, values: tuple[str | int, ...]) -> int:
    query = f"SELECT ifnull(sum(amount_nano), 0) FROM {rows}"
    total: int = connection.execute(query, values).fetchone()[0]
    return total


def _join(groups: _Groups, key: tuple[str | int, ...], entry: Entry) -> None:
    group = groups.get(key)
    if group is None:
        groups[key] = [entry]
    else:
        group.append(entry)


def _amounts(group: Sequence[Entry]) -> tuple[int, ...]:
    """Column by column, which takes a fraction of what entry by entry does."""
    return (
        [entry.kind for entry in group].count("request"),
        sum([entry.fresh_input_tokens for entry in group]),
        sum([entry.cached_input_tokens for entry in group]),
        sum([entry.output_tokens for entry in group]),
        sum([entry.reasoning_tokens for entry in group]),
        sum([entry.embedding_tokens for entry in group]),
        sum([entry.engine_ns for entry in group]),
        sum([entry.amount_nano for entry in group]),
    )


def _upsert(connection: Connection, table: str, groups: _Groups) -> None:
    if groups:
        rows = [(*key, *_amounts(group)) for key, group in groups.items()]
        insert_rows(connection, table, (*_GROUPS[table], *AMOUNTS), rows, or_else=_ADD)
