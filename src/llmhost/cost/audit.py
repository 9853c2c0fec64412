"""Whether what stands beside the entries says the same as they do: sums, and the rows of true cost."""

from llmhost.cost.breakdown import cost_digest
from llmhost.cost.sums import AMOUNTS, TABLES, group_names, of_entries
from llmhost.storage.connect import Connection

_POOLS = (
    "gpu_compute_nano || '/' || input_nano || '/' || infrastructure_nano || '/' || model_loading_nano"
    " || '/' || safety_moderation_nano || ifnull('/' || load_id, '')"
)
_NAMES = ("utc_ns", "key_id", "org", "team", "model")
_UNLIKE = " OR ".join(f"c.{name} IS NOT e.{name}" for name in _NAMES)
_COSTS = f"""
    SELECT seq, request_id, kind, {", ".join(_NAMES)}, ifnull(salt, '') AS salt, {_POOLS} AS pools
    FROM request_costs
"""
_BOTH = f"""
    SELECT e.seq, e.cost_digest, c.salt, c.pools, c.seq IS NOT NULL AND ({_UNLIKE})
    FROM entries e LEFT JOIN ({_COSTS}) c ON c.request_id = e.request_id AND c.kind = e.kind
    WHERE e.seq > :after AND e.seq <= :last AND e.debit IS NOT NULL ORDER BY e.seq
"""
_STRAY = """
    SELECT c.seq, c.request_id FROM request_costs c
    LEFT JOIN entries e ON e.request_id = c.request_id AND e.kind = c.kind
    WHERE c.seq > :after AND c.seq <= :last AND e.seq IS NULL
        AND c.seq > (SELECT last_seq FROM unchained_costs)
    ORDER BY c.seq LIMIT 1
"""


def drift(connection: Connection) -> dict[str, int]:
    """How many groups of each table of sums are not what their entries add up to. Reads all of it, at one moment."""
    return {table: _drift(connection, table) for table in TABLES}


def _drift(connection: Connection, table: str) -> int:
    groups = ", ".join(group_names(table))
    negated = ", ".join(f"-{name}" for name in AMOUNTS)
    left = ", ".join(f"sum({name}) AS {name}" for name in AMOUNTS)
    differs = " OR ".join(f"{name} <> 0" for name in AMOUNTS)
    query = f"""
        SELECT count(*) FROM (
            SELECT {left} FROM (
                SELECT * FROM {table}
                UNION ALL
                SELECT {groups}, {negated} FROM ({of_entries(table)})
            ) GROUP BY {groups}
        ) WHERE {differs}
    """
    found: int = connection.execute(query).fetchone()[0]
    return found


def rebuild(connection: Connection) -> None:
    """Make the sums anew from the entries."""
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}")
        connection.execute(f"INSERT INTO {table} {of_entries(table)}")


def changed_cost(connection: Connection, *, after: int, last: int) -> str | None:
    """The first entry, by `seq` in after < seq <= last, whose row of true cost is not what was recorded."""
    for seq, digest, salt, pools, is_anothers in connection.execute(
        _BOTH, {"after": after, "last": last}
    ):
        found = None if pools is None else cost_digest(salt, pools)
        if found != digest or is_anothers:
            return f"entry {seq}: its row of true cost is not what was recorded"
    return None


def stray_cost(connection: Connection, *, after: int, last: int) -> str | None:
    """The first row of true cost, by its own `seq`, that belongs to no entry."""
    if found := connection.execute(_STRAY, {"after": after, "last": last}).fetchone():
        return f"row {found[0]} of true cost, {found[1]}: it belongs to no entry"
    return None


def last_cost(connection: Connection) -> int:
    found: int = connection.execute("SELECT ifnull(max(seq), 0) FROM request_costs").fetchone()[0]
    return found
