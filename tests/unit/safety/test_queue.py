"""The queue on its file: referred, reviewed, remembered, found again after a restart, and erased in time."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.safety.reviews import ANN, BOB, BOSS, SENDER, screening

from llmhost.config.schema.safety import ReviewSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import Conflict, NotFound, SafetyUnavailable
from llmhost.safety.queue import ReviewQueue
from llmhost.safety.review import Reviewer, ReviewState
from llmhost.safety.verdict import ReviewMode
from llmhost.storage.reviews import ReviewStore
from llmhost.testing import ManualClock, at

SECRET = bytes(range(32))
TEXT = "my card is 4111 1111 1111 1111"
REDACTED = "my card is [pii]"
Open = Callable[..., ReviewQueue]
HOUR_S, DAY_S = 3_600, 86_400


@pytest.fixture
def clock() -> ManualClock:
    return at("2026-03-01T12:00")


@pytest.fixture
def open_queue(tmp_path: Path, clock: ManualClock) -> Iterator[Open]:
    stores: list[ReviewStore] = []

    def open_it(draw: Callable[[], float] = lambda: 0.0, **settings: Any) -> ReviewQueue:
        for store in stores:
            store.close()
        stores.append(ReviewStore(tmp_path / "reviews.db", node_id="node-1"))
        return ReviewQueue(stores[-1], ReviewSettings(**settings), SECRET, clock, draw=draw)

    yield open_it
    for store in stores:
        store.close()


async def referred(
    queue: ReviewQueue, text: str = TEXT, mode: ReviewMode = ReviewMode.BLOCK, **facts: Any
) -> str:
    review_id = await queue.refer(screening(**facts), text, REDACTED, mode)
    assert review_id is not None
    return review_id


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("reviews.db*"))


async def test_an_approved_text_passes_from_then_on_for_its_organisation_alone(open_queue: Open):
    queue = open_queue()
    review_id = await referred(queue)
    assert not queue.approved(SENDER, TEXT)

    await queue.decide(review_id, ANN, approves=True, note="fine")

    assert queue.approved(SENDER, TEXT)
    assert queue.approved(Caller(key_id="other", org="acme"), TEXT)
    assert not queue.approved(Caller(key_id="other", org="globex"), TEXT)
    assert not queue.approved(SENDER, TEXT + ".")
    assert open_queue().approved(SENDER, TEXT)


async def test_an_approval_ends(open_queue: Open, clock: ManualClock):
    queue = open_queue(ruling_hours=2)
    await queue.decide(await referred(queue), ANN, approves=True)

    clock.advance(2 * HOUR_S - 1)
    assert queue.approved(SENDER, TEXT)
    clock.advance(1)
    assert not queue.approved(SENDER, TEXT)
    assert not open_queue(ruling_hours=2).approved(SENDER, TEXT)


async def test_what_was_rejected_is_not_asked_about_again(open_queue: Open):
    queue = open_queue()
    await queue.decide(await referred(queue), ANN, approves=False)

    assert await queue.refer(screening(), TEXT, REDACTED, ReviewMode.BLOCK) is None
    assert await queue.refer(screening(), TEXT, REDACTED, ReviewMode.HOLD) is None
    assert not queue.approved(SENDER, TEXT)
    assert list(queue.pending()) == []


async def test_a_refused_text_that_waits_is_one_review_per_key(open_queue: Open):
    queue = open_queue()
    first = await referred(queue)

    assert await referred(queue) == first
    queue = open_queue()
    assert await referred(queue) == first
    assert await referred(queue, caller=replace(SENDER, key_id="other")) != first
    assert await referred(queue, mode=ReviewMode.HOLD) != first


async def test_of_what_passes_a_share_is_looked_at(open_queue: Open):
    drawn = iter([0.05, 0.3, 0.29])
    queue = open_queue(lambda: next(drawn), sample_share=0.3)
    found = [await queue.refer(screening(), TEXT, REDACTED, ReviewMode.RELEASE) for _ in range(3)]

    assert [one is None for one in found] == [False, True, False]
    await queue.decide(str(found[0]), ANN, approves=True)
    assert not queue.approved(SENDER, TEXT)  # it says something of the rule, and not of the text


async def test_the_text_is_redacted_for_all_and_the_original_encrypted_and_its_reading_recorded(
    open_queue: Open, tmp_path: Path
):
    queue = open_queue()
    review_id = await referred(queue)
    deeds: list[str] = []
    queue.listen(lambda deed: deeds.append(f"{deed.event} {deed.who}"))

    assert (await queue.store.texts(review_id)).redacted == REDACTED
    assert await queue.read_original(review_id, ANN) == TEXT
    events = [(event.event, event.who) for event in await queue.store.events(review_id)]
    assert events == [("referred", "sender"), ("original_read", "ann")]
    assert deeds == ["original_read ann"]
    raw = b"".join(map(Path.read_bytes, files_of(tmp_path)))
    assert REDACTED.encode() in raw
    assert TEXT.encode() not in raw


async def test_under_another_secret_no_original_is_read(open_queue: Open, clock: ManualClock):
    queue = open_queue()
    review_id = await referred(queue)
    restored = ReviewQueue(queue.store, ReviewSettings(), bytes(32), clock)

    with pytest.raises(NotFound, match="gone"):
        await restored.read_original(review_id, ANN)


async def test_originals_go_first_and_redacted_texts_later_and_decisions_stay(
    open_queue: Open, clock: ManualClock
):
    queue = open_queue(original_days=1, redacted_days=3)
    review_id = await referred(queue)
    await queue.decide(review_id, ANN, approves=False)

    clock.advance(DAY_S + 1)
    await queue.erase()
    texts = await queue.store.texts(review_id)
    assert (texts.redacted, texts.original) == (REDACTED, None)
    with pytest.raises(NotFound, match="erased"):
        await queue.read_original(review_id, ANN)
    clock.advance(2 * DAY_S)
    await queue.erase()
    assert (await queue.store.texts(review_id)).redacted is None
    assert (await queue.find(review_id, ANN)).state is ReviewState.REJECTED
    assert len(await queue.labels(ANN, since_ns=0)) == 1


async def test_another_organisations_review_is_not_there(open_queue: Open):
    queue = open_queue()
    review_id = await referred(queue)
    stranger = Reviewer("mallory", org="globex", is_senior=True)

    for act in (
        queue.find(review_id, stranger),
        queue.claim(review_id, stranger),
        queue.decide(review_id, stranger, approves=True),
        queue.read_original(review_id, stranger),
        queue.of_caller(review_id, replace(SENDER, key_id="other")),
        queue.page(stranger, org="acme", limit=10),
    ):
        with pytest.raises(NotFound):
            await act
    assert await queue.page(stranger, limit=10) == []
    assert await queue.claim_next(stranger) is None
    assert (await queue.of_caller(review_id, SENDER)).id == review_id


async def test_the_one_that_is_due_first_is_claimed_and_nobody_gets_what_somebody_has(
    open_queue: Open, clock: ManualClock
):
    queue = open_queue()
    ids = []
    for number in range(3):
        ids.append(await referred(queue, f"{TEXT} {number}"))
        clock.advance(1)

    taken = await asyncio.gather(*(queue.claim_next(who) for who in (ANN, BOB, BOSS, ANN)))

    assert [one and one.id for one in taken] == [*ids, ids[0]]
    assert [one.holder for one in taken if one] == ["ann", "bob", "boss", "ann"]
    assert await queue.claim_next(Reviewer("eve", org="acme")) is None
    clock.advance(15 * 60)
    assert (await queue.find(ids[0], ANN)).state is ReviewState.OPEN


async def test_of_two_who_decide_at_once_one_is_too_late(open_queue: Open):
    queue = open_queue()
    review_id = await referred(queue)
    answers = await asyncio.gather(
        queue.decide(review_id, ANN, approves=True),
        queue.decide(review_id, BOB, approves=False),
        return_exceptions=True,
    )

    assert [type(one) for one in answers][1] is Conflict
    assert (await queue.find(review_id, ANN)).state is ReviewState.APPROVED
    events = [event.event for event in await queue.store.events(review_id)]
    assert events == ["referred", "approved"]


async def test_lists_are_pages_by_state_as_it_is_now(open_queue: Open, clock: ManualClock):
    queue = open_queue(claim_minutes=10, expire_hours=1)
    ids = [await referred(queue, f"{TEXT} {number}") for number in range(4)]
    await queue.claim(ids[0], ANN)
    await queue.decide(ids[1], ANN, approves=True)

    async def listed(*states: ReviewState, **facts: Any) -> list[str]:
        return [one.id for one in await queue.page(ANN, states=states, **{"limit": 9, **facts})]

    assert await listed(ReviewState.CLAIMED) == [ids[0]]
    assert await listed(ReviewState.OPEN) == ids[2:]
    assert await listed(limit=2) == ids[:2]
    assert await listed(limit=2, after=ids[1]) == ids[2:]
    assert await listed(category="violence") == []
    clock.advance(10 * 60)
    assert await listed(ReviewState.OPEN) == [ids[0], *ids[2:]]
    clock.advance(50 * 60)
    assert await listed(ReviewState.EXPIRED) == [ids[0], *ids[2:]]
    assert await queue.sweep() == 3
    assert await queue.sweep() == 0
    assert list(queue.pending()) == []
    assert (await queue.store.events(ids[2]))[-1].event == "expired"


async def test_a_full_queue_takes_no_more(open_queue: Open):
    queue = open_queue(max_pending=1)
    await referred(queue)

    with pytest.raises(SafetyUnavailable, match="1 texts wait"):
        await queue.refer(screening(), "another", "another", ReviewMode.BLOCK)


async def test_a_text_that_can_not_be_kept_is_refused_and_not_in_the_queue(open_queue: Open):
    queue = open_queue()
    queue.store.close()

    with pytest.raises(SafetyUnavailable, match="could not be kept"):
        await queue.refer(screening(), TEXT, REDACTED, ReviewMode.BLOCK)
    assert list(queue.pending()) == []
