"""`learnt.db`: what the cache has learnt, for the process that comes after. It can be lost: then it is learnt anew.

It is opened for each act, which come once a minute at most. A file that is damaged, or that a newer program wrote, is
thrown away.
"""

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from llmhost.core.errors import ConfigError
from llmhost.observe.logs import log_event
from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

log = logging.getLogger("llmhost.cache")

SCHEMA = Schema(
    "learnt",
    {
        "things": (
            """CREATE TABLE things (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                part TEXT NOT NULL,
                name TEXT NOT NULL,
                value BLOB NOT NULL,
                UNIQUE (part, name)
            ) STRICT""",
        )
    },
)
_ALL = "SELECT part, name, value FROM things ORDER BY seq"
_PUT = "INSERT OR REPLACE INTO things (node_id, utc_ns, part, name, value) VALUES (?, ?, ?, ?, ?)"
_DROP = "DELETE FROM things WHERE part = ? AND name = ?"

Name = tuple[str, str]
"""Which part of what is learnt, and which thing of that."""


class LearntFile:
    """Things by name. Blocks; used by one thread at a time."""

    def __init__(self, path: Path, *, node_id: str) -> None:
        self.path = path
        self._node_id = node_id

    def load(self) -> list[tuple[Name, bytes]]:
        """All of it, what was written first at the head; nothing where there is no file that can be used."""
        if not self.path.exists():
            return []
        try:
            with self._writer(), Reader(self.path) as reader:
                return reader.read_now(_read)
        except (StorageFailed, ConfigError, sqlite3.Error) as error:
            log_event(log, "cache.forgot", level=logging.WARNING, why=str(error))
            self._throw_away()
            return []

    def write(self, put: Mapping[Name, bytes], drop: Iterable[Name], utc_ns: int) -> None:
        """Raises StorageFailed. What is dropped is overwritten in the file."""
        gone = list(drop)
        rows = [(self._node_id, utc_ns, *name, value) for name, value in put.items()]

        def job(connection: Connection) -> None:
            connection.execute("PRAGMA secure_delete = ON")
            connection.executemany(_DROP, gone)
            connection.executemany(_PUT, rows)

        with self._writer() as writer:
            try:
                writer.submit(job).result()
            except sqlite3.Error as error:  # the table is not what it was made as
                raise StorageFailed(self.path, error) from error

    def _writer(self) -> Writer:
        return Writer(self.path, synchronous="NORMAL", migrations=[SCHEMA])

    def _throw_away(self) -> None:
        for end in ("", "-wal", "-shm"):
            try:
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            except OSError as error:
                log_event(log, "cache.not_thrown_away", level=logging.ERROR, why=str(error))


def _read(connection: Connection) -> list[tuple[Name, bytes]]:
    found = connection.execute(_ALL).fetchall()
    if any(tuple(map(type, row)) != (str, str, bytes) for row in found):
        raise sqlite3.DataError("its rows are none of this program's")
    return [((part, name), value) for part, name, value in found]
