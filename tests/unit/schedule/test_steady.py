"""One pass over those that only decode, or that begin together, says, charges and keeps what the general way does."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.schedule.kit import SpelledWatch

from llmhost.core.errors import EngineFailed
from llmhost.core.output import Delta
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.core.step import DecodeRows, Drawn, Shares, StepResult
from llmhost.schedule import steady
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler
from llmhost.schedule.sequence import Sequence

BLOCK_TOKENS = 4
BLOCKS = 24
ENDS = frozenset({9})
PROMPTS = [tuple(range(10, 10 + length)) for length in range(11)]
"""Whoever has the same has the same object, as choices of one request do."""
STEP_NS, STEP_NANO = 1_000_003, 7_001

act = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 9), st.integers(1, 12)),
    st.tuples(st.just("come"), st.integers(1, 6), st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("allow"), st.integers(0, 5), st.integers(1, 6)),
    st.tuples(st.just("step"), st.integers(0, 11), st.integers(0, 11)),
    st.tuples(st.just("step"), st.integers(0, 8), st.integers(0, 8)),
    st.tuples(st.just("steps"), st.integers(0, 8), st.integers(1, 8)),
)


class Run:
    """One scheduler that is told what happens, and what all of it said."""

    def __init__(self, *, is_looked_at: bool = True, is_let_in_alone: bool = True) -> None:
        """`is_looked_at`: after each step, by whoever wants to know of each what has become of it. `is_let_in_alone`:
        of those that come together, one after the other."""
        self._is_looked_at = is_looked_at
        self._is_let_in_alone = is_let_in_alone
        self.scheduler = Scheduler(
            SchedulerLimits(
                max_batch_size=3,
                max_tokens_per_batch=32,
                max_sequence_length=40,
                kv_blocks=BLOCKS,
                block_tokens=BLOCK_TOKENS,
            )
        )
        self.said: list[tuple[int, Delta]] = []
        self.decoded_steps = 0
        self._ids = 0

    def do(self, name: str, one: int, other: int) -> None:
        if name == "add":
            self._ids += 1
            self._hear(self.scheduler.add(self._ids, spec(self._ids, one, other), SpelledWatch()))
        elif name == "come":
            self._come(one, one + BLOCK_TOKENS * (other % 2), other)
        elif name == "cancel":
            self._hear(self.scheduler.cancel(one))
        elif name == "allow":
            self._hear(self.scheduler.allow(one, one + other, is_final=other % 2 == 0))
        else:
            for _ in range(other if name == "steps" else 1):
                self._step(one, 0 if name == "steps" else other)

    def _come(self, prompt: int, longer: int, answer: int) -> None:
        """Three of one tenant: two that may share what is known, and one that shares with nobody."""
        asked = [(prompt, "acme"), (longer, "acme"), (prompt, f"team {self._ids}")]
        specs = [
            structs.replace(spec(seq_id, length, answer), tenant="acme", cache_scope=scope)
            for seq_id, (length, scope) in enumerate(asked, self._ids + 1)
        ]
        started = [Sequence.start(each.seed, each, SpelledWatch()) for each in specs]
        self._ids += len(specs)
        for group in [[one] for one in started] if self._is_let_in_alone else [started]:
            self.said += self.scheduler.let_in(group)

    def _step(self, token: int, failing: int) -> None:
        rows = self.scheduler.plan()
        if not rows:
            return
        self.decoded_steps += type(rows) is DecodeRows
        if token == 11:  # it ends while the step runs
            self._hear(self.scheduler.cancel(rows[0].seq_id))
        shares = Shares(STEP_NS, rows)
        drawn: list[Drawn] = [
            EngineFailed("as told") if failing == place + 9 else token if row.wants_token else None
            for place, row in enumerate(rows)
        ]
        self.said += self.scheduler.absorb(StepResult(rows, drawn, 0, STEP_NS, shares, STEP_NANO))
        if self._is_looked_at:
            self.scheduler.check()

    def _hear(self, emission: tuple[int, Delta] | None) -> None:
        self.said += [] if emission is None else [emission]

    def state(self) -> dict[str, Any]:
        load = self.scheduler.load()
        books = (load.callers_nano, load.operator_nano, load.operator_ns, load.kv_blocks_used)
        told = [(seq_id, repr(delta)) for seq_id, delta in self.said]
        left, predictor = self.scheduler.export(), self.scheduler.predictor
        for fit in (predictor._decoding, predictor._prompts):
            fit._fit()  # else only where somebody has asked
        learnt = [vars(fit) for fit in (predictor._decoding, predictor._prompts)]
        rate = (predictor.seen, predictor.is_stale, self.scheduler._ns_per_token)
        return {"said": told, "books": books, "left": left, "learnt": (learnt, rate)}


def spec(seq_id: int, prompt: int, answer: int) -> SequenceSpec:
    return SequenceSpec(
        request_id=f"req_{seq_id}",
        index=0,
        model=ModelRef("m", 1),
        prompt=PROMPTS[prompt],
        sampling=Sampling(),
        seed=seq_id,
        max_new_tokens=answer,
        held_tokens=answer // 2 + 1,
        stop_token_ids=ENDS,
        arrival_ns=seq_id,
        tenant="acme" if seq_id % 3 else "globex",
    )


@example([("come", 5, 1), ("steps", 0, 8), ("come", 5, 2), ("steps", 0, 8)] * 2, False, 2)
@given(st.lists(act, max_size=60), st.booleans(), st.sampled_from([2, steady.SPLIT_TOGETHER]))
def test_both_ways_have_the_same_outcome(
    acts: list[tuple[str, int, int]], is_looked_at: bool, together: int
) -> None:
    quick, general = Run(is_looked_at=is_looked_at, is_let_in_alone=False), Run()
    general.scheduler._steady = lambda: None  # type: ignore[method-assign]
    general.scheduler._begin_together = lambda: None  # type: ignore[method-assign]
    alone = general.scheduler._absorb
    general.scheduler._absorb_fresh = lambda *columns: [  # type: ignore[method-assign]
        said
        for row, drawn, share in zip(*columns, strict=True)
        for said in alone(row, drawn, *share)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steady, "SPLIT_TOGETHER", together)
        for each in acts:
            quick.do(*each)
            general.do(*each)
    quick.scheduler.check()
    assert quick.state() == general.state()
    assert general.decoded_steps == 0


def test_an_answer_that_is_alone_is_decoded_in_one_pass() -> None:
    run = Run()
    run.do("add", 3, 12)
    for _ in range(8):
        run.do("step", 1, 0)
        run.do("allow", 1, 11)
    assert (
        run.decoded_steps == 6
    )  # all but the prompt's, and the answer's first, by which it shows what it is


def test_what_many_say_together_is_told_to_each_when_somebody_comes() -> None:
    run = Run(is_looked_at=False)
    run.do("add", 3, 30)
    run.do("allow", 1, 30)
    for _ in range(6):
        run.do("step", 1, 0)
    assert run.scheduler._convoy is not None
    run.do("add", 2, 2)
    assert run.scheduler._convoy is None
    [(_, first), _] = run.scheduler.export()
    assert (len(first.generated), first.high_water) == (6, 8)


def test_what_is_not_plain_shows_in_no_row_of_such_a_step() -> None:
    run = Run()
    sampling = Sampling(logprobs=2)
    run.scheduler.add(1, structs.replace(spec(1, 3, 12), sampling=sampling), SpelledWatch())
    for _ in range(4):
        run.do("step", 1, 0)
    assert run.decoded_steps == 0


def test_as_many_begin_together_as_may_run_at_once_and_what_is_known_needs_no_room() -> None:
    run = Run()
    long = structs.replace(spec(0, 10, 1), prompt=tuple(range(10, 23)), tenant="acme")
    run.scheduler.add(99, long, SpelledWatch())
    run.do("steps", 0, 4)
    assert not run.scheduler.has_work, "12 of its 13 tokens are known from now on"
    for seq_id in range(1, 5):
        run.scheduler.add(seq_id, long, SpelledWatch())

    begun = run.scheduler._begin_together()

    assert begun is not None, "of three with 39 tokens 3 are fed, and a step takes 32"
    assert [sequence.seq_id for sequence in begun] == [1, 2, 3]
    assert len(run.scheduler._waiting) == 1
