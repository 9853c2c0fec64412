"""Records as rows: what KeyStore and Directory read at the start and write at each change."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from llmhost.core.caller import Limits, Role
from llmhost.storage.connect import Connection
from llmhost.tenants.records import KeyRecord, Org, Team

LIMITS = tuple(field.name for field in fields(Limits))
_LIMITS_SQL = ", ".join(LIMITS)
_KEY_NAMES = (
    *("id", "org", "team", "name", "role", "models", "created_ns", "expires_ns"),
    *("disabled_ns", "rotated_ns", "revoked_ns"),
)
"""In the order that `load_keys` asks for them."""
_SET_LIMITS = ", ".join(f"{name} = ?" for name in LIMITS)


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret of a key; `ends_ns` is when the rotation that replaced it lets it end."""

    key_id: str
    ends_ns: int | None = None


def limit_values(limits: Limits) -> tuple[int | None, ...]:
    return tuple(getattr(limits, name) for name in LIMITS)


def _limits(values: tuple[Any, ...]) -> Limits:
    return Limits(**dict(zip(LIMITS, values, strict=True)))


def load_orgs(connection: Connection) -> dict[str, Org]:
    rows = connection.execute(
        f"SELECT name, utc_ns, disabled_ns, {_LIMITS_SQL} FROM orgs ORDER BY seq"
    )
    return {
        name: Org(
            name=name, created_ns=created_ns, disabled_ns=disabled_ns, limits=_limits(tuple(rest))
        )
        for name, created_ns, disabled_ns, *rest in rows
    }


def load_teams(connection: Connection) -> dict[tuple[str, str], Team]:
    rows = connection.execute(
        f"SELECT org, name, utc_ns, archived_ns, {_LIMITS_SQL} FROM teams ORDER BY seq"
    )
    return {
        (org, name): Team(
            org=org,
            name=name,
            created_ns=created_ns,
            archived_ns=archived_ns,
            limits=_limits(tuple(rest)),
        )
        for org, name, created_ns, archived_ns, *rest in rows
    }


def load_keys(connection: Connection) -> Iterator[KeyRecord]:
    rows = connection.execute(f"""
        SELECT k.id, k.org, k.team, k.name, k.role, k.models, k.utc_ns, k.expires_ns, k.disabled_ns,
            (SELECT max(s.utc_ns) FROM secrets s WHERE s.key_id = k.id AND s.digest != k.digest),
            r.utc_ns, {_LIMITS_SQL}
        FROM keys k LEFT JOIN revocations r ON r.key_id = k.id ORDER BY k.seq
    """).fetchall()
    for row in rows:
        facts: dict[str, Any] = dict(zip(_KEY_NAMES, row, strict=False))
        facts["role"] = Role(facts["role"])
        facts["models"] = None if facts["models"] is None else tuple(json.loads(facts["models"]))
        yield KeyRecord(**facts, limits=_limits(row[len(_KEY_NAMES) :]))


def load_secrets(connection: Connection) -> dict[bytes, Secret]:
    rows = connection.execute("SELECT digest, key_id, ends_ns FROM secrets ORDER BY seq")
    return {digest: Secret(key_id, ends_ns) for digest, key_id, ends_ns in rows}


def insert_org(connection: Connection, node_id: str, org: Org) -> bool:
    """False when there is one of that name."""
    done = connection.execute(
        f"INSERT INTO orgs (node_id, utc_ns, name, {_LIMITS_SQL}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (node_id, org.created_ns, org.name, *limit_values(org.limits)),
    )
    return done.rowcount > 0


def update_org(connection: Connection, org: Org) -> None:
    connection.execute(
        f"UPDATE orgs SET disabled_ns = ?, {_SET_LIMITS} WHERE name = ?",
        (org.disabled_ns, *limit_values(org.limits), org.name),
    )


def insert_team(connection: Connection, node_id: str, team: Team) -> bool:
    """False when the organisation has one of that name."""
    done = connection.execute(
        f"INSERT INTO teams (node_id, utc_ns, org, name, {_LIMITS_SQL})"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (node_id, team.created_ns, team.org, team.name, *limit_values(team.limits)),
    )
    return done.rowcount > 0


def update_team(connection: Connection, team: Team) -> None:
    connection.execute(
        f"UPDATE teams SET archived_ns = ?, {_SET_LIMITS} WHERE org = ? AND name = ?",
        (team.archived_ns, *limit_values(team.limits), team.org, team.name),
    )


def insert_key(connection: Connection, node_id: str, key: KeyRecord, digest: bytes) -> None:
    connection.execute(
        f"INSERT INTO keys (node_id, utc_ns, id, digest, org, team, name, role, models, expires_ns, {_LIMITS_SQL})"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(node_id, key.created_ns, key.id, digest, key.org, key.team, key.name),
            *(key.role.value, _models(key), key.expires_ns, *limit_values(key.limits)),
        ),
    )
    insert_secret(connection, node_id, key.created_ns, digest, key.id)


def update_key(connection: Connection, key: KeyRecord) -> None:
    connection.execute(
        f"UPDATE keys SET name = ?, role = ?, models = ?, expires_ns = ?, disabled_ns = ?, {_SET_LIMITS} WHERE id = ?",
        (
            *(key.name, key.role.value, _models(key), key.expires_ns, key.disabled_ns),
            *limit_values(key.limits),
            key.id,
        ),
    )


def insert_secret(
    connection: Connection, node_id: str, utc_ns: int, digest: bytes, key_id: str
) -> None:
    connection.execute(
        "INSERT INTO secrets (node_id, utc_ns, digest, key_id) VALUES (?, ?, ?, ?)",
        (node_id, utc_ns, digest, key_id),
    )


def replace_secrets(
    connection: Connection, node_id: str, utc_ns: int, digest: bytes, key_id: str, *, ends_ns: int
) -> None:
    """A new secret; all that the key has end at `ends_ns`, or when they would have ended before."""
    connection.execute(
        "UPDATE secrets SET ends_ns = min(ifnull(ends_ns, ?), ?) WHERE key_id = ?",
        (ends_ns, ends_ns, key_id),
    )
    insert_secret(connection, node_id, utc_ns, digest, key_id)


def insert_revocation(connection: Connection, node_id: str, utc_ns: int, key_id: str) -> None:
    """The first one stays."""
    connection.execute(
        "INSERT INTO revocations (node_id, utc_ns, key_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (node_id, utc_ns, key_id),
    )


def _models(key: KeyRecord) -> str | None:
    return None if key.models is None else json.dumps(key.models)
