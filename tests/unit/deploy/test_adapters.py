"""Which adapters are in memory: the limit, who makes room, and what is given back."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.deploy.fakes import entry

from llmhost.core.caller import Caller
from llmhost.core.errors import Conflict, DoesNotFit, ModelUnavailable, Overloaded, UnknownModel
from llmhost.deploy import adapters
from llmhost.deploy.adapters import AdapterShelf
from llmhost.deploy.catalogue import Catalogue, Served
from llmhost.gpu.memory import DeviceMemory

SIZE = 100
T = TypeVar("T")


class Host:
    """An engine's adapters: each takes 100 bytes, and those in `broken` can't be read."""

    def __init__(self) -> None:
        self.here: dict[str, str] = {}
        self.broken: set[str] = set()
        self.reads = 0

    def size_bytes(self, folder: Path) -> int:
        return SIZE

    def read(self, folder: Path) -> Any:
        self.reads += 1
        if folder.name in self.broken:
            raise ModelUnavailable(f"{folder.name} is broken")
        return folder.name

    def add(self, key: str, weights: Any) -> None:
        self.here[key] = weights

    def drop(self, key: str) -> None:
        del self.here[key]


class Shelf:
    """A shelf over folders a, b, c and d, with what it is made of."""

    def __init__(self, folder: Path, *, limit: int = 2, capacity_bytes: int = 1000) -> None:
        self.folder = folder
        for name in "abcd":
            (folder / name).mkdir()
            (folder / name / "weights").write_text(name)
        self.host = Host()
        self.memory = DeviceMemory("cpu:0", capacity_bytes)
        self.shelf = AdapterShelf(
            "m@1",
            self.host,
            call=self._call,
            off_thread=self._off_thread,
            memory=self.memory,
            limit=limit,
            models_dir=folder,
        )

    async def _call(self, act: Callable[[], None]) -> None:
        await asyncio.sleep(0)
        act()

    async def _off_thread(self, act: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return act()

    async def hold(self, name: str) -> adapters.AdapterHold:
        return await self.shelf.hold(name, str(self.folder / name))

    async def use(self, name: str) -> None:
        (await self.hold(name)).let_go()


@pytest.fixture
def box(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


async def test_the_least_recently_used_adapter_makes_room(box: Shelf) -> None:
    for name in "abac":
        await box.use(name)

    assert sorted(box.shelf.names()) == ["a", "c"]
    assert sorted(box.host.here.values()) == ["a", "c"]
    assert box.memory.leased_bytes == 2 * SIZE


async def test_an_adapter_in_use_is_never_dropped(box: Shelf) -> None:
    held = await box.hold("a")
    await box.use("b")
    await box.use("c")

    assert held.key in box.host.here
    assert sorted(box.shelf.names()) == ["a", "c"]


async def test_when_all_are_in_use_a_request_waits_for_one(box: Shelf) -> None:
    first, second = await box.hold("a"), await box.hold("b")
    waiting = asyncio.create_task(box.hold("c"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    second.let_go()
    second.let_go()

    assert (await waiting).key in box.host.here
    assert sorted(box.shelf.names()) == ["a", "c"]
    first.let_go()


async def test_and_is_refused_when_that_takes_too_long(
    box: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "ROOM_TIMEOUT_S", 0.0)
    held = [await box.hold("a"), await box.hold("b")]

    with pytest.raises(Overloaded, match="All 2 adapters that m@1 may have loaded are answering"):
        await box.hold("c")
    assert len(held) == 2


async def test_many_who_ask_at_once_share_one_load(box: Shelf) -> None:
    holds = await asyncio.gather(*(box.hold("a") for _ in range(5)))

    assert box.host.reads == 1
    assert box.shelf.rows()[0].users == 5
    assert len({hold.key for hold in holds}) == 1


async def test_one_who_leaves_while_it_loads_stops_it_for_nobody(box: Shelf) -> None:
    leaving, staying = (asyncio.create_task(box.hold("a")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()

    await staying
    assert box.shelf.rows()[0].users == 1


async def test_a_load_that_fails_says_why_and_gives_its_memory_back(box: Shelf) -> None:
    box.host.broken.add("a")
    with pytest.raises(ModelUnavailable, match="a is broken"):
        await box.hold("a")
    assert box.memory.leased_bytes == 0
    box.host.broken.clear()

    await box.use("a")
    assert box.shelf.names() == ["a"]


async def test_idle_adapters_make_room_in_memory_too(tmp_path: Path) -> None:
    box = Shelf(tmp_path, limit=4, capacity_bytes=250)
    held = await box.hold("a")
    await box.use("b")
    await box.use("c")
    assert sorted(box.shelf.names()) == ["a", "c"]
    also = await box.hold("c")

    with pytest.raises(DoesNotFit):
        await box.hold("d")
    assert box.memory.leased_bytes == 2 * SIZE
    assert len({held.key, also.key}) == 2


async def test_other_files_of_the_same_name_have_another_key(box: Shelf) -> None:
    before = await box.hold("a")
    before.let_go()
    assert await box.shelf.unload("a", drain_s=0)
    (box.folder / "a" / "weights").write_text("other")

    after = await box.hold("a")
    assert after.key != before.key
    (box.folder / "a" / "weights").write_text("a")
    assert box.shelf.key("a") == after.key  # what it was read from
    assert box.shelf.key("b") is None


async def test_files_that_change_while_they_are_read_have_a_key_that_nothing_else_has(
    box: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for text in ("old", "new"):  # which of both was read is not known
        (box.folder / "a" / "weights").write_text(text)
        held = await box.hold("a")
        held.let_go()
        keys.append(held.key)
        assert await box.shelf.unload("a", drain_s=0)

    def read_amid_a_change(folder: Path) -> Any:
        weights = Host.read(box.host, folder)
        (folder / "weights").write_text("new")
        return weights

    (box.folder / "a" / "weights").write_text("old")
    monkeypatch.setattr(box.host, "read", read_amid_a_change)
    held = await box.hold("a")
    assert held.key not in keys
    assert held.key in box.host.here


async def test_an_unload_waits_for_answers_and_gives_up_in_time(box: Shelf) -> None:
    assert not await box.shelf.unload("a", drain_s=0)
    held = await box.hold("a")
    with pytest.raises(Conflict, match="still answers 1 requests"):
        await box.shelf.unload("a", drain_s=0)
    unloading = asyncio.create_task(box.shelf.unload("a", drain_s=30))
    await asyncio.sleep(0)
    held.let_go()

    assert await unloading
    assert box.host.here == {}
    assert box.memory.leased_bytes == 0


async def test_a_closed_shelf_has_given_everything_back_and_takes_nothing(box: Shelf) -> None:
    held = await box.hold("a")
    loading = asyncio.create_task(box.hold("b"))
    for _ in range(3):
        await asyncio.sleep(0)
    box.shelf.close()
    box.shelf.close()

    with pytest.raises(Overloaded):
        await loading
    with pytest.raises(Overloaded):
        await box.hold("c")
    held.let_go()
    assert box.memory.leased_bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 4)), max_size=40), st.data())
def test_whatever_is_asked_for_in_whatever_order_the_books_are_right(
    acts: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Holds taken, let go and kept, unloads, and files that can't be read, over a device that is too small."""

    async def story(folder: Path) -> None:
        box = Shelf(folder, limit=data.draw(st.integers(1, 4)), capacity_bytes=3 * SIZE)
        kept: list[adapters.AdapterHold] = []
        for name, act in acts:
            box.host.broken = {name} if act == 4 else set()
            try:
                if act == 3:
                    await box.shelf.unload(name, drain_s=0)
                elif act == 2 and kept:
                    kept.pop(0).let_go()
                else:
                    kept.append(await box.hold(name))
            except (Conflict, DoesNotFit, ModelUnavailable, Overloaded):
                pass
            assert {hold.key for hold in kept} <= box.host.here.keys()
            assert len(box.host.here) == len(box.shelf.names()) <= box.shelf._limit
            assert box.memory.leased_bytes == SIZE * len(box.host.here)
        box.shelf.close()
        assert box.memory.leased_bytes == 0

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "ROOM_TIMEOUT_S", 0.0)
        asyncio.run(story(Path(folder)))


