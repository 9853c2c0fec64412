import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cost.settling import settle_by
from tests.unit.cost.test_ledger import NOON_NS, Books, entry
from tests.unit.pipeline.node import until

from llmhost.core.errors import Overloaded
from llmhost.cost.pricing import Price, Rates
from llmhost.cost.under_way import CRASHED, INPUT, OUTPUT, Settlements, UnderWay, Unsettled, _encode
from llmhost.storage.connect import StorageFailed
from llmhost.storage.journal import NOTE_BYTES, Journal

PRICE = Price(version="tiny/1", input_nano=10**8, cached_input_nano=10**7, output_nano=4 * 10**8)


@dataclass
class Till:
    """A ledger with its journal, which can be left as by a process that was killed."""

    books: Books
    path: Path

    def __post_init__(self) -> None:
        self.journal = Journal(self.path)
        self.settlements = Settlements(self.books.ledger, self.journal)

    def restart(self) -> int:
        """What the next process settles."""
        self.journal.close()
        self.__post_init__()
        return self.settlements.replay()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.books.ledger.export())


@pytest.fixture
def till(tmp_path: Path) -> Iterator[Till]:
    books = Books(tmp_path / "money.db")
    till = Till(books, tmp_path / "journal")
    yield till
    till.journal.close()
    books.close()


def under_way(number: int = 1, **changes: Any) -> UnderWay:
    facts: dict[str, Any] = {
        "request_id": f"req_{number}",
        "utc_ns": NOON_NS,
        "key_id": "abc",
        "org": "acme",
        "team": "red",
        "run_id": None,
        "model": "tiny@1",
        "adapter": None,
        "price_version": "tiny/1",
        "rates": PRICE,
    }
    return UnderWay(**{**facts, **changes})


def disk_full() -> StorageFailed:
    return StorageFailed(Path("money.db"), OSError("database or disk is full"))


async def test_a_settled_request_leaves_nothing_to_settle(till: Till) -> None:
    slot = till.settlements.begin(under_way())
    await till.settlements.settle(entry(1), slot)
    assert till.settlements.under_way == 0
    assert till.restart() == 0
    assert [row["request_id"] for row in till.rows] == ["req_1"]


def test_what_was_cut_off_is_settled_at_its_last_count(till: Till) -> None:
    slot = till.settlements.begin(under_way())
    slot.count(INPUT, 10)
    slot.count(OUTPUT, 7)
    assert till.restart() == 1
    [row] = till.rows
    assert (row["outcome"], row["code"]) == ("cancelled", CRASHED)
    assert row["tokens"]["fresh_input"] == 10
    assert row["tokens"]["output"] == 7
    assert row["amount_nano"] == 10 * 100 + 7 * 400
    assert (row["key_id"], row["team"], row["price_version"]) == ("abc", "red", "tiny/1")
    assert till.restart() == 0


def test_the_prompt_of_a_kept_answer_is_cached_input_though_it_was_cut_off(till: Till) -> None:
    slot = till.settlements.begin(under_way(is_hit=True))
    slot.count(INPUT, 10)
    slot.count(OUTPUT, 7)
    till.restart()
    [row] = till.rows
    assert (row["tokens"]["fresh_input"], row["tokens"]["cached_input"]) == (0, 10)
    assert row["amount_nano"] == 10 * PRICE.cached_input_nano // 10**6 + 7 * 400


def test_what_had_not_begun_costs_nothing_and_is_recorded(till: Till) -> None:
    till.settlements.begin(under_way())
    till.restart()
    [row] = till.rows
    assert row["amount_nano"] == 0


def test_a_model_without_a_price_is_settled_too(till: Till) -> None:
    till.settlements.begin(under_way(rates=None, price_version=None)).count(OUTPUT, 3)
    till.restart()
    [row] = till.rows
    assert (row["tokens"]["output"], row["amount_nano"]) == (3, 0)


def test_an_entry_that_was_on_disk_already_is_not_doubled(till: Till) -> None:
    slot = till.settlements.begin(under_way())
    slot.count(OUTPUT, 3)
    till.books.record(entry(1))
    assert till.restart() == 1
    [row] = till.rows
    assert row["amount_nano"] == 70


async def test_what_the_disk_refuses_is_kept_and_tried_again(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.cost.under_way.RETRY_S", 0.0)
    settle, refusals = till.books.ledger.settle, iter([disk_full(), disk_full()])

    def refused(entry: Any) -> Any:
        for error in refusals:
            raise error
        return settle(entry)

    settle_by(monkeypatch, till.books.ledger, refused)
    await till.settlements.settle(entry(1), till.settlements.begin(under_way()))
    assert till.settlements.unsettled == 1
    trying = asyncio.create_task(till.settlements.keep_trying())
    while till.settlements.unsettled:  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)
    trying.cancel()
    assert [row["amount_nano"] for row in till.rows] == [70]
    assert till.settlements.under_way == 0


