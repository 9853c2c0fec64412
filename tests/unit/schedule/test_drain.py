"""What a refused caller is told to wait is true: when it comes back there is room, and there was none much earlier."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.schedule.drain import FIRST_S, MOST_S, DrainForecast


@dataclass
class Played:
    """A model that is played: `batch` sequences speak a token every `token_s`, others wait in line."""

    batch: int
    queue: int
    token_s: float
    said_share: float = 1.0
    """Answers end after this share of what they may say, give or take a fifth."""
    now_s: float = 0.0
    ids: int = 0
    left: dict[int, int] = field(default_factory=dict)
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def __post_init__(self) -> None:
        self.most_live = self.batch + self.queue
        self.forecast = DrainForecast(batch=self.batch, most_live=self.most_live)

    @property
    def is_full(self) -> bool:
        return len(self.left) >= self.most_live

    def come(self, most_tokens: int) -> None:
        self.ids += 1
        share = min(self.said_share * self.chance.uniform(0.8, 1.2), 1.0)
        self.left[self.ids] = max(int(most_tokens * share), 1)
        self.forecast.came(self.ids, most_tokens, self.now_s)

    def step(self) -> int:
        """How many ended."""
        self.now_s += self.token_s
        ended = 0
        for seq_id in list(self.left)[: self.batch]:
            self.forecast.said(seq_id, 1, self.now_s)
            self.left[seq_id] -= 1
            if self.left[seq_id] == 0:
                del self.left[seq_id]
                self.forecast.ended(seq_id, is_whole=True)
                ended += 1
        return ended


@dataclass
class Outcome:
    returned: int = 0
    admitted: int = 0
    too_long: list[float] = field(default_factory=list)
    """For each who was let in, for what part of its wait, but for the least one, there had been a place for it."""


def overload(model: Played, callers: int, most_tokens: int) -> Outcome:
    """Warm the model up, send everybody at once, and have who is refused come back when told."""
    for _ in range(model.most_live):
        model.come(most_tokens)
    for _ in range(3 * most_tokens):
        model.step()
        while not model.is_full:
            model.come(most_tokens)
    told_s = model.now_s
    waits = sorted(model.forecast.wait_s(told_s) for _ in range(callers))
    outcome = Outcome()
    free_since: list[float] = []
    while waits:
        free_since += [model.now_s + model.token_s] * model.step()
        while waits and told_s + waits[0] <= model.now_s:
            wait_s = waits.pop(0)
            outcome.returned += 1
            if not model.is_full:
                outcome.admitted += 1
                late_s = model.now_s - free_since.pop(0)
                outcome.too_long.append(max(late_s - FIRST_S, 0.0) / wait_s)
                model.come(most_tokens)
    return outcome


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(0, 12),
    st.sampled_from([0.02, 0.05, 0.3]),
    st.sampled_from([20, 60]),
    st.sampled_from([0.5, 0.9]),
)
def test_who_comes_back_when_told_is_let_in(
    batch: int, queue: int, token_s: float, most_tokens: int, said_share: float
):
    model = Played(batch, queue, token_s, said_share)
    callers = 2 * model.most_live
    outcome = overload(model, callers, most_tokens)

    assert outcome.returned == callers
    assert outcome.admitted >= 0.9 * callers
    assert sum(outcome.too_long) / callers < 0.25


def test_each_who_is_refused_is_told_a_later_place():
    model = Played(2, 2, 0.1)
    for _ in range(4):
        model.come(40)
    for _ in range(5):
        model.step()
    waits = [model.forecast.wait_s(model.now_s) for _ in range(6)]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(3.5 * 1.1)
    assert waits[2] > waits[0] + 3


def test_nothing_measured_is_a_second():
    assert DrainForecast(batch=1, most_live=1).wait_s(0.0) == FIRST_S


def test_a_place_that_nobody_came_for_is_given_to_others():
    model = Played(1, 0, 0.1)
    model.come(50)
    for _ in range(5):
        model.step()
    first = model.forecast.wait_s(model.now_s)
    assert model.forecast.wait_s(model.now_s) > first
    for _ in range(45):
        model.step()
    model.come(50)
    model.now_s += 100
    for _ in range(5):
        model.step()
    assert model.forecast.wait_s(model.now_s) < 1.1 * first


def test_a_wait_has_a_limit():
    model = Played(1, 0, 60.0)
    model.come(500)
    model.step()
    model.step()
    assert model.forecast.wait_s(model.now_s) == MOST_S


def test_answers_that_were_cut_say_nothing_of_how_long_answers_are():
    forecast = DrainForecast(batch=1, most_live=1)
    forecast.came(1, 100, 0.0)
    forecast.said(1, 1, 1.0)
    forecast.said(1, 1, 2.0)
    forecast.ended(1, is_whole=False)
    forecast.ended(1, is_whole=True)
    assert forecast._said_share == 1.0
