"""What the scheduler promises, case by case."""

import pytest
from tests.unit.schedule.kit import VOCAB, SpelledWatch, Workbench, a_spec, some_limits

from llmhost.core.errors import EngineFailed
from llmhost.core.output import FinishReason
from llmhost.core.step import Row, StepResult
from llmhost.engines.fake import fake_answer
from llmhost.schedule.predictor import UNMEASURED_STEPS, StepPredictor, StepWork
from llmhost.schedule.scheduler import Scheduler


def finish_of(bench: Workbench, seq_id: int) -> FinishReason | None:
    last = bench.heard[seq_id].last
    return last.finish_reason if last else None


def test_a_prompt_that_can_never_fit_ends_at_once_with_length() -> None:
    bench = Workbench(some_limits(kv_blocks=2))
    too_long = bench.add(a_spec(range(9)))
    behind = bench.add(a_spec((1, 2)))
    assert finish_of(bench, too_long) is FinishReason.LENGTH
    bench.run_to_the_end()
    assert finish_of(bench, behind) is FinishReason.LENGTH
    assert len(bench.heard[behind].tokens) == 4


def test_a_prompt_that_leaves_no_room_for_a_token_draws_none() -> None:
    bench = Workbench(some_limits(max_sequence_length=8))
    full = bench.add(a_spec(range(8)))
    almost_full = bench.add(a_spec(range(7)))
    bench.run_to_the_end()
    assert bench.heard[full].tokens == []
    assert len(bench.heard[almost_full].tokens) == 1


def test_an_import_that_has_said_all_it_may_ends_at_once() -> None:
    bench = Workbench(some_limits())
    scheduler = bench.scheduler
    spec = a_spec(generated=tuple(fake_answer((1, 2, 3), 4, VOCAB)), max_new_tokens=4)
    emission = scheduler.add(1, spec, SpelledWatch())
    assert emission is not None
    assert emission[1].finish_reason is FinishReason.LENGTH
    assert emission[1].tokens == ()
    assert not scheduler.has_work


def test_no_room_for_a_single_new_token_means_none_is_made() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec(max_new_tokens=0))
    bench.run_to_the_end()
    assert bench.heard[seq_id].tokens == []


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_shrunken_cache_ends_what_can_never_fit_again(steps: int) -> None:
    bench = Workbench(some_limits(max_tokens_per_batch=20))
    long = bench.add(a_spec(range(14), max_new_tokens=20))
    short = bench.add(a_spec((1, 2)))
    for _ in range(steps):
        bench.step()
    bench.resize(3)
    assert finish_of(bench, long) is FinishReason.LENGTH
    bench.run_to_the_end()
    assert len(bench.heard[short].tokens) == 4


def test_a_cache_that_shrinks_and_grows_loses_no_block() -> None:
    bench = Workbench(some_limits(kv_blocks=8))
    seq_id = bench.add(a_spec((1, 2), max_new_tokens=12))
    for blocks in (4, 9, 5, 16, 8):
        bench.step()
        bench.resize(blocks)
    bench.run_to_the_end()
    assert bench.heard[seq_id].tokens == fake_answer((1, 2), 12, VOCAB)


def test_a_resize_while_a_step_runs_does_not_mix_up_what_is_computed() -> None:
    bench = Workbench(some_limits(kv_blocks=8))
    seq_id = bench.add(a_spec(range(10), max_new_tokens=6))
    bench.step(amid=lambda b: b.resize(5))
    assert bench.scheduler.preemptions == 0
    bench.step()
    moved = bench.add(a_spec(range(5), max_new_tokens=2))
    bench.step(amid=lambda b: b.resize(4))
    bench.run_to_the_end()
    assert bench.heard[seq_id].tokens == fake_answer(range(10), 6, VOCAB)
    assert bench.heard[moved].tokens == fake_answer(range(5), 2, VOCAB)


def test_a_prompt_in_chunks_is_not_preempted_for_the_growth_of_a_larger_key() -> None:
    bench = Workbench(some_limits(kv_blocks=4, max_tokens_per_batch=4, watermark_share=0.0))
    large = bench.add(a_spec((1, 2, 3), priority=1, max_new_tokens=12))
    bench.step()
    small = bench.add(a_spec(range(11), priority=0, max_new_tokens=2))
    bench.run_to_the_end()
    assert bench.scheduler.preemptions > 0
    assert bench.heard[small].tokens == fake_answer(range(11), 2, VOCAB)
    assert bench.heard[large].tokens == fake_answer((1, 2, 3), 12, VOCAB)


