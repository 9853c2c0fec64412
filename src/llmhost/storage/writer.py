"""One thread owns the only read-write connection of a file and commits in groups.

While one group is being forced to disk the next one gathers, so that a commit's cost is shared by all who wait.
Within a group, neighbours of one kind are done together; when that fails they are undone and tried in halves, until
only the one that fails does. What the work is is not known here.

Every statement lets go of the interpreter lock and has to win it back from a busy event loop: that, and not SQLite,
is what a row costs. So there are few statements per group, and a loop is woken once for all its results.
"""

import asyncio
import errno
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import chain, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from llmhost.core.errors import Overloaded
from llmhost.storage.connect import (
    Connection,
    StorageFailed,
    Synchronous,
    open_for_writing,
    storage_error,
)
from llmhost.storage.doorbell import Doorbell, Errand, Hear, HearAll, Parcel, Promise, Result, Tally
from llmhost.storage.schema import Schema, migrate

T = TypeVar("T")
Item = TypeVar("Item")
Job = Callable[[Connection], T]
Work = Callable[[Connection, Sequence[Item]], Sequence[T]]

MAX_GROUP = 1_000
"""Items in one commit: more would make the first of them wait for the last."""
PACE_S = 0.006
"""From one commit to the next, where several wait for each: what a commit costs is shared by more of them."""
BUSY_GROUP, FULL_GROUP = 4, 24
"""After a group of so many items the next one gathers up to three times as long, until it has so many or no more come:
a commit costs as much as a dozen items."""
PROBE_S = 1.0
"""How often a file that could not be written is tried again, while nobody else does."""
ROOM_BYTES = 1 << 20
"""A disk with less is still full: what a probe can write, a group of entries may not."""

log = logging.getLogger(__name__)


class _Task(msgspec.Struct):  # one is made for every row, but for rows that come together
    work: Work[Any, Any]
    items: Sequence[Any]
    """One, which has a future; or several, which have a parcel."""
    future: "Future[Any] | Promise[Any] | Errand | Tally | _Complaint | None"
    parcel: "Parcel | _Complaints | None" = None


class _Complaint:
    """In place of a future whose value nobody wants."""

    __slots__ = ("_complain", "_stored")

    def __init__(
        self, complain: Callable[[], None], stored: Callable[[], None] | None = None
    ) -> None:
        self._complain = complain
        self._stored = stored

    def set_result(self, value: Any) -> None:
        if self._stored is not None:
            self._stored()

    def set_exception(self, error: BaseException) -> None:
        self._complain()


