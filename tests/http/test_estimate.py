"""POST /v1/estimate on a real server, by OpenAI's own client."""

from typing import Any

import pytest
from openai import BadRequestError, OpenAI

SAY = [{"role": "user", "content": "hello"}]


def estimate(client: OpenAI, **body: Any) -> dict[str, Any]:
    made: Any = client.post("/estimate", body=body, cast_to=object)
    return dict(made)


def test_an_openai_client_asks_what_its_own_request_may_cost(client: OpenAI) -> None:
    wish: dict[str, Any] = {"model": "echo", "messages": SAY, "max_tokens": 4}
    made = estimate(client, **wish)
    raw = client.chat.completions.with_raw_response.create(**wish)

    assert made["prompt_tokens"] == raw.parse().usage.prompt_tokens
    assert made["max_cost_usd"] == raw.headers["x-llmhost-cost-usd"]
    assert made["price_version"] == raw.headers["x-llmhost-price-version"]


def test_embeddings_cost_what_was_estimated(client: OpenAI) -> None:
    made = estimate(client, model="embedder", input=["two words", "one"])
    raw = client.embeddings.with_raw_response.create(model="embedder", input=["two words", "one"])

    costs = {made[f"{name}_cost_usd"] for name in ("min", "prompt", "max")}
    assert costs == {raw.headers["x-llmhost-cost-usd"]} == {"0.000003"}


def test_a_wrong_body_is_the_clients_usual_error(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        estimate(client, model="echo", messages=SAY, temperature=9)
    assert caught.value.param == "temperature"
