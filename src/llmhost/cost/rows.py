"""The rows of true cost, beside the ledger and written with it: each request's, each load's, and the hourly checks.

Appended and never changed: what a load turns out to have cost its requests is said by compensating rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmhost.core.step import split_exactly
from llmhost.cost.breakdown import Breakdown
from llmhost.storage.connect import Connection
from llmhost.storage.rows import insert_rows
from llmhost.storage.schema import Schema

NOBODY = "-"
"""The organisation of what no request bears."""

_TABLES = ("request_costs", "loads", "load_ends", "cost_checks")

SCHEMA = Schema(
    "true_cost",
    {
        "requests_loads_and_checks": (
            """CREATE TABLE request_costs (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                kind TEXT NOT NULL, -- 'request', 'load_true_up' or 'load_unused'
                request_id TEXT NOT NULL,
                key_id TEXT,
                org TEXT NOT NULL,
                team TEXT,
                model TEXT NOT NULL,
                load_id TEXT,
                gpu_compute_nano INTEGER NOT NULL,
                input_nano INTEGER NOT NULL,
                infrastructure_nano INTEGER NOT NULL,
                model_loading_nano INTEGER NOT NULL,
                safety_moderation_nano INTEGER NOT NULL,
                UNIQUE (request_id, kind)
            ) STRICT""",
            "CREATE INDEX request_costs_by_time ON request_costs (utc_ns)",
            "CREATE INDEX request_costs_by_load ON request_costs (load_id) WHERE load_id IS NOT NULL",
            """CREATE TABLE loads (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                load_id TEXT NOT NULL UNIQUE,
                model TEXT NOT NULL,
                device TEXT NOT NULL,
                load_ns INTEGER NOT NULL CHECK (load_ns >= 0),
                cost_nano INTEGER NOT NULL CHECK (cost_nano >= 0),
                expected_requests INTEGER NOT NULL CHECK (expected_requests > 0)
            ) STRICT""",
            """CREATE TABLE load_ends (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                load_id TEXT NOT NULL UNIQUE REFERENCES loads (load_id),
                requests INTEGER NOT NULL
            ) STRICT""",
            """CREATE TABLE cost_checks (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                device TEXT NOT NULL,
                busy_ns INTEGER NOT NULL,
                load_ns INTEGER NOT NULL,
                idle_ns INTEGER NOT NULL,
                callers_nano INTEGER NOT NULL,
                operator_nano INTEGER NOT NULL,
                load_nano INTEGER NOT NULL,
                idle_nano INTEGER NOT NULL,
                error_nano INTEGER NOT NULL
            ) STRICT""",
            *(
                f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
                for table in _TABLES
                for verb in ("UPDATE", "DELETE")
            ),
        ),
        "costs_have_entries": (
            "ALTER TABLE request_costs ADD COLUMN salt TEXT",
            # Up to this row, what made up for loads had no entry, and entries did not say what their rows do.
            "CREATE TABLE unchained_costs (last_seq INTEGER NOT NULL) STRICT",
            "INSERT INTO unchained_costs SELECT ifnull(max(seq), 0) FROM request_costs",
            *(
                f"CREATE TRIGGER unchained_costs_no_{verb} BEFORE {verb} ON unchained_costs"
                " BEGIN SELECT RAISE(ABORT, 'unchained_costs is never changed'); END"
                for verb in ("INSERT", "UPDATE", "DELETE")
            ),
        ),
    },
)

_COLUMNS = (
    "node_id",
    "utc_ns",
    "kind",
    "request_id",
    "key_id",
    "org",
    "team",
    "model",
    "load_id",
    "gpu_compute_nano",
    "input_nano",
    "infrastructure_nano",
    "model_loading_nano",
    "safety_moderation_nano",
    "salt",
)
_CHECK_COLUMNS = (
    "node_id",
    "utc_ns",
    "device",
    "busy_ns",
    "load_ns",
    "idle_ns",
    "callers_nano",
    "operator_nano",
    "load_nano",
    "idle_nano",
    "error_nano",
)
_OPEN_LOADS = (
    "SELECT load_id FROM loads WHERE node_id = ? AND load_id NOT IN (SELECT load_id FROM load_ends)"
    " ORDER BY seq"
)
_BORNE = (
    "SELECT key_id, org, team, count(*), sum(model_loading_nano) FROM request_costs"
    " WHERE load_id = ? AND kind = 'request' GROUP BY key_id, org, team ORDER BY min(seq)"
)


CostRow = tuple[str | int | None, ...]
"""The values of a row of `request_costs`, but for its number."""


class Bearer(Protocol):
    """Whose row of true cost it is: the part of it that an entry has, too."""

    @property
    def utc_ns(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def key_id(self) -> str | None: ...
    @property
    def org(self) -> str: ...
    @property
    def team(self) -> str | None: ...
    @property
    def model(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCost:
    """One row of `request_costs`; `kind` and `request_id` together are its identity."""

    request_id: str
    kind: str = "request"
    utc_ns: int
    key_id: str | None
    org: str
    team: str | None
    model: str
    costs: Breakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One measured load of a model."""

    load_id: str
    utc_ns: int
    model: str
    device: str
    load_ns: int
    cost_nano: int
    expected_requests: int


