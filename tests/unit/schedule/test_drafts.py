"""Guesses bring several tokens in one step, change no answer, and cost nobody a place."""

from tests.unit.schedule.kit import VOCAB, Workbench, a_spec, some_limits

from llmhost.core.output import FinishReason
from llmhost.engines.fake import fake_answer


def decoding(bench: Workbench, **changes: object) -> int:
    seq_id = bench.add(a_spec(range(5), **{"max_new_tokens": 12, **changes}))
    bench.step()
    return seq_id


def test_right_guesses_bring_as_many_tokens_and_one_more() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    seq_id = decoding(bench)
    bench.guess([True, True, True])
    rows = bench.step()
    assert rows[0].drafts == 3
    assert bench.heard[seq_id].tokens == fake_answer(range(5), 5, VOCAB)


def test_what_follows_a_wrong_guess_is_not_taken() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    seq_id = decoding(bench)
    bench.guess([True, False, True])
    bench.step()
    assert bench.heard[seq_id].tokens == fake_answer(range(5), 3, VOCAB)
    bench.run_to_the_end()


def test_rejected_guesses_are_the_operators_time() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    seq_id = decoding(bench)
    bench.guess([False, False, False])
    bench.step(4000)
    assert bench.scheduler.accounts.operator_ns == 3000
    bench.run_to_the_end()
    assert bench.heard[seq_id].tokens == fake_answer(range(5), 12, VOCAB)


def test_no_more_is_guessed_than_the_sequence_may_say() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    seq_id = decoding(bench, max_new_tokens=4)
    [ask] = bench.scheduler.draft_asks(8)
    assert ask.most == 2  # one was said, and a step brings one more than it guesses
    bench.guess([True] * 8, most=8)
    bench.step()
    last = bench.heard[seq_id].last
    assert last is not None and last.finish_reason is FinishReason.LENGTH
    assert len(bench.heard[seq_id].tokens) == 4


def test_a_stop_amid_guesses_ends_the_answer_there() -> None:
    words = fake_answer(range(5), 4, VOCAB)
    bench = Workbench(some_limits(kv_blocks=16))
    stop = words[2]
    assert stop not in words[:2]
    seq_id = decoding(bench, stop_token_ids=frozenset([stop]))
    bench.guess([True] * 4)
    bench.step()
    last = bench.heard[seq_id].last
    assert bench.heard[seq_id].tokens == words[:3]
    assert last is not None and last.finish_reason is FinishReason.STOP
    assert last.usage is not None and last.usage.completion_tokens == 3


def test_nobody_is_preempted_for_guesses() -> None:
    bench = Workbench(some_limits(kv_blocks=4, max_tokens_per_batch=12, watermark_share=0.0))
    ids = [bench.add(a_spec(range(at, at + 5), max_new_tokens=6)) for at in (0, 20)]
    bench.step()
    bench.guess([True] * 4)
    rows = bench.step()
    assert [row.drafts for row in rows] == [2, 2]  # as many as their blocks have room for
    assert bench.scheduler.preemptions == 0
    bench.run_to_the_end()
    for at, seq_id in zip((0, 20), ids, strict=True):
        assert bench.heard[seq_id].tokens == fake_answer(range(at, at + 5), 6, VOCAB)


def test_guesses_leave_every_decoder_its_token() -> None:
    bench = Workbench(some_limits(kv_blocks=32, max_tokens_per_batch=5, max_batch_size=4))
    ids = [bench.add(a_spec((i, 2, 3), max_new_tokens=9)) for i in range(4)]
    for _ in range(4):
        bench.step()
    bench.guess([True] * 5)
    rows = bench.step()
    assert {row.seq_id for row in rows} == set(ids)
    assert sum(row.drafts for row in rows) == 1
    bench.run_to_the_end()


class OnlyEven:
    """A grammar that takes even tokens."""

    is_ended = False

    def accept(self, token: int) -> None:
        assert token % 2 == 0

    def valid_prefix(self, tokens: list[int]) -> int:
        odd = [place for place, token in enumerate(tokens) if token % 2]
        return odd[0] if odd else len(tokens)


def test_guesses_that_a_grammar_would_not_take_are_not_tried() -> None:
    bench = Workbench(some_limits(kv_blocks=16))
    seq_id = decoding(bench)
    sequence = bench.scheduler._sequences[seq_id]
    sequence.grammar = OnlyEven()
    bench.scheduler.set_drafts({seq_id: [2, 4, 5, 6]})
    assert sequence.draft == [2, 4]
