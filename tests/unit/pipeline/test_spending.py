from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmhost.cost.pricing import Price, ceiling_nano
from llmhost.pipeline.spending import Spending

PRICE: Any = {"version": "m/1", "input_nano": 10**8, "cached_input_nano": 10**7}


@dataclass
class Account:
    """One budget that others hold of as well. Stands in for a BudgetHold and its account."""

    left_nano: int
    held_nano: int = 0

    def raise_by(self, nano: int, *, least: int = 1) -> int:
        granted = min(nano, self.left_nano)
        if granted < least:
            return 0
        self.left_nano -= granted
        self.held_nano += granted
        return granted


@dataclass
class Run:
    """A request on an account of so many nano-dollars, whose choices say tokens when they may."""

    left_nano: int
    output_nano: int = 4 * 10**8
    prompt_tokens: int = 100
    slice_tokens: int = 16
    most_tokens: int = 100
    choices: int = 1
    finals: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.price = Price(output_nano=self.output_nano, **PRICE)
        size = {
            "prompt_tokens": self.prompt_tokens,
            "slice_tokens": self.slice_tokens,
            "most_tokens": self.most_tokens,
            "choices": self.choices,
        }
        first_nano = Spending.first_nano(self.price, **size)
        self.account = Account(max(self.left_nano - first_nano, 0), first_nano)
        hold: Any = self.account
        self.spending = Spending(hold, self.price, **size)
        self.ceilings = [self.spending.first_tokens] * self.choices
        self.said = [0] * self.choices

    def allow(self, index: int, tokens: int, is_final: bool) -> None:
        assert tokens >= self.ceilings[index]
        self.ceilings[index] = tokens
        if is_final:
            self.finals.add(index)

    def say(self, index: int, tokens: int) -> int:
        """As many of them as the ceiling lets through."""
        tokens = min(tokens, self.ceilings[index] - self.said[index])
        if tokens:
            self.said[index] += tokens
            self.spending.made(index, tokens, self.allow)
        return tokens

    def say_all(self, step: int = 1) -> None:
        while sum(self.say(index, step) for index in range(self.choices)):
            pass

    @property
    def owed_nano(self) -> int:
        return ceiling_nano(self.price, self.prompt_tokens, sum(self.said))


def test_with_room_for_it_an_answer_runs_to_its_end() -> None:
    run = Run(left_nano=10**12)
    run.say_all()
    assert run.said == [100]
    assert not run.spending.was_cut
    assert run.account.held_nano == run.owed_nano


def test_the_ceiling_is_raised_before_it_is_reached() -> None:
    run = Run(left_nano=10**12)
    assert run.ceilings == [16]
    run.say(0, 7)
    assert run.ceilings == [16]
    run.say(0, 1)
    assert run.ceilings == [32]


def test_without_room_for_the_next_slice_an_answer_ends_where_the_money_does() -> None:
    run = Run(left_nano=10_000 + 40 * 400 + 399)
    run.say_all()
    assert run.said == [40]
    assert run.finals == {0}
    assert run.spending.was_cut
    assert run.account.left_nano < 400


def test_money_that_comes_back_in_time_is_used() -> None:
    run = Run(left_nano=10_000 + 16 * 400)
    run.say(0, 15)
    assert not run.finals
    run.account.left_nano = 10**9
    run.say_all()
    assert run.said == [100]
    assert not run.spending.was_cut


def test_an_answer_that_needs_no_second_slice_is_never_asked_about() -> None:
    run = Run(left_nano=10**12, most_tokens=10)
    run.say_all()
    assert run.said == [10]
    assert run.account.left_nano == 10**12 - run.account.held_nano


def test_what_costs_nothing_needs_nothing() -> None:
    run = Run(left_nano=0, output_nano=0, prompt_tokens=0)
    run.say_all()
    assert run.said == [100]


@given(
    left_nano=st.integers(0, 200_000),
    output_nano=st.integers(0, 10**9),
    prompt_tokens=st.integers(0, 300),
    slice_tokens=st.integers(1, 40),
    most_tokens=st.integers(1, 120),
    choices=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 500))),
)
def test_no_token_is_made_that_is_not_held(
    left_nano: int,
    output_nano: int,
    prompt_tokens: int,
    slice_tokens: int,
    most_tokens: int,
    choices: int,
    steps: list[tuple[int, int, int]],
) -> None:
    run = Run(left_nano, output_nano, prompt_tokens, slice_tokens, most_tokens, choices)
    for index, tokens, comes_back_nano in steps:
        run.say(index % choices, tokens)
        run.account.left_nano += comes_back_nano
        assert run.owed_nano <= run.account.held_nano
        assert max(run.said) <= most_tokens
    run.say_all()
    assert run.owed_nano <= run.account.held_nano
    for index, said in enumerate(run.said):
        assert said == most_tokens or index in run.finals, "nobody waits for ever"
    assert run.spending.was_cut == any(said < most_tokens for said in run.said)


@given(
    st.integers(0, 60_000),
    st.integers(1, 20),
    st.integers(1, 60),
    st.lists(st.integers(1, 3), min_size=1, max_size=80),
)
def test_nothing_is_missed_by_who_tells_only_when_a_raise_is_due(
    left_nano: int, slice_tokens: int, most_tokens: int, said: list[int]
) -> None:
    each, late = (Run(left_nano, slice_tokens=slice_tokens, most_tokens=most_tokens) for _ in "ab")
    unheard = 0
    for tokens in said:
        each.spending.made(0, tokens, each.allow)
        unheard += tokens
        if unheard >= late.spending.until_raise(0):
            late.spending.made(0, unheard, late.allow)
            unheard = 0
        assert late.ceilings == each.ceilings
    assert (late.finals, late.account) == (each.finals, each.account)
    assert not late.spending.is_over(0) or late.spending.is_final
