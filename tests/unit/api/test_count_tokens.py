"""POST /v1/messages/count_tokens: what is counted is what a request is charged for, and counting is free."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Limits
from llmhost.testing import TestHost, make_host

COUNT = "/v1/messages/count_tokens"
BODY: dict[str, Any] = {
    "model": "echo",
    "system": "be kind to all",
    "messages": [{"role": "user", "content": "say something"}],
}
PRICE = PriceSettings(input="1.00", output="2.00")


@pytest.fixture
async def host() -> AsyncIterator[TestHost]:
    models = {"echo": ModelSpec(engine="fake", price=PRICE, max_sequence_length=64)}
    settings = Settings(safety=SafetySettings(max_prompt_chars=1000))
    async with make_host(models=models, settings=settings) as host:
        yield host


async def test_as_many_are_counted_as_an_answer_says_that_its_prompt_had(host: TestHost) -> None:
    counted = await host.client.post(COUNT, json=BODY)
    answered = await host.client.post("/v1/messages", json={**BODY, "max_tokens": 1})

    assert counted.json() == {"input_tokens": answered.json()["usage"]["input_tokens"]}


async def test_counting_is_not_billed_and_is_one_of_the_requests_per_minute(
    host: TestHost,
) -> None:
    key = await host.make_key("acme", limits=Limits(requests_per_minute=1))
    headers = {"x-api-key": key}

    answers = [await host.client.post(COUNT, json=BODY, headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "0"
    assert answers[1].json()["error"]["type"] == "rate_limit_error"
    assert host.entries() == []


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "nix"}, 404, "model_not_found"),
        ({"messages": []}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 1001}]}, 400, "invalid_value"),
    ],
)
async def test_what_an_answer_would_be_refused_for_is_refused(
    host: TestHost, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = await host.client.post(COUNT, json={**BODY, **fields})

    assert (answer.status_code, answer.json()["error"]["details"]["error_code"]) == (status, code)


async def test_a_prompt_that_is_too_long_is_counted(host: TestHost) -> None:
    long = [{"role": "user", "content": "word " * 90}]

    answer = await host.client.post(COUNT, json={"model": "echo", "messages": long})

    assert answer.json() == {"input_tokens": 92}
