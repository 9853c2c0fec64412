"""Sharing a step's time: nothing is lost, nothing is made."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.sampling import Sampling
from llmhost.core.step import Row, split_exactly, work_units

weights = st.lists(st.integers(0, 10**9), min_size=1, max_size=40)


@given(st.integers(0, 10**15), weights)
@settings(max_examples=200, deadline=None)
def test_shares_add_up_to_the_total_and_are_proportional_within_one(
    total: int, weights: list[int]
) -> None:
    shares = split_exactly(total, weights)
    assert sum(shares) == total
    assert len(shares) == len(weights)
    whole = sum(weights)
    if whole:
        assert all(
            abs(share * whole - total * weight) < whole
            for share, weight in zip(shares, weights, strict=True)
        )
    else:
        assert max(shares) - min(shares) <= 1


@given(st.integers(0, 10**15), st.lists(st.sampled_from([0, 1, 2, 1_000_003]), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_largest_remainders_get_one_more_also_where_few_weights_differ(
    total: int, weights: list[int]
) -> None:
    whole = sum(weights) or len(weights)
    products = [total * (weight if sum(weights) else 1) for weight in weights]
    expected = [product // whole for product in products]
    places = sorted(range(len(weights)), key=lambda at: (-(products[at] % whole), at))
    for place in places[: total - sum(expected)]:
        expected[place] += 1
    assert split_exactly(total, weights) == expected


@given(st.integers(0, 10**6), weights)
@settings(max_examples=50, deadline=None)
def test_more_weight_never_gets_less(total: int, weights: list[int]) -> None:
    shares = split_exactly(total, weights)
    by_weight = sorted(zip(weights, shares, strict=True))
    for (lighter, less), (heavier, more) in itertools.pairwise(by_weight):
        assert less <= more or lighter == heavier


def test_what_can_not_be_shared_evenly_goes_to_the_earlier_place() -> None:
    assert split_exactly(5, [1, 1, 1]) == [2, 2, 1]
    assert split_exactly(2, [0, 0, 0]) == [1, 1, 0]


def test_there_is_nothing_to_share_among_nobody() -> None:
    assert split_exactly(5, []) == []


def row(start: int, fed: int) -> Row:
    return Row(1, [0] * fed, start, [], Sampling(), 0, True)


@given(st.integers(0, 10**5), st.integers(1, 10**4))
@settings(max_examples=50, deadline=None)
def test_work_grows_with_tokens_and_with_context(start: int, fed: int) -> None:
    assert work_units(row(start, fed)) < work_units(row(start, fed + 1))
    assert work_units(row(start, fed)) < work_units(row(start + 1, fed))
