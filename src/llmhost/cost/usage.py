"""What was used and charged, added up per group: from the sums by quarter, and exact between quarters too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmhost.cost.sums import AMOUNTS, of_entries, quarters_of
from llmhost.storage.connect import Connection

By = Literal["key", "team", "org", "model", "day"]

_GROUPS: Mapping[By, str] = {
    "key": "key_id",
    "team": "CASE WHEN team IS NULL THEN org ELSE org || '/' || team END",
    "org": "org",
    "model": "model",
    "day": "strftime('%Y-%m-%d', utc_ns / 1000000000, 'unixepoch')",
}
_SUM_GROUPS: Mapping[By, str] = {
    "key": "nullif(key_id, '')",
    "team": "CASE team WHEN '' THEN org ELSE org || '/' || team END",
    "org": "org",
    "model": "model",
    "day": "strftime('%Y-%m-%d', quarter * 900, 'unixepoch')",
}
_ADDED = ", ".join(f"sum({name}) AS {name}" for name in AMOUNTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Sums over one group; `group` is None for requests without a key."""

    group: str | None
    requests: int
    fresh_input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    embedding_tokens: int
    engine_ns: int
    amount_nano: int


def group_of(by: By) -> str:
    """The SQL expression of a group, over the columns that say whose a row is."""
    return _GROUPS[by]


def usage(
    connection: Connection,
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
    within = quarters_of(since_ns, until_ns)
    parts = ["SELECT * FROM sums WHERE quarter >= :first AND quarter < :last"]
    values: dict[str, int | str | None] = {"first": within.first, "last": within.last}
    for place, (start, end) in enumerate(within.edges):
        where = f"utc_ns >= :start{place} AND utc_ns < :end{place}"
        parts.append(f"SELECT * FROM ({of_entries('sums', where)})")
        values |= {f"start{place}": start, f"end{place}": end}
    order = "1" if by == "day" else "amount_nano DESC, requests DESC, 1"
    query = (
        f"SELECT {_SUM_GROUPS[by]}, {_ADDED} FROM ({' UNION ALL '.join(parts)})"
        " WHERE (:org IS NULL OR org = :org) AND (:key IS NULL OR key_id = :key)"
        f" GROUP BY 1 ORDER BY {order}"
    )
    rows = connection.execute(query, {**values, "org": org, "key": key_id}).fetchall()
    names = UsageRow.__dataclass_fields__
    return [UsageRow(**dict(zip(names, row, strict=True))) for row in rows]
