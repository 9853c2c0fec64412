import asyncio
import contextlib
import logging
import resource
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmhost.core.errors import ConfigError, Conflict, Overloaded
from llmhost.storage import writer as writers
from llmhost.storage.connect import Connection, StorageFailed, wal_reset_warning
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import MAX_GROUP, Writer

NOTES = Schema("notes", {"notes": ("CREATE TABLE notes (text TEXT NOT NULL UNIQUE) STRICT",)})


def note(text: str) -> Callable[[Connection], str]:
    def job(connection: Connection) -> str:
        connection.execute("INSERT INTO notes VALUES (?)", (text,))
        return text

    return job


def failing(connection: Connection) -> None:
    connection.execute("INSERT INTO notes VALUES ('half done')")
    raise Conflict("no")


def texts(path: Path) -> list[str]:
    with Reader(path) as reader:
        return reader.read_now(
            lambda c: [row[0] for row in c.execute("SELECT text FROM notes ORDER BY rowid")]
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with Writer(path, migrations=[NOTES]) as writer:
        yield writer


@contextlib.contextmanager
def held(writer: Writer) -> Iterator[None]:
    """Keeps the writer's thread inside a job, so that everything submitted meanwhile becomes one group."""
    entered, may_go = threading.Event(), threading.Event()

    def wait(_: Connection) -> None:
        entered.set()
        may_go.wait(10)

    future = writer.submit(wait)
    entered.wait(10)
    try:
        yield
    finally:
        may_go.set()
        future.result(10)


def test_a_future_resolves_only_when_others_can_read_the_row(writer: Writer, path: Path) -> None:
    assert writer.submit(note("a")).result(10) == "a"
    assert texts(path) == ["a"]


def test_jobs_are_carried_out_in_the_order_of_submission(writer: Writer, path: Path) -> None:
    futures = [writer.submit(note(str(i))) for i in range(500)]
    assert [f.result(10) for f in futures] == texts(path) == [str(i) for i in range(500)]


def test_a_failing_job_takes_no_neighbour_with_it(writer: Writer, path: Path) -> None:
    with held(writer):
        before, bad, after = (writer.submit(job) for job in (note("a"), failing, note("b")))
    assert isinstance(bad.exception(10), Conflict)
    assert (before.result(10), after.result(10)) == ("a", "b")
    assert texts(path) == ["a", "b"]
    assert writer.health is None


def note_all(connection: Connection, items: Sequence[str]) -> list[int]:
    """As one statement each would, but tells how many came together."""
    connection.executemany("INSERT INTO notes VALUES (?)", [(text,) for text in items])
    return [len(items)] * len(items)


def test_neighbours_of_one_kind_are_done_together_and_in_order(writer: Writer, path: Path) -> None:
    with held(writer):
        first = [writer.append(note_all, text) for text in "abc"]
        between = writer.submit(note("d"))
        second = [writer.append(note_all, text) for text in "ef"]
    assert [f.result(10) for f in first] == [3, 3, 3]
    assert between.result(10) == "d"
    assert [f.result(10) for f in second] == [2, 2]
    assert texts(path) == list("abcdef")


@pytest.mark.parametrize("bad", [0, 1, 5, 49, 99])
def test_one_bad_item_fails_alone_among_a_hundred(writer: Writer, path: Path, bad: int) -> None:
    writer.submit(note("taken")).result(10)
    with held(writer):
        futures = [writer.append(note_all, "taken" if i == bad else str(i)) for i in range(100)]
    failed = [i for i, future in enumerate(futures) if future.exception(10) is not None]
    assert failed == [bad]
    assert isinstance(futures[bad].exception(), sqlite3.IntegrityError)
    assert texts(path) == ["taken", *(str(i) for i in range(100) if i != bad)]


async def told_of(writer: Writer, parcels: Sequence[Sequence[str]]) -> list[list[Any]]:
    """The results of parcels that are in one group."""
    told: dict[int, list[Any]] = {}
    done = asyncio.Event()

    def hear(place: int, results: Sequence[Any], _: BaseException | None) -> None:
        told[place] = list(results)
        if len(told) == len(parcels):
            done.set()

    with held(writer):
        for place, parcel in enumerate(parcels):
            writer.append_together(note_all, parcel, partial(hear, place))
    await asyncio.wait_for(done.wait(), 10)
    return [told[place] for place in range(len(parcels))]


async def test_what_comes_together_is_told_together(writer: Writer, path: Path) -> None:
    assert await told_of(writer, ["abc", "d"]) == [[(4, None)] * 3, [(4, None)]]
    assert texts(path) == list("abcd")
    assert writer.waiting == 0


async def test_one_bad_item_of_a_parcel_fails_alone(writer: Writer, path: Path) -> None:
    writer.submit(note("taken")).result(10)
    first, second = await told_of(writer, [["a", "taken", "b"], ["c"]])
    assert [failure is None for _, failure in (*first, *second)] == [True, False, True, True]
    assert isinstance(first[1][1], sqlite3.IntegrityError)
    assert texts(path) == ["taken", "a", "b", "c"]


async def test_where_the_commit_fails_each_item_of_a_parcel_has_failed(
    writer: Writer, path: Path
) -> None:
    def broken(connection: Connection) -> None:
        connection.execute("COMMIT")
        raise Conflict("no")

    done = asyncio.Event()
    told: list[Any] = []

    def hear(results: Sequence[Any], _: BaseException | None) -> None:
        told.extend(results)
        done.set()

    with held(writer):
        writer.append_together(note_all, ["a", "b"], hear)
        ended = writer.submit(broken)
    await asyncio.wait_for(done.wait(), 10)
    assert isinstance(ended.exception(10), StorageFailed)
    assert [type(failure) for _, failure in told] == [StorageFailed] * 2


async def test_of_a_parcel_that_finds_no_room_nothing_is_taken(path: Path) -> None:
    with Writer(path, migrations=[NOTES], max_queue=3) as writer:
        with held(writer):
            kept = writer.append(note_all, "a")
            with pytest.raises(Overloaded):
                writer.append_together(note_all, ["b", "c", "d"], lambda *_: None)
            assert writer.waiting == 1
            also = writer.append(note_all, "e")
        assert (kept.result(10), also.result(10)) == (2, 2)
    assert texts(path) == ["a", "e"]


async def test_rows_of_parcels_count_for_the_size_of_a_group(writer: Writer, path: Path) -> None:
    parcel, count = 32, MAX_GROUP // 32 + 2
    names = [[f"{n}/{i}" for i in range(parcel)] for n in range(count)]
    told = await told_of(writer, names)
    sizes = {size for results in told for size, _ in results}
    assert max(sizes) < MAX_GROUP + parcel
    assert len(sizes) == 2
    assert texts(path) == [name for each in names for name in each]


def test_where_several_wait_the_next_group_gathers(path: Path) -> None:
    commits: list[int] = []
    with Writer(
        path,
        migrations=[NOTES],
        pace_s=3600.0,
        on_commit=lambda c: commits.append(c.execute("SELECT count(*) FROM notes").fetchone()[0]),
    ) as writer:
        writer.submit(note("alone")).result(10)
        with held(writer):
            futures = [writer.submit(note(text)) for text in "ab"]
        assert [future.result(10) for future in futures] == ["a", "b"]
        late = [writer.submit(note(text)) for text in "cdef"]
    assert [future.result(0) for future in late] == ["c", "d", "e", "f"]
    assert commits == [1, 1, 3, 7]


def test_whoever_comes_alone_waits_for_nobody(path: Path) -> None:
    with Writer(path, migrations=[NOTES], pace_s=3600.0) as writer:
        for text in "abc":
            writer.submit(note(text)).result(10)


def test_work_that_forgets_a_result_is_undone_and_named(writer: Writer, path: Path) -> None:
    def forgetful(connection: Connection, items: Sequence[str]) -> list[int]:
        note_all(connection, items)
        return []

    error = writer.append(forgetful, "a").exception(10)
    assert "0 results for 1 items" in str(error)
    assert texts(path) == []


def test_a_broken_constraint_is_the_job_s_own_error(writer: Writer) -> None:
    writer.submit(note("a")).result(10)
    assert isinstance(writer.submit(note("a")).exception(10), sqlite3.IntegrityError)


def test_a_wrong_statement_is_a_defect_and_not_a_failing_disk(writer: Writer, path: Path) -> None:
    wrong = writer.submit(lambda c: c.execute("SELECT nothing")).exception(10)
    assert isinstance(wrong, sqlite3.OperationalError)
    assert writer.health is None
    with Reader(path) as reader, pytest.raises(sqlite3.OperationalError, match="nothing"):
        reader.read_now(lambda c: c.execute("SELECT nothing"))


def test_a_job_that_ends_the_transaction_fails_its_whole_group(writer: Writer, path: Path) -> None:
    with held(writer):
        group = [writer.submit(note("a")), writer.submit(lambda c: c.execute("COMMIT"))]
    assert all(isinstance(f.exception(10), StorageFailed) for f in group)
    assert writer.health is not None
    assert writer.submit(note("b")).result(10) == "b"
    assert writer.health is None


def test_a_full_queue_sheds_new_jobs_and_keeps_the_old_ones(path: Path) -> None:
    with Writer(path, migrations=[NOTES], max_queue=2) as writer:
        with held(writer):
            kept = [writer.submit(note("a")), writer.submit(note("b"))]
            with pytest.raises(Overloaded, match="2 records are waiting") as shed:
                writer.submit(note("c"))
        assert shed.value.retry_after_s == 1.0
        assert [f.result(10) for f in kept] == ["a", "b"]
    assert texts(path) == ["a", "b"]


def test_a_group_larger_than_one_commit_takes_is_split_and_complete(
    writer: Writer, path: Path
) -> None:
    with held(writer):
        futures = [writer.submit(note(str(i))) for i in range(2 * MAX_GROUP + 1)]
    futures[-1].result(30)
    assert len(texts(path)) == 2 * MAX_GROUP + 1


def test_close_carries_out_what_is_queued_and_folds_the_log_in(path: Path) -> None:
    writer = Writer(path, migrations=[NOTES])
    futures = [writer.submit(note(str(i))) for i in range(100)]
    writer.close()
    writer.close()
    assert all(f.done() for f in futures)
    assert not path.with_name("notes.db-wal").exists()
    assert len(texts(path)) == 100
    with pytest.raises(Overloaded, match="stopping"):
        writer.submit(note("late"))


async def test_a_cancelled_wait_does_not_cancel_the_job(writer: Writer, path: Path) -> None:
    with held(writer):
        waiting = asyncio.ensure_future(writer.run(note("paid")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await writer.run(note("next"))
    assert texts(path) == ["paid", "next"]


async def test_many_tasks_share_commits(writer: Writer, path: Path) -> None:
    await asyncio.gather(*(writer.run(note(str(i))) for i in range(300)))
    assert len(texts(path)) == 300


def page_limit(pages: int) -> Callable[[Connection], int]:
    return lambda c: int(c.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])


def test_a_full_file_is_reported_and_room_heals_it(writer: Writer, path: Path) -> None:
    pages = writer.submit(lambda c: int(c.execute("PRAGMA page_count").fetchone()[0])).result(10)
    writer.submit(page_limit(pages + 2)).result(10)
    refused = writer.submit(note("x" * 100_000)).exception(10)
    assert isinstance(refused, StorageFailed)
    assert "full" in str(refused)
    assert isinstance(writer.health, StorageFailed)
    writer.submit(page_limit(1_000_000)).result(10)
    assert writer.submit(note("y" * 100_000)).result(10)
    assert writer.health is None
    assert [text[0] for text in texts(path)] == ["y"]


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_error_at_the_commit_itself_reaches_every_job_of_the_group(
    writer: Writer, path: Path
) -> None:
    writer.submit(note("before")).result(10)
    group: list[Future[Any]] = []
    with files_at_most(path.with_name("notes.db-wal").stat().st_size + 4096):
        with held(writer):
            group = [writer.submit(note(f"{i}" * 5_000)) for i in range(10)]
        assert all(isinstance(f.exception(10), StorageFailed) for f in group)
        assert isinstance(writer.health, StorageFailed)
    assert writer.submit(note("after")).result(10) == "after"
    assert writer.health is None
    assert texts(path) == ["before", "after"]


def test_a_disk_that_has_room_again_is_found_without_anybody_writing(
    writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "PROBE_S", 0.001)
    has_recovered = threading.Event()
    seen: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage().split()[0])
            if seen[-1] == "storage.recovered":
                has_recovered.set()

    listener = Listener()
    logging.getLogger("llmhost.storage.writer").addHandler(listener)
    try:
        with files_at_most(8_192):
            failed = [writer.submit(note(f"{n}")) for n in range(100)]
            assert all(isinstance(future.exception(10), StorageFailed) for future in failed)
            with pytest.raises(StorageFailed):
                writer.probe().result(10)
            assert isinstance(writer.health, StorageFailed)
            assert not has_recovered.is_set()
        assert has_recovered.wait(10)
    finally:
        logging.getLogger("llmhost.storage.writer").removeHandler(listener)
    assert writer.health is None
    assert seen == ["storage.failed", "storage.recovered"]
    writer.submit(note("1")).result(10)
    assert texts(path) == ["1"]


def test_a_disk_with_next_to_no_room_is_full(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(writer.path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(StorageFailed, match="No space left"):
        writer.probe().result(10)
    monkeypatch.undo()
    assert writer.probe().result(10) is None
    assert writer.health is None


def test_two_writers_of_one_file_wait_for_each_other(writer: Writer, path: Path) -> None:
    with Writer(path, migrations=[NOTES]) as other:
        futures = [
            w.submit(note(f"{n}{i}")) for i in range(50) for n, w in enumerate((writer, other))
        ]
        for future in futures:
            future.result(10)
    assert len(texts(path)) == 100


def test_the_file_is_the_owner_s_alone(writer: Writer, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name("notes.db-wal").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "level"), [("FULL", 2), ("NORMAL", 1)])
def test_settings_of_the_connection(tmp_path: Path, mode: Any, level: int) -> None:
    with Writer(tmp_path / "a.db", synchronous=mode) as writer:

        def read(pragma: str) -> Any:
            return writer.submit(lambda c: c.execute(f"PRAGMA {pragma}").fetchone()[0]).result(10)

        assert read("synchronous") == level
        assert read("journal_mode") == "wal"
        assert read("foreign_keys") == 1
        assert read("journal_size_limit") == 64 * 2**20
        assert read("busy_timeout") == 5000


def test_a_place_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="nowhere"):
        Writer(tmp_path / "nowhere" / "a.db")


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(StorageFailed, match=r"notes\.db"):
        Writer(path, migrations=[NOTES])


def test_steps_are_applied_once_and_new_ones_follow(path: Path) -> None:
    grown = Schema(
        "notes", {**NOTES.steps, "author": ("ALTER TABLE notes ADD COLUMN author TEXT",)}
    )
    for schema in (NOTES, NOTES, grown, grown):
        with Writer(path, migrations=[schema]) as writer:
            pass
    with Writer(path, migrations=[grown]) as writer:
        writer.submit(lambda c: c.execute("INSERT INTO notes VALUES ('a', 'me')")).result(10)
    with Reader(path) as reader:
        rows = reader.read_now(lambda c: c.execute("SELECT * FROM notes").fetchall())
    assert rows == [("a", "me")]


def test_two_packages_keep_their_tables_in_one_file(path: Path) -> None:
    other = Schema("other", {"notes": ("CREATE TABLE other (a) ",)})
    with Writer(path, migrations=[NOTES, other]) as writer:
        assert writer.submit(lambda c: c.execute("SELECT count(*) FROM other").fetchone()).result(
            10
        )


def test_a_broken_step_leaves_the_file_as_it_was(path: Path) -> None:
    with Writer(path, migrations=[NOTES]):
        pass
    broken = Schema(
        "notes", {**NOTES.steps, "more": ("CREATE TABLE more (a)", "CREATE TABLE notes (a)")}
    )
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        Writer(path, migrations=[broken])
    with Reader(path) as reader:
        tables = reader.read_now(
            lambda c: c.execute("SELECT count(*) FROM sqlite_master WHERE name='more'").fetchone()
        )
    assert tables == (0,)


def test_a_file_from_a_newer_program_is_refused(path: Path) -> None:
    grown = Schema("notes", {**NOTES.steps, "later": ("CREATE TABLE later (a)",)})
    with Writer(path, migrations=[grown]):
        pass
    with pytest.raises(ConfigError, match=r"newer llmhost \(notes: later\)"):
        Writer(path, migrations=[NOTES])


async def test_a_reader_sees_commits_and_can_not_write(writer: Writer, path: Path) -> None:
    writer.submit(note("a")).result(10)
    with Reader(path) as reader:
        assert await reader.read(lambda c: c.execute("SELECT text FROM notes").fetchall()) == [
            ("a",)
        ]
        with pytest.raises(StorageFailed, match="readonly"):
            await reader.read(note("b"))
        with pytest.raises(StorageFailed, match="readonly"):
            reader.read_now(note("b"))


async def test_reads_run_at_the_same_time(writer: Writer, path: Path) -> None:
    both = threading.Barrier(2, timeout=60)
    with Reader(path, threads=2) as reader:
        await asyncio.gather(reader.read(lambda _: both.wait()), reader.read(lambda _: both.wait()))


def test_reading_a_file_that_is_not_there_is_an_error_and_makes_none(tmp_path: Path) -> None:
    with Reader(tmp_path / "absent.db") as reader, pytest.raises(StorageFailed, match="absent"):
        reader.read_now(lambda c: c.execute("SELECT 1").fetchall())
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.parametrize("version", ["3.40.1", "3.44.5", "3.45.0", "3.50.6", "3.51.2"])
def test_versions_with_the_wal_reset_bug_are_warned_about(version: str) -> None:
    warning = wal_reset_warning(version)
    assert warning is not None
    assert version in warning


@pytest.mark.parametrize("version", ["3.44.6", "3.50.7", "3.51.3", "3.52.0", "3.53.1", "4.0.0"])
def test_versions_without_it_are_not(version: str) -> None:
    assert wal_reset_warning(version) is None


def test_callers_are_told_the_file_and_the_operator_the_path(tmp_path: Path) -> None:
    failure = StorageFailed(tmp_path / "money.db", OSError("database or disk is full"))

    assert str(tmp_path) in str(failure)
    assert str(tmp_path) not in failure.message
    assert "money.db: database or disk is full" in failure.message


def test_after_a_busy_group_the_next_one_still_comes(path: Path) -> None:
    with Writer(path, migrations=[NOTES], pace_s=0.001) as writer:
        for busy in ("abcdef", "ghijkl"):
            with held(writer):
                futures = [writer.submit(note(text)) for text in busy]
            assert [future.result(10) for future in futures] == [*busy]
        assert writer.submit(note("alone")).result(10) == "alone"
    assert len(texts(path)) == 13


async def test_whoever_hears_of_a_parcel_is_nothing_to_the_writer_afterwards(
    writer: Writer,
) -> None:
    told = asyncio.Event()

    class Hearer:
        def hear(self, results: Sequence[Any], _: BaseException | None) -> None:
            told.set()

    hearer = Hearer()
    gone = weakref.ref(hearer)
    writer.append_together(note_all, ["a", "b"], hearer.hear)
    del hearer
    await asyncio.wait_for(told.wait(), 10)
    await asyncio.sleep(0)
    assert gone() is None
