"""Files: whole or not there, within their owner's room, and never taken from who reads them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmhost.core.errors import FileInUse, FilesFull, InvalidValue
from llmhost.storage import draft as module
from llmhost.storage import keyed_calls
from llmhost.storage.connect import StorageFailed
from llmhost.storage.draft import Draft
from llmhost.storage.files import (
    SCHEMA,
    Files,
    Owner,
    Room,
    StoredFile,
    hold_file,
    let_go_of_file,
)
from llmhost.storage.keyed_calls import AlreadyMade, Call, KeyedCalls, Note
from llmhost.storage.state import State
from llmhost.testing import ManualClock, at

RED, BLUE = Owner("acme", "red"), Owner("acme", None)


@pytest.fixture
def clock() -> ManualClock:
    return at("2026-03-01T12:00")


@pytest.fixture
def open_files(tmp_path: Path, clock: ManualClock) -> Iterator[Callable[..., Files]]:
    """Opens folder and table anew each time, as processes do one after the other."""
    opened: list[State] = []

    def make(keep_free_bytes: int = 0) -> Files:
        while opened:
            opened.pop().close()
        opened.append(state := State(tmp_path / "state.db", [SCHEMA, keyed_calls.SCHEMA]))
        files = Files(
            state,
            tmp_path / "files",
            node_id="n",
            clock=clock,
            keep_free_bytes=keep_free_bytes,
        )
        files.sweep()
        return files

    yield make
    while opened:
        opened.pop().close()


async def add(
    files: Files,
    content: bytes,
    owner: Owner = RED,
    room: Room | None = None,
    note: Note | None = None,
    **facts: Any,
) -> StoredFile:
    draft = files.draft()
    draft.write(content)
    known = {"purpose": "batch", "filename": "in.jsonl", "lasts_s": None}
    file = files.facts(draft, owner, **known | facts)
    draft.finish()
    try:
        return await files.add(file, room, note)
    except BaseException:
        draft.discard()
        raise


def names(files: Files) -> set[str]:
    return {path.name for path in files.path("x").parent.iterdir()}


async def test_a_file_is_its_owners_alone_and_outlives_the_process(
    open_files: Callable[..., Files],
) -> None:
    file = await add(open_files(), b"some text")
    files = open_files()
    assert await files.find(file.id, RED) == await files.find(file.id)
    assert await files.find(file.id, BLUE) is None
    assert files.path(file.id).read_bytes() == b"some text"
    assert not await files.delete(file.id, BLUE)
    assert await files.delete(file.id, RED)
    assert names(files) == set()


async def test_what_a_killed_process_left_without_a_row_is_swept_and_so_are_rows_without_a_file(
    open_files: Callable[..., Files],
) -> None:
    files = open_files()
    kept, lost = await add(files, b"kept"), await add(files, b"lost")
    half, unowned = files.draft(), files.draft()
    half.write(b"half")
    unowned.write(b"whole")
    unowned.finish()
    files.path(lost.id).unlink()
    half._file.close()

    files = open_files()
    assert names(files) == {kept.id}
    assert await files.find(lost.id) is None
    assert await files.find(kept.id) is not None


async def test_an_owner_has_so_many_files_and_bytes_and_others_have_their_own(
    open_files: Callable[..., Files],
) -> None:
    files = open_files()
    await add(files, b"12345", room=Room(2, 10))
    with pytest.raises(FilesFull, match="10"):
        await add(files, b"123456", room=Room(2, 10))
    await add(files, b"12345", room=Room(2, 10))
    with pytest.raises(FilesFull, match="2 files"):
        await add(files, b"", room=Room(2, 10))
    await add(files, b"12345", BLUE, room=Room(2, 10))
    assert len(names(files)) == 3


async def test_a_full_disk_is_told_and_leaves_no_half_of_a_file(
    open_files: Callable[..., Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_files(keep_free_bytes=2**62)
    draft = files.draft()
    with pytest.raises(StorageFailed, match="free"):
        draft.write(b"text")
    draft.discard()
    assert names(files) == set()

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", refuse)
    draft = Draft(files.path("x").parent, "file-1", keep_free_bytes=0)
    draft.write(b"text")
    with pytest.raises(StorageFailed, match="No space"):
        draft.finish()
    draft.discard()
    assert names(files) == set()


async def test_a_row_that_the_disk_does_not_take_is_not_there_and_nor_is_its_call(
    open_files: Callable[..., Files], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_files()
    calls = KeyedCalls(files._state, node_id="n", clock=clock, kept_s=60)
    call = Call(b"name", b"hash", "req_1")

    async def refuse(_: State) -> None:
        raise StorageFailed(Path("state.db"), OSError(28, "No space left on device"))

    with monkeypatch.context() as patch:
        patch.setattr(State, "force", refuse)
        with pytest.raises(StorageFailed, match="No space"):
            await add(files, b"text", note=calls.note(call))
    assert await files.page(RED, limit=9) == []
    assert await calls.find(b"name") is None

    file = await add(files, b"text", note=calls.note(call))
    with pytest.raises(AlreadyMade, match=file.id):
        await add(files, b"text", note=calls.note(call))
    assert await files.page(RED, limit=9) == [await files.find(file.id)]
    clock.advance(60)
    assert await calls.find(b"name") is None
    await add(files, b"text", note=calls.note(call))


async def test_a_file_that_is_held_is_neither_deleted_nor_forgotten(
    open_files: Callable[..., Files], clock: ManualClock
) -> None:
    files = open_files()
    file = await add(files, b"text", lasts_s=60)
    hold = partial(
        hold_file, file_id=file.id, owner=RED, now_ns=clock.utc_ns(), purpose=file.purpose
    )
    assert await files._state.write(hold)
    clock.advance(61)
    with pytest.raises(FileInUse):
        await files.delete(file.id, RED)
    assert await files.forget_expired() == 0
    assert await files.find(file.id) is not None

    await files._state.write(partial(let_go_of_file, file_id=file.id))
    assert await files.find(file.id) is None
    assert await files.forget_expired() == 1
    assert names(files) == set()


async def test_pages_go_on_behind_a_file_in_both_directions(
    open_files: Callable[..., Files],
) -> None:
    files = open_files()
    made = [await add(files, b"x", purpose=purpose) for purpose in ("batch", "user_data", "batch")]
    await add(files, b"x", BLUE)

    async def page(**bounds: Any) -> list[str]:
        return [file.id for file in await files.page(RED, limit=10, **bounds)]

    ids = [file.id for file in made]
    assert await page() == ids[::-1]
    assert await page(is_rising=True) == ids
    assert await page(after=ids[2]) == ids[1::-1]
    assert await page(after=ids[0], is_rising=True) == ids[1:]
    assert await page(purpose="batch", is_rising=True) == [ids[0], ids[2]]
    assert len(await files.page(None, limit=10)) == 4
    assert await files.total() == (4, 4)
    with pytest.raises(InvalidValue):
        await files.page(BLUE, after=ids[0], limit=10)