def test_a_decoder_gets_a_token_in_every_step_beside_a_long_prompt() -> None:
    bench = Workbench(some_limits(max_tokens_per_batch=3))
    decoder = bench.add(a_spec((1, 2), priority=1, max_new_tokens=10))
    bench.step()
    bench.add(a_spec(range(16), priority=0, max_new_tokens=1))
    for _ in range(8):
        said = len(bench.heard[decoder].tokens)
        rows = bench.step()
        assert sorted(len(row.tokens) for row in rows) == [1, 2]
        assert len(bench.heard[decoder].tokens) == said + 1


def test_priority_then_arrival_decides_who_is_admitted() -> None:
    bench = Workbench(some_limits(max_batch_size=1))
    late = bench.add(a_spec((1,), arrival_ns=2, max_new_tokens=1))
    early = bench.add(a_spec((2,), arrival_ns=1, max_new_tokens=1))
    urgent = bench.add(a_spec((3,), priority=-1, arrival_ns=3, max_new_tokens=1))
    assert [bench.step()[0].seq_id for _ in range(3)] == [urgent, early, late]


def test_the_largest_key_is_preempted_and_its_answer_does_not_change() -> None:
    bench = Workbench(some_limits(kv_blocks=4, watermark_share=0.0))
    first = bench.add(a_spec((1, 2, 3), arrival_ns=1, max_new_tokens=9))
    second = bench.add(a_spec((4, 5, 6), arrival_ns=2, max_new_tokens=9))
    while not bench.scheduler.preemptions:
        bench.step()
    assert bench.scheduler.load().waiting == 1
    assert bench.scheduler.export()[0][0] == first
    assert bench.heard[first].last is None
    bench.run_to_the_end()
    assert bench.heard[second].tokens == fake_answer((4, 5, 6), 9, VOCAB)
    assert bench.scheduler.accounts.operator_ns > 0, "what is computed twice is the operator's"


def test_a_stop_token_ends_with_stop_and_is_counted() -> None:
    answer = fake_answer((1, 2, 3), 4, VOCAB)
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec((1, 2, 3), stop_token_ids=frozenset(answer[1:2])))
    bench.run_to_the_end()
    count = answer.index(answer[1]) + 1
    assert finish_of(bench, seq_id) is FinishReason.STOP
    assert bench.heard[seq_id].tokens == answer[:count]


def test_a_stop_string_ends_with_stop_before_itself() -> None:
    answer = fake_answer((1, 2, 3), 4, VOCAB)
    scheduler = Scheduler(some_limits())
    scheduler.add(1, a_spec((1, 2, 3), stop=(f"{answer[0]} ",)), SpelledWatch((f"{answer[0]} ",)))
    [row] = scheduler.plan()
    [(_, delta)] = scheduler.absorb(StepResult([row], [answer[0]], 0, 5, [5]))
    assert delta.finish_reason is FinishReason.STOP
    assert delta.text == ""
    assert delta.stop == f"{answer[0]} "
    assert delta.tokens == (answer[0],)


def test_the_second_cancel_says_nothing() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec())
    bench.cancel(seq_id)
    bench.cancel(seq_id)
    assert finish_of(bench, seq_id) is FinishReason.CANCELLED
    assert not bench.scheduler.has_work


def test_a_token_of_a_sequence_that_left_meanwhile_is_the_operators() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec())
    bench.step(500, amid=lambda b: b.cancel(seq_id))
    assert bench.heard[seq_id].tokens == []
    assert bench.scheduler.accounts.operator_ns == 500


def test_a_failed_row_takes_nobody_else_along() -> None:
    scheduler = Scheduler(some_limits())
    for seq_id in (1, 2):
        scheduler.add(seq_id, a_spec(), SpelledWatch())
    rows = scheduler.plan()
    failure = EngineFailed("one row")
    emissions = dict(scheduler.absorb(StepResult(rows, [failure, 7], 0, 10, [5, 5])))
    assert emissions[1].error is failure
    assert emissions[1].finish_reason is FinishReason.ERROR
    assert emissions[2].tokens == (7,)
    assert scheduler.ids() == [2]
    scheduler.check()


