"""Copies of databases that are being written, and folders that are whole or not there."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmhost.core.errors import ConfigError, Conflict
from llmhost.storage import backup
from llmhost.storage.backup import copy_database, copy_file, read_manifest, whole_folder
from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

PAIRS = Schema("pairs", {"pairs": ("CREATE TABLE pairs (a INTEGER, b INTEGER, fat TEXT) STRICT",)})


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Writer(tmp_path / "pairs.db", migrations=[PAIRS]) as writer:
        yield writer


def add(number: int) -> backup.Callable[[Connection], None]:
    def job(connection: Connection) -> None:
        for column in "ab":
            connection.execute(
                f"INSERT INTO pairs ({column}, fat) VALUES (?, ?)", (number, "x" * 2_000)
            )

    return job


def test_a_copy_is_of_one_moment_however_much_is_written_meanwhile(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 3)
    for number in range(100):
        writer.submit(add(number)).result(10)
    seen: list[tuple[int, int]] = []

    def write_more(_: str, done: int, size: int) -> None:
        seen.append((done, size))
        if len(seen) < 50:
            writer.submit(add(1_000 + len(seen))).result(10)

    copy_database(writer.path, tmp_path / "copy.db", write_more)

    assert len(seen) > 10
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen), "it began anew"
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(a), count(b), max(a) FROM pairs").fetchone() == (
            100,
            100,
            99,
        )
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db"]


def test_a_folder_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "there"
    with whole_folder(path) as draft:
        (draft / "a").write_text("1")
        assert not path.exists()
    assert (path / "a").read_text() == "1"
    assert path.stat().st_mode & 0o777 == 0o700
    assert [one.name for one in tmp_path.iterdir()] == ["there"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "there") as draft:
        (draft / "a").write_text("1")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "full", "link"])
def test_what_is_there_already_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "file":
        path.write_text("mine")
    elif kind == "full":
        path.mkdir()
        (path / "mine").touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(Conflict, match="not empty"), whole_folder(path):
        pytest.fail("it began")


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with whole_folder(tmp_path / "there") as draft:
        (draft / "a").touch()
    assert (tmp_path / "there" / "a").exists()


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        copy_file(tmp_path / "absent", tmp_path / "copy", quiet)


def test_files_are_copied_but_drafts_and_what_is_deleted_meanwhile(tmp_path: Path) -> None:
    (folder := tmp_path / "from").mkdir()
    for number in range(3):
        (folder / f"file-{number:024x}").write_bytes(bytes([number]) * 5)
    (folder / f".file-{9:024x}.part").touch()

    def tell(_: str, done: int, of: int) -> None:
        if done == 1:
            (folder / f"file-{1:024x}").unlink()

    notes = backup.copy_files(folder, tmp_path, tell)

    assert list(notes) == [f"files/file-{number:024x}" for number in (0, 2)]
    assert all((tmp_path / name).stat().st_size == note.bytes for name, note in notes.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no backup"),
        ("{", "is no backup"),
        ("{}", "is no backup"),
        (
            '{"form":3,"node_id":"","created_at":"","llmhost":"","sqlite":"","entries":0,"head":"","files":{}}',
            "newer",
        ),
        (
            '{"node_id":"","created_at":"","llmhost":"","sqlite":"","entries":0,"head":"","files":{}}',
            "other files",
        ),
        (
            '{"node_id":"","created_at":"","llmhost":"","sqlite":"","entries":0,"head":"","files":'
            '{"money.db":{"bytes":1,"sha256":""},"node_id":{"bytes":1,"sha256":""},"pepper":{"bytes":1,"sha256":""},'
            '"../../x":{"bytes":1,"sha256":""}}}',
            "other files",
        ),
        (
            '{"node_id":"","created_at":"","llmhost":"","sqlite":"","entries":0,"head":"","files":'
            '{"money.db":{"bytes":1,"sha256":""},"node_id":{"bytes":1,"sha256":""},"pepper":{"bytes":1,"sha256":""},'
            '"files/../../file-000000000000000000000000":{"bytes":1,"sha256":""}}}',
            "other files",
        ),
    ],
)
def test_what_is_no_backup_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_manifest(tmp_path)
