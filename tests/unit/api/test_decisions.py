"""POST /v1/decisions on a whole node: its shape, its one prefill, its bill, and what it refuses."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai.types.decision import Decision

from llmhost.config.schema import Settings
from llmhost.config.schema.engines import FakeOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.ports import EngineLoad
from llmhost.testing import TestHost, make_host

PRICED = ModelSpec(
    engine="fake", price=PriceSettings(input="1.00", cached_input="0.10", output="2.00")
)
MODELS = {
    "m": PRICED,
    "narrow": ModelSpec(engine="fake", max_sequence_length=32),
    "vectors": ModelSpec(engine="fake", options=FakeOptions(task="embed")),
}
QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "instructions": "It is about keys.", "name": "keys"},
    {
        "type": "choice",
        "instructions": "Which?",
        "choices": [{"value": "red"}, {"value": True}, {"value": "true"}],
    },
    {
        "type": "score",
        "instructions": "How good?",
        "levels": [{"label": "bad"}, {"label": "fine"}, {"label": "great"}],
    },
]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[TestHost]:
    async with make_host(models=MODELS) as made:
        yield made


async def decide(host: TestHost, text: str, **fields: Any) -> httpx.Response:
    body = {"model": "m", "input": text, "questions": QUESTIONS, **fields}
    return await host.client.post("/v1/decisions", json=body)


def load_of(host: TestHost) -> EngineLoad:
    return dict(host.host.deployments.loads())["m@1"]


async def test_answers_are_probabilities_in_openais_shape(host: TestHost) -> None:
    decision = Decision.model_validate((await decide(host, "red keys")).json(), strict=True)

    predicate, choice, score = decision.answers
    assert predicate.type == "predicate" and predicate.name == "keys"
    assert 0 < predicate.probability < 1
    assert choice.type == "choice"
    assert [row.value for row in choice.probabilities] == ["red", True, "true"]
    best = max(choice.probabilities, key=lambda row: row.probability)
    assert (choice.choice, choice.confidence) == (best.value, best.probability)
    assert score.type == "score"
    assert [row.value for row in score.probabilities] == [0, 1, 2]
    assert score.score == pytest.approx(sum(r.value * r.probability for r in score.probabilities))
    for answer in (choice, score):
        assert sum(row.probability for row in answer.probabilities) == pytest.approx(1)


async def test_the_input_is_computed_once_for_all_answers(host: TestHost) -> None:
    before, text = load_of(host), "once " * 400
    usage = (await decide(host, text)).json()["usage"]
    after = load_of(host)

    looked_up = after.prefix_query_tokens - before.prefix_query_tokens
    computed = looked_up - (after.prefix_hit_tokens - before.prefix_hit_tokens)
    assert looked_up > 8 * 400
    assert 400 < usage["input_tokens"] < 500
    assert (
        computed < usage["input_tokens"] + 8 * 16
    )  # what does not fill a block of 16 is computed again


async def test_a_second_request_finds_it_in_the_cache_and_hears_the_same(host: TestHost) -> None:
    first, second = [(await decide(host, "twice " * 100)).json() for _ in range(2)]

    assert first["answers"] == second["answers"]
    assert first["usage"]["input_tokens_details"]["cached_tokens"] < 50
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > 90


async def test_an_answer_is_as_likely_as_the_model_finds_it_in_a_text(host: TestHost) -> None:
    question = {"type": "predicate", "instructions": "so it is"}
    told = await decide(host, "likely", questions=[question])
    prompt = "user: likely\n\nIs this true of the above? Answer with Yes or No only.\n\nso it is\nassistant:"

    async def logprob(answer: str) -> float:
        body = {"model": "m", "prompt": f"{prompt} {answer}", "max_tokens": 0, "echo": True}
        echoed = await host.client.post("/v1/completions", json={**body, "logprobs": 0})
        found: float = echoed.json()["choices"][0]["logprobs"]["token_logprobs"][-1]
        return found

    yes, no = 2.718281828459045 ** await logprob("Yes"), 2.718281828459045 ** await logprob("No")
    assert told.json()["answers"][0]["probability"] == pytest.approx(yes / (yes + no))


async def test_what_it_costs_is_what_was_estimated_and_what_the_ledger_has(host: TestHost) -> None:
    body = {"model": "m", "input": "estimated " * 50, "questions": QUESTIONS}
    estimate = (await host.client.post("/v1/estimate", json=body)).json()
    response = await host.client.post("/v1/decisions", json=body)

    usage, entry = response.json()["usage"], host.entries()[-1]
    assert estimate["endpoint"] == "/v1/decisions"
    assert estimate["prompt_tokens"] == usage["input_tokens"] == usage["total_tokens"]
    assert usage["output_tokens"] == 0
    cached = usage["input_tokens_details"]["cached_tokens"]
    amount = (usage["input_tokens"] - cached) * 1_000 + cached * 100
    assert entry["amount_nano"] == amount
    assert response.headers["x-llmhost-cost-usd"] == f"{amount / 1e9:.9f}".rstrip("0")


async def test_hundreds_of_questions_are_one_request(host: TestHost) -> None:
    questions = [{"type": "predicate", "instructions": f"Number {i}."} for i in range(400)]
    answer = (await decide(host, "many " * 50, questions=questions)).json()

    assert len(answer["answers"]) == 400
    assert load_of(host).running == load_of(host).waiting == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "vectors"}, "model"),
        ({"model": "narrow", "input": "long " * 40}, "input"),
        ({"model": "narrow"}, "questions[2]"),
        ({"questions": [{"type": "predicate", "instructions": 5}]}, "questions[0].instructions"),
    ],
)
async def test_what_can_not_be_asked_is_refused_by_its_name(
    host: TestHost, fields: dict[str, Any], param: str
) -> None:
    response = await decide(host, "a b c d e f g h i j", **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_rules_read_the_input_and_every_question() -> None:
    rules = Settings(safety=SafetySettings(blocked_words=("forbidden",)))
    asked = [{"type": "predicate", "instructions": "a forbidden thing"}]
    async with make_host(models=MODELS, settings=rules) as host:
        refused = [await decide(host, "forbidden"), await decide(host, "fine", questions=asked)]

    assert [response.status_code for response in refused] == [400, 400]
    assert refused[0].json()["error"]["code"] == "content_policy_violation"
