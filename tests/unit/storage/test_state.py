"""`state.db`: written through by many at once, and read back by the next process."""

import asyncio
from pathlib import Path

import pytest

from llmhost.storage import state as module
from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.schema import Schema
from llmhost.storage.state import State

SCHEMA = Schema("words", {"words": ("CREATE TABLE words (word TEXT NOT NULL) STRICT",)})


def keep(connection: Connection, word: str) -> None:
    connection.execute("INSERT INTO words VALUES (?)", (word,))


def count(connection: Connection) -> int:
    found: int = connection.execute("SELECT count(*) FROM words").fetchone()[0]
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


async def test_what_was_written_through_is_there_for_the_next_process(path: Path) -> None:
    state = State(path, [SCHEMA])
    await state.write_through(lambda connection: keep(connection, "one"))
    await state.write(lambda connection: keep(connection, "two"))
    state.close()

    state = State(path, [SCHEMA])
    assert await state.read(count) == 2
    state.close()


async def test_many_who_write_through_share_the_wait_and_none_is_told_before_its_own_was_forced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(path, [SCHEMA])
    seen: list[int] = []
    force = module._force

    def counted(log: Path) -> None:
        seen.append(state._reader.read_now(count))
        force(log)

    monkeypatch.setattr(module, "_force", counted)
    told: list[int] = []

    async def write(number: int) -> None:
        await state.write_through(lambda connection: keep(connection, str(number)))
        told.append(max(seen))

    await asyncio.gather(*(write(number) for number in range(200)))

    assert max(seen) == 200
    assert len(seen) < 100
    assert all(forced >= at for at, forced in enumerate(sorted(told), 1))
    state.close()


async def test_who_writes_through_hears_of_a_disk_that_refuses(path: Path) -> None:
    state = State(path, [SCHEMA])
    state._log = path.with_name("absent")
    with pytest.raises(StorageFailed):
        await state.write_through(lambda connection: keep(connection, "one"))
    state._log = path.with_name("state.db-wal")
    await state.write_through(lambda connection: keep(connection, "two"))
    state.close()
