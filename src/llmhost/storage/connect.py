"""How a SQLite file is opened here, for writing and for reading, and what is said when it can't be used.

Deliberately ignorant of what the files hold.
"""

import os
import sqlite3
from pathlib import Path
from typing import Literal

from llmhost.core.errors import LlmhostError

Connection = sqlite3.Connection
"""Named here so that packages above storage can write jobs without importing sqlite3."""

Clash = sqlite3.IntegrityError
"""A statement that would have broken a constraint, and so has changed nothing."""

Synchronous = Literal["FULL", "NORMAL"]

_BUSY_TIMEOUT_MS = 5_000
_JOURNAL_BYTES = 64 * 2**20


class StorageFailed(LlmhostError):
    """A file in the data directory could not be read or written: full disk, I/O error, damage.

    As text it names the path, for the operator; `message`, which goes to callers, names the file only.
    """

    status = 503
    type = "service_unavailable_error"
    code = "storage_failed"

    def __init__(self, path: Path, error: BaseException) -> None:
        super().__init__(
            f"{path} could not be used: {error}."
            " Check free space and permissions of the data directory, then try again."
        )
        self.message = f"The server could not use {path.name}: {error}. Try again later."
        self.path = path
        self.__cause__ = error


_OUT_OF_OUR_HANDS = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


def storage_error(path: Path, error: Exception) -> Exception:
    """Full disks and damage in our own words; a broken constraint or a wrong statement stays what it is."""
    code = (
        getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    )  # low byte: the primary code
    return StorageFailed(path, error) if code in _OUT_OF_OUR_HANDS else error


def open_for_writing(path: Path, synchronous: Synchronous) -> Connection:
    """The one read-write connection of a file; made with mode 0600 where it is new. Raises StorageFailed."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(path, error) from error
    try:
        for setting in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            f"journal_size_limit={_JOURNAL_BYTES}",
            "foreign_keys=ON",
            "recursive_triggers=ON",  # INSERT OR REPLACE deletes too, and must meet the delete triggers
            "trusted_schema=OFF",
            "mmap_size=0",
        ):
            connection.execute(f"PRAGMA {setting}").fetchall()
    except sqlite3.Error as error:
        connection.close()
        raise StorageFailed(path, error) from error
    return connection


def open_for_reading(path: Path) -> Connection:
    """A connection that can't write, usable from any one thread at a time. Raises StorageFailed."""
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}").fetchall()
    except sqlite3.Error as error:
        raise StorageFailed(path, error) from error
    return connection


def wal_reset_warning(version: str = sqlite3.sqlite_version) -> str | None:
    """A sentence when this SQLite has the WAL-reset bug (sqlite.org/wal.html#walresetbug), else None.

    Fixed in 3.51.3, and in the older lines at 3.50.7 and 3.44.6.
    """
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    fixed = {(3, 44): 6, (3, 50): 7, (3, 51): 3}.get((major, minor))
    is_safe = (major, minor) > (3, 51) or (fixed is not None and patch >= fixed)
    if is_safe:
        return None
    return (
        f"SQLite {version} has the WAL-reset bug, which can damage a file that two connections write at the same"
        " instant; llmhost writes each file through one connection, so keep other programs from writing them,"
        " and use SQLite 3.51.3 or newer where you can."
    )