class _Complaints:
    """The same in place of a parcel."""

    __slots__ = ("_complain",)

    def __init__(self, complain: Callable[[], None]) -> None:
        self._complain = complain

    def set_results(self, results: Sequence[Result]) -> None:
        for _, failure in results:
            if failure is not None:
                self._complain()


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
        linger_s: float = 0.0,
        pace_s: float = 0.0,
        on_commit: Callable[[Connection], None] | None = None,
    ) -> None:
        """`linger_s` is how long a group may gather before it is committed, where nobody waits for it; with `pace_s`
        commits begin so far apart, as long as each is of several items.

        `on_commit` is called on the writer's thread when a group is committed, before anybody hears of it. It must not
        raise.
        """
        self.path = path
        self._synchronous = synchronous
        self._migrations = migrations
        self._max_queue = max_queue
        self._linger_s = linger_s
        self._pace_s = pace_s
        self._due_s = 0.0
        """When the next group may begin."""
        self._is_busy = False
        """The last group was not small."""
        self._is_pausing = False
        """Whoever comes need wake nobody: it is looked at in a moment."""
        self._on_commit = on_commit
        self._waiting: deque[_Task] = deque()
        self._items = 0
        """Of all that wait."""
        self._turn = (
            threading.RLock()
        )  # taken by itself, since a condition's own way to it is in Python
        self._changed = threading.Condition(self._turn)
        self._is_closing = False
        self._health: Exception | None = None
        self._doorbell: Doorbell | None = None
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
        """The error of the last group or probe when it could not be stored, else None."""
        return self._health

    def probe(self) -> Future[None]:
        """Try to write, with nothing to say; raises StorageFailed. Done once a second while `health` is an error."""
        return self.append(self._probe, None)

    @property
    def waiting(self) -> int:
        """Jobs accepted and not yet begun."""
        return self._items

    def submit(self, job: Job[T]) -> Future[T]:
        """Queue a job; its future has the job's result once that is committed, and can't be cancelled.

        A job does nothing but SQL: it may be run again after its first run was undone. The future raises what
        the job raised, or StorageFailed when its group could not be stored. Raises Overloaded when the queue is
        full or closed: shed load, never drop money.
        """
        return self.append(_run_each, job)

    def append(self, work: Work[Item, T], item: Item) -> Future[T]:
        """As `submit`, for what is cheaper done together: neighbours in the queue with the same `work` are
        handed to it at once, and it returns a result for each."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # whoever stops waiting, what was accepted is carried out
        self._enqueue(_Task(work, (item,), future))
        return future

    def append_here(self, work: Work[Item, T], item: Item) -> asyncio.Future[T]:
        """As `append`, for the running event loop alone. Cancelling the wait does not cancel the work."""
        promise = self._bell().promise()
        self._enqueue(_Task(work, (item,), promise))
        return promise.waiter

    def append_then(self, work: Work[Item, T], item: Item, hear: Hear) -> None:
        """As `append_here`, without a future: `hear` is told the result, or the error, in a later turn of the loop."""
        self._enqueue(_Task(work, (item,), self._bell().errand(hear)))

    def append_together(self, work: Work[Item, T], items: Sequence[Item], hear: HearAll) -> None:
        """As `append_then` of each item, in one commit, and `hear` is told all their results at once. There are few,
        and one at least. Raises Overloaded, with none of them accepted."""
        self._enqueue(_Task(work, items, None, self._bell().parcel(hear)))

    def append_all_here(self, work: Work[Item, T], items: Sequence[Item]) -> asyncio.Future[None]:
        """As `append_here` of each item, and one future for the end of all. There is at least one. Raises Overloaded,
        with none of them accepted."""
        tally = self._bell().tally(len(items))
        self._enqueue(*[_Task(work, (item,), tally) for item in items])
        return tally.waiter

    def tell(
        self,
        work: Work[Item, T],
        item: Item,
        complain: Callable[[], None],
        stored: Callable[[], None] | None = None,
    ) -> None:
        """As `append`, for nobody who waits; `complain` is called on another thread if it could not be stored, and
        `stored` if it could."""
        self._enqueue(_Task(work, (item,), _Complaint(complain, stored)))

    def tell_all(
        self, work: Work[Item, T], items: Sequence[Item], complain: Callable[[], None]
    ) -> None:
        """As `tell` of each item, with one look at the queue. Raises Overloaded, with none of them accepted."""
        if items:
            self._enqueue(_Task(work, items, None, _Complaints(complain)))

    def _enqueue(self, *tasks: "_Task") -> None:
        with self._turn:
            if self._is_closing:
                raise Overloaded("The server is stopping and records nothing more.")
            waiting, items = self._items, sum([len(task.items) for task in tasks])
            if waiting + items > self._max_queue:
                raise Overloaded(
                    f"{self._max_queue} records are waiting to be written to {self.path.name}, which is the limit."
                    " Try again in a second.",
                    retry_after_s=1.0,
                )
            self._waiting.extend(tasks)
            self._items = waiting + items
            # Whoever gathers need not hear of each.
            is_first = not waiting and not self._is_pausing
            if is_first or waiting < MAX_GROUP <= waiting + items:
                self._changed.notify()

    async def run(self, job: Job[T]) -> T:
        """As `submit`, awaited. Cancelling the wait does not cancel the job."""
        return await self.append_here(_run_each, job)

    def wait(self, future: Future[T]) -> asyncio.Future[T]:
        """A future of this writer for the running event loop, which is woken once for many of them."""
        return self._bell().wait(future)

    def _bell(self) -> Doorbell:
        loop = asyncio.get_running_loop()
        doorbell = self._doorbell
        if doorbell is None or doorbell.loop is not loop:
            doorbell = self._doorbell = Doorbell(loop)
        return doorbell

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
                group.clear()  # nobody's things are kept until the next comes
            self._checkpoint(connection)
        finally:
            connection.close()

    def _next_group(self) -> list[_Task]:
        """Wait for work; empty when the writer is closing and nothing is left."""
        with self._changed:
            if self._pace_s:
                self._pause()
            timeout = None if self._health is None else PROBE_S
            if not self._changed.wait_for(lambda: self._waiting or self._is_closing, timeout):
                return [_Task(self._probe, (None,), Future())]
            if self._linger_s:
                self._changed.wait_for(self._is_due, self._linger_s)
            group, count = [], 0
            while self._waiting and count < MAX_GROUP:
                task = self._waiting.popleft()
                group.append(task)
                count += len(task.items)
            self._items -= count
            self._is_busy = count >= BUSY_GROUP
            if self._pace_s and count > 1:
                self._due_s = time.monotonic() + self._pace_s
            return group

    def _pause(self) -> None:
        """Let the next group gather."""
        early_s = self._due_s - time.monotonic()
        if early_s <= 0:
            return
        self._is_pausing = True
        self._changed.wait_for(self._is_due, early_s)
        if self._is_busy:
            self._gather()
        self._is_pausing = False

    def _gather(self) -> None:
        """Go on for as long as more come: whoever waits may be all that there are."""
        until_s = time.monotonic() + 2 * self._pace_s
        while time.monotonic() < until_s:
            count = self._items
            if not 0 < count < FULL_GROUP or self._changed.wait_for(self._is_due, self._pace_s / 2):
                return
            if self._items == count:
                return

    def _is_due(self) -> bool:
        return self._is_closing or self._items >= MAX_GROUP

    def _commit(self, connection: Connection, group: Sequence[_Task]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = self._attempt_all(connection, group)
            connection.execute("COMMIT")
        except (sqlite3.Error, StorageFailed, MemoryError) as error:
            self._abandon(connection, group, error)
            return
        if self._on_commit is not None:
            self._on_commit(connection)
        failures = [error for _, error in results if isinstance(error, StorageFailed)]
        self._note(failures[-1] if failures else None)
        _tell_all(group, results)

    def _attempt_all(self, connection: Connection, group: Sequence[_Task]) -> list[Result]:
        parts = [
            (work, list(chain.from_iterable([task.items for task in tasks])))
            for work, tasks in groupby(group, key=lambda task: task.work)
        ]
        if (
            len(parts) == 1
        ):  # there is nobody else's work to save, so no place is marked to go back to
            try:
                return _results(*parts[0], connection)
            except (
                Exception
            ) as error:  # work may raise anything, and only its own caller shall see it
                if not connection.in_transaction:
                    raise StorageFailed(self.path, error) from error
                connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
        results: list[Result] = []
        for work, items in parts:
            results += self._attempt(connection, work, items)
        return results

    def _attempt(
        self, connection: Connection, work: Work[Any, Any], items: list[Any]
    ) -> list[Result]:
        """A value or an error for each item, with nothing left behind of those that failed.

        Raises StorageFailed when a failure ended the transaction, and everybody's work with it.
        """
        connection.execute("SAVEPOINT work")
        try:
            results = _results(work, items, connection)
        except Exception as error:  # work may raise anything, and only its own caller shall see it
            if not connection.in_transaction:
                raise StorageFailed(self.path, error) from error
            connection.execute("ROLLBACK TO work")
            connection.execute("RELEASE work")
            if len(items) == 1:
                return [(None, storage_error(self.path, error))]
        else:
            connection.execute("RELEASE work")
            return results
        half = len(items) // 2
        return [
            *self._attempt(connection, work, items[:half]),
            *self._attempt(connection, work, items[half:]),
        ]

    def _abandon(self, connection: Connection, group: Sequence[_Task], error: Exception) -> None:
        cause = error.__cause__ or error
        self._note(StorageFailed(self.path, cause))
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as second:
            log.warning("storage.rollback_failed file=%s error=%s", self.path.name, second)
        failures = [StorageFailed(self.path, cause) for task in group for _ in task.items]
        _tell_all(group, [(None, failure) for failure in failures])

    def _note(self, failure: Exception | None) -> None:
        before, self._health = self._health, failure
        if failure is not None and before is None:
            log.error("storage.failed file=%s error=%s", self.path.name, failure)
        if failure is None and before is not None:
            log.warning("storage.recovered file=%s", self.path.name)

    def _probe(self, connection: Connection, items: Sequence[None]) -> list[None]:
        """Writes a page that says what it said before."""
        free_bytes = shutil.disk_usage(self.path.parent).free
        if free_bytes < ROOM_BYTES:
            raise StorageFailed(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version}")
        return [None for _ in items]

    def _checkpoint(self, connection: Connection) -> None:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:  # the log is kept and replayed at the next start
            log.warning("storage.checkpoint_failed file=%s error=%s", self.path.name, error)


def _tell_all(group: Sequence[_Task], results: Sequence[Result]) -> None:
    """Each task its own, of the results of all their items."""
    at = 0
    for task in group:
        until = at + len(task.items)
        if task.future is None:
            assert task.parcel is not None
            task.parcel.set_results(results[at:until])
        else:
            value, failure = results[at]
            if failure is None:
                task.future.set_result(value)
            else:
                task.future.set_exception(failure)
        at = until
    assert at == len(results), "a result for each item"


def _results(work: Work[Any, Any], items: Sequence[Any], connection: Connection) -> list[Result]:
    values = work(connection, items)
    if len(values) != len(items):
        raise RuntimeError(f"{work} gave {len(values)} results for {len(items)} items")
    return [(value, None) for value in values]


def _run_each(connection: Connection, jobs: Sequence[Job[Any]]) -> list[Any]:
    return [job(connection) for job in jobs]
