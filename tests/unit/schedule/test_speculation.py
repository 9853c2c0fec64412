"""How many guesses to try: never more than pay, and never at a loss that anybody notices."""

import random
from collections.abc import Callable, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.ports import DraftAsk
from llmhost.core.sampling import Sampling
from llmhost.core.step import Draw, Drawn, Row, StepResult
from llmhost.schedule.speculation import Chance, Speculation, StepCosts, best_counts

GREEDY = Sampling(temperature=0.0)
PLAIN_NS = 1_000_000

shares = st.floats(0, 1)


# ---------------------------------------------------------------- the decision


def rate(
    counts: Sequence[int], chances: Sequence[float], sequences: int, costs: dict[str, float]
) -> float:
    """Tokens per plain step's time, by the definition."""
    tokens = sequences + sum(
        chance**depth
        for chance, count in zip(chances, counts, strict=True)
        for depth in range(1, count + 1)
    )
    time = 1.0 + costs["each"] * sum(counts) + costs["deeper"] * max(counts, default=0)
    return tokens / (time + (costs["once"] if any(counts) else 0.0))


@given(st.lists(st.tuples(shares, st.integers(0, 3)), max_size=3), shares, st.integers(0, 5))
def test_without_a_price_for_depth_no_other_choice_brings_more(
    chances: list[tuple[float, int]], each: float, more: int
):
    sequences = len(chances) + more
    costs = {"once": 0.0, "each": each, "deeper": 0.0}
    counts = best_counts(chances, sequences, **costs)

    assert all(count <= most for count, (_, most) in zip(counts, chances, strict=True))
    odds = [chance for chance, _ in chances]
    every = product(*(range(most + 1) for _, most in chances))
    best = max(rate(choice, odds, sequences, costs) for choice in every)
    assert rate(counts, odds, sequences, costs) == pytest.approx(best)


@given(
    st.lists(st.tuples(shares, st.integers(0, 8)), min_size=1, max_size=16),
    shares,
    shares,
    st.floats(0, 3),
)
def test_no_choice_is_worse_than_none(
    chances: list[tuple[float, int]], each: float, deeper: float, once: float
):
    costs = {"once": once, "each": each, "deeper": deeper}
    counts = best_counts(chances, len(chances), **costs)

    odds = [chance for chance, _ in chances]
    assert rate(counts, odds, len(chances), costs) >= len(chances) - 1e-9


def test_a_likelier_sequence_gets_more_guesses():
    few, many = best_counts([(0.5, 8), (0.95, 8)], 2, once=0.0, each=0.1, deeper=0.0)
    assert 0 < few < many


def test_guesses_that_cost_as_much_as_a_token_are_not_made():
    assert best_counts([(0.99, 8)], 1, once=0.0, each=1.0, deeper=0.0) == [0]
    assert best_counts([(0.99, 8)], 1, once=0.0, each=0.0, deeper=1.0) == [0]


# ---------------------------------------------------------------- what is measured


def test_costs_are_a_line_through_what_was_measured():
    costs = StepCosts()
    for guesses in (1, 2, 4, 8, 3, 5):
        costs.learn_guesses(guesses, 0.2 + 0.05 * guesses)
    assert costs.added_shares() == pytest.approx((0.2, 0.05))


def test_one_number_of_guesses_gives_a_line_through_zero():
    costs = StepCosts()
    for _ in range(5):
        costs.learn_guesses(4, 0.2)
    assert costs.added_shares() == pytest.approx((0.0, 0.05))


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(-1, 50)), min_size=1, max_size=40))
def test_no_measurement_makes_guesses_bring_time(measured: list[tuple[int, float]]):
    costs = StepCosts()
    for guesses, share in measured:
        costs.learn_guesses(guesses, share)
    once, each = costs.added_shares()
    assert once >= 0
    assert each >= 0


def test_a_chance_forgets():
    chance = Chance()
    for _ in range(200):
        chance.learn(4, 4, 0.95)
    assert chance.estimate(0.5, 4.0) > 0.9
    for _ in range(100):
        chance.learn(4, 0, 0.95)
    assert chance.estimate(0.5, 4.0) < 0.2


# ---------------------------------------------------------------- a model that is played


def a_row(seq_id: int, guesses: int) -> Row:
    return Row(seq_id, [0] * (1 + guesses), 9, [0], GREEDY, 0, True, drafts=guesses)


