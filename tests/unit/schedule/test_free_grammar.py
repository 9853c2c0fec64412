"""Sequences whose grammars hold them only now and then: nothing is asked of a grammar while it does not."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.unit.schedule.kit import VOCAB, SpelledWatch, a_spec, some_limits

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.grammar import GrammarSpec
from llmhost.core.sampling import Sampling
from llmhost.core.step import Row, StepResult
from llmhost.engines.drawing import settled
from llmhost.engines.fake import FakeRunner, fake_answer
from llmhost.schedule.scheduler import Scheduler

SPEC = a_spec(
    max_new_tokens=8, grammar=GrammarSpec("auto_calls", ""), sampling=Sampling(temperature=0.0)
)
SAID = fake_answer(SPEC.prompt, 8, VOCAB)


@dataclass
class Now:
    """Holds what comes after the second token, up to the fourth."""

    accepted: list[int] = field(default_factory=list)
    is_ended: bool = False

    @property
    def is_free(self) -> bool:
        return not 2 <= len(self.accepted) < 4

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        return len(tokens)


def step(scheduler: Scheduler, rows: list[Row]) -> None:
    drawn = [fake_answer(row.known, 1, VOCAB)[0] for row in rows]
    scheduler.absorb(StepResult(rows, drawn, 0, 1, [1] * len(rows)))
    scheduler.check()


def test_a_row_has_a_grammar_only_while_it_is_held_and_nobody_is_kept_from_going_ahead() -> None:
    scheduler, grammar = Scheduler(some_limits()), Now()
    scheduler.add(1, SPEC, SpelledWatch(), grammar)
    scheduler.add(2, a_spec(max_new_tokens=8), SpelledWatch())
    held, ahead = [], []
    while scheduler.has_work:
        rows = scheduler.plan()
        held.append(rows[0].grammar is grammar)
        assert rows[1].grammar is None
        planned = scheduler.plan_ahead()
        ahead.append(bool(planned))
        assert all(row.grammar is (grammar if row.seq_id == 1 else None) for row in planned)
        scheduler.unplan(planned)
        step(scheduler, rows)

    assert held == [False, False, True, True, False, False, False, False]
    assert ahead == [True] * 7 + [False]
    assert grammar.accepted == SAID[: len(grammar.accepted)]


def test_a_free_answer_of_which_more_is_wanted_has_no_grammar_either() -> None:
    scheduler = Scheduler(some_limits())
    spec = a_spec(
        max_new_tokens=8, grammar=SPEC.grammar, sampling=Sampling(temperature=0.0, logprobs=1)
    )
    scheduler.add(1, spec, SpelledWatch(), Now())
    held = []
    while scheduler.has_work:
        rows = scheduler.plan()
        held.append(rows[0].grammar is not None)
        step(scheduler, [*rows])

    assert held == [False, False, True, True, False, False, False, False]


def test_what_was_said_before_a_move_decides_whether_it_is_held() -> None:
    scheduler, grammar = Scheduler(some_limits()), Now()
    scheduler.add(1, SPEC, SpelledWatch(), grammar)
    for _ in range(3):
        step(scheduler, scheduler.plan())
    [(_, exported)] = scheduler.export()
    elsewhere, again = Scheduler(some_limits()), Now()
    elsewhere.add(1, exported, SpelledWatch(), again)

    assert again.accepted == SAID[:3]
    assert elsewhere.plan()[0].grammar is again


def test_the_fake_runner_needs_no_mask_for_a_free_row() -> None:
    runner = FakeRunner(FakeOptions(vocab=VOCAB), block_tokens=4)
    runner.set_kv_blocks(8)
    scheduler = Scheduler(some_limits(kv_blocks=8))
    scheduler.add(1, SPEC, SpelledWatch(), Now())

    assert runner.run(scheduler.plan()) == [SAID[0]]


def test_a_step_begun_ahead_has_the_grammar_that_may_come_to_hold_it() -> None:
    scheduler, grammar = Scheduler(some_limits()), Now()
    scheduler.add(1, SPEC, SpelledWatch(), grammar)
    step(scheduler, scheduler.plan())
    second, third = scheduler.plan(), scheduler.plan_ahead()
    assert third[0].grammar is grammar
    assert settled(third[0]).grammar is None, "it stands before the second token"
    for rows, token in ((second, SAID[1]), (third, SAID[2])):
        scheduler.absorb(StepResult(rows, [token], 0, 1, [1]))
        assert settled(third[0]).grammar is grammar, "it holds what comes after the second token"
        scheduler.check()

    assert grammar.accepted == SAID[:3]
    assert scheduler.plan()[0].grammar is grammar