def insert_costs(connection: Connection, rows: Sequence[CostRow]) -> None:
    """Within whatever transaction runs."""
    insert_rows(connection, "request_costs", _COLUMNS, rows)


def insert_load(connection: Connection, load: Load, *, node_id: str) -> None:
    connection.execute(
        "INSERT INTO loads (node_id, utc_ns, load_id, model, device, load_ns, cost_nano, expected_requests)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            node_id,
            load.utc_ns,
            load.load_id,
            load.model,
            load.device,
            load.load_ns,
            load.cost_nano,
            load.expected_requests,
        ),
    )


def end_load(
    connection: Connection, load_id: str, *, utc_ns: int, node_id: str
) -> list[RequestCost]:
    """Have each account bear of a load what its requests were of all: the rows that make up the difference, which are
    left to be recorded.

    A load that nobody used is the operator's. One that has ended before, or is unknown, has none.
    """
    if connection.execute("SELECT 1 FROM load_ends WHERE load_id = ?", (load_id,)).fetchone():
        return []
    found = connection.execute(
        "SELECT cost_nano, model FROM loads WHERE load_id = ?", (load_id,)
    ).fetchone()
    if found is None:
        return []
    cost_nano, model = found
    borne = connection.execute(_BORNE, (load_id,)).fetchall()
    shares = split_exactly(cost_nano, [count for *_, count, _ in borne])
    accounts = [
        (*account, share - nano) for (*account, _, nano), share in zip(borne, shares, strict=True)
    ]
    kind = "load_true_up"
    if not borne:
        accounts, kind = [(None, NOBODY, None, cost_nano)], "load_unused"
    rows = [
        RequestCost(
            request_id=f"{load_id}/{place}",
            kind=kind,
            utc_ns=utc_ns,
            key_id=key_id,
            org=org,
            team=team,
            model=model,
            costs=Breakdown(model_loading_nano=nano, load_id=load_id),
        )
        for place, (key_id, org, team, nano) in enumerate(accounts)
        if nano
    ]
    connection.execute(
        "INSERT INTO load_ends (node_id, utc_ns, load_id, requests) VALUES (?, ?, ?, ?)",
        (node_id, utc_ns, load_id, sum(count for *_, count, _ in borne)),
    )
    return rows


def open_loads(connection: Connection, *, node_id: str) -> list[str]:
    """The loads that have not ended. Before anything is loaded: those of a process that ended without a word."""
    return [load_id for (load_id,) in connection.execute(_OPEN_LOADS, (node_id,))]


def insert_checks(
    connection: Connection, checks: Sequence[dict[str, Any]], *, utc_ns: int, node_id: str
) -> None:
    rows = [(node_id, utc_ns, *(check[name] for name in _CHECK_COLUMNS[2:])) for check in checks]
    insert_rows(connection, "cost_checks", _CHECK_COLUMNS, rows)


def cost_row(bearer: Bearer, costs: Breakdown, node_id: str) -> CostRow:
    return (
        node_id,
        bearer.utc_ns,
        bearer.kind,
        bearer.request_id,
        bearer.key_id,
        bearer.org,
        bearer.team,
        bearer.model,
        costs.load_id,
        costs.gpu_compute_nano,
        costs.input_nano,
        costs.infrastructure_nano,
        costs.model_loading_nano,
        costs.safety_moderation_nano,
        costs.salt,
    )
