"""POST /v1/messages in a whole node: thoughts, calls that a model decides upon, refusals, caches and budgets."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.unit.api.test_messages_frames import events_of, put_together
from tests.unit.pipeline.scripted import MarkedWords, scripted_node

from llmhost.config.schema import Settings
from llmhost.config.schema.money import BillingSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.output import FinishReason
from llmhost.core.ports import Marks
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import FAKE_MODEL, TestHost, fake_chat_words, make_host

THINKING = Marks("hermes", ("<think>", "</think>"))
ASK = [{"role": "user", "content": "say something"}]
TOOL = {"name": "now", "input_schema": {"type": "object"}}
CALL = '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call>'


async def send(host: TestHost, **fields: Any) -> httpx.Response:
    body = {"model": "m", "max_tokens": 50, "messages": ASK, **fields}
    return await host.client.post("/v1/messages", json=body)


def message_of(response: httpx.Response, *, is_stream: bool) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    message: dict[str, Any] = (
        put_together(events_of(response.content)) if is_stream else response.json()
    )
    return message


async def spoken(*pieces: str, is_thinking: bool = False, **fields: Any) -> dict[str, Any]:
    """The message of a model that says these."""
    words = MarkedWords(THINKING, is_thinking=is_thinking)
    async with scripted_node(words) as (host, engine):
        asked = asyncio.create_task(send(host, **fields))
        while not engine.specs:
            assert not asked.done(), asked.result().text
            await asyncio.sleep(0)
        for piece in pieces:
            engine.say(0, piece)
        engine.end(0, FinishReason.STOP)
        return message_of(await asked, is_stream=fields.get("stream", False))


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_a_block_before_the_text(stream: bool) -> None:
    message = await spoken("<thi", "nk>hm, ", "well</think>\n", "Hello.", stream=stream)

    thoughts, text = message["content"]
    assert (thoughts["type"], thoughts["thinking"]) == ("thinking", "hm, well")
    assert thoughts["signature"]
    assert text == {"type": "text", "text": "Hello."}
    assert message["stop_reason"] == "end_turn"


async def test_thoughts_that_the_prompt_begins_are_found_too() -> None:
    message = await spoken("hm</think>Hello.", is_thinking=True)

    assert [block["type"] for block in message["content"]] == ["thinking", "text"]


async def test_thoughts_that_are_omitted_are_not_told() -> None:
    hidden = {"type": "adaptive", "display": "omitted"}

    message = await spoken("<think>hm</think>Hello.", thinking=hidden)

    assert message["content"] == [{"type": "text", "text": "Hello."}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_may_call_a_tool_by_itself(stream: bool) -> None:
    message = await spoken("Let me see. ", CALL[:30], CALL[30:], tools=[TOOL], stream=stream)

    text, call = message["content"]
    assert text == {"type": "text", "text": "Let me see."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "now", {"zone": "UTC"})
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_rule_refuses_ends_with_a_refusal(stream: bool) -> None:
    word = fake_chat_words(ASK, 4).split()[-1]
    rules = Settings(safety=SafetySettings(window_chars=16, blocked_words=(word,)))
    async with make_host(models={"m": FAKE_MODEL}, settings=rules) as host:
        message = message_of(await send(host, stream=stream), is_stream=stream)

    assert message["stop_reason"] == "refusal"
    assert message["stop_details"]["type"] == "refusal"
    assert word not in json.dumps(message["content"])


async def test_a_prompt_that_a_rule_refuses_is_an_error() -> None:
    rules = Settings(safety=SafetySettings(blocked_words=("something",)))
    async with make_host(models={"m": FAKE_MODEL}, settings=rules) as host:
        refused = await send(host)

    assert refused.status_code == 400
    assert refused.json()["error"]["details"]["error_code"] == "content_policy_violation"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_cache_had_is_told_apart_and_adds_up_to_the_prompt(stream: bool) -> None:
    long = [{"role": "user", "content": "word " * 70}]
    async with make_host(models={"m": FAKE_MODEL}) as host:
        answers = [await send(host, messages=long, max_tokens=1, stream=stream) for _ in range(2)]

    first, second = (message_of(each, is_stream=stream)["usage"] for each in answers)
    assert (first["input_tokens"], first["cache_read_input_tokens"]) == (72, 0)
    assert second["cache_read_input_tokens"] > 0
    assert second["input_tokens"] + second["cache_read_input_tokens"] == 72


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_a_budget_ends_says_so(stream: bool) -> None:
    settings = Settings(billing=BillingSettings(slice_tokens=2))
    async with make_host(models={"m": FAKE_MODEL}, settings=settings) as host:
        key = await host.make_key("acme")
        budget = Budget(id="", org="acme", period=Period.TOTAL, limit_nano=2_000)
        await host.host.books.budgets.create(budget, who="test")
        answer = await host.client.post(
            "/v1/messages",
            json={"model": "m", "max_tokens": 50, "messages": ASK, "stream": stream},
            headers={"x-api-key": key},
        )
        message = message_of(answer, is_stream=stream)

    said = message["usage"]["llmhost"]["stop"] if stream else answer.headers["x-llmhost-stop"]
    assert said == "budget"
    assert message["stop_reason"] == "max_tokens"
    assert 0 < message["usage"]["output_tokens"] < 50
