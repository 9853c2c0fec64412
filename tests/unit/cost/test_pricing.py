from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema.money import PriceSettings
from llmhost.core.errors import ConfigError
from llmhost.core.output import Usage
from llmhost.cost.pricing import (
    Price,
    Rates,
    amount_nano,
    ceiling_nano,
    factor_of,
    rated_nano,
    rates_of,
    scaled,
)

nanos = st.integers(0, 100_000 * 10**9)
counts = st.integers(0, 10**7)
maybe = st.one_of(st.none(), nanos)
prices = st.builds(
    Price,
    version=st.just("m/1"),
    input_nano=nanos,
    cached_input_nano=nanos,
    output_nano=nanos,
    reasoning_nano=maybe,
    embedding_nano=maybe,
)
usages = st.builds(
    lambda fresh, cached, said, thought: Usage(
        fresh + cached, cached, said + thought, reasoning_tokens=thought
    ),
    *(counts, counts, counts, counts),
)


def exact(price: Price, usage: Usage) -> Fraction:
    fresh = usage.prompt_tokens - usage.cached_tokens
    thoughts = usage.reasoning_tokens
    rate = price.output_nano if price.reasoning_nano is None else price.reasoning_nano
    return (
        Fraction(price.input_nano, 1_000_000) * fresh
        + Fraction(price.cached_input_nano, 1_000_000) * usage.cached_tokens
        + Fraction(price.output_nano, 1_000_000) * (usage.completion_tokens - thoughts)
        + Fraction(rate, 1_000_000) * thoughts
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


@given(prices, usages, st.booleans(), st.integers(0, 10**10))
def test_a_ceiling_is_never_less_than_the_amount_however_tokens_are_split(
    price: Price, usage: Usage, is_embedding: bool, request_nano: int
) -> None:
    price = replace(price, request_nano=request_nano)
    ceiling = ceiling_nano(price, usage.prompt_tokens, usage.completion_tokens)
    assert amount_nano(price, usage, is_embedding=is_embedding) <= ceiling


@given(nanos, nanos, counts, counts)
def test_a_ceiling_of_one_rate_each_is_the_amount_rounded_up(
    input_nano: int, output_nano: int, prompt: int, output: int
) -> None:
    price = Price(
        version="m/1", input_nano=input_nano, cached_input_nano=0, output_nano=output_nano
    )
    total = prompt * input_nano + output * output_nano
    assert ceiling_nano(price, prompt, output) == -(-total // 1_000_000)


def test_without_a_price_or_tokens_the_ceiling_is_zero() -> None:
    price = Price(
        version="m/1", input_nano=1, cached_input_nano=1, output_nano=1, request_nano=10**9
    )
    assert ceiling_nano(None, 1000, 1000) == ceiling_nano(price, 0, 0) == 0


def test_a_fee_is_for_requests_that_used_something() -> None:
    price = Price(
        version="m/1", input_nano=10**6, cached_input_nano=0, output_nano=0, request_nano=500
    )
    assert amount_nano(price, Usage(3)) == 503
    assert amount_nano(price, Usage()) == 0


def test_embedded_texts_have_their_own_price_cached_or_not() -> None:
    price = Price(
        version="m/1",
        input_nano=10**6,
        cached_input_nano=0,
        output_nano=0,
        embedding_nano=2 * 10**6,
    )
    assert amount_nano(price, Usage(10, 4), is_embedding=True) == 20
    assert amount_nano(price, Usage(10, 4)) == 6
    assert amount_nano(replace(price, embedding_nano=None), Usage(10, 4), is_embedding=True) == 10


@given(prices, usages)
def test_quantities_are_rated_as_the_usage_that_they_came_from(price: Price, usage: Usage) -> None:
    assert amount_nano(price, usage) == rated_nano(
        price,
        fresh_input=usage.prompt_tokens - usage.cached_tokens,
        cached_input=usage.cached_tokens,
        output=usage.completion_tokens - usage.reasoning_tokens,
        reasoning=usage.reasoning_tokens,
    )


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


def test_rates_times_a_factor_are_whole_and_round_half_to_even() -> None:
    rates = Rates(input_nano=5, cached_input_nano=3, output_nano=7, reasoning_nano=1)
    half = scaled(rates, factor_of("0.5", key="k"))
    assert (half.input_nano, half.cached_input_nano, half.output_nano) == (2, 2, 4)
    assert (half.reasoning_nano, half.embedding_nano, half.request_nano) == (0, None, 0)
    assert scaled(rates, factor_of("1", key="k")) == rates
    for text in ("", "-1", "1e3", "half", "101", "0.5.5", "\u0665"):
        with pytest.raises(ConfigError, match=r"k: "):
            factor_of(text, key="k")
