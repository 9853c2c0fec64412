"""How many bytes of responses and conversations each scope has, and what makes way."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.core.errors import Forbidden, InvalidValue
from llmhost.storage import responses
from llmhost.storage.conversations import ConversationStore
from llmhost.storage.kept_bytes import STEP, bytes_of
from llmhost.storage.responses import Kept, ResponseStore
from llmhost.storage.state import State
from llmhost.testing import at

MOST = 20_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path / "state.db", (responses.SCHEMA,))
    yield opened
    opened.close()


@pytest.fixture
def store(state: State) -> ResponseStore:
    return ResponseStore(state, node_id="n", clock=at("2026-01-01"), most_bytes=MOST)


@pytest.fixture
def conversations(state: State) -> ConversationStore:
    return ConversationStore(state, node_id="n", clock=at("2026-01-01"), most_bytes=MOST)


def kept(name: str, size: int = 4_000, scope: str = "us", **facts: object) -> Kept:
    item = (f"msg_{name}", b"x" * size)
    known = Kept(id=name, scope=scope, resource=b"{}", input=[item])
    return replace(known, **facts)  # type: ignore[arg-type]


async def told_and_counted(state: State, scope: str = "us") -> tuple[int, int]:
    """What the file says, and what a sum over all rows says."""
    summing = STEP[1].partition("INSERT INTO kept_bytes ")[2]
    sums = dict(await state.read(lambda c: c.execute(summing).fetchall()))
    return await state.read(lambda c: bytes_of(c, scope)), sums.get(scope, 0)


async def test_bytes_are_those_of_all_rows_whatever_comes_and_goes(
    state: State, store: ResponseStore, conversations: ConversationStore
) -> None:
    await conversations.make("us", "conv", b"{}", [("a", b"12345"), ("b", b"1")])
    await conversations.change("us", "conv", b'{"a":"b"}')
    await conversations.add("us", "conv", [("b", b"123456"), ("c", b"12")])
    await conversations.delete_item("us", "conv", "a")
    await conversations.make("us", "gone", b"{}", [("a", b"12345")])
    await store.begin(kept("one", is_live=True, conversation="conv"))
    await store.end(kept("one", output=[("o", b"123")], events=b"e" * 99, conversation="conv"))
    await store.end(kept("two"))
    await store.end(kept("theirs", scope="them"))
    told, counted = await told_and_counted(state)
    assert told == counted > 12_000

    await store.delete("us", "two")
    await conversations.delete("us", "gone")
    told, counted = await told_and_counted(state)
    assert told == counted > 8_000
    await store.delete("us", "one")
    await conversations.delete("us", "conv")
    assert await told_and_counted(state) == (0, 0)
    assert (await told_and_counted(state, "them"))[0] > 4_000


async def test_the_oldest_make_way_but_not_others_and_not_what_is_gone_on_with(
    store: ResponseStore,
) -> None:
    await store.end(kept("theirs", scope="them"))
    await store.end(kept("root"))
    await store.end(kept("old"))
    await store.end(kept("next", previous="root"))
    for number in range(3):
        await store.end(kept(f"new{number}"))

    there = [
        name
        for name in ("root", "old", "next", "new0", "new1", "new2")
        if await store.find("us", name)
    ]
    assert there == ["root", "new0", "new1", "new2"]
    assert await store.find("them", "theirs")


async def test_what_has_no_room_is_refused_and_what_was_begun_ends(
    store: ResponseStore, conversations: ConversationStore
) -> None:
    with pytest.raises(Forbidden):
        await store.end(kept("large", MOST))
    await conversations.make("us", "conv", b"{}", [("a", b"x" * 14_000)])
    with pytest.raises(Forbidden):
        await conversations.add("us", "conv", [("b", b"x" * 6_000)])
    assert [name for name, _ in await conversations.items("us", "conv")] == ["a"]

    await store.begin(kept("run", is_live=True))
    await store.end(kept("run", output=[("o", b"x" * 5_000)]))
    assert await store.find("us", "run")


async def test_what_is_too_long_to_be_in_memory_is_not_gone_on_with(
    store: ResponseStore, conversations: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "LONGEST_BYTES", 9_000)
    await store.end(kept("one"))
    await store.end(kept("two", previous="one"))
    assert len(await store.chain("us", "two")) == 2
    await store.end(kept("three", previous="two"))
    with pytest.raises(InvalidValue, match="9000 bytes"):
        await store.chain("us", "three")

    await conversations.make("us", "conv", b"{}", [("a", b"x" * 8_000)])
    with pytest.raises(InvalidValue, match="9000 bytes"):
        await conversations.add("us", "conv", [("b", b"x" * 2_000)])
    await store.end(kept("four", 2_000, conversation="conv"))
    with pytest.raises(InvalidValue, match="9000 bytes"):
        await conversations.items("us", "conv", is_gone_on_with=True)
    assert len(await conversations.items("us", "conv")) == 2
