"""The fake runner: same words however a prompt is cut, batched, moved or resized, and real KV behind them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.runner_contract import RunnerContract
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.sampling import Sampling
from llmhost.core.step import Draw, Row
from llmhost.engines.fake import MOST_COUNTED, FakeRunner, fake_answer

VOCAB, SIZE = 64, 4


def runner_with(blocks: int, **options: object) -> FakeRunner:
    runner = FakeRunner(FakeOptions(vocab=VOCAB, **options), block_tokens=SIZE)  # type: ignore[arg-type]
    runner.set_kv_blocks(blocks)
    return runner


def row(
    seq_id: int, tokens: list[int], start: int, blocks: list[int], *, wants: bool = True
) -> Row:
    return Row(seq_id, tokens, start, blocks, Sampling(), 0, wants)


class TestContract(RunnerContract):
    @pytest.fixture
    def runner(self) -> FakeRunner:
        return FakeRunner(FakeOptions(vocab=256))


prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


@given(prompts, st.lists(st.integers(1, 7), min_size=1, max_size=20), st.permutations(range(8)))
@settings(max_examples=80, deadline=None)
def test_the_answer_does_not_depend_on_chunks_or_on_which_blocks(
    prompt: list[int], cuts: list[int], blocks: list[int]
) -> None:
    runner = runner_with(8)
    known, start = list(prompt), 0
    answer: list[int] = []
    while len(answer) < 4:
        share = min(cuts[0], len(known) - start)
        cuts = [*cuts[1:], cuts[0]]
        end = start + share
        wants = end == len(known)
        [drawn] = runner.run([row(1, known[start:end], start, blocks, wants=wants)])
        start = end
        assert (drawn is not None) is wants
        if isinstance(drawn, int):
            answer.append(drawn)
            known.append(drawn)
    assert answer == fake_answer(prompt, 4, VOCAB)


@given(prompts, prompts)
@settings(max_examples=40, deadline=None)
def test_the_answer_does_not_depend_on_the_neighbours(one: list[int], two: list[int]) -> None:
    runner = runner_with(10)
    rows = [row(1, one, 0, [0, 2, 4, 6, 8]), row(2, two, 0, [1, 3, 5, 7, 9])]
    assert runner.run(rows) == fake_answer(one, 1, VOCAB) + fake_answer(two, 1, VOCAB)
    swapped = [row(1, two, 0, [1, 3, 5, 7, 9]), row(2, one, 0, [0, 2, 4, 6, 8])]
    assert runner.run(swapped) == fake_answer(two, 1, VOCAB) + fake_answer(one, 1, VOCAB)


def test_a_block_that_someone_else_wrote_into_gives_wrong_words() -> None:
    runner = runner_with(2)
    [first] = runner.run([row(1, [1, 2, 3], 0, [0])])
    runner.run([row(2, [4, 5, 6], 0, [0])])
    assert isinstance(first, int)
    [second] = runner.run([row(1, [first], 3, [0])])
    assert [first, second] != fake_answer([1, 2, 3], 2, VOCAB)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_resize_keeps_what_is_in_blocks_below_both_counts(count: int) -> None:
    runner = runner_with(4)
    [first] = runner.run([row(1, [1, 2, 3, 4, 5], 0, [1, 0])])
    runner.set_kv_blocks(count)
    assert isinstance(first, int)
    assert [first, *runner.run([row(1, [first], 5, [1, 0])])] == fake_answer(
        [1, 2, 3, 4, 5], 2, VOCAB
    )


def test_blocks_that_went_and_came_back_are_empty() -> None:
    runner = runner_with(4)
    runner.run([row(1, [1, 2, 3], 0, [3])])
    runner.set_kv_blocks(2)
    runner.set_kv_blocks(4)
    assert runner.run([row(1, [7], 3, [3])]) == runner_with(4).run([row(1, [7], 3, [3])])


def test_a_block_beyond_the_lease_is_an_error() -> None:
    with pytest.raises(IndexError):
        runner_with(1).run([row(1, [1], 0, [1])])


def test_every_sequence_fails_after_its_own_count_of_tokens() -> None:
    runner = runner_with(4, fail_after_tokens=1)
    first = runner.run([row(1, [1], 0, [0])])
    both = runner.run([row(1, [2], 1, [0]), row(2, [3], 0, [1])])
    assert isinstance(first[0], int)
    assert isinstance(both[0], EngineFailed)
    assert isinstance(both[1], int)


def test_sequences_that_ended_early_are_not_counted_for_ever() -> None:
    runner = runner_with(4, fail_after_tokens=2)
    runner.run([row(0, [1], 0, [0])])
    for seq_id in range(1, MOST_COUNTED + 100):
        runner.run([row(seq_id, [1], 0, [1])])
        if seq_id == 50:
            runner.run([row(0, [2], 1, [0])])

    assert len(runner._given) == MOST_COUNTED


def test_a_prompt_in_chunks_counts_as_no_token() -> None:
    runner = runner_with(4, fail_after_tokens=1)
    assert runner.run([row(1, [1], 0, [0], wants=False)]) == [None]
    assert isinstance(runner.run([row(1, [2], 1, [0])])[0], int)


def test_delays_are_those_asked_for() -> None:
    slept: list[float] = []
    options = FakeOptions(vocab=VOCAB, prefill_delay_ms=30.0, token_delay_ms=5.0)
    runner = FakeRunner(options, block_tokens=SIZE, sleep=slept.append)
    runner.set_kv_blocks(2)
    runner.run([row(1, [1, 2], 0, [0])])
    runner.run([row(1, [3], 2, [0])])
    assert slept == [0.035, 0.005]


def test_closing_twice_is_closing_once() -> None:
    runner = runner_with(2)
    runner.close()
    runner.close()
    with pytest.raises(IndexError):
        runner.run([row(1, [1], 0, [0])])


def test_the_oracle_gives_the_same_beginning_whatever_the_count() -> None:
    assert fake_answer([1, 2], 9, VOCAB)[:3] == fake_answer([1, 2], 3, VOCAB)
    assert fake_answer([1, 2], 0, VOCAB) == []


@given(
    prompt=prompts,
    guesses=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6),
    asked=st.builds(
        Sampling,
        repetition_penalty=st.sampled_from([1.0, 3.0]),
        frequency_penalty=st.sampled_from([0.0, 2.0]),
        allowed_token_ids=st.sampled_from([None, tuple(range(10))]),
        bad_words=st.sampled_from([(), ((3,), (1, 2))]),
        logprobs=st.sampled_from([None, 1]),
    ),
)
@settings(max_examples=80, deadline=None)
def test_guesses_whatever_they_are_change_no_answer(
    prompt: list[int], guesses: list[list[int]], asked: Sampling
) -> None:
    """Some are right: few tokens are allowed, and they are made of those."""
    plain, guessed = Asked(prompt, 10, asked), Asked(prompt, 10, asked)
    guessed.guess = lambda tokens: guesses[len(tokens) % len(guesses)]
    ToyScheduler(runner_with(0)).answer(plain)
    ToyScheduler(runner_with(0)).answer(guessed)
    assert guessed.made == plain.made
    assert guessed.logprobs == plain.logprobs


def test_scripted_failures_count_the_tokens_that_guesses_saved() -> None:
    runner = runner_with(4, fail_after_tokens=3)
    right = fake_answer([1], 5, VOCAB)
    speculating = row(1, [1, *right[:3]], 0, [0])._replace(drafts=3)
    [drawn] = runner.run([speculating])
    assert isinstance(drawn, Draw) and list(drawn.tokens) == right[:3]
    assert isinstance(runner.run([row(1, right[2:3], 3, [0])])[0], EngineFailed)
