"""Tables as ordered, named steps, applied once each and remembered in the file itself.

A step that has been released is never edited: the next change is a new step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmhost.core.errors import ConfigError
from llmhost.storage.connect import Connection

_APPLIED = "SELECT name FROM _sqlite_migrations WHERE migration_set = ?"
_EXISTS = "SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'"


@dataclass(frozen=True, slots=True)
class Schema:
    """One package's tables in a file: `steps` maps a step's name to its statements, oldest first."""

    name: str
    steps: Mapping[str, Sequence[str]]


def migrate(connection: Connection, schemas: Iterable[Schema]) -> None:
    """Bring a file up to date, each step in its own transaction.

    Raises ConfigError when the file has a step that this program doesn't know: a newer one wrote it.
    """
    for schema in schemas:
        done = _applied(connection, schema.name)
        if unknown := sorted(done - schema.steps.keys()):
            raise ConfigError(
                f"The data directory was written by a newer llmhost ({schema.name}: {', '.join(unknown)})."
                " Start that version, or restore a copy from before the upgrade."
            )
        if done != schema.steps.keys():
            _apply(connection, schema)


def _applied(connection: Connection, name: str) -> set[str]:
    # Read by hand, because importing sqlite_utils takes a quarter of a second and most starts have nothing to do.
    if connection.execute(_EXISTS).fetchone() is None:
        return set()
    return {row[0] for row in connection.execute(_APPLIED, (name,))}


def _apply(connection: Connection, schema: Schema) -> None:
    from sqlite_utils import Database, Migrations

    migrations = Migrations(schema.name)
    for name, statements in schema.steps.items():
        migrations(name=name)(partial(_run, statements))
    migrations.apply(Database(connection, execute_plugins=False))


def _run(statements: Sequence[str], database: Any) -> None:
    for statement in statements:
        database.conn.execute(statement)
