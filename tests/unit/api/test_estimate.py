"""POST /v1/estimate: what is said before a request is what holds for it after."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmhost.api.estimate import endpoint_of
from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Limits
from llmhost.core.errors import InvalidValue
from llmhost.core.units import dollars_to_nano
from llmhost.hooks.spec import Price, Refusal, hookimpl
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import TestHost, make_host

PRICE = PriceSettings(input="1", cached_input="0.5", output="2", request="0.000001")
MODELS = {
    "echo": ModelSpec(engine="fake", aliases=("parrot",), price=PRICE, max_sequence_length=64),
    "embedder": ModelSpec(
        engine="fake", price=PriceSettings(input="1", embedding="3"), options={"task": "embed"}
    ),
    "judge": ModelSpec(engine="fake", options={"task": "classify"}),
}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}
TEXT = {"model": "echo", "prompt": "hello world"}


@pytest.fixture
async def host() -> AsyncIterator[TestHost]:
    async with make_host(models=MODELS) as host:
        yield host


async def ask(host: TestHost, body: Any, path: str = "/v1/estimate", **more: Any) -> httpx.Response:
    return await host.client.post(path, json=body, **more)


async def estimate(host: TestHost, body: Any, **more: Any) -> dict[str, Any]:
    answer = await ask(host, body, **more)
    assert answer.status_code == 200, answer.text
    row: dict[str, Any] = answer.json()
    return row


async def test_a_chat_is_told_its_tokens_and_the_most_it_may_cost(host: TestHost) -> None:
    made = await estimate(host, {**CHAT, "model": "parrot", "max_tokens": 5, "n": 2})

    assert made == {
        "object": "estimate",
        "model": "parrot",
        "endpoint": "/v1/chat/completions",
        "prompt_tokens": 4,
        "choices": 2,
        "max_output_tokens": 10,
        "price_version": "echo/1",
        "currency": "USD",
        "min_cost_usd": "0.000003",
        "prompt_cost_usd": "0.000005",
        "max_cost_usd": "0.000025",
        "fits_budget": None,
        "budget_remaining_usd": None,
    }
    assert host.entries() == [], "nothing was run, and nothing is billed"


async def test_without_a_limit_an_answer_may_fill_the_model(host: TestHost) -> None:
    made = await estimate(host, CHAT)
    assert made["max_output_tokens"] == 64 - made["prompt_tokens"]


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, "max_tokens": 3}),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 3, "n": 3}),
    ("/v1/completions", {**TEXT, "max_tokens": 6, "best_of": 3, "n": 2}),
    ("/v1/completions", {"model": "echo", "prompt": ["a b c", [5, 6]], "max_tokens": 2}),
    ("/v1/completions", {**TEXT, "max_tokens": 6, "stop": "a"}),
    ("/v1/embeddings", {"model": "embedder", "input": ["a b", "c"]}),
    ("/v1/rerank", {"model": "embedder", "query": "a", "documents": ["b c", "d"]}),
    ("/v1/score", {"model": "judge", "text_1": "a", "text_2": ["b c", "d"]}),
    ("/v1/classify", {"model": "judge", "input": "a b", "endpoint": "classify"}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_what_a_request_takes_and_costs_is_within_its_estimate(
    host: TestHost, path: str, body: dict[str, Any]
) -> None:
    made = await estimate(host, body)
    sent = {name: value for name, value in body.items() if name != "endpoint"}
    answer = await ask(host, sent, path)
    assert answer.status_code == 200, answer.text

    (entry,) = host.entries()
    tokens = entry["tokens"]
    assert made["endpoint"] == path
    assert made["price_version"] == entry["price_version"]
    spent = sum(tokens.values()) - tokens["output"]
    assert made["prompt_tokens"] == spent
    assert tokens["output"] <= made["max_output_tokens"]
    least, most = (dollars_to_nano(made[f"{end}_cost_usd"]) for end in ("min", "max"))
    assert least <= entry["amount_nano"] <= most


@settings(
    max_examples=2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(
    cases=st.lists(
        st.tuples(
            st.integers(1, 20),
            st.integers(1, 20),
            st.integers(1, 3),
            st.tuples(*(st.integers(0, 5 * 10**6) for _ in range(4))),
        ),
        min_size=8,
        max_size=8,
    )
)
async def test_no_price_makes_an_estimate_wrong(
    cases: list[tuple[int, int, int, tuple[int, ...]]],
) -> None:
    names = ("input", "cached_input", "output", "request")
    models = {}
    for number, (_, _, _, rates) in enumerate(cases):
        price = {name: f"0.{rate:09d}" for name, rate in zip(names, rates, strict=True)}
        models[f"m{number}"] = ModelSpec(engine="fake", price=PriceSettings(**price))
    async with make_host(models=models) as host:
        for number, (words, most_tokens, n, _) in enumerate(cases):
            body = {"model": f"m{number}", "prompt": "w " * words}
            body |= {"max_tokens": most_tokens, "n": n}
            for _ in range(2):  # the second finds its prompt computed
                made = await estimate(host, body)
                await ask(host, body, "/v1/completions")
                amount = host.entries()[-1]["amount_nano"]
                least, most = (dollars_to_nano(made[f"{end}_cost_usd"]) for end in ("min", "max"))
                assert least <= amount <= most


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "temperature": 9}),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 1000}),
        ("/v1/chat/completions", {**CHAT, "model": "gone"}),
        ("/v1/chat/completions", {"messages": CHAT["messages"]}),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}),
        ("/v1/completions", {**TEXT, "prompt": ""}),
        ("/v1/completions", {**TEXT, "prompt": [99_999]}),
        ("/v1/completions", {**TEXT, "prompt": "forbidden"}),
        ("/v1/completions", {**TEXT, "model": "judge"}),
        ("/v1/embeddings", {"model": "echo", "input": "x"}),
        ("/v1/embeddings", {"model": "embedder", "input": []}),
        ("/v1/score", {"model": "judge", "text_1": "x"}),
    ],
)
async def test_what_the_route_refuses_is_refused_likewise(path: str, body: dict[str, Any]) -> None:
    rules = Settings(safety=SafetySettings(blocked_words=("forbidden",)))
    async with make_host(models=MODELS, settings=rules) as host:
        refused, estimated = await ask(host, body, path), await ask(host, body)

    assert 400 <= refused.status_code < 500
    assert (estimated.status_code, estimated.json()) == (refused.status_code, refused.json())


async def test_a_stranger_and_a_key_that_may_not_hear_nothing_more(host: TestHost) -> None:
    key = await host.make_key("acme", models=("judge",))
    bearer = {"authorization": f"Bearer {key}"}

    assert (await ask(host, TEXT)).status_code == 401
    assert (await ask(host, TEXT, headers=bearer)).status_code == 403
    run = {**bearer, "x-llmhost-run": "not a run"}
    answer = await ask(host, {**TEXT, "model": "judge"}, headers=run)
    assert answer.json()["error"]["param"] == "x-llmhost-run"
    assert (await host.client.get("/v1/estimate", headers=bearer)).status_code == 405
    nothing = await host.client.post("/v1/estimate", content=b"{", headers=bearer)
    assert nothing.status_code == 400


async def test_estimates_count_as_requests_and_take_no_tokens(host: TestHost) -> None:
    limits = Limits(requests_per_minute=3, input_tokens_per_minute=6, max_concurrency=1)
    bearer = {"authorization": f"Bearer {await host.make_key('acme', limits=limits)}"}
    answers = [await ask(host, TEXT, headers=bearer) for _ in range(2)]
    answers.append(await ask(host, TEXT, "/v1/completions", headers=bearer))
    refused = await ask(host, TEXT, headers=bearer)

    left = [a.headers["x-ratelimit-remaining-requests"] for a in answers]
    assert ([a.status_code for a in answers], left) == ([200, 200, 200], ["2", "1", "0"])
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


async def test_an_estimate_says_of_a_prompt_that_no_limit_will_ever_take(host: TestHost) -> None:
    limits = Limits(requests_per_minute=3, input_tokens_per_minute=6)
    bearer = {"authorization": f"Bearer {await host.make_key('acme', limits=limits)}"}
    large = await ask(host, {**TEXT, "prompt": "w " * 9}, headers=bearer)
    assert large.json()["error"]["code"] == "request_exceeds_limit"


async def budgeted(host: TestHost, nano: int) -> dict[str, str]:
    key = await host.make_key("acme")
    budget = Budget(id="", org="acme", period=Period.TOTAL, limit_nano=nano)
    await host.host.books.budgets.create(budget, who="test")
    return {"authorization": f"Bearer {key}"}


async def test_it_says_whether_the_dearest_answer_fits_the_budget(host: TestHost) -> None:
    bearer = await budgeted(host, 10_000)

    fits = await estimate(host, {**TEXT, "max_tokens": 3}, headers=bearer)
    exceeds = await estimate(host, {**TEXT, "max_tokens": 4}, headers=bearer)

    assert [e["max_cost_usd"] for e in (fits, exceeds)] == ["0.000009", "0.000011"]
    assert [e["fits_budget"] for e in (fits, exceeds)] == [True, False]
    assert {e["budget_remaining_usd"] for e in (fits, exceeds)} == {"0.00001"}
    unpriced = await ask(
        host, {"model": "judge", "input": "x", "endpoint": "classify"}, headers=bearer
    )
    answer = await ask(host, {"model": "judge", "input": "x"}, "/v1/classify", headers=bearer)
    assert (unpriced.status_code, unpriced.json()) == (answer.status_code, answer.json())
    assert answer.json()["error"]["code"] == "model_not_priced"


async def test_a_plugin_quotes_the_price_and_may_refuse() -> None:
    class Shop:
        @hookimpl
        def quote_price(self, price: Price) -> Price:
            return price.times(2)

        @hookimpl
        def admit_request(self, request: Any) -> Refusal | None:
            return Refusal("closed") if "closed" in request.text else None

    async with make_host(models=MODELS, plugins=[Shop()]) as host:
        made = await estimate(host, {**TEXT, "max_tokens": 1})
        refused = await ask(host, {**TEXT, "prompt": "closed"})

    assert (made["price_version"], made["max_cost_usd"]) == ("echo+Shop/1", "0.00001")
    assert refused.status_code == 403


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        (b'{"messages":[]}', "/v1/chat/completions"),
        (b'{"messages":null,"prompt":"x"}', "/v1/completions"),
        (b'{"input":"x"}', "/v1/embeddings"),
        (b'{"input":"x","endpoint":"/v1/classify/"}', "/v1/classify"),
        (b'{"input":"x","endpoint":"classify"}', "/v1/classify"),
        (b'{"query":"x","documents":[]}', "/v1/rerank"),
        (b'{"queries":"x","documents":[]}', "/v1/score"),
        (b'{"data_1":"x","data_2":"y"}', "/v1/score"),
    ],
)
def test_bodies_are_told_apart_by_their_fields(body: bytes, endpoint: str) -> None:
    assert endpoint_of(body) == endpoint


@pytest.mark.parametrize("body", [b"{}", b'{"prompt":null}', b'{"endpoint":"/v1/files"}'])
def test_a_body_for_no_endpoint_is_refused_with_all_that_there_are(body: bytes) -> None:
    with pytest.raises(InvalidValue, match="/v1/chat/completions, /v1/completions") as caught:
        endpoint_of(body)
    assert caught.value.param == "endpoint"