# ---------------------------------------------------------------- names


@pytest.fixture
def catalogue() -> Catalogue:
    one = entry("one", aliases=("uno",), adapters={"pirate": "/p", "shared": "/s"})
    return Catalogue([one, entry("two:8b", adapters={"shared": "/t"})])


@pytest.mark.parametrize(
    ("name", "model", "adapter"),
    [
        ("one", "one", None),
        ("uno", "one", None),
        ("two:8b", "two:8b", None),
        ("one:pirate", "one", "pirate"),
        ("uno:pirate", "one", "pirate"),
        ("pirate", "one", "pirate"),
        ("two:8b:shared", "two:8b", "shared"),
    ],
)
def test_a_request_names_a_model_or_an_adapter(
    catalogue: Catalogue, name: str, model: str, adapter: str | None
) -> None:
    served = catalogue.locate(name)

    assert (served.entry.name, served.adapter) == (model, adapter)


@pytest.mark.parametrize("name", ["one:none", "shared", "none:pirate", ":pirate", "one:"])
def test_a_name_that_nobody_or_more_than_one_has_is_unknown(
    catalogue: Catalogue, name: str
) -> None:
    with pytest.raises(UnknownModel):
        catalogue.locate(name)


def test_adapters_come_and_go(catalogue: Catalogue) -> None:
    served = Served(catalogue.find("one"), "poet", "/x", is_declared=False)
    catalogue.add_adapter(served)
    assert catalogue.locate("one:poet") is served
    catalogue.remove_adapter(served)
    catalogue.remove_adapter(served)

    with pytest.raises(UnknownModel):
        catalogue.locate("one:poet")


@pytest.mark.parametrize(
    ("models", "may"),
    [
        (None, True),
        (("one",), True),
        (("uno",), True),
        (("uno:pirate",), True),
        (("pirate",), True),
        (("one:shared",), False),
        ((), False),
    ],
)
def test_a_key_for_the_model_or_for_the_adapter_may_use_the_adapter(
    catalogue: Catalogue, models: tuple[str, ...] | None, may: bool
) -> None:
    caller = Caller(key_id="k", org="o", models=models)

    assert catalogue.locate("one:pirate").may_be_used_by(caller) is may
