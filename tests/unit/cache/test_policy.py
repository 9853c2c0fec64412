"""A kind of requests has a policy while it repeats, and its answers live as long as that pays."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.cache.learner import Kind, Learner
from llmhost.cache.policy import Bounds, Policy, Use, decide, potential_of
from llmhost.config.schema.cache import CacheSettings

BOUNDS = Bounds(max_ttl_s=86_400.0, min_potential=0.3)
HOUR_S = 3600.0


def uses(*keys: int, every_s: float = 10.0, value: int = 100) -> list[Use]:
    return [Use(number * every_s, key, value, 1000) for number, key in enumerate(keys)]


def policy(history: list[Use], bounds: Bounds = BOUNDS, *, is_known: bool = False) -> Policy | None:
    known = {"s": Policy(signature="s", ttl_s=1, priority=1, potential=1, saved=1, uses=1)}
    decided = decide({"s": history}, known if is_known else {}, bounds, history[-1].at_s)
    return decided.get("s")


def test_what_repeats_gets_a_policy_and_what_does_not_gets_none():
    assert policy(uses(*[1, 2] * 10)) is not None
    assert policy(uses(*range(20))) is None
    assert policy(uses(1, 1, 1)) is None


@pytest.mark.parametrize(("repeated", "has_one"), [(6, False), (7, True)])
def test_the_potential_has_to_be_more_than_the_bound(repeated: int, has_one: bool):
    history = uses(*range(20 - repeated), *[0] * repeated)

    assert potential_of(history, HOUR_S) == repeated / 20
    assert (policy(history) is not None) == has_one


def test_a_policy_that_is_known_stays_a_little_longer():
    history = uses(*range(14), *[0] * 6)

    assert policy(history) is None
    assert policy(history, is_known=True) is not None
    assert policy(uses(*range(17), *[0] * 3), is_known=True) is None


def test_the_time_is_the_shortest_that_saves_most():
    found = policy(uses(*[1] * 20, every_s=100.0))
    assert found is not None and (found.ttl_s, found.saved) == (3600.0, 1900)

    twice = [
        use
        for block in range(10)
        for use in (Use(block * 7200.0, block, 9, 1), Use(block * 7200.0 + 200, block, 9, 1))
    ]
    found = policy(twice)
    assert found is not None and (found.ttl_s, found.saved) == (300.0, 90)


def test_room_that_costs_more_than_it_saves_makes_the_time_shorter():
    history = uses(*[1, *range(100, 104), 1] * 5, every_s=600.0)
    free = policy(history)
    dear = policy(history, replace(BOUNDS, byte_day_value=1.0))

    assert free is not None
    assert dear is None or dear.ttl_s < free.ttl_s


def test_no_time_is_beyond_the_bound():
    found = policy(uses(*[1] * 20, every_s=100.0), replace(BOUNDS, max_ttl_s=250.0))

    assert found is not None and found.ttl_s == 250.0


def test_a_kind_that_nobody_asks_any_more_has_no_policy():
    history = uses(*[1] * 20)

    assert decide({"s": history}, {}, BOUNDS, history[-1].at_s + HOUR_S) != {}
    assert decide({"s": history}, {}, BOUNDS, history[-1].at_s + HOUR_S + 1) == {}


def test_what_saves_more_for_its_room_has_more_priority():
    cheap, dear = policy(uses(*[1, 2] * 10, value=1)), policy(uses(*[1, 2] * 10, value=10_000))

    assert cheap is not None and dear is not None
    assert 1 <= cheap.priority < dear.priority <= 9


histories = st.lists(
    st.tuples(st.floats(0, 1e5), st.integers(0, 5), st.integers(0, 1000), st.integers(1, 10_000)),
    min_size=8,
    max_size=60,
).map(lambda rows: [Use(*row) for row in sorted(rows)])


@given(histories, st.floats(1, 1e6))
def test_a_policy_keeps_to_its_bounds_whatever_has_been(history: list[Use], max_ttl_s: float):
    bounds = replace(BOUNDS, max_ttl_s=max_ttl_s)
    found = policy(history, bounds)

    if found is not None:
        assert 0 < found.ttl_s <= max_ttl_s
        assert found.potential > 0.3
        assert 0 < found.saved <= sum(use.value for use in history)


KIND = Kind(signature="s", model="m@1", org="acme", form="chat")


def note(learner: Learner, times: int, begin_s: float = 0.0, kind: Kind = KIND) -> None:
    for number in range(times):
        learner.note(kind, at_s=begin_s + number, key="ab" * 12, value=10, size_bytes=10)


def test_policies_come_and_go_with_what_is_asked():
    learner = Learner(CacheSettings())
    note(learner, 20)
    learner.learn(20.0)
    assert [kind for kind, _ in learner.policies()] == [KIND]
    assert learner.policy("s") is not None

    learner.learn(20.0 + 2 * HOUR_S)
    assert learner.policies() == []
    assert (learner.created, learner.retired) == (1, 1)


async def test_requests_are_answered_while_it_is_learnt(monkeypatch: pytest.MonkeyPatch):
    learner, has_gone_on = Learner(CacheSettings()), threading.Event()
    note(learner, 20)

    def slow(*args: Any) -> dict[str, Policy]:
        assert has_gone_on.wait(10), "the loop was held"
        return decide(*args)

    monkeypatch.setattr("llmhost.cache.learner.decide", slow)
    learning = asyncio.create_task(learner.learn_aside(20.0))
    await asyncio.sleep(0)
    for number in range(1_000):  # the kind that is looked at is forgotten meanwhile
        note(learner, 1, kind=replace(KIND, signature=str(number)))
    has_gone_on.set()
    await learning

    assert learner.policies() == []


def test_nothing_is_learnt_where_nothing_is_to_be():
    learner = Learner(CacheSettings(learn=False))
    note(learner, 20)
    learner.learn(20.0)

    assert learner.policies() == [] and learner.kinds == 0


def test_kinds_that_were_asked_longest_ago_are_forgotten():
    learner = Learner(CacheSettings())
    for number in range(1_100):
        note(learner, 1, kind=replace(KIND, signature=str(number)))

    assert learner.kinds == 1_000
