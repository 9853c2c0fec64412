"""Vectors are found within their partition alone, and the threshold rises where answers were false."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmhost.cache.alike import MOST_ROWS, Alike, Kept, unit
from llmhost.cache.trust import FIRST_CHECKS, HIGHEST, Check, Terms, Trust, Trusts
from llmhost.cache.verify import Facts, facts_of

TERMS = Terms(min_similarity=0.9, check_share=0.05, max_false_share=0.01)


def facts(text: str = "the weather in spring") -> Facts:
    found = facts_of(text)
    assert found is not None
    return found


def vector(seed: int, size: int = 8) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal(size).astype(np.float32))


def kept(key: str, expires_ns: int = 100) -> Kept:
    return Kept(key, facts(), expires_ns)


def keys(alike: Alike, partition: str, seed: int, now_ns: int = 0) -> list[str]:
    found = alike.find(partition, vector(seed), facts(), least=0.99, now_ns=now_ns)
    return [near.kept.key for near in found]


def test_what_was_asked_is_found_in_its_own_partition_and_time():
    alike = Alike()
    alike.put("p", vector(1), kept("a"), 0)
    alike.put("p", vector(2), kept("b"), 0)

    assert (keys(alike, "p", 1), keys(alike, "p", 2), keys(alike, "p", 3)) == (["a"], ["b"], [])
    assert keys(alike, "q", 1) == keys(alike, "p", 1, now_ns=100) == []
    assert alike.find("p", vector(1), facts("rain 5 mm in spring"), least=0.9, now_ns=0) == []
    assert alike.find("p", vector(1, 9), facts(), least=0.9, now_ns=0) == []


@given(
    st.lists(st.tuples(st.sampled_from("pqr"), st.integers(0, 9)), max_size=40), st.integers(0, 9)
)
def test_no_partition_ever_has_what_another_one_keeps(puts: list[tuple[str, int]], seed: int):
    alike = Alike(most_bytes=20_000)
    for partition, each in puts:
        alike.put(partition, vector(each), kept(f"{partition}{each}"), 0)
    for partition in "pqr":
        assert all(key == f"{partition}{seed}" for key in keys(alike, partition, seed))


def test_the_oldest_makes_room_and_the_partition_that_nobody_asks():
    alike = Alike()
    for each in range(MOST_ROWS + 5):
        alike.put("p", vector(each), kept(str(each)), 0)
    assert len(alike) == MOST_ROWS
    assert (keys(alike, "p", 4), keys(alike, "p", 5)) == ([], ["5"])

    one = Alike()
    one.put("p", vector(1), kept("a"), 0)
    each_bytes = one.bytes
    small = Alike(most_bytes=2 * each_bytes)
    for name in ("p", "q"):
        small.put(name, vector(1), kept("a"), 0)
    keys(small, "p", 1)
    small.put("r", vector(1), kept("a"), 0)
    assert (keys(small, "p", 1), keys(small, "q", 1)) == (["a"], [])


def test_the_same_key_is_kept_once():
    alike = Alike()
    for _ in range(3):
        alike.put("p", vector(1), kept("a"), 0)
    assert len(alike) == 1


def test_words_count_as_what_they_take():
    alike, words = Alike(most_bytes=2**20), " ".join(f"a{i} bb{i} cc" for i in range(60))
    for each in range(200):
        alike.put(str(each), vector(each), Kept(str(each), facts(words), 100), 0)
    assert alike.bytes <= 2**20
    assert 10 < len(alike) < 100


def test_what_is_forgotten_or_too_old_is_kept_no_more():
    alike = Alike()
    alike.put("p", vector(1), kept("a", 50), 0)
    alike.put("p", vector(2), kept("b"), 0)
    alike.put("q", vector(3), kept("c"), 0)

    alike.forget(lambda one: one.key == "c")
    assert (len(alike), keys(alike, "q", 3), keys(alike, "p", 1)) == (2, [], ["a"])
    alike.drop_expired(50)
    assert (keys(alike, "p", 1), keys(alike, "p", 2)) == ([], ["b"])
    alike.drop_expired(100)
    assert (len(alike), alike.bytes) == (0, 0)


def test_the_first_hits_are_all_checked_and_then_a_share():
    trust = Trust(TERMS)
    for _ in range(FIRST_CHECKS):
        assert trust.wants_check(0.99)
        assert not trust.note(Check(0.95, True))
    assert [trust.wants_check(draw) for draw in (0.04, 0.05, 0.99)] == [True, False, False]


def test_a_false_answer_raises_the_threshold_above_it_and_is_checked_anew():
    trust = Trust(TERMS)
    for _ in range(50):
        trust.note(Check(0.95, True))
    assert trust.note(Check(0.96, False))
    assert 0.96 < trust.threshold < 0.97
    assert trust.wants_check(0.99)


def test_a_share_of_false_answers_within_the_bound_changes_nothing():
    trust = Trust(TERMS)
    for _ in range(100):
        trust.note(Check(0.95, True))
    assert not trust.note(Check(0.95, False))


def test_where_no_threshold_helps_nothing_is_given_any_more():
    trust = Trust(TERMS)
    assert trust.note(Check(1.0, False))
    assert trust.is_stopped


@given(st.lists(st.tuples(st.floats(0.9, 1.0), st.booleans()), max_size=80))
def test_of_what_would_still_be_given_no_more_than_the_bound_was_false(
    found: list[tuple[float, bool]],
):
    trust, before = Trust(TERMS), 0.0
    for similarity, agrees in found:
        trust.note(Check(similarity, agrees))
        counting = trust.counting
        assert sum(not check.agrees for check in counting) <= TERMS.max_false_share * len(counting)
        assert trust.threshold >= before
        before = trust.threshold
    assert trust.is_stopped == (trust.threshold > HIGHEST)


def test_each_organisation_has_its_own_and_there_are_only_so_many():
    trusts = Trusts(most=2)
    first = trusts.of("acme", "m", TERMS)
    assert trusts.of("acme", "m", TERMS) is first is not trusts.of("other", "m", TERMS)
    assert trusts.of("third", "m", TERMS) is None
    assert trusts.known("third", "m") is None


def test_vectors_have_length_one():
    assert abs(float(np.linalg.norm(unit(np.array([3, 4], np.float32)))) - 1) < 1e-6
    assert float(np.linalg.norm(unit(np.zeros(3, np.float32)))) == 0.0
