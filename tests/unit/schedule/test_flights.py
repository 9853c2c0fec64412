"""Steps that are begun before the last one has been looked at: the same answers, whatever happens in the air."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.schedule.kit import (
    BLOCK_TOKENS,
    VOCAB,
    Heard,
    SpelledWatch,
    a_spec,
    check_answer,
    some_limits,
)

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.grammar import GrammarSpec
from llmhost.core.meter import FREE, Rate
from llmhost.core.output import FinishReason, Usage
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import PENDING, Drawn, GrammarState, KvMove, Row, StepResult
from llmhost.engines.fake import FakeFlight, FakeRunner, fake_answer
from llmhost.gpu.lane import DeviceLane
from llmhost.schedule.flights import LEAST_AHEAD, MOST_AHEAD, STEPS_ON_FOOT, Flights, GuessRhythm
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler
from llmhost.schedule.stepping import Stepper
from llmhost.text.words import WordTokenizer


class Ticking:
    """A clock that moves with every reading."""

    now_ns = 0

    def monotonic_ns(self) -> int:
        self.now_ns += 7
        return self.now_ns

    def utc_ns(self) -> int:
        return self.monotonic_ns()


class Stormy(FakeRunner):
    """Raises where its script says so: at a launch, or when a step lands."""

    def __init__(self, script: Sequence[str] = ()) -> None:
        super().__init__(FakeOptions(vocab=VOCAB), block_tokens=BLOCK_TOKENS, runs_ahead=True)
        self.script = list(script)
        self.pending_rows = 0

    def launch(self, rows: Sequence[Row]) -> FakeFlight:
        self.pending_rows += sum(PENDING in row.tokens for row in rows)
        weather = self.script.pop(0) if self.script else "fine"
        if weather == "launch":
            raise RuntimeError("could not be launched")
        flight = super().launch(rows)
        return replace(flight, wait=_crash) if weather == "land" else flight

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        assert not any(PENDING in row.tokens for row in rows)
        return super().run(rows)


class Walking(Stormy):
    """Every step is looked at before the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = replace(self.facts, runs_ahead=False)


def _crash() -> None:
    raise RuntimeError("it did not land")


