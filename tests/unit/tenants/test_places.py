"""Places and queues: nobody over the limit, nobody forgotten, keys take turns."""

import asyncio
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.caller import Limits
from llmhost.core.errors import Overloaded
from llmhost.tenants.levels import Level
from llmhost.tenants.places import Places
from llmhost.tenants.refusals import LimitReached


def level(dimension: str, who: str, most: int) -> Level:
    return Level.of(dimension, who, f"The {dimension} {who!r}", Limits(max_concurrency=most))


ORG = level("org", "acme", 1)


def places(size: int = 4, wait_s: float = 30.0) -> Places:
    return Places(queue_size=size, queue_wait_s=wait_s)


async def settle_down() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def waiting(room: Places, key: str, *levels: Level) -> "asyncio.Task[None]":
    return asyncio.create_task(room.wait(key, levels))


async def test_no_more_run_at_once_than_may() -> None:
    room, both = places(), [level("key", "a", 2), level("org", "acme", 3)]
    other = [level("key", "b", 2), level("org", "acme", 3)]

    assert [room.enter(both) for _ in range(3)] == [True, True, False]
    assert [room.enter(other) for _ in range(2)] == [True, False]
    room.leave(both)
    assert room.enter(other)


async def test_a_place_goes_to_whoever_waited_longest() -> None:
    room, order = places(), list[int]()
    assert room.enter([ORG])

    async def one(number: int) -> None:
        await room.wait("a", [ORG])
        order.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(4)]
    await settle_down()
    for _ in range(4):
        room.leave([ORG])
        await settle_down()

    assert order == [0, 1, 2, 3]
    await asyncio.gather(*tasks)


async def test_keys_take_turns_however_many_requests_each_has() -> None:
    room, order = places(size=10), list[str]()
    assert room.enter([ORG])

    async def one(key: str) -> None:
        await room.wait(key, [ORG])
        order.append(key)

    tasks = [asyncio.create_task(one(key)) for key in "aaaaabbc"]
    await settle_down()
    for _ in tasks:
        room.leave([ORG])
        await settle_down()

    assert "".join(order) == "abcabaaa"
    await asyncio.gather(*tasks)


async def test_a_full_queue_refuses_and_says_whose_limit_it_is() -> None:
    room = places(size=1)
    assert room.enter([ORG])
    task = waiting(room, "a", ORG)
    await settle_down()

    with pytest.raises(LimitReached) as refused:
        await room.wait("a", [ORG])
    other = waiting(room, "b", ORG)  # has a queue of its own
    await settle_down()

    assert (refused.value.dimension, refused.value.limit) == ("org", "concurrency")
    assert refused.value.message == (
        "The org 'acme' may have 1 requests running at once, and 1 more of this key are waiting already."
        " Try again in 1s."
    )
    assert room.waiting_by_dimension["org"] == 2
    for each in (task, other):
        each.cancel()
    await asyncio.gather(task, other, return_exceptions=True)


async def test_who_leaves_the_queue_makes_room_in_it_at_once() -> None:
    room = places(size=1)
    assert room.enter([ORG])
    task = waiting(room, "a", ORG)
    await settle_down()
    task.cancel()
    await settle_down()

    next_one = waiting(room, "a", ORG)
    await settle_down()
    room.leave([ORG])
    await next_one

    assert room.running == 1
    assert room.waiting_by_dimension["org"] == 0


async def test_who_leaves_at_the_moment_of_admission_keeps_no_place() -> None:
    room = places()
    assert room.enter([ORG])
    task = waiting(room, "a", ORG)
    await settle_down()
    room.leave([ORG])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert room.running == 0
    assert room.enter([ORG])


async def test_a_wait_that_is_too_long_ends_as_a_refusal() -> None:
    room = places(wait_s=0.001)
    assert room.enter([ORG])

    with pytest.raises(LimitReached, match="none of them ended within"):
        await room.wait("a", [ORG])

    assert room.waiting_by_dimension["org"] == 0
    room.leave([ORG])
    assert room.enter([ORG])


