from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema import PriceSettings
from llmhost.core.errors import ConfigError
from llmhost.core.output import Usage
from llmhost.cost.pricing import Price, Rates, amount_nano, rates_of

nanos = st.integers(0, 100_000 * 10**9)
counts = st.integers(0, 10**7)
prices = st.builds(
    Price, version=st.just("m/1"), input_nano=nanos, cached_input_nano=nanos, output_nano=nanos
)
usages = st.builds(
    lambda fresh, cached, output: Usage(fresh + cached, cached, output), counts, counts, counts
)


def exact(price: Price, usage: Usage) -> Fraction:
    fresh = usage.prompt_tokens - usage.cached_tokens
    return (
        Fraction(price.input_nano, 1_000_000) * fresh
        + Fraction(price.cached_input_nano, 1_000_000) * usage.cached_tokens
        + Fraction(price.output_nano, 1_000_000) * usage.completion_tokens
    )


@given(prices, usages)
def test_an_amount_is_the_exact_sum_rounded_half_even_once(price: Price, usage: Usage) -> None:
    assert amount_nano(price, usage) == round(exact(price, usage))


@given(prices, usages, usages)
def test_more_tokens_never_cost_less(price: Price, usage: Usage, more: Usage) -> None:
    assert amount_nano(price, usage + more) >= amount_nano(price, usage)


@given(prices, usages, usages)
def test_parts_cost_what_the_whole_costs_up_to_rounding(
    price: Price, one: Usage, other: Usage
) -> None:
    parts = amount_nano(price, one) + amount_nano(price, other)
    assert abs(amount_nano(price, one + other) - parts) <= 1


@given(usages)
def test_without_a_price_nothing_is_owed(usage: Usage) -> None:
    assert amount_nano(None, usage) == 0


@pytest.mark.parametrize(
    ("output_nano", "amount"),
    [(500_000, 0), (500_001, 1), (1_500_000, 2), (2_500_000, 2), (2_500_001, 3), (1, 0)],
)
def test_half_a_nano_dollar_goes_to_the_even_side(output_nano: int, amount: int) -> None:
    price = Price(version="m/1", input_nano=0, cached_input_nano=0, output_nano=output_nano)
    assert amount_nano(price, Usage(completion_tokens=1)) == amount


def test_cached_tokens_are_charged_once_at_their_own_price() -> None:
    price = Price(
        version="m/1", input_nano=100 * 10**6, cached_input_nano=10**6, output_nano=400 * 10**6
    )
    assert amount_nano(price, Usage(1000, 600, 10)) == 400 * 100 + 600 * 1 + 10 * 400


def test_dollars_become_nano_dollars_and_cached_input_defaults_to_input() -> None:
    settings = PriceSettings(input="0.10", cached_input="0.01", output="0.40")
    assert rates_of(settings, model="m") == Rates(
        input_nano=100_000_000, cached_input_nano=10_000_000, output_nano=400_000_000
    )
    assert rates_of(PriceSettings(input="2"), model="m") == Rates(
        input_nano=2 * 10**9, cached_input_nano=2 * 10**9, output_nano=0
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (PriceSettings(input="free"), r"models\.m\.price\.input: 'free' is not an amount"),
        (PriceSettings(output="-1"), r"models\.m\.price\.output: '-1' is negative"),
        (PriceSettings(cached_input="0.0000000001"), r"models\.m\.price\.cached_input: .*finer"),
        (PriceSettings(input="NaN"), r"models\.m\.price\.input"),
    ],
)
def test_a_price_that_is_none_names_its_key(settings: PriceSettings, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rates_of(settings, model="m")
