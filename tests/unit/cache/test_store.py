"""Memory before disk, and what is forgotten is forgotten in both."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cache.kept import HOUR_S, answer, key, store

from llmhost.cache.answer import Answer, Part, decoded, encoded, parts_of
from llmhost.cache.memory import Memory
from llmhost.cache.store import AnswerStore, Meant
from llmhost.core.output import Delta, FinishReason, TokenLogprobs, Usage


async def test_an_answer_survives_the_process(tmp_path: Path):
    first = store(tmp_path / "cache")
    first.put(key(), answer(), expires_s=HOUR_S, began_ns=0)
    first.close()

    second = store(tmp_path / "cache")
    assert second.peek(key()) is None
    assert await second.get(key()) == answer()
    assert second.peek(key()) == answer()
    second.close()


async def test_without_a_disk_answers_live_in_memory():
    kept = store()
    kept.put(key(), answer(), expires_s=HOUR_S, began_ns=0)

    assert await kept.get(key()) == answer()
    assert (await kept.sizes()).disk_answers == 0


def put_all(kept: AnswerStore) -> None:
    for number, (model, org, tag) in enumerate(
        [("m@1", "a", ""), ("m@2", "b", "x"), ("n@1", "a", "x"), ("n@1", "b", "")]
    ):
        kept.put(key(model, org, number), answer(tag=tag), expires_s=HOUR_S, began_ns=3_000)


async def test_a_purge_takes_what_it_names_from_memory_and_disk(tmp_path: Path):
    kept = store(tmp_path / "cache")
    for meant, gone in [
        (Meant(model="m"), 2),
        (Meant(org="a"), 2),
        (Meant(tag="x"), 2),
        (Meant(model="n", org="a", tag="x"), 1),
        (Meant(model="m", org="c"), 0),
        (Meant(), 4),
    ]:
        put_all(kept)
        assert await kept.purge(meant, now_ns=2_000) == gone, meant
        sizes = await kept.sizes()
        assert (sizes.memory_answers, sizes.disk_answers) == (4 - gone, 4 - gone), meant
        await kept.purge(Meant(), now_ns=2_000)
    kept.close()


async def test_an_answer_that_was_being_made_during_a_purge_is_not_kept():
    kept = store()
    await kept.purge(Meant(org="acme"), now_ns=2_000)

    assert not kept.put(key(), answer(), expires_s=HOUR_S, began_ns=1_500)
    assert kept.put(key(org="other"), answer(), expires_s=HOUR_S, began_ns=1_500)
    assert kept.put(key(), answer(), expires_s=HOUR_S, began_ns=2_500)


def test_in_memory_the_least_recently_used_makes_room():
    memory = Memory(3)
    for name in "abc":
        memory.put(name, answer(name), 1)
    memory.get("a")
    memory.put("d", answer("d"), 1)

    assert [name for name in "abcd" if memory.get(name)] == ["a", "c", "d"]


def test_in_memory_what_has_a_smaller_priority_makes_room_first():
    memory = Memory(2)
    memory.put("dear", answer(priority=2), 1)
    memory.put("cheap", answer(), 1)
    memory.put("new", answer(), 1)

    assert memory.get("dear") and not memory.get("cheap")


def test_nothing_is_kept_that_is_larger_than_all_there_is_room_for():
    memory = Memory(2)
    memory.put("a", answer(), 1)
    memory.put("b", answer(), 3)

    assert memory.get("a") and not memory.get("b")
    assert memory.bytes == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), max_size=60))
def test_memory_is_never_fuller_than_it_may_be(puts: list[tuple[str, int]]):
    memory = Memory(20)
    for name, size in puts:
        memory.put(name, answer(), size)
        assert memory.bytes <= 20
        assert memory.bytes == sum(size for _, size in memory._kept.values())


def long(number: int, tokens: int, top: int | None) -> Answer:
    ids = tuple(range(1_000, 1_000 + tokens))
    likely = tuple((one, -0.1 * one) for one in range(1_000, 1_000 + (top or 0)))
    odds = () if top is None else tuple(TokenLogprobs(one, -0.01 * one, 300, likely) for one in ids)
    part = Part(0, "word" * tokens, ids, FinishReason.STOP, None, (3, tokens, 0), odds)
    return answer(parts=(part,), tag=f"tag{number}")


@pytest.mark.parametrize(("tokens", "top"), [(2, None), (500, None), (100, 0), (100, 20)])
async def test_memory_has_no_more_than_it_says(tokens: int, top: int | None):
    kept, raws = (
        store(most_bytes=2**25),
        [encoded(long(number, tokens, top)) for number in range(50)],
    )
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number, raw in enumerate(raws):
            found = decoded(raw)
            assert found is not None
            kept.put(key(number=number), found, expires_s=HOUR_S, began_ns=0)
        del found
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 0.5 < (after - before) / kept.memory.bytes < 1.1


usage = Usage(3, 1, 5, engine_ns=7, cost_nano=9)


def test_what_choices_said_is_joined_and_read_back():
    odds = TokenLogprobs(4, -0.5, 1, ((4, -0.5), (5, -1.5)))
    said = [
        Delta(1, "b1", (1,)),
        Delta(0, "a1", (2, 3), logprobs=(odds,)),
        Delta(0, "a2", (), FinishReason.STOP, usage, stop="x"),
        Delta(1, "", (4,), FinishReason.LENGTH, usage),
    ]
    parts = parts_of(said)
    assert parts is not None
    kept = decoded(encoded(answer(parts=parts)))

    assert kept is not None
    first, second = (part.delta() for part in kept.parts)
    assert (first.text, first.tokens, first.stop) == ("a1a2", (2, 3), "x")
    assert (first.logprobs, first.finish_reason) == ((odds,), FinishReason.STOP)
    assert (second.text, second.tokens) == ("b1", (1, 4))
    assert first.usage == Usage(3, 3, 5)


def test_an_answer_without_a_proper_end_is_not_kept():
    assert parts_of([]) is None
    assert parts_of([Delta(0, "a")]) is None
    assert parts_of([Delta(0, "a", (), FinishReason.CONTENT_FILTER, usage)]) is None
    assert parts_of([Delta(0, "a", (), FinishReason.STOP)]) is None


@given(st.binary(max_size=64))
def test_bytes_that_are_no_answer_are_none(raw: bytes):
    assert decoded(raw) is None


def test_an_answer_of_another_form_is_not_read():
    assert decoded(encoded(answer(form=2))) is None