@pytest.mark.parametrize(("drawn", "budget"), [(None, 8), (7, 2)])
def test_a_runner_that_breaks_the_contract_is_told_so_and_not_waited_for(
    drawn: int | None, budget: int
) -> None:
    scheduler = Scheduler(some_limits(max_tokens_per_batch=budget))
    scheduler.add(1, a_spec((1, 2, 3)), SpelledWatch())
    rows: list[Row] = scheduler.plan()
    with pytest.raises(AssertionError, match="token"):
        scheduler.absorb(StepResult(rows, [drawn], 0, 1, [1]))


def test_a_sequence_without_a_prompt_is_refused() -> None:
    scheduler = Scheduler(some_limits())
    with pytest.raises(AssertionError, match="prompt"):
        scheduler.add(1, a_spec(()), SpelledWatch())


def test_the_load_shows_what_runs_waits_and_holds() -> None:
    bench = Workbench(some_limits(max_batch_size=1))
    bench.add(a_spec(range(5)))
    bench.add(a_spec((1,)))
    bench.step()
    load = bench.scheduler.load()
    assert (load.running, load.waiting, load.kv_blocks_used, load.steps) == (1, 1, 2, 1)


@pytest.mark.parametrize(("target_itl_ms", "fed"), [(None, 40), (0.001, 8)])
def test_a_prompt_beside_decoders_gets_on_by_what_the_runner_asks_for_unless_a_target_is_set(
    target_itl_ms: float | None, fed: int
) -> None:
    limits = some_limits(
        max_tokens_per_batch=64,
        max_sequence_length=200,
        kv_blocks=60,
        least_chunk_tokens=40,
        target_itl_ms=target_itl_ms,
    )
    bench = Workbench(limits)
    bench.add(a_spec(max_new_tokens=9))
    bench.step()
    bench.add(a_spec([n % VOCAB for n in range(100)], max_new_tokens=1))

    assert [len(row.tokens) for row in bench.step()] == [1, fed]


@pytest.mark.parametrize(("waiting", "fed"), [(1, 200), (2, 600), (30, 1000)])
def test_the_more_wait_for_their_first_token_the_longer_those_that_write_do(
    waiting: int, fed: int
) -> None:
    limits = some_limits(
        max_tokens_per_batch=1000, max_sequence_length=4000, kv_blocks=1000, max_batch_size=9
    )
    bench = Workbench(limits)
    bench.add(a_spec(max_new_tokens=9))
    bench.step()
    predictor = bench.scheduler.predictor = StepPredictor()
    for tokens in (1, 20, 100, 300) * 10:  # 100 ms a step, and half a millisecond a token
        work = StepWork().plus(0, 1).plus(0, tokens)
        predictor.learn(StepWork().plus(0, 1), 100.5)
        predictor.learn(work, 100.0 + 0.5 * work.tokens)
    predictor.tried_tokens = 1000
    for _ in range(waiting):
        bench.add(a_spec([1] * 990, max_new_tokens=1, tenant="a"))

    assert 0.85 * fed <= sum(len(row.tokens) for row in bench.scheduler.plan()) - 1 <= fed


@pytest.mark.parametrize(
    ("ago", "is_left_alone"), [(UNMEASURED_STEPS - 1, False), (UNMEASURED_STEPS, True)]
)
def test_amid_prompts_a_step_is_left_to_those_who_write_when_the_last_was_long_ago(
    ago: int, is_left_alone: bool
) -> None:
    bench = Workbench(some_limits(max_tokens_per_batch=64, max_sequence_length=200, kv_blocks=60))
    bench.add(a_spec(max_new_tokens=9))
    bench.step()
    predictor = bench.scheduler.predictor = StepPredictor()
    alone = StepWork().plus(9, 1)
    predictor.learn(alone, 100.0)
    for _ in range(ago):
        predictor.learn(alone.plus(0, 8), 120.0)
    bench.add(a_spec([n % VOCAB for n in range(100)], max_new_tokens=1))

    assert (len(bench.scheduler.plan()) == 1) is is_left_alone
