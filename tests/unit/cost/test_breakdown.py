"""What a caller is told of a request's cost: decimal strings that add up."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.output import Usage
from llmhost.cost.breakdown import NOTHING, Breakdown, cost_object

nano = st.integers(0, 10**12)


def test_each_pool_is_told_in_dollars() -> None:
    costs = Breakdown(
        gpu_compute_nano=700,
        input_nano=400,
        infrastructure_nano=20,
        model_loading_nano=10,
        load_id="load_1",
    )

    assert cost_object(costs, Usage(prompt_tokens=4, completion_tokens=1)) == {
        "total_cost_usd": "0.00000073",
        "breakdown": {
            "gpu_compute": "0.0000007",
            "infrastructure": "0.00000002",
            "model_loading": "0.00000001",
            "safety_moderation": "0.00",
        },
        "cost_per_input_token": "0.000000106",
        "cost_per_output_token": "0.000000306",
        "model_loading_is_provisional": True,
    }


def test_where_nothing_is_configured_all_is_nothing() -> None:
    told = cost_object(NOTHING, Usage(3, 0, 2))

    assert told["total_cost_usd"] == told["cost_per_output_token"] == "0.00"
    assert not told["model_loading_is_provisional"]


@given(nano, nano, nano, nano, st.integers(1, 5_000), st.integers(0, 5_000))
def test_costs_per_token_add_up_to_the_total(
    prefill: int, decode: int, host: int, load: int, prompt: int, answer: int
) -> None:
    decode = decode if answer else 0
    costs = Breakdown(
        gpu_compute_nano=prefill + decode,
        input_nano=prefill,
        infrastructure_nano=host,
        model_loading_nano=load,
    )
    told = cost_object(costs, Usage(prompt, 0, answer))
    each_in, each_out = (Decimal(told[f"cost_per_{side}_token"]) for side in ("input", "output"))

    total = Decimal(told["total_cost_usd"])
    assert abs(each_in * prompt + each_out * answer - total) < Decimal("1e-11")
    assert sum(map(Decimal, told["breakdown"].values())) == total
