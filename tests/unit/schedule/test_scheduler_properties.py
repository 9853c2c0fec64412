"""Whatever arrives, leaves, fails, shrinks or moves: every sequence gets its own words, and the books balance."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.unit.schedule.kit import BLOCK_TOKENS, VOCAB, Workbench, a_spec

from llmhost.core.sequence import SequenceSpec
from llmhost.schedule.limits import SchedulerLimits

limits = st.builds(
    SchedulerLimits,
    max_batch_size=st.integers(1, 5),
    max_tokens_per_batch=st.integers(1, 12),
    max_sequence_length=st.integers(8, 48),
    kv_blocks=st.integers(2, 10),
    block_tokens=st.just(BLOCK_TOKENS),
    watermark_share=st.sampled_from([0.0, 0.02, 0.3]),
    host_kv_blocks=st.sampled_from([0, 1, 3, 20]),
    prefix_cache=st.booleans(),
)


@st.composite
def specs(draw: st.DrawFn) -> SequenceSpec:
    return a_spec(
        # Few different tokens make common beginnings.
        draw(st.lists(st.integers(0, draw(st.sampled_from([0, 1, 15]))), min_size=1, max_size=24)),
        priority=draw(st.integers(-1, 1)),
        tenant=draw(st.sampled_from("ab")),
        cache_scope=draw(st.sampled_from("xy")),
        arrival_ns=draw(st.integers(0, 3)),
        max_new_tokens=draw(st.integers(1, 16)),
        stop_token_ids=frozenset(draw(st.sets(st.integers(0, VOCAB - 1), max_size=2))),
        held_tokens=draw(st.none() | st.integers(1, 16)),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Random life of a scheduler; the workbench audits every act."""

    @initialize(limits=limits)
    def open(self, limits: SchedulerLimits) -> None:
        self.bench = Workbench(limits)

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.bench.callers)))

    @rule(spec=specs())
    def add(self, spec: SequenceSpec) -> None:
        self.bench.add(spec)

    @rule(interval_ns=st.integers(0, 10**7))
    def step(self, interval_ns: int) -> None:
        self.bench.step(interval_ns)

    @rule(right=st.lists(st.booleans(), min_size=1, max_size=5))
    def guess_and_step(self, right: list[bool]) -> None:
        self.bench.guess(right)
        self.bench.step(1_003)

    @precondition(lambda self: self.bench.callers)
    @rule(data=st.data(), held_tokens=st.integers(1, 16), is_final=st.booleans())
    def allow(self, data: st.DataObject, held_tokens: int, is_final: bool) -> None:
        self.bench.allow(self.pick(data), held_tokens, is_final=is_final)

    @precondition(lambda self: self.bench.callers)
    @rule(data=st.data(), held_tokens=st.integers(1, 16), is_final=st.booleans())
    def allow_amid_a_step(self, data: st.DataObject, held_tokens: int, is_final: bool) -> None:
        seq_id = self.pick(data)
        self.bench.step(amid=lambda bench: bench.allow(seq_id, held_tokens, is_final=is_final))

    @precondition(lambda self: self.bench.callers)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.bench.scheduler.preempt([self.pick(data)])

    @rule()
    def forget_texts(self) -> None:
        self.bench.scheduler.forget_texts()

    @rule(count=st.integers(2, 6))
    def several_steps(self, count: int) -> None:
        for _ in range(count):
            self.bench.step(1_001)

    @precondition(lambda self: self.bench.callers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.bench.cancel(self.pick(data))

    @precondition(lambda self: self.bench.callers)
    @rule(data=st.data())
    def cancel_amid_a_step(self, data: st.DataObject) -> None:
        seq_id = self.pick(data)
        self.bench.step(amid=lambda bench: bench.cancel(seq_id))

    @precondition(lambda self: self.bench.callers)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.bench.fail([self.pick(data)])

    @rule(blocks=st.integers(1, 12))
    def resize(self, blocks: int) -> None:
        self.bench.resize(blocks)

    @rule(blocks=st.integers(1, 12))
    def resize_amid_a_step(self, blocks: int) -> None:
        self.bench.step(amid=lambda bench: bench.resize(blocks))

    @rule(limits=limits)
    def move(self, limits: SchedulerLimits) -> None:
        self.bench.move(limits)

    @invariant()
    def nothing_is_out_of_place(self) -> None:
        if hasattr(self, "bench"):
            self.bench.audit()

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.run_to_the_end()


TestAnyLifeOfAScheduler = SchedulerMachine.TestCase
TestAnyLifeOfAScheduler.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(limits=limits, specs=st.lists(specs(), min_size=1, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_answer_is_the_oracles_whatever_the_limits_and_the_neighbours(
    limits: SchedulerLimits, specs: list[SequenceSpec], data: st.DataObject
) -> None:
    bench = Workbench(limits)
    for spec in specs:
        bench.add(spec)
        for _ in range(data.draw(st.integers(0, 3))):
            bench.step()
    bench.run_to_the_end()


@given(limits=limits, specs=st.lists(specs(), min_size=1, max_size=6), pause=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_a_move_to_another_scheduler_changes_no_answer(
    limits: SchedulerLimits, specs: list[SequenceSpec], pause: int
) -> None:
    stayed, moved = Workbench(limits), Workbench(limits)
    for spec in specs:
        stayed.add(spec)
        moved.add(spec)
    for _ in range(pause):
        moved.step()
    moved.move(replace(limits, max_tokens_per_batch=3, max_batch_size=2))
    stayed.run_to_the_end()
    moved.run_to_the_end()
    assert [h.tokens for h in stayed.heard.values()] == [h.tokens for h in moved.heard.values()]