class Played:
    """A model whose steps take what a test says, and whose guesses are right as often as it says."""

    def __init__(self, *, sequences: int = 1, most_tokens: int = 6, most_sequences: int = 16):
        self.speculation = Speculation(most_tokens=most_tokens, most_sequences=most_sequences)
        self.sequences = sequences
        self.random = random.Random(1)
        self.tokens = 0
        self.time_ns = 0
        self.guesses: list[int] = []

    def step(self, chance: float, costs: Callable[[int], float], guessing_ns: int = 0) -> None:
        """`costs` is the time of a step with so many guesses, in plain ones."""
        asks = [DraftAsk(i, [1, 2, 3], 8, GREEDY, 0) for i in range(self.sequences)]
        chosen = {a.seq_id: a.most for a in self.speculation.share_out(asks, self.sequences)}
        rows, drawn = [], list[Drawn]()
        for i in range(self.sequences):
            guesses = chosen.get(i, 0)
            right = 0
            while right < guesses and self.random.random() < chance:
                right += 1
            rows.append(a_row(i, guesses))
            drawn.append(Draw((0,) * (right + 1)) if guesses else 0)
            self.tokens += right + 1
        total = sum(chosen.values())
        took = int(costs(total) * PLAIN_NS * self.random.uniform(0.95, 1.05))
        guessing = guessing_ns * max(chosen.values(), default=0)
        self.speculation.learn(StepResult(rows, drawn, 0, took, [0] * len(rows)), guessing)
        self.time_ns += took + guessing
        self.guesses.append(total)

    @property
    def speed_up(self) -> float:
        return self.tokens / (self.time_ns / PLAIN_NS * self.sequences)


@settings(max_examples=12)
@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1.5),
    st.integers(1, 12),
    st.integers(0, PLAIN_NS),
)
def test_guessing_never_costs_more_than_its_credit(
    chance: float, each: float, once: float, sequences: int, guessing_ns: int
):
    played = Played(sequences=sequences)
    for _ in range(400):
        played.step(chance, lambda k: 1 + each * k + (once if k else 0), guessing_ns)
    assert played.speed_up > 0.93


def test_good_guesses_nearly_pay_what_they_could():
    played = Played()
    for _ in range(500):
        played.step(0.9, lambda k: 1 + 0.03 * k)
    best = sum(0.9**depth for depth in range(7)) / (1 + 0.03 * 6)
    assert played.speed_up > 0.85 * best


def test_hopeless_guesses_are_rare():
    played = Played()
    for _ in range(1000):
        played.step(0.0, lambda k: 1 + 0.1 * k)
    assert sum(map(bool, played.guesses[-500:])) < 60


def test_a_text_that_becomes_repetitive_is_noticed():
    played = Played()
    for _ in range(300):
        played.step(0.0, lambda k: 1 + 0.05 * k)
    played.guesses.clear()
    for _ in range(300):
        played.step(0.95, lambda k: 1 + 0.05 * k)
    assert sum(played.guesses[150:]) > 3 * 150


def test_one_hopeless_sequence_does_not_stop_the_guesses_of_another():
    speculation = Speculation(most_tokens=4, most_sequences=8)
    tried = {0: 0, 1: 0}
    for _ in range(300):
        asks = [DraftAsk(i, [1], 8, GREEDY, 0) for i in (0, 1)]
        chosen = {a.seq_id: a.most for a in speculation.share_out(asks, 2)}
        rows = [a_row(i, chosen.get(i, 0)) for i in (0, 1)]
        drawn: list[Drawn] = [Draw((0,) * (1 + chosen.get(0, 0))), 0]
        took = int(PLAIN_NS * (1 + 0.05 * sum(chosen.values())))
        speculation.learn(StepResult(rows, drawn, 0, took, [0, 0]))
        for seq_id, count in chosen.items():
            tried[seq_id] += count
    assert tried[0] > 250 * 3
    assert tried[1] < tried[0] / 5


def test_a_large_batch_gets_no_guesses():
    played = Played(sequences=5, most_sequences=4)
    for _ in range(50):
        played.step(1.0, lambda k: 1)
    assert sum(played.guesses) == 0


def test_what_a_plain_step_takes_is_measured_now_and_then():
    played = Played()
    for _ in range(300):
        played.step(1.0, lambda k: 1)
    assert sum(count == 0 for count in played.guesses[100:]) >= 2


def test_nobody_is_given_more_guesses_than_it_asked_for():
    played = Played(most_tokens=6)
    for _ in range(50):
        played.step(1.0, lambda k: 1)
    speculation = played.speculation
    (chosen,) = speculation.share_out([DraftAsk(0, [1], 2, GREEDY, 0)], 1)
    assert chosen.most == 2
    assert speculation.share_out([DraftAsk(0, [1], 0, GREEDY, 0)], 1) == []


def test_steps_that_compute_prompts_are_not_compared():
    speculation = Speculation(most_tokens=4, most_sequences=8)
    rows = [Row(0, [1] * 50, 0, [0], GREEDY, 0, True)]
    speculation.learn(StepResult(rows, [5], 0, PLAIN_NS, [PLAIN_NS]))
    assert speculation.costs.plain_ns(1) is None


def test_a_sequence_that_has_ended_leaves_nothing_behind():
    played = Played()
    for _ in range(20):
        played.step(1.0, lambda k: 1)
    played.speculation.forget(0)
    played.speculation.forget(0)
    assert played.speculation._chances == {}
    assert played.speculation._probed == {}