@dataclass
class Airfield:
    """A scheduler whose steps fly, as the engine loop has them fly."""

    runner: FakeRunner
    limits: SchedulerLimits = field(default_factory=some_limits)
    rate: Rate = FREE
    heard: dict[int, Heard] = field(default_factory=dict)
    results: list[StepResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Ticking()
        self.lane = DeviceLane("fake", self.clock, self.rate)
        self.scheduler = Scheduler(self.limits)
        self.runner.set_kv_blocks(self.limits.kv_blocks)
        self.runner.set_host_blocks(self.limits.host_kv_blocks)
        self.stepper = Stepper(
            "fake",
            self.runner,
            self.scheduler,
            lane=self.lane,
            on_step=lambda result: self.results.append(result),
        )
        self.flights = Flights(self.runner, self.scheduler, self.stepper, self.lane)

    def add(self, spec: SequenceSpec, grammar: GrammarState | None = None) -> int:
        seq_id = len(self.heard) + 1
        self.heard[seq_id] = Heard(spec)
        self._hear([self.scheduler.add(seq_id, spec, SpelledWatch(spec.stop), grammar)])
        return seq_id

    def cancel(self, seq_id: int) -> None:
        self._hear([self.scheduler.cancel(seq_id)])

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> None:
        if seq_id in self.heard and self.heard[seq_id].last is None:
            heard = self.heard[seq_id]
            heard.spec = heard.spec.allowed(held_tokens, is_final=is_final)
        self._hear([self.scheduler.allow(seq_id, held_tokens, is_final=is_final)])

    def turn(self) -> None:
        if not self.flights.is_up:
            rows = self.scheduler.plan()
            if not rows:
                return
            if not self.flights.may_launch(rows):
                self._hear(self.stepper.step(rows))
                return
            if not self.flights.launch(rows):
                return
        if ahead := self.scheduler.plan_ahead():
            self.flights.launch(ahead)
        self._hear(self.flights.land())
        self.scheduler.check()

    def run_to_the_end(self) -> None:
        for _ in range(2_000):
            if not (self.scheduler.has_work or self.flights.is_up):
                break
            self.turn()
            if self.scheduler.is_held_up:
                for seq_id in self.scheduler.ids():
                    self.allow(seq_id, len(self.heard[seq_id].tokens) + 2)
        assert self.scheduler.ids() == []
        assert self.scheduler.books.free == self.scheduler.books.total
        for heard in self.heard.values():
            check_answer(heard)

    def usage(self) -> Usage:
        """Of all who were heard to the end."""
        ends = [heard.last for heard in self.heard.values()]
        return sum((end.usage for end in ends if end and end.usage), start=Usage())

    def _hear(self, emissions: Sequence[object]) -> None:
        for emission in emissions:
            if emission is None:
                continue
            seq_id, delta = emission  # type: ignore[misc]
            heard = self.heard[seq_id]
            assert heard.last is None, "something was said after the last delta"
            heard.tokens += delta.tokens
            heard.reports += delta.logprobs
            held_tokens = heard.spec.held_tokens
            assert held_tokens is None or len(heard.tokens) <= held_tokens, "not paid for"
            if delta.finish_reason is not None:
                heard.last = delta
                heard.limit_at_end = self.scheduler.longest_tokens


specs = st.builds(
    lambda prompt, count, stop, logprobs, held: a_spec(
        prompt,
        max_new_tokens=count,
        stop_token_ids=frozenset(stop),
        sampling=Sampling(temperature=0.0, logprobs=logprobs),
        held_tokens=held,
    ),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
    st.integers(1, 12),
    st.sets(st.integers(0, VOCAB - 1), max_size=2),
    st.sampled_from([None, None, None, None, 1]),
    st.none() | st.integers(1, 8),
)
WORDS = WordTokenizer(VOCAB)
CHOICES = [WORDS.decode(tokens) for tokens in ([5, 6, 7, 8], [5, 9], [6, 2, 2, 2, 1], [1, 3, 1])]
FORM = GrammarSpec("choice", json.dumps(CHOICES))
WORDS.compile_grammar(FORM)
shapes = st.builds(
    Sampling,
    temperature=st.just(0.0),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    logit_bias=st.sampled_from([(), (), ((2, 6.0), (4, -3.0))]),
    allowed_token_ids=st.sampled_from([None, None, (1, 2, 3, 4)]),
    bad_words=st.sampled_from([(), (), ((4,), (2, 1), (1, 2, 1))]),
    logprobs=st.sampled_from([None, None, 2]),
)
acts = st.one_of(
    st.tuples(st.just("add"), specs),
    st.tuples(st.just("cancel"), st.integers(1, 8)),
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("allow"), st.tuples(st.integers(1, 8), st.integers(1, 12), st.booleans())),
)


