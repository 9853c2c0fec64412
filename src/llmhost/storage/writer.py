"""One thread owns the only read-write connection of a file and commits in groups.

While one group is being forced to disk the next one gathers, so that a commit's cost is shared by all who wait.
Each job has a savepoint of its own: one that fails takes none of its neighbours with it. What the jobs do is not
known here.
"""

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from llmhost.core.errors import Overloaded
from llmhost.storage.connect import (
    Connection,
    StorageFailed,
    Synchronous,
    open_for_writing,
    storage_error,
)
from llmhost.storage.schema import Schema, migrate

T = TypeVar("T")
Job = Callable[[Connection], T]

MAX_GROUP = 1_000
"""Jobs in one commit: more would make the first of them wait for the last."""

log = logging.getLogger(__name__)


class Writer:
    """The owner of a SQLite file. Safe to call from any thread.

    Raises StorageFailed when the file can't be opened, ConfigError when a newer program wrote it.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Synchronous = "FULL",
        migrations: Sequence[Schema] = (),
        max_queue: int = 10_000,
    ) -> None:
        self.path = path
        self._synchronous = synchronous
        self._migrations = migrations
        self._max_queue = max_queue
        self._waiting: deque[tuple[Job[Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._health: Exception | None = None
        opened: Future[None] = Future()
        # A daemon: what was promised is on disk, and a forgotten close must not keep the process alive.
        self._thread = threading.Thread(
            target=self._work, args=(opened,), name=f"writer-{path.stem}", daemon=True
        )
        self._thread.start()
        opened.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def health(self) -> Exception | None:
        """The error of the last group when it could not be stored, else None."""
        return self._health

    @property
    def waiting(self) -> int:
        """Jobs accepted and not yet begun."""
        return len(self._waiting)

    def submit(self, job: Job[T]) -> Future[T]:
        """Queue a job; its future has the job's result once that is committed, and can't be cancelled.

        The future raises what the job raised, or StorageFailed when its group could not be stored. Raises
        Overloaded when the queue is full or closed: shed load, never drop money.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # whoever stops waiting, an accepted job is carried out
        with self._changed:
            if self._is_closing:
                raise Overloaded("The server is stopping and records nothing more.")
            if len(self._waiting) >= self._max_queue:
                raise Overloaded(
                    f"{self._max_queue} records are waiting to be written to {self.path.name}, which is the limit."
                    " Try again in a second.",
                    retry_after_s=1.0,
                )
            self._waiting.append((job, future))
            self._changed.notify()
        return future

    async def run(self, job: Job[T]) -> T:
        """As `submit`, awaited. Cancelling the wait does not cancel the job."""
        return await asyncio.wrap_future(self.submit(job))

    def close(self) -> None:
        """Carry out what is queued, fold the log into the file, and end the thread. Idempotent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self, opened: Future[None]) -> None:
        try:
            connection = open_for_writing(self.path, self._synchronous)
        except StorageFailed as error:
            opened.set_exception(error)
            return
        try:
            try:
                migrate(connection, self._migrations)
            except Exception as error:  # noqa: BLE001 - handed to whoever is opening the file
                opened.set_exception(storage_error(self.path, error))
                return
            opened.set_result(None)
            while group := self._next_group():
                self._commit(connection, group)
            self._checkpoint(connection)
        finally:
            connection.close()

    def _next_group(self) -> list[tuple[Job[Any], Future[Any]]]:
        """Wait for work; empty when the writer is closing and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            count = min(len(self._waiting), MAX_GROUP)
            return [self._waiting.popleft() for _ in range(count)]

    def _commit(
        self, connection: Connection, group: Sequence[tuple[Job[Any], Future[Any]]]
    ) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [self._attempt(connection, job) for job, _ in group]
            connection.execute("COMMIT")
        except (sqlite3.Error, StorageFailed, MemoryError) as error:
            self._abandon(connection, group, error)
            return
        failures = [error for _, error in results if isinstance(error, StorageFailed)]
        self._note(failures[-1] if failures else None)
        for (_, future), (value, failure) in zip(group, results, strict=True):
            if failure is None:
                future.set_result(value)
            else:
                future.set_exception(failure)

    def _attempt(self, connection: Connection, job: Job[T]) -> tuple[T | None, Exception | None]:
        """A job's value or its error, with nothing of a failed job left behind.

        Raises StorageFailed when the failure ended the transaction, and every neighbour's work with it.
        """
        connection.execute("SAVEPOINT job")
        try:
            value = job(connection)
        except Exception as error:  # a job may raise anything, and only its own caller shall see it
            if not connection.in_transaction:
                raise StorageFailed(self.path, error) from error
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            return None, storage_error(self.path, error)
        connection.execute("RELEASE job")
        return value, None

    def _abandon(
        self,
        connection: Connection,
        group: Sequence[tuple[Job[Any], Future[Any]]],
        error: Exception,
    ) -> None:
        cause = error.__cause__ or error
        self._note(StorageFailed(self.path, cause))
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as second:
            log.warning("storage.rollback_failed file=%s error=%s", self.path.name, second)
        for _, future in group:
            future.set_exception(StorageFailed(self.path, cause))

    def _note(self, failure: Exception | None) -> None:
        if failure is not None and self._health is None:
            log.error("storage.failed file=%s error=%s", self.path.name, failure)
        if failure is None and self._health is not None:
            log.warning("storage.recovered file=%s", self.path.name)
        self._health = failure

    def _checkpoint(self, connection: Connection) -> None:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:  # the log is kept and replayed at the next start
            log.warning("storage.checkpoint_failed file=%s error=%s", self.path.name, error)
