"""What an answer says of its price: headers, and the end of a stream."""

from itertools import combinations
from typing import Any

import pytest
from tests.unit.pipeline.node import asks

from llmhost.api import bill_facts as module
from llmhost.api.bill_facts import bill_comment, bill_facts, bill_headers, bill_lines
from llmhost.api.door import Lines
from llmhost.config.schema import Settings
from llmhost.config.schema.money import BillingSettings
from llmhost.core.caller import LOCAL_CALLER
from llmhost.cost.pricing import Price
from llmhost.pipeline.context import RequestContext
from llmhost.safety.verdict import Action, Decision, Direction, Screening
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import make_host

PRICE = Price(version="tiny/3", input_nano=1, cached_input_nano=1, output_nano=1)


def context(**facts: Any) -> RequestContext:
    return RequestContext(asks(), None, {}, 0, 0, **facts)


SCREENED = Screening(
    at_ns=0,
    request_id="req_1",
    caller=LOCAL_CALLER,
    model="m",
    direction=Direction.OUTPUT,
    decision=Decision(Action.REVIEW, "default@1"),
    findings=(),
    review_id="review_1",
)
FULL = {
    "price": PRICE,
    "amount_nano": 1_200,
    "budget_remaining_nano": 5 * 10**9,
    "stop": "budget",
    "screening": SCREENED,
}


def test_all_that_is_known_is_said_in_exact_dollars() -> None:
    assert bill_facts(context(**FULL)) == {
        "cost_usd": "0.0000012",
        "price_version": "tiny/3",
        "budget_remaining_usd": "5.00",
        "stop": "budget",
        "review": "review_1",
    }
    assert bill_headers(context(**FULL)) == {
        "x-llmhost-cost-usd": "0.0000012",
        "x-llmhost-price-version": "tiny/3",
        "x-llmhost-budget-remaining-usd": "5.00",
        "x-llmhost-stop": "budget",
        "x-llmhost-review": "review_1",
    }
    assert tuple(bill_headers(context(**FULL))) == module.NAMES


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ({}, []),
        ({"amount_nano": 5}, []),
        ({"price": PRICE}, ["cost_usd", "price_version"]),
        ({"budget_remaining_nano": 0}, ["budget_remaining_usd"]),
    ],
)
def test_nothing_is_said_of_what_there_is_not(facts: dict[str, Any], names: list[str]) -> None:
    assert list(bill_facts(context(**facts))) == names


@pytest.mark.parametrize("count", range(len(FULL) + 1))
def test_lines_say_what_headers_say(count: int) -> None:
    for names in combinations(FULL, count):
        known = context(**{name: FULL[name] for name in names})

        assert Lines(bill_lines(known)).items() == list(bill_headers(known).items())


def test_an_answer_that_has_begun_has_no_cost_yet() -> None:
    assert "cost_usd" not in bill_facts(context(**FULL), with_cost=False)


def test_a_budget_that_was_overdrawn_by_its_lowering_has_nothing_left() -> None:
    assert bill_facts(context(budget_remaining_nano=-5))["budget_remaining_usd"] == "0.00"


def test_a_comment_is_one_line_that_ends_an_event() -> None:
    assert bill_comment({}) == b""
    assert bill_comment(bill_facts(context(**FULL))) == (
        b": llmhost cost_usd=0.0000012 price_version=tiny/3 budget_remaining_usd=5.00 stop=budget review=review_1\n\n"
    )


async def test_answers_tell_what_is_left_and_a_refusal_too() -> None:
    async with make_host() as host:
        key = await host.make_key("acme")
        budget = Budget(id="", org="acme", period=Period.TOTAL, limit_nano=3_000)
        await host.host.books.budgets.create(budget, who="test")
        host.client.headers["authorization"] = f"Bearer {key}"
        whole = await host.chat("hello", max_tokens=2)
        stream = await host.chat("hello", max_tokens=1, stream=True)
        refused = await host.chat("hello " * 30, max_tokens=1)

    cost = "0.0000011"  # 3 tokens of the prompt and 2 of the answer
    assert whole.headers["x-llmhost-cost-usd"] == cost
    assert whole.headers["x-llmhost-budget-remaining-usd"] == "0.0000019"
    assert stream.headers["x-llmhost-budget-remaining-usd"] == "0.0000012"
    assert "budget_remaining_usd=0.0000012\n\ndata: [DONE]" in stream.text
    assert refused.status_code == 429
    assert refused.headers["x-llmhost-budget-remaining-usd"] == "0.0000012"
    assert refused.headers["x-should-retry"] == "false"
    assert "x-llmhost-cost-usd" not in refused.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_a_budget_ends_says_so(stream: bool) -> None:
    settings = Settings(billing=BillingSettings(slice_tokens=2))
    async with make_host(settings=settings) as host:
        key = await host.make_key("acme")
        budget = Budget(id="", org="acme", period=Period.TOTAL, limit_nano=2_000)
        await host.host.books.budgets.create(budget, who="test")
        host.client.headers["authorization"] = f"Bearer {key}"
        answer = await host.chat("hello", max_tokens=50, stream=stream)

    assert '"finish_reason":"length"' in answer.text
    if stream:
        assert "budget_remaining_usd=0.0000001 stop=budget\n\ndata: [DONE]" in answer.text
    else:
        assert answer.headers["x-llmhost-stop"] == "budget"
        assert answer.headers["x-llmhost-budget-remaining-usd"] == "0.0000001"