@given(
    st.lists(acts, max_size=25),
    st.lists(st.sampled_from(["fine", "fine", "fine", "launch", "land"]), max_size=20),
    st.sampled_from([14, 20, 32]),
    st.builds(Rate, st.integers(0, 10_000), st.integers(1, 700)),
)
def test_answers_and_books_are_right_whatever_happens_in_the_air(
    script: list[tuple[str, object]], weather: list[str], blocks: int, rate: Rate
) -> None:
    limits = some_limits(kv_blocks=blocks, host_kv_blocks=blocks // 4)
    field = Airfield(Stormy(weather), limits, rate)
    for act, what in script:
        match act, what:
            case "add", SequenceSpec() as spec:
                field.add(spec)
            case "cancel", int(seq_id):
                field.cancel(seq_id)
            case "allow", (int(seq_id), int(held_tokens), bool(is_final)):
                field.allow(seq_id, held_tokens, is_final=is_final)
            case "turn", int(turns):
                for _ in range(turns):
                    field.turn()
    field.run_to_the_end()

    busy_ns, idle_ns = field.lane.totals()
    assert busy_ns + idle_ns <= field.clock.now_ns
    shares_ns = sum(sum(result.shares_ns) for result in field.results)
    usage = field.usage()
    assert usage.engine_ns + field.scheduler.accounts.operator_ns == busy_ns
    assert shares_ns <= busy_ns
    assert usage.cost_nano == field.scheduler.accounts.callers_nano
    assert usage.cost_nano + field.scheduler.accounts.operator_nano == rate.whole(busy_ns)
    assert 0 <= usage.input_cost_nano <= usage.cost_nano


def test_decoding_goes_ahead() -> None:
    field = Airfield(runner := Stormy())
    field.add(a_spec(max_new_tokens=9))
    field.add(a_spec((7, 8), max_new_tokens=9))
    field.run_to_the_end()

    assert runner.pending_rows == 16, "all tokens but the first were fed before they were known"
    assert field.scheduler.steps == 9, "no step was for nothing: they end for certain"


def test_what_is_in_the_air_counts_against_what_is_paid_for() -> None:
    field = Airfield(runner := Stormy())
    field.add(a_spec(max_new_tokens=9, held_tokens=4))
    for _ in range(9):
        field.turn()

    assert len(field.heard[1].tokens) == field.scheduler.steps == 4
    assert runner.pending_rows == 3
    assert not field.flights.is_up, "the device is free while it waits"
    field.allow(1, 6, is_final=True)
    field.run_to_the_end()
    assert field.scheduler.steps == 6
    assert field.scheduler.accounts.operator_ns == 0


def test_an_answer_that_ends_by_surprise_costs_the_operator_a_row() -> None:
    field = Airfield(Stormy())
    *before, end = fake_answer((1, 2, 3), 3, VOCAB)
    assert end not in before
    field.add(a_spec(max_new_tokens=9, stop_token_ids=frozenset([end])))
    field.run_to_the_end()

    assert field.heard[1].last is not None
    assert field.heard[1].last.finish_reason is FinishReason.STOP
    assert field.scheduler.steps == 4
    assert field.scheduler.accounts.operator_ns == sum(field.results[-1].shares_ns)


def test_busy_intervals_of_overlapping_steps_lie_one_after_the_other() -> None:
    field = Airfield(Stormy())
    field.add(a_spec(max_new_tokens=6))
    field.run_to_the_end()

    bounds = [(result.started_ns, result.ended_ns) for result in field.results]
    assert all(before[1] == after[0] for before, after in pairwise(bounds))


def test_while_somebody_wants_to_know_the_prompt_s_log_probabilities_nothing_flies_ahead() -> None:
    field = Airfield(runner := Stormy())
    field.add(a_spec(max_new_tokens=6))
    field.add(a_spec(max_new_tokens=6, sampling=Sampling(temperature=0.0, prompt_logprobs=1)))
    for _ in range(4):
        field.turn()

    assert runner.pending_rows == 0


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 6), min_size=1, max_size=20),
            shapes,
            st.integers(0, 5),
            st.sampled_from([None, None, FORM]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_shapes_an_answer_does_so_ahead_as_well(
    asked: list[tuple[list[int], Sampling, int, GrammarSpec | None]],
) -> None:
    """Penalties, biases, bad words, least lengths, reports and grammars, beside those that want nothing special."""
    flying, walking = Airfield(runner := Stormy()), Airfield(Walking())
    for one in (flying, walking):
        for prompt, sampling, least, form in asked:
            spec = a_spec(
                prompt,
                max_new_tokens=9,
                sampling=sampling,
                stop_token_ids=frozenset({3}),
                min_new_tokens=least,
                grammar=form,
            )
            one.add(spec, None if form is None else WORDS.grammar(form))
        while one.scheduler.has_work or one.flights.is_up:
            one.turn()

    assert runner.pending_rows > 0 or flying.scheduler.steps < 3
    for seq_id, heard in flying.heard.items():
        assert heard.tokens == walking.heard[seq_id].tokens
        assert heard.reports == walking.heard[seq_id].reports
        assert heard.last is not None
        assert heard.last.finish_reason is walking.heard[seq_id].last.finish_reason  # type: ignore[union-attr]


def test_a_grammar_keeps_nobody_from_going_ahead() -> None:
    field = Airfield(runner := Stormy())
    field.add(a_spec(max_new_tokens=4))
    field.add(a_spec(max_new_tokens=4, grammar=FORM), WORDS.grammar(FORM))
    for _ in range(4):
        field.turn()

    assert runner.pending_rows == 6
    assert WORDS.decode(field.heard[2].tokens) in CHOICES


def test_a_draw_that_fails_is_made_on_foot() -> None:
    class Torn(Stormy):
        is_torn = False

        def launch(self, rows: Sequence[Row]) -> FakeFlight:
            flight = super().launch(rows)
            compute = flight.compute

            def torn() -> list[Drawn]:
                if self.is_torn:
                    raise RuntimeError("could not be drawn")
                return compute()

            return replace(flight, compute=torn)

    field = Airfield(runner := Torn())
    field.add(a_spec(max_new_tokens=4))
    field.add(a_spec(max_new_tokens=4, grammar=FORM), WORDS.grammar(FORM))
    field.turn()
    runner.is_torn = True
    field.turn()
    assert not field.flights.is_up
    while field.scheduler.has_work:
        field.turn()

    assert WORDS.decode(field.heard[2].tokens) in CHOICES
    assert field.heard[1].tokens == fake_answer((1, 2, 3), 4, VOCAB)


def test_after_a_crash_steps_go_on_foot_for_a_while() -> None:
    field = Airfield(Stormy(["fine", "fine", "land"]))
    field.add(a_spec(max_new_tokens=STEPS_ON_FOOT + 12))
    field.run_to_the_end()

    assert field.flights.wasted_steps == 2, "the one that crashed and the one behind it"
    assert len(field.heard[1].tokens) == STEPS_ON_FOOT + 12


def test_a_model_that_waits_for_the_device_is_seen() -> None:
    lane = DeviceLane("fake", Ticking())
    turn = lane.take()
    assert not lane.is_wanted
    lane._asked += 1  # as one who waits in `take` has done
    assert lane.is_wanted
    lane._asked -= 1
    lane.give(turn)


def test_guesses_that_come_to_nothing_are_tried_ever_more_rarely() -> None:
    rhythm, tries = GuessRhythm(), []
    for step in range(300):
        if rhythm.is_due:
            tries.append(step)
            rhythm.guessed(has_guesses=False)
        else:
            rhythm.went_ahead()
    pauses = [after - before for before, after in pairwise(tries)]

    assert pauses[0] <= 2 * LEAST_AHEAD + 1
    assert pauses[-1] == MOST_AHEAD + 1
    rhythm.guessed(has_guesses=True)
    assert rhythm.is_due


def test_a_launch_ahead_that_fails_leaves_the_step_before_it_alone() -> None:
    field = Airfield(Stormy(["fine", "launch"]))
    field.add(a_spec(max_new_tokens=6))
    field.turn()
    (sequence,) = field.scheduler._running

    assert (sequence.computed, sequence.fed, sequence.owed) == (3, 3, 0)
    field.run_to_the_end()
    assert field.scheduler.accounts.operator_ns == 0, "nothing was computed twice"


def test_what_could_not_be_fetched_is_computed() -> None:
    class Torn(Stormy):
        def move_blocks(self, moves: Sequence[KvMove]) -> None:
            super().move_blocks(moves)
            if any(not move.is_to_host for move in moves):
                raise RuntimeError("the copy failed")

    field = Airfield(Torn(), some_limits(kv_blocks=6, host_kv_blocks=6))
    for prompt in (range(16), range(20, 36), range(16)):
        field.add(a_spec([token % VOCAB for token in prompt], max_new_tokens=3))
        for _ in range(40):
            field.turn()
    field.run_to_the_end()