async def test_what_the_disk_refused_is_settled_by_the_next_process(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(entry: Any) -> Any:
        raise disk_full()

    settle_by(monkeypatch, till.books.ledger, refused)
    await till.settlements.settle(entry(1), till.settlements.begin(under_way()))
    monkeypatch.undo()
    assert till.restart() == 1
    [row] = till.rows
    assert (row["outcome"], row["amount_nano"]) == ("answered", 70)


@pytest.mark.parametrize("is_recorded", [False, True])
async def test_an_entry_that_was_secured_before_it_was_given_to_the_ledger_is_there_once(
    till: Till, is_recorded: bool
) -> None:
    till.settlements.reserve()  # and killed before it says anything
    till.settlements.secure(entry(1), till.settlements.reserve())
    if is_recorded:
        till.books.ledger.record(entry(1)).result()
    assert till.restart() == 1
    assert till.restart() == 0
    assert [row["request_id"] for row in till.rows] == ["req_1"]


async def test_entries_that_nobody_waits_for_are_settled_together(till: Till) -> None:
    for number in range(3):
        slot = till.settlements.reserve()
        till.settlements.secure(entry(number), slot)
        till.settlements.settle_soon(entry(number), slot)
    till.settlements.hand_over()
    await until(lambda: not till.settlements.under_way)
    assert [row["request_id"] for row in till.rows] == ["req_0", "req_1", "req_2"]
    till.settlements.hand_over()
    assert till.restart() == 0


@pytest.mark.parametrize("is_refused_at_once", [False, True])
async def test_entries_that_can_not_be_settled_together_are_settled_each(
    till: Till, monkeypatch: pytest.MonkeyPatch, is_refused_at_once: bool
) -> None:
    def failing(entries: Any) -> Any:
        if is_refused_at_once:
            raise Overloaded("full")
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(disk_full())
        return failed

    monkeypatch.setattr(till.books.ledger, "settle_all", failing)
    for number in range(2):
        till.settlements.settle_soon(entry(number), till.settlements.reserve())
    till.settlements.hand_over()
    await until(lambda: len(till.rows) == 2)
    await until(lambda: not till.settlements.under_way)


def ending(told: list[Any], number: int) -> Callable[[BaseException | None], None]:
    return lambda failure: told.append((number, failure))


async def together(till: Till, entries: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """Settle them with one wish: the places of those that are safe, and what the others are told."""
    failed: list[Any] = []
    safe: list[int] = []
    thens = [ending(failed, place) for place in range(len(entries))]
    slots = [till.settlements.begin(under_way(place)) for place in range(len(entries))]
    till.settlements.settle_together(
        entries, slots, thens, lambda taken: safe.extend(map(thens.index, taken))
    )
    assert (safe, failed) == ([], []), "nobody is told in the same turn"
    await until(lambda: len(safe) + len(failed) == len(entries))
    return safe, failed


async def test_what_ends_together_is_settled_by_one_wish(till: Till) -> None:
    assert await together(till, [entry(number) for number in range(3)]) == ([0, 1, 2], [])
    assert [row["request_id"] for row in till.rows] == ["req_0", "req_1", "req_2"]
    assert till.settlements.under_way == 0
    assert till.restart() == 0


async def test_of_what_ends_together_one_that_can_never_be_fails_alone(till: Till) -> None:
    safe, failed = await together(till, [entry(0), entry(1, output_tokens=-1), entry(2)])
    assert safe == [0, 2]
    assert [number for number, _ in failed] == [1]
    assert "CHECK" in str(failed[0][1])
    assert [row["request_id"] for row in till.rows] == ["req_0", "req_2"]
    assert till.restart() == 0


async def test_what_finds_no_room_together_is_settled_each(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(entries: Any, hear: Any) -> None:
        raise Overloaded("full")

    monkeypatch.setattr(till.books.ledger, "settle_together", full)
    safe, told = await together(till, [entry(number) for number in range(3)])
    assert (safe, told) == ([], [(0, None), (1, None), (2, None)])
    assert len(till.rows) == 3
    assert till.settlements.under_way == 0


async def test_what_the_disk_refuses_together_is_kept_and_tried_again_each(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.cost.under_way.RETRY_S", 0.0)
    ledger = till.books.ledger
    settle = ledger.settle

    async def failing(entry: Any) -> Any:
        raise disk_full()

    with monkeypatch.context() as patch:
        settle_by(patch, ledger, lambda entry: asyncio.ensure_future(failing(entry)))
        safe, told = await together(till, [entry(number) for number in range(3)])
    assert (safe, sorted(told)) == ([], [(0, None), (1, None), (2, None)])
    assert (till.settlements.unsettled, till.rows) == (3, [])
    assert ledger.settle == settle
    trying = asyncio.create_task(till.settlements.keep_trying())
    await until(lambda: not till.settlements.unsettled)
    trying.cancel()
    assert len(till.rows) == 3
    assert till.restart() == 0


async def test_an_entry_that_its_slot_has_no_room_for_keeps_no_other_from_being_told_of(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(entry: Any) -> Any:
        raise disk_full()

    settle_by(monkeypatch, till.books.ledger, lambda entry: asyncio.ensure_future(failing(entry)))
    safe, told = await together(till, [entry(0), entry(1, org="o" * NOTE_BYTES), entry(2)])
    assert safe == [] and sorted(number for number, _ in told) == [0, 1, 2]
    assert [number for number, why in told if why is not None] == [1]
    assert (till.settlements.unsettled, till.settlements.under_way) == (2, 2)


async def test_without_a_slot_what_the_disk_refuses_is_told(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(entry: Any) -> Any:
        raise disk_full()

    settle_by(monkeypatch, till.books.ledger, refused)
    with pytest.raises(StorageFailed):
        await till.settlements.settle(entry(1), None)


async def test_an_entry_that_can_never_be_is_not_tried_for_ever(till: Till) -> None:
    slot = till.settlements.begin(under_way())
    with pytest.raises(Exception, match="CHECK"):
        await till.settlements.settle(entry(1, output_tokens=-1), slot)
    assert till.restart() == 0


def test_a_note_of_another_version_stops_no_start(till: Till) -> None:
    till.journal.open(b"\xc1 from the future")
    assert till.restart() == 0
    assert till.settlements.under_way == 0


def test_rates_are_enough_to_settle_with(till: Till) -> None:
    rates = Rates(input_nano=10**9, cached_input_nano=0, output_nano=0)
    till.settlements.begin(under_way(rates=rates)).count(INPUT, 5)
    till.restart()
    assert till.rows[0]["amount_nano"] == 5_000


async def test_an_answer_that_is_told_to_be_lost_is_never_billed(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.cost.under_way.RETRY_S", 0.0)
    settle, refusals = till.books.ledger.settle, iter([disk_full()])

    def refused(entry: Any) -> Any:
        for error in refusals:
            raise error
        return settle(entry)

    def not_forced() -> None:
        raise StorageFailed(till.path, OSError("I/O error"))

    settle_by(monkeypatch, till.books.ledger, refused)
    monkeypatch.setattr(till.journal, "flush", not_forced)
    with pytest.raises(StorageFailed):
        await till.settlements.settle(entry(1), till.settlements.begin(under_way()))
    assert (till.settlements.unsettled, till.settlements.under_way) == (0, 0)
    assert till.restart() == 0
    assert till.rows == []


async def test_an_entry_that_can_never_be_keeps_no_other_waiting(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.cost.under_way.RETRY_S", 0.0)
    settle = till.books.ledger.settle

    def refused(entry: Any) -> Any:
        raise disk_full()

    settle_by(monkeypatch, till.books.ledger, refused)
    for number, tokens in ((1, -1), (2, 20)):
        slot = till.settlements.begin(under_way(number))
        await till.settlements.settle(entry(number, output_tokens=tokens), slot)
    settle_by(monkeypatch, till.books.ledger, settle)
    trying = asyncio.create_task(till.settlements.keep_trying())
    while till.settlements.unsettled and not trying.done():  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    trying.cancel()
    assert [row["request_id"] for row in till.rows] == ["req_2"]
    assert till.restart() == 0


def test_an_entry_that_can_never_be_stops_no_start(till: Till) -> None:
    till.journal.open(_encode(Unsettled(entry=entry(1, output_tokens=-1))))
    till.settlements.begin(under_way(2)).count(OUTPUT, 3)
    assert till.restart() == 1
    assert [row["request_id"] for row in till.rows] == ["req_2"]
    assert till.restart() == 0


async def test_a_request_whose_entry_is_refused_is_at_no_moment_in_no_slot(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(entry: Any) -> Any:
        raise disk_full()

    settle_by(monkeypatch, till.books.ledger, refused)
    slot = till.settlements.begin(under_way())
    slot.count(OUTPUT, 7)
    write = Journal._write

    def cut_off(journal: Journal, at: int, note: bytes) -> None:
        monkeypatch.setattr(Journal, "_write", write)
        write(journal, at, note)
        journal._words[at] = 0  # killed before the note was whole
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "_write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        await till.settlements.settle(entry(1), slot)
    monkeypatch.undo()
    assert till.restart() == 1
    assert [row["amount_nano"] for row in till.rows] == [7 * 400]