@pytest.mark.parametrize(("size", "wait_s"), [(0, 5.0), (5, 0.0)])
async def test_without_a_queue_there_is_no_wait(size: int, wait_s: float) -> None:
    room = places(size, wait_s)
    assert room.enter([ORG])
    with pytest.raises(LimitReached, match="and all of them are"):
        await room.wait("a", [ORG])


async def test_a_place_on_one_level_is_not_kept_while_another_is_full() -> None:
    room, model = places(), level("model", "big", 1)
    assert room.enter([model])
    assert room.enter([ORG])
    task = waiting(room, "a", ORG, model)
    await settle_down()

    room.leave([ORG])
    await settle_down()
    assert room.enter([ORG]), "the waiting request takes both places, or none"
    room.leave([model])
    await settle_down()
    assert not task.done()
    room.leave([ORG])
    await task
    assert room.running == 2


async def test_all_who_wait_hear_that_the_server_stops() -> None:
    room = places()
    assert room.enter([ORG])
    tasks = [waiting(room, key, ORG) for key in "ab"]
    await settle_down()

    room.send_away(Overloaded("stops"))

    for task in tasks:
        with pytest.raises(Overloaded):
            await task
    assert room.waiting_by_dimension["org"] == 0


moves = st.lists(
    st.tuples(
        st.sampled_from(["come", "go", "leave"]),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(),
    ),
    max_size=60,
)


class Crowd:
    """Requests that run and wait, and the rules that hold for them at every moment."""

    def __init__(self) -> None:
        self.room = places(size=3)
        self.running: list[list[Level]] = []
        self.waiting: list[tuple[asyncio.Task[None], list[Level]]] = []

    async def come(self, key: str, levels: list[Level]) -> None:
        if self.room.enter(levels):
            self.running.append(levels)
        else:
            self.waiting.append((waiting(self.room, key, *levels), levels))
        await self.look()

    async def end_one(self, which: int) -> None:
        if self.running:
            self.room.leave(self.running.pop(which % len(self.running)))
        await self.look()

    async def leave_one(self, which: int) -> None:
        if self.waiting:
            self.waiting[which % len(self.waiting)][0].cancel()
        await self.look()

    async def look(self) -> None:
        await settle_down()
        for pair in [pair for pair in self.waiting if pair[0].done()]:
            self.waiting.remove(pair)
            if not pair[0].cancelled() and pair[0].exception() is None:
                self.running.append(pair[1])
        used = Counter(level.who for levels in self.running for level in levels)
        full = {
            level.who
            for level in chain(*self.running)
            if used[level.who] >= (level.limits.max_concurrency or 0)
        }
        assert all(used[e.who] <= (e.limits.max_concurrency or 0) for e in chain(*self.running))
        assert self.room.running == used.total()
        for _, levels in self.waiting:
            assert any(level.who in full for level in levels), "nobody waits while there is room"


@given(moves, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_whatever_comes_and_goes_no_level_is_overfull_and_no_place_is_lost(
    steps: list[tuple[str, int, int, int]], per_key: int, per_model: int, of_all: int
) -> None:
    async def trial() -> None:
        crowd = Crowd()
        for what, key, model, which in steps:
            if what == "come":
                mine = [
                    level("key", str(key), per_key),
                    level("org", "acme", of_all + 2),
                    level("model", str(model), per_model),
                ]
                await crowd.come(str(key), mine)
            elif what == "go":
                await crowd.end_one(which)
            else:
                await crowd.leave_one(which)
        while crowd.running or crowd.waiting:
            await crowd.end_one(0)
        assert crowd.room.waiting_by_dimension.total() == 0
        assert not crowd.room._queues
        assert not crowd.room._waiting

    asyncio.run(trial())


async def test_several_have_their_places_together_or_none() -> None:
    room = Places(queue_size=1, queue_wait_s=1)
    levels = [level("key", "k", 3), level("org", "acme", 5)]
    assert room.enter_all(levels, 2)
    assert not room.enter_all(levels, 2)
    assert room.running == 4
    assert room.enter_all(levels, 1)
    room.leave_all(levels, 3)
    assert room.running == 0
