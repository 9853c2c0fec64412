"""Opinions, and the rules that say what a failure means."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmhost
from llmhost.core.errors import ContentRefused, Forbidden, PluginFailed, SafetyUnavailable
from llmhost.hooks.spec import RULES, Kind, Price, Refusal, hookimpl


def test_what_plugins_need_is_at_the_top():
    assert llmhost.hookimpl is hookimpl
    assert llmhost.Refusal is Refusal
    assert {"hookimpl", "Refusal", "Price", "__version__"} <= set(dir(llmhost))
    with pytest.raises(AttributeError, match="no attribute 'hookspec'"):
        _ = llmhost.hookspec


def test_importing_llmhost_alone_loads_no_library():
    code = "import llmhost, sys; print(sorted({'pluggy', 'msgspec', 'asyncio'} & set(sys.modules)))"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "[]"


def test_a_refusal_becomes_the_error_of_its_place_with_the_plugins_code():
    error = Refusal("Not at night.", "closed_at_night").as_error(Forbidden)

    assert (type(error), error.message, error.code) == (
        Forbidden,
        "Not at night.",
        "closed_at_night",
    )
    assert Forbidden.code == "permission_denied"
    assert Refusal("No.").as_error(ContentRefused).code == "content_policy_violation"


def test_a_price_is_written_as_in_models_toml():
    price = Price.of(input="0.10", output="0.4")

    assert price == Price(input=100_000_000, cached_input=100_000_000, output=400_000_000)
    assert price.times(1, 2) == Price.of(input="0.05", output="0.20")
    assert price.times(0) == Price.of(input="0", output="0")


@pytest.mark.parametrize("amount", [-1, 0.5, True])
def test_a_price_is_never_negative_or_broken(amount):
    with pytest.raises(ValueError, match="whole number"):
        Price(input=amount, cached_input=0, output=0)


def test_a_ratio_has_a_positive_denominator():
    with pytest.raises(ValueError, match="at least 1"):
        Price.of(input="1", output="1").times(1, 0)


@given(st.integers(0, 10**15), st.integers(0, 1000), st.integers(1, 1000))
def test_a_scaled_price_is_the_nearest_whole_one_and_even_in_the_middle(amount, over, under):
    scaled = Price(input=amount, cached_input=0, output=0).times(over, under).input

    assert abs(2 * (scaled * under - amount * over)) <= under
    if abs(2 * (scaled * under - amount * over)) == under:
        assert scaled % 2 == 0


def test_identity_admission_safety_and_money_fail_closed_and_the_rest_open():
    closed = {hook: rule.raises for hook, rule in RULES.items() if rule.kind is Kind.ASK}

    assert closed == {
        "identify_caller": PluginFailed,
        "admit_request": PluginFailed,
        "route_request": None,
        "quote_price": PluginFailed,
        "check_input": SafetyUnavailable,
        "may_cache": None,
        "check_output": None,
    }
    assert RULES["route_request"].assumes is None
    assert RULES["may_cache"].assumes is False
    assert isinstance(RULES["check_output"].assumes, Refusal)
