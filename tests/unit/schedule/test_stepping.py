"""Steps that fail: only those end that must, everybody else's answer is what it would have been."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.schedule.kit import BLOCK_TOKENS, VOCAB, SpelledWatch, a_spec, some_limits

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed, OutOfMemory
from llmhost.core.output import Delta, FinishReason
from llmhost.core.sequence import Pooling
from llmhost.core.step import Drawn, Row, StepResult
from llmhost.engines.fake import FakeRunner, fake_answer
from llmhost.gpu.lane import FreeLane
from llmhost.observe.clock import SystemClock
from llmhost.schedule.scheduler import Scheduler
from llmhost.schedule.stepping import Stepper, TokenBudget, halves


class Trying(FakeRunner):
    """Fails a step that has a row of `culprits` in it, or feeds more than `room` tokens, or while `is_broken`."""

    def __init__(self, culprits: Sequence[int] = (), room: int = 10**6) -> None:
        super().__init__(FakeOptions(vocab=VOCAB), block_tokens=BLOCK_TOKENS)
        self.culprits = set(culprits)
        self.room = room
        self.is_broken = False
        self.runs = 0
        self.largest = 0

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        self.runs += 1
        drawn = super().run(rows)
        fed = sum(len(row.tokens) for row in rows)
        if fed > self.room:
            raise OutOfMemory("cuda:0")
        if self.is_broken or self.culprits & {row.seq_id for row in rows}:
            raise ValueError("a kernel that does not like it")
        self.largest = max(self.largest, fed)
        return drawn


class Bench:
    """A scheduler and a stepper without a thread, and what their callers hear."""

    def __init__(self, runner: FakeRunner, **limits: object) -> None:
        limits = {"max_batch_size": 16, "max_tokens_per_batch": 64, "kv_blocks": 128, **limits}
        self.scheduler = Scheduler(some_limits(**limits))
        runner.set_kv_blocks(128)
        self.results: list[StepResult] = []
        self.stepper = Stepper(
            "m@1",
            runner,
            self.scheduler,
            lane=FreeLane(SystemClock()),
            on_step=lambda result: self.results.append(result),
        )
        self.said: dict[int, list[int]] = {}
        self.ends: dict[int, Delta] = {}

    def add(self, seq_id: int, **changes: object) -> None:
        self.said[seq_id] = []
        spec = a_spec((seq_id % VOCAB, 1, 2), arrival_ns=seq_id, **{"max_new_tokens": 6, **changes})
        self.scheduler.add(seq_id, spec, SpelledWatch())

    def step(self) -> None:
        rows = self.scheduler.plan()
        for seq_id, delta in self.stepper.step(rows):
            assert seq_id not in self.ends
            self.said[seq_id] += delta.tokens
            if delta.finish_reason is not None:
                self.ends[seq_id] = delta
        self.scheduler.check()

    def run(self, most_steps: int = 500) -> None:
        for _ in range(most_steps):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("no end")

    def failed(self) -> set[int]:
        return {i for i, end in self.ends.items() if end.finish_reason is FinishReason.ERROR}


def whole(bench: Bench, seq_id: int, count: int = 6) -> bool:
    return bench.said[seq_id] == fake_answer((seq_id % VOCAB, 1, 2), count, VOCAB)


# ---------------------------------------------------------------- who must fail


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.sets(st.integers(0, 15), max_size=2))
def test_only_the_rows_that_break_a_step_fail(count: int, culprits: set[int]):
    runner = Trying(sorted(culprits))
    bench = Bench(runner)
    for seq_id in range(count):
        bench.add(seq_id)
    bench.run()

    assert bench.failed() == {i for i in culprits if i < count}
    assert all(whole(bench, i) for i in range(count) if i not in culprits)
    assert bench.stepper.failures == 0 or bench.failed() == set(range(count))


def test_an_error_that_does_not_come_again_ends_nobody():
    runner = Trying()
    bench = Bench(runner)
    for seq_id in range(5):
        bench.add(seq_id)
    bench.step()
    runner.culprits = {0}
    run = runner.run

    def once(rows: Sequence[Row]) -> list[Drawn]:
        try:
            return run(rows)
        finally:
            runner.culprits = set()

    runner.run = once  # type: ignore[method-assign]
    bench.run()
    assert bench.failed() == set()
    assert all(whole(bench, i) for i in range(5))


def test_a_culprit_is_found_with_few_runs_and_none_is_lost_on_a_device_that_is_gone():
    runner = Trying([11])
    bench = Bench(runner)
    for seq_id in range(16):
        bench.add(seq_id)
    bench.step()
    assert runner.runs <= 10

    runner = Trying()
    runner.is_broken = True
    bench = Bench(runner)
    for seq_id in range(16):
        bench.add(seq_id)
    bench.step()
    assert runner.runs <= 45
    assert bench.failed() == set(range(16))
    assert bench.stepper.failures == 1


def test_steps_of_which_nothing_came_add_up_and_a_good_one_forgets_them():
    runner = Trying()
    bench = Bench(runner)
    for failures in (1, 2):
        runner.is_broken = True
        bench.add(failures)
        bench.step()
        assert bench.stepper.failures == failures
    runner.is_broken = False
    bench.add(3)
    bench.step()
    assert bench.stepper.failures == 0


def test_lost_time_is_the_operators_and_the_rest_is_shared_out():
    bench = Bench(Trying([2]))
    for seq_id in range(4):
        bench.add(seq_id)
    bench.run()
    charged = sum(end.usage.engine_ns for end in bench.ends.values() if end.usage)
    assert charged == sum(result.busy_ns for result in bench.results)
    assert bench.scheduler.accounts.operator_ns > 0


def test_keys_and_values_that_could_not_be_moved_fail_their_step():
    runner = Trying()
    bench = Bench(runner)
    bench.add(1)
    bench.scheduler.take_moves = lambda: [object()]  # type: ignore[assignment, list-item, return-value]

    def refuse(moves: object) -> None:
        raise OSError("pinned memory is gone")

    runner.move_blocks = refuse  # type: ignore[method-assign, assignment]
    bench.step()
    assert bench.failed() == {1}
    assert runner.runs == 0
    assert bench.stepper.failures == 1


# ---------------------------------------------------------------- too little memory


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 30))
def test_with_too_little_memory_steps_shrink_and_every_answer_is_whole(
    count: int, room: int, prompt_tokens: int
):
    runner = Trying(room=room)
    bench = Bench(runner)
    prompts = [tuple((i + n) % VOCAB for n in range(prompt_tokens)) for i in range(count)]
    for seq_id, prompt in enumerate(prompts):
        bench.said[seq_id] = []
        bench.scheduler.add(seq_id, a_spec(prompt, max_new_tokens=6), SpelledWatch())
    bench.run(2_000)

    assert bench.failed() == set()
    for seq_id, prompt in enumerate(prompts):
        assert bench.said[seq_id] == fake_answer(prompt, 6, VOCAB)
    assert runner.largest <= room


def test_one_token_that_does_not_fit_fails_its_sequence_by_name():
    bench = Bench(Trying(room=0))
    bench.add(1)
    bench.run()
    assert isinstance(bench.ends[1].error, OutOfMemory)
    assert bench.ends[1].error.code == "engine_out_of_memory"


def test_a_text_that_must_be_fed_at_once_and_does_not_fit_fails_alone():
    bench = Bench(Trying(room=2))
    bench.add(1, pooling=Pooling("embed"))
    bench.add(2)
    bench.run()
    assert bench.failed() == {1}
    assert isinstance(bench.ends[1].error, EngineFailed)
    assert whole(bench, 2)


def test_the_budget_comes_back_slowly():
    budget = TokenBudget(1000)
    assert budget.cut(1000)
    assert budget.now == 500
    grown = sum(budget.went_well() for _ in range(40))
    assert 1 <= grown <= 3
    for _ in range(200):
        budget.went_well()
    assert budget.now == 1000
    assert not budget.cut(1)


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_halves_are_all_of_it(count: int):
    rows = [a_row(i) for i in range(count)]
    assert [row for part in halves(rows) for row in part] == rows


def a_row(seq_id: int) -> Row:
    return Row(seq_id, [1], 0, [0], a_spec().sampling, 0, True)
