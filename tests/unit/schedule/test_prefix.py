"""Computed beginnings are found by their text, within their scope, and never taken for another's."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.schedule.kit import (
    BLOCK_TOKENS,
    VOCAB,
    SpelledWatch,
    Workbench,
    a_spec,
    some_limits,
)

from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import Draw, Row, StepResult
from llmhost.engines.fake import fake_answer
from llmhost.schedule.kv_books import KvBooks
from llmhost.schedule.prefix import PrefixIndex, chain_hashes
from llmhost.schedule.scheduler import Scheduler

texts = st.lists(st.integers(0, 1), min_size=0, max_size=16)


@given(st.lists(st.tuples(st.sampled_from("ab"), texts), max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_chain_of_lookups_finds_exactly_the_longest_text_entered_under_its_salt(
    entered: list[tuple[str, list[int]]],
) -> None:
    books, known = KvBooks(256, BLOCK_TOKENS), set[tuple[str, tuple[int, ...]]]()
    held = []
    for salt, text in entered:
        places = books.match(salt, text, len(text))
        full = len(text) // BLOCK_TOKENS
        longest = max(
            (n for n in range(full + 1) if n == 0 or (salt, tuple(text[: n * 4])) in known),
            default=0,
        )
        assert len(places) == longest
        blocks = books.fetch(places, books.claim(places))
        parent = places[-1].serial if places else salt
        for place in range(longest, full):
            blocks += books.take(1)
            words = tuple(text[place * 4 : place * 4 + 4])
            found = books.record(parent, words, blocks[-1])
            parent = found.serial
            known.add((salt, tuple(text[: place * 4 + 4])))
        held.append(blocks)
        books.check(held)


def test_a_text_computed_twice_is_kept_once() -> None:
    books = KvBooks(4, BLOCK_TOKENS)
    one, two = books.take(1), books.take(1)
    first = books.record("", (1, 2, 3, 4), one[0])
    second = books.record("", (1, 2, 3, 4), two[0])
    assert first == second
    books.check([one, [second.block]])
    assert books.free == 3


def test_the_least_recently_used_text_goes_first_and_a_chain_from_its_end() -> None:
    books = KvBooks(3, BLOCK_TOKENS)
    chain = books.take(2)
    place = books.record("", (1, 1, 1, 1), chain[0])
    books.record(place.serial, (2, 2, 2, 2), chain[1])
    other = books.take(1)
    books.record("", (9, 9, 9, 9), other[0])
    books.give_back(chain)
    books.give_back(other)
    books.take(1)
    assert len(books.match("", [1] * 4 + [2] * 4, 8)) == 1
    books.take(1)
    assert books.match("", [1] * 4, 4) == []
    assert len(books.match("", [9] * 4, 4)) == 1


def test_an_index_takes_no_text_twice() -> None:
    index = PrefixIndex(itertools.count())
    index.enter(("", (1,)), 0)
    with pytest.raises(AssertionError):
        index.enter(("", (1,)), 1)


def test_hashes_of_a_chain_depend_on_all_that_came_before() -> None:
    one, two = chain_hashes("a", [1, 2, 3, 4, 5], 2), chain_hashes("a", [9, 2, 3, 4], 2)
    assert len(one) == len(two) == 2
    assert not set(one) & set(two)
    assert chain_hashes("b", [1, 2, 3, 4], 2) != one


# ------------------------------------------------------------ in the scheduler


def usage_of(bench: Workbench, seq_id: int) -> tuple[int, int]:
    last = bench.heard[seq_id].last
    assert last is not None and last.usage is not None
    return last.usage.prompt_tokens, last.usage.cached_tokens


def test_a_prompt_that_was_computed_before_is_found() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    first = bench.add(a_spec(range(11)))
    bench.run_to_the_end()
    second = bench.add(a_spec([*range(9), 3, 3]))
    rows = bench.step()
    assert (rows[0].start, len(rows[0].tokens)) == (8, 3)
    bench.run_to_the_end()
    assert usage_of(bench, first) == (11, 0)
    assert usage_of(bench, second) == (11, 8)
    load = bench.scheduler.load()
    assert (load.prefix_query_tokens, load.prefix_hit_tokens) == (22, 8)


def test_the_last_token_of_a_known_prompt_is_computed_again() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    bench.add(a_spec(range(8)))
    bench.run_to_the_end()
    again = bench.add(a_spec(range(8)))
    bench.run_to_the_end()
    assert usage_of(bench, again) == (8, 4)


def test_answers_are_found_too_when_they_come_back_in_a_conversation() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    first = bench.add(a_spec(range(6), max_new_tokens=7))
    bench.run_to_the_end()
    turn = [*range(6), *bench.heard[first].tokens, 5]
    second = bench.add(a_spec(turn))
    bench.run_to_the_end()
    assert usage_of(bench, second) == (14, 12)


@pytest.mark.parametrize(
    "changes",
    [{"cache_scope": "org:b"}, {"adapter": "other", "cache_scope": "org:a"}],
    ids=["scope", "adapter"],
)
def test_nothing_is_found_across_scopes_or_adapters(changes: dict[str, str]) -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    bench.add(a_spec(range(11), cache_scope="org:a"))
    bench.run_to_the_end()
    other = bench.add(a_spec(range(11), **changes))
    bench.run_to_the_end()
    assert usage_of(bench, other) == (11, 0)


def test_choices_of_one_request_compute_their_prompt_once_even_without_the_cache() -> None:
    bench = Workbench(some_limits(kv_blocks=24, max_tokens_per_batch=64, prefix_cache=False))
    spec = a_spec(range(13), request_id="req_1", max_new_tokens=6)
    choices = [bench.add(structs.replace(spec, index=i, seed=i)) for i in range(4)]
    fed = 0
    while bench.scheduler.has_work:
        rows = bench.step()
        fed += sum(len(row.tokens) for row in rows if row.start < 13)
    assert fed == 13 + 3 * 1
    for seq_id in choices:
        assert bench.heard[seq_id].tokens == fake_answer(range(13), 6, VOCAB)
    later = bench.add(structs.replace(spec, request_id="req_2"))
    bench.run_to_the_end()
    assert usage_of(bench, later) == (13, 0)


def test_choices_share_the_blocks_of_their_prompt() -> None:
    bench = Workbench(some_limits(kv_blocks=24, max_tokens_per_batch=64))
    spec = a_spec(range(13), max_new_tokens=3)
    for index in range(4):
        bench.add(structs.replace(spec, index=index))
    bench.step()
    bench.step()
    blocks = [row.blocks for row in bench.plan()]
    assert len(blocks) == 4
    assert all(b[:3] == blocks[0][:3] for b in blocks)
    assert len({b[3] for b in blocks}) == 4


def test_whoever_waits_for_a_prompt_that_fails_computes_it() -> None:
    bench = Workbench(some_limits(kv_blocks=24, max_tokens_per_batch=4))
    leader = bench.add(a_spec(range(13)))
    follower = bench.add(a_spec(range(13), arrival_ns=1))
    assert [row.seq_id for row in bench.step()] == [leader]
    bench.fail([leader])
    bench.run_to_the_end()
    assert bench.heard[follower].tokens == fake_answer(range(13), 4, VOCAB)


def test_a_preempted_sequence_finds_what_is_left_of_its_blocks() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    seq_id = bench.add(a_spec(range(10), max_new_tokens=6))
    bench.step()
    bench.step()
    bench.scheduler.preempt([seq_id])
    bench.audit()
    rows = bench.step()
    assert rows[0].start == 8
    bench.run_to_the_end()
    assert usage_of(bench, seq_id) == (10, 0)
    assert bench.heard[seq_id].tokens == fake_answer(range(10), 6, VOCAB)


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole() -> None:
    bench = Workbench(some_limits(kv_blocks=16, max_tokens_per_batch=16))
    bench.add(a_spec(range(9)))
    bench.run_to_the_end()
    bench.add(a_spec(range(9), sampling=Sampling(temperature=0.0, prompt_logprobs=0)))
    rows = bench.plan()
    assert (rows[0].start, len(rows[0].tokens)) == (0, 9)


def test_log_probabilities_from_a_place_on_leave_what_is_before_it_to_the_cache() -> None:
    bench = Workbench(some_limits(kv_blocks=16, max_tokens_per_batch=16))
    bench.add(a_spec(range(12)))
    bench.run_to_the_end()
    for first, start in ((12, 8), (9, 8), (8, 4), (5, 4), (4, 0), (1, 0)):
        asked = Sampling(temperature=0.0, prompt_logprobs=0, prompt_logprobs_from=first)
        bench.add(a_spec(range(13), sampling=asked))
        rows = bench.step()
        assert rows[0].start == start, first
        bench.run_to_the_end()


family = st.lists(st.integers(0, 1), min_size=1, max_size=20)


@given(
    st.lists(
        st.tuples(family, st.sampled_from(["a", "b"]), st.integers(1, 6)), min_size=1, max_size=10
    ),
    st.integers(6, 14),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_shared_blocks_give_every_sequence_its_own_words_whatever_is_evicted(
    asked: list[tuple[list[int], str, int]], kv_blocks: int, data: st.DataObject
) -> None:
    bench = Workbench(some_limits(kv_blocks=kv_blocks, max_tokens_per_batch=7, max_batch_size=4))
    specs: dict[int, SequenceSpec] = {}
    for prompt, scope, tokens in asked:
        spec = a_spec(prompt, cache_scope=scope, max_new_tokens=tokens)
        specs[bench.add(spec)] = spec
        for _ in range(data.draw(st.integers(0, 4))):
            bench.step()
            check_scopes(bench, specs)
    bench.run_to_the_end()


def check_scopes(bench: Workbench, specs: dict[int, SequenceSpec]) -> None:
    """No block is held by sequences of two scopes."""
    holders: dict[int, str] = {}
    for sequence in bench.scheduler._running:
        for block in sequence.blocks:
            scope = specs[sequence.seq_id].cache_scope
            assert holders.setdefault(block, scope) == scope


def test_a_block_that_guesses_filled_is_found_by_all_of_its_text() -> None:
    """Two answers that differ only in what their guesses said must not end up in one block."""
    scheduler = Scheduler(some_limits(max_tokens_per_batch=32))
    for seq_id, seed in ((1, 11), (2, 12)):
        scheduler.add(
            seq_id, a_spec((1, 2), request_id="r", seed=seed, max_new_tokens=20), SpelledWatch()
        )

    def step(said: dict[int, Draw]) -> list[Row]:
        rows = scheduler.plan()
        scheduler.take_moves()
        drawn = [said[row.seq_id] if row.wants_token else None for row in rows]
        scheduler.absorb(StepResult(rows, drawn, 0, 100, [50] * len(rows)))
        return rows

    while len(scheduler.draft_asks(2)) < 2:
        step({1: Draw((3,)), 2: Draw((3,))})
    scheduler.set_drafts({1: [7, 8], 2: [9, 6]})
    step({1: Draw((7, 8, 5)), 2: Draw((9, 6, 5))})
    rows = step({1: Draw((4,)), 2: Draw((4,))})

    assert {tuple(row.known[:6]) for row in rows} == {(1, 2, 3, 7, 8, 5), (1, 2, 3, 9, 6, 5)}
    assert rows[0].blocks[0] != rows[1].blocks[0]
