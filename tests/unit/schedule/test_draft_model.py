"""The small model that guesses: what it says, that its cache follows its sequences, and that it stops nobody."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.schedule.kit import BLOCK_TOKENS, VOCAB

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.ports import DraftAsk
from llmhost.core.sampling import Sampling
from llmhost.core.step import Drawn, Row
from llmhost.engines.fake import FakeRunner, fake_answer
from llmhost.gpu.lane import FreeLane
from llmhost.schedule.draft_model import FAILURES_IN_A_ROW, ModelDrafter
from llmhost.schedule.predicted import WithPredictions
from llmhost.testing import at

GREEDY = Sampling(temperature=0.0)


class Watched(FakeRunner):
    """Notes how many tokens each run feeds; raises while `error` is set."""

    def __init__(self) -> None:
        super().__init__(FakeOptions(vocab=VOCAB), block_tokens=BLOCK_TOKENS)
        self.fed: list[int] = []
        self.error: Exception | None = None
        self.is_closed = False

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        if self.error is not None:
            raise self.error
        self.fed.append(sum(len(row.tokens) for row in rows))
        size = self.facts.block_tokens
        for row in rows:
            assert row.tokens
            assert (row.start + len(row.tokens)) <= len(row.blocks) * size
        return super().run(rows)

    def close(self) -> None:
        self.is_closed = True
        super().close()


def a_drafter(blocks: int = 32, **options: object) -> tuple[ModelDrafter, Watched]:
    runner = Watched()
    runner.set_kv_blocks(blocks)
    lane = FreeLane(at("2026-01-01T00:00Z"))
    options = {"vocab_size": VOCAB, **options}
    drafter = ModelDrafter("draft", runner, lane=lane, kv_blocks=blocks, **options)  # type: ignore[arg-type]
    return drafter, runner


def ask(tokens: Sequence[int], most: int = 3, seq_id: int = 1) -> DraftAsk:
    return DraftAsk(seq_id, list(tokens), most, GREEDY, 0)


def guesses(drafter: ModelDrafter, *asks: DraftAsk) -> list[list[int]]:
    return [list(found) for found in drafter.propose(asks)]


def test_it_guesses_what_the_small_model_would_say():
    drafter, _ = a_drafter()
    assert guesses(drafter, ask([1, 2, 3])) == [fake_answer([1, 2, 3], 3, VOCAB)]


def test_guesses_for_several_are_made_together():
    drafter, runner = a_drafter()
    found = guesses(drafter, ask([1, 2], 3, 1), ask([5], 1, 2), ask([7, 8, 9], 2, 3))
    assert found == [
        fake_answer([1, 2], 3, VOCAB),
        fake_answer([5], 1, VOCAB),
        fake_answer([7, 8, 9], 2, VOCAB),
    ]
    assert len(runner.fed) == 3


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 4), st.booleans()),
        max_size=25,
    )
)
def test_whatever_a_sequence_says_the_next_guesses_are_those_of_its_own_text(
    turns: list[tuple[int, int, int, bool]],
):
    """Each turn a sequence takes over some of the guesses, then says something else or not."""
    drafter, _ = a_drafter(blocks=24)
    texts = {seq_id: [seq_id, seq_id + 1] for seq_id in (1, 2, 3)}
    for seq_id, most, taken, is_other in turns:
        text = texts[seq_id]
        (found,) = guesses(drafter, ask(text, most, seq_id))
        assert found == fake_answer(text, most, VOCAB)
        text += found[:taken]
        if is_other or not found[:taken]:
            text.append((text[-1] + 1) % VOCAB)


def test_confirmed_tokens_are_not_computed_again():
    drafter, runner = a_drafter()
    text = [1, 2, 3, 4, 5, 6]
    text += guesses(drafter, ask(text, 3))[0]
    text.append(9)
    runner.fed.clear()
    guesses(drafter, ask(text, 2))
    assert runner.fed == [2, 1]  # the last guess, which was drawn and not fed, and the new word


def test_a_wrong_guess_is_taken_back():
    drafter, runner = a_drafter()
    text = [1, 2, 3]
    (found,) = guesses(drafter, ask(text, 4))
    text += [found[0], (found[1] + 1) % VOCAB]
    runner.fed.clear()
    assert guesses(drafter, ask(text, 1)) == [fake_answer(text, 1, VOCAB)]
    assert runner.fed == [1]


def test_a_long_prompt_is_read_over_several_turns():
    drafter, runner = a_drafter(blocks=64, most_tokens=40)
    prompt = [n % VOCAB for n in range(100)]
    assert guesses(drafter, ask(prompt)) == [[]]
    assert guesses(drafter, ask(prompt)) == [[]]
    assert guesses(drafter, ask(prompt)) == [fake_answer(prompt, 3, VOCAB)]
    assert max(runner.fed) <= 40


def test_who_has_not_asked_for_longest_gives_its_room_away():
    drafter, _ = a_drafter(blocks=4)
    guesses(drafter, ask([1] * 8, 1, 1))
    guesses(drafter, ask([2] * 8, 1, 2))
    assert guesses(drafter, ask([3] * 8, 1, 3)) == [fake_answer([3] * 8, 1, VOCAB)]
    assert set(drafter._mirrors) == {2, 3}
    assert guesses(drafter, ask([1] * 8, 1, 1)) == [fake_answer([1] * 8, 1, VOCAB)]


def test_without_room_nothing_is_guessed():
    drafter, _ = a_drafter(blocks=2)
    assert guesses(drafter, ask([1] * 7, 4)) == [[]]
    assert guesses(drafter, ask([1] * 3, 2, 1), ask([2] * 30, 2, 2)) == [
        fake_answer([1] * 3, 2, VOCAB),
        [],
    ]


def test_forgetting_gives_all_blocks_back():
    drafter, _ = a_drafter(blocks=16)
    for seq_id in range(4):
        guesses(drafter, ask([1, 2, 3], 2, seq_id))
    for seq_id in range(5):
        drafter.forget(seq_id)
    assert sorted(drafter._free) == list(range(16))


def test_nothing_is_guessed_after_the_end_of_an_answer():
    first, second = fake_answer([1, 2, 3], 2, VOCAB)
    assert first != second
    drafter, _ = a_drafter(end_ids=frozenset({second}))
    assert guesses(drafter, ask([1, 2, 3], 6)) == [[first, second]]


def test_words_that_the_small_model_does_not_have_are_not_guessed_after():
    drafter, runner = a_drafter(vocab_size=8)
    assert guesses(drafter, ask([1, 12, 3])) == [[]]
    assert runner.fed == []
    found = guesses(drafter, ask([1, 2, 3], 8, 2))[0]
    assert all(token < 8 for token in found)


def test_a_sequence_longer_than_the_small_model_reads_is_left_alone():
    drafter, runner = a_drafter()
    object.__setattr__(runner.facts, "max_sequence_length", 5)
    assert guesses(drafter, ask([1, 2, 3], 4)) == [fake_answer([1, 2, 3], 2, VOCAB)]
    assert guesses(drafter, ask([1, 2, 3, 4, 5], 4, 2)) == [[]]


def test_a_failing_model_guesses_nothing_and_is_logged(caplog: pytest.LogCaptureFixture):
    drafter, runner = a_drafter()
    guesses(drafter, ask([1, 2, 3]))
    runner.error = EngineFailed("boom")
    assert guesses(drafter, ask([1, 2, 3, 4])) == [[]]
    assert "draft.failed model=draft" in caplog.text
    runner.error = None
    assert guesses(drafter, ask([1, 2, 3, 4])) == [fake_answer([1, 2, 3, 4], 3, VOCAB)]


def test_a_model_that_fails_again_and_again_is_not_asked_any_more(
    caplog: pytest.LogCaptureFixture,
):
    drafter, runner = a_drafter()
    runner.error = ValueError("boom")
    for _ in range(FAILURES_IN_A_ROW + 5):
        assert guesses(drafter, ask([1, 2, 3])) == [[]]
    assert caplog.text.count("draft.failed") == FAILURES_IN_A_ROW


def test_a_row_that_fails_costs_the_others_nothing():
    drafter, runner = a_drafter()
    run = runner.run

    def failing(rows: Sequence[Row]) -> list[Drawn]:
        drawn = run(rows)
        return [EngineFailed("NaN") if row.seq_id == 2 else d for row, d in zip(rows, drawn, strict=True)]  # fmt: skip

    runner.run = failing  # type: ignore[method-assign]
    found = guesses(drafter, ask([1, 2], 2, 1), ask([3, 4], 2, 2))
    assert found == [fake_answer([1, 2], 2, VOCAB), []]


def test_its_time_on_the_device_is_counted():
    clock = at("2026-01-01T00:00Z")
    runner = Watched()
    runner.set_kv_blocks(8)
    run = runner.run

    def slow(rows: Sequence[Row]) -> list[Drawn]:
        clock.advance(0.5)
        return run(rows)

    runner.run = slow  # type: ignore[method-assign]
    drafter = ModelDrafter("d", runner, lane=FreeLane(clock), kv_blocks=8, vocab_size=VOCAB)
    drafter.propose([ask([1, 2, 3], 2)])
    assert drafter.device_ns == 10**9


def test_closing_closes_the_runner():
    drafter, runner = a_drafter()
    drafter.close()
    assert runner.is_closed


def test_what_a_caller_predicted_is_taken_in_place_of_what_the_small_model_says() -> None:
    small, runner = a_drafter()
    drafter = WithPredictions(small)
    told = DraftAsk(1, [1, 2], 3, GREEDY, 0, prompt_tokens=2, predicted=[7, 8, 9])
    strayed = DraftAsk(1, [1, 2, 5, 5], 3, GREEDY, 0, prompt_tokens=2, predicted=[7, 8, 9])
    untold = ask([3, 4], seq_id=2)

    assert drafter.propose([told]) == [[7, 8, 9]]
    assert not runner.fed
    [guess] = a_drafter()[0].propose([untold])
    assert drafter.propose([strayed, untold, told._replace(seq_id=3)]) == [[], guess, [7, 8, 9]]
    assert drafter.device_ns == small.device_ns
    drafter.forget(1)
    drafter.sleep()
    drafter.wake()
    drafter.close()
    assert runner.is_closed
