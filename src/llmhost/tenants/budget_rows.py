"""Budgets and credits as rows. Both are only ever added: what a budget is now is what all its rows say together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llmhost.storage.connect import Connection
from llmhost.storage.schema import Schema
from llmhost.tenants.budgets import Budget, Credit
from llmhost.tenants.periods import Period

SCHEMA = Schema(
    "budgets",
    {
        "budgets_and_credits": (
            """CREATE TABLE budget_events (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                budget_id TEXT NOT NULL,
                what TEXT NOT NULL CHECK (what IN ('created', 'changed', 'ended')),
                who TEXT NOT NULL, -- a key's id, or operator
                org TEXT NOT NULL REFERENCES orgs(name),
                team TEXT,
                key_id TEXT REFERENCES keys(id),
                is_per_run INTEGER NOT NULL CHECK (is_per_run IN (0, 1)),
                period TEXT NOT NULL,
                zone TEXT NOT NULL,
                limit_nano INTEGER NOT NULL CHECK (limit_nano >= 0),
                until_ns INTEGER
            ) STRICT""",
            "CREATE INDEX budget_events_by_budget ON budget_events (budget_id, seq)",
            """CREATE TABLE credits (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                budget_id TEXT NOT NULL,
                org TEXT NOT NULL REFERENCES orgs(name),
                who TEXT NOT NULL,
                amount_nano INTEGER NOT NULL CHECK (amount_nano >= 0),
                kind TEXT NOT NULL CHECK (kind IN ('payment', 'grant')),
                expires_ns INTEGER,
                reference TEXT NOT NULL,
                note TEXT,
                UNIQUE (org, reference)
            ) STRICT""",
            *(
                f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
                for table in ("budget_events", "credits")
                for verb in ("UPDATE", "DELETE")
            ),
        ),
    },
)

_EVENT = (
    *("utc_ns", "budget_id", "what", "who", "org", "team", "key_id"),
    *("is_per_run", "period", "zone", "limit_nano", "until_ns"),
)
_CREDIT = (
    *("id", "budget_id", "org", "amount_nano", "kind", "reference", "note"),
    *("created_ns", "expires_ns"),
)
_CREDIT_SQL = ", ".join(_CREDIT).replace("created_ns", "utc_ns")


@dataclass(frozen=True, slots=True)
class BudgetEvent:
    """One change of a budget, and how it was from then on."""

    utc_ns: int
    what: str
    """created, changed or ended."""
    who: str
    limit_nano: int
    until_ns: int | None


def insert_event(
    connection: Connection, budget: Budget, *, node_id: str, utc_ns: int, what: str, who: str
) -> None:
    connection.execute(
        f"INSERT INTO budget_events (node_id, {', '.join(_EVENT)})"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(node_id, utc_ns, budget.id, what, who, budget.org, budget.team, budget.key_id),
            *(int(budget.is_per_run), budget.period.value, budget.zone),
            *(budget.limit_nano, budget.until_ns),
        ),
    )


def load_budgets(connection: Connection) -> dict[str, Budget]:
    """All of them, ended ones too, oldest first."""
    budgets: dict[str, Budget] = {}
    rows = connection.execute(f"SELECT {', '.join(_EVENT)} FROM budget_events ORDER BY seq")
    for utc_ns, budget_id, what, who, *facts in rows:
        now = _budget(budget_id, utc_ns, who, facts)
        known = budgets.get(budget_id, now)
        budgets[budget_id] = replace(now, created_ns=known.created_ns, made_by=known.made_by)
        if what == "ended":
            budgets[budget_id] = replace(budgets[budget_id], ended_ns=utc_ns)
    return budgets


def load_events(connection: Connection, budget_id: str) -> list[BudgetEvent]:
    rows = connection.execute(
        "SELECT utc_ns, what, who, limit_nano, until_ns FROM budget_events WHERE budget_id = ? ORDER BY seq",
        (budget_id,),
    )
    return [BudgetEvent(*row) for row in rows]


def load_credits(connection: Connection) -> Iterator[Credit]:
    """All of them, oldest first."""
    for row in connection.execute(f"SELECT {_CREDIT_SQL} FROM credits ORDER BY seq").fetchall():
        yield Credit(**dict(zip(_CREDIT, row, strict=True)))


def find_credit(connection: Connection, org: str, reference: str) -> Credit | None:
    row = connection.execute(
        f"SELECT {_CREDIT_SQL} FROM credits WHERE org = ? AND reference = ?", (org, reference)
    ).fetchone()
    return None if row is None else Credit(**dict(zip(_CREDIT, row, strict=True)))


def insert_credit(connection: Connection, credit: Credit, *, node_id: str, who: str) -> None:
    connection.execute(
        f"INSERT INTO credits (node_id, who, {_CREDIT_SQL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (node_id, who, *(getattr(credit, name) for name in _CREDIT)),
    )


def _budget(budget_id: str, utc_ns: int, who: str, facts: list[Any]) -> Budget:
    org, team, key_id, is_per_run, period, zone, limit_nano, until_ns = facts
    return Budget(
        id=budget_id,
        org=org,
        team=team,
        key_id=key_id,
        is_per_run=bool(is_per_run),
        period=Period(period),
        zone=zone,
        limit_nano=limit_nano,
        until_ns=until_ns,
        created_ns=utc_ns,
        made_by=who,
    )
