"""Copies of a data directory's files, made while the node writes them, and folders that are whole or not there at all.

A copy of a database is of one moment: it is read in one transaction, through a connection of its own that can't write.
The node writes on meanwhile, to a log that is not folded in until the copy is done.
"""

import hashlib
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from llmhost.core.errors import ConfigError, Conflict
from llmhost.storage.connect import StorageFailed, open_for_reading, storage_error

DATABASES = ("money.db", "analytics.db", "registry.db", "state.db", "reviews.db", "audit.db")
SECRETS = ("node_id", "pepper", "statement_key", "state_key", "audit_key", "audit.head")
"""Without them keys are not recognised, entries have another node's name, statements another signature, and what
callers carry for us can't be read. The key of reviews' originals is not among them: what a backup has of those can't be
read, so erasing them erases them. The audit log's end is copied before the log, which may go on from there."""
NEEDED = {"money.db", "node_id", "pepper"}
FILES = "files"
"""The folder of what callers upload and batches make."""
_FILE = re.compile(rf"{FILES}/file-[0-9a-f]{{24}}")
MANIFEST = "manifest.json"
FORM = 2
"""1 was without files, and is read as well."""
SQLITE_VERSION = sqlite3.sqlite_version

STEP_PAGES = 1_024
STEP_BYTES = 4 << 20
"""How much is copied between two words about it."""

Tell = Callable[[str, int, int], None]
"""Told of a file's name, how many bytes of it are done, and how many there are."""


class FileNote(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was copied."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds, of which node, and where its ledger ended."""

    form: int = FORM
    node_id: str
    created_at: str
    """UTC."""
    llmhost: str
    sqlite: str
    entries: int
    head: str
    """Hash of the newest of the ledger's entries."""
    files: dict[str, FileNote]


def copy_database(source: Path, target: Path, tell: Tell) -> None:
    """One moment of a database, as a file without a log beside it. Raises StorageFailed."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(open_for_reading(source)) as reading, closing(sqlite3.connect(target)) as copy:
            # Held all the while: else each step would be of another moment, and writers would make it begin again.
            reading.execute("BEGIN")
            (page_bytes,) = reading.execute("PRAGMA page_size").fetchone()
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()

            def step(_: int, left: int, pages: int) -> None:
                tell(source.name, (pages - left) * page_bytes, pages * page_bytes)

            reading.backup(copy, pages=STEP_PAGES, progress=step)
            copy.execute("PRAGMA journal_mode=DELETE").fetchall()
    except sqlite3.Error as error:
        raise storage_error(target, error) from error


def copy_file(source: Path, target: Path, tell: Tell) -> FileNote:
    """A file that nobody writes, with mode 0600; its size and hash as they were read. Raises StorageFailed."""
    try:
        with source.open("rb") as read:
            return _pour(read, target, partial(tell, source.name))
    except OSError as error:
        raise StorageFailed(target, error) from error


def _pour(read: BinaryIO, target: Path, tell: Callable[[int, int], None]) -> FileNote:
    found, done, size = hashlib.sha256(), 0, os.fstat(read.fileno()).st_size
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as write:
        while part := read.read(STEP_BYTES):
            write.write(part)
            found.update(part)
            done += len(part)
            tell(done, size)
    return FileNote(bytes=done, sha256=found.hexdigest())


def copy_files(source: Path, target: Path, tell: Tell) -> dict[str, FileNote]:
    """All files of a folder, each as it is, by their names in a manifest. Raises StorageFailed.

    Their rows are copied before. A file that is deleted meanwhile is left out, and one that is added may be in it: what
    lacks the other is forgotten when a node starts.
    """
    if not source.is_dir():
        return {}
    (target := target / FILES).mkdir(mode=0o700)
    names = [path.name for path in source.iterdir() if _FILE.fullmatch(f"{FILES}/{path.name}")]
    notes: dict[str, FileNote] = {}
    for done, name in enumerate(sorted(names), 1):
        try:
            with suppress(FileNotFoundError), (source / name).open("rb") as read:
                notes[f"{FILES}/{name}"] = _pour(read, target / name, lambda *_: None)
        except OSError as error:
            raise StorageFailed(target / name, error) from error
        tell(FILES, done, len(names))
    return notes


def note_of(path: Path) -> FileNote:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return FileNote(bytes=path.stat().st_size, sha256=found)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Somewhere to put files that all appear at `path` at once, on disk, when the block ends without an error.

    Raises Conflict when there is something at `path` other than an empty folder, StorageFailed where the disk refuses.
    """
    check_free(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(mode=0o700)
        yield draft
        for file in (*draft.rglob("*"), draft):
            _force(file)
        check_free(path)
        draft.rename(path)
        _force(path.parent)
    except OSError as error:
        raise StorageFailed(path, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raises Conflict, unless nothing or an empty folder is there."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise Conflict(
            f"{path} is there already and is not empty. Name a folder that does not exist yet."
        )


def read_manifest(folder: Path) -> Manifest:
    """Raises ConfigError for a folder that is no backup, or is one of a newer program."""
    try:
        found = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{folder} is no backup: its {MANIFEST} can't be read: {error}."
        ) from None
    if not 1 <= found.form <= FORM:
        raise ConfigError(
            f"{folder} is a backup of form {found.form}, and this program reads forms 1 to {FORM}. Use a newer llmhost."
        )
    others = found.files.keys() - {*DATABASES, *SECRETS}
    if not found.files.keys() >= NEEDED or not all(map(_FILE.fullmatch, others)):
        raise ConfigError(f"{folder} is no whole backup: its {MANIFEST} lists other files.")
    return found


def _force(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
