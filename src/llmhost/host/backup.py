"""Backup and restore of a node's data directory: the copy, and the proof that it is what it should be."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from llmhost import __version__
from llmhost.core.errors import AlreadyRunning, ConfigError, InvalidValue
from llmhost.core.ports import Clock
from llmhost.cost.ledger import Ledger
from llmhost.cost.reports import Reports
from llmhost.host.books import SCHEMAS
from llmhost.observe.clock import SystemClock
from llmhost.observe.logs import log_event
from llmhost.storage.backup import (
    DATABASES,
    FILES,
    MANIFEST,
    SECRETS,
    SQLITE_VERSION,
    Manifest,
    Tell,
    copy_database,
    copy_file,
    copy_files,
    note_of,
    read_manifest,
    whole_folder,
)
from llmhost.storage.node import DataDir, read_server
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer

log = logging.getLogger("llmhost.backup")

Row = dict[str, Any]
WORDS = 100
"""How often a file's progress is told."""


def back_up(data_dir: DataDir, target: Path, clock: Clock, tell: Tell) -> Manifest:
    """Copy databases, callers' files, node id and pepper into a new folder. Blocks; the node may run.

    Raises InvalidValue for a path that can't be, Conflict where something is, StorageFailed where the disk refuses.
    """
    if not target.is_absolute() or target.is_relative_to(data_dir.path):
        raise InvalidValue(
            f"{str(target)[:200]!r} must be an absolute path outside of the data directory.",
            param="path",
        )
    if not target.parent.is_dir():
        raise InvalidValue(f"There is no folder {str(target.parent)[:200]!r}.", param="path")
    with whole_folder(target) as draft:
        files = {}
        for name in SECRETS:
            if (data_dir.path / name).exists():
                files[name] = copy_file(data_dir.path / name, draft / name, tell)
        for name in DATABASES:
            if (data_dir.path / name).exists():
                copy_database(data_dir.path / name, draft / name, tell)
                files[name] = note_of(draft / name)
        files |= copy_files(data_dir.path / FILES, draft, tell)
        with Reader(draft / data_dir.money_db.name) as reader:
            head = Reports(reader).head()
        manifest = Manifest(
            node_id=data_dir.node_id,
            created_at=f"{datetime.fromtimestamp(clock.utc_ns() // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}",
            llmhost=__version__,
            sqlite=SQLITE_VERSION,
            entries=head.seq,
            head=head.hash,
            files=files,
        )
        (draft / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    log_event(log, "backup.made", path=target, entries=manifest.entries, head=manifest.head)
    return manifest


def restore(source: Path, target: Path, tell: Tell) -> Manifest:
    """Make a data directory of a backup, once all of it is found to be what was backed up. Blocks.

    Raises AlreadyRunning, Conflict for a folder that holds anything, ConfigError for a backup that is not whole.
    """
    target = target.expanduser().absolute()
    if read_server(target) is not None:
        raise AlreadyRunning(f"A node runs on {target}. Stop it, or restore into another folder.")
    manifest = read_manifest(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as draft:
        (draft / FILES).mkdir(mode=0o700)
        for name, expected in manifest.files.items():
            if copy_file(source / name, draft / name, tell) != expected:
                raise ConfigError(
                    f"{source / name} is not what was backed up: its hash is another one."
                )
        _prove(draft / DATABASES[0], manifest)
    return manifest


def _prove(money_db: Path, manifest: Manifest) -> None:
    with Writer(money_db, migrations=SCHEMAS):  # a backup of an older version
        pass
    with Writer(money_db) as writer, Reader(money_db) as reader:
        ledger = Ledger(writer, reader, node_id=manifest.node_id, clock=SystemClock())
        audit = ledger.audit()
    if audit.problem is not None:
        raise ConfigError(f"The ledger of the backup is damaged: {audit.problem}.")
    if (audit.chain.rows, audit.chain.head) != (manifest.entries, manifest.head):
        raise ConfigError("The ledger of the backup does not end where its manifest says.")


def told(act: Callable[[Tell], Manifest]) -> Iterator[Row]:
    """What an act says while it runs in a thread: `{file, bytes, of}` now and then, and its manifest at last.

    Raises what the act raises; what that is before the first word is raised by the first `next`.
    """
    said: queue.SimpleQueue[Row | Manifest | BaseException] = queue.SimpleQueue()
    hundredths: dict[str, int] = {}

    def tell(name: str, done: int, size: int) -> None:
        now = WORDS * done // (size or 1)
        if hundredths.get(name) != now:
            hundredths[name] = now
            said.put({"file": name, "bytes": done, "of": size})

    def run() -> None:
        try:
            said.put(act(tell))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            said.put(error)

    threading.Thread(target=run, name="backup", daemon=True).start()
    while True:
        match said.get():
            case Manifest() as manifest:
                yield msgspec.to_builtins(manifest)
                return
            case BaseException() as error:
                raise error
            case row:
                yield row
