"""What chats and completions say beside OpenAI's fields: what ends an answer, what it begins with, who waits."""

import asyncio
import json
from typing import Any

import pytest
from tests.unit.pipeline.scripted import MarkedWords, ScriptedEngine, scripted_node

from llmhost.api.wire import FLEX_PRIORITY
from llmhost.core.ports import Marks
from llmhost.testing import TestHost, fake_chat_words, make_host

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
WORDS = fake_chat_words(HELLO, 12).split(" ")


async def begun(engine: ScriptedEngine) -> None:
    """There is something to speak for."""
    for _ in range(1000):
        if engine.specs:
            return
        await asyncio.sleep(0)


async def said(host: TestHost, *, stream: bool, **body: Any) -> str:
    asked = {"model": "fake", "messages": HELLO, "max_tokens": 12, "stream": stream, **body}
    told = await host.client.post(CHAT, json=asked)
    assert told.status_code == 200, told.text
    if not stream:
        return str(told.json()["choices"][0]["message"]["content"])
    lines = [line.removeprefix("data: ") for line in told.text.split("\n\n")]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in events)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_is_told_where_it_is_asked_for(stream: bool) -> None:
    async with make_host() as host:
        without = await said(host, stream=stream, stop=[WORDS[5]])
        with_it = await said(
            host, stream=stream, stop=[WORDS[5]], include_stop_str_in_output=True, logprobs=True
        )
        at_the_end = await said(
            host,
            stream=stream,
            stop=[WORDS[5] + "!", WORDS[5]],
            include_stop_str_in_output=True,
            max_tokens=6,
        )

    assert without == " ".join(WORDS[:5]) + " "
    assert with_it == without + WORDS[5]
    assert at_the_end == with_it


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_begins_with_the_last_message_if_it_is_the_assistants(stream: bool) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Well, "}]
    async with make_host() as host:
        echoed = await said(host, stream=stream, messages=begun, echo=True, return_token_ids=True)
        plain = await said(host, stream=stream, messages=begun)
        other = await said(host, stream=stream, echo=True)

    assert echoed == "Well, " + plain
    assert other == " ".join(WORDS)


async def test_a_header_says_how_urgent_a_request_is_where_its_body_does_not() -> None:
    headers = {"X-Vllm-Priority": "7"}
    async with scripted_node() as (host, engine):
        for body, priority in (
            ({}, 7),
            ({"service_tier": "flex"}, 7 + FLEX_PRIORITY),
            ({"priority": 3}, 3),
            ({"priority": 0}, 0),
        ):
            asked = {"model": "m", "messages": HELLO, **body}
            sent = asyncio.create_task(host.client.post(CHAT, json=asked, headers=headers))
            await begun(engine)
            engine.end(0)
            assert (await sent).status_code == 200
            assert engine.specs.pop(0).priority == priority


async def test_special_tokens_are_told_where_it_is_asked_for() -> None:
    words = MarkedWords(Marks(special=("<a>", "<b>")))
    async with scripted_node(words) as (host, engine):
        for wanted, shown in ((None, ()), (True, ()), (False, ("<a>", "<b>"))):
            asked = {"model": "m", "messages": HELLO, "skip_special_tokens": wanted}
            sent = asyncio.create_task(host.client.post(CHAT, json=asked))
            await begun(engine)
            assert engine.specs[0].shown == shown
            engine.end(0)
            await sent
            engine.specs.clear()


async def test_a_header_that_says_no_priority_is_refused() -> None:
    async with make_host() as host:
        for header in ("-1", "high", "1000001", "1.5", ""):
            headers = {"X-Vllm-Priority": header}
            body = {"model": "fake", "messages": HELLO}
            refused = await host.client.post(CHAT, json=body, headers=headers)

            assert refused.status_code == 400, header
            assert refused.json()["error"]["param"] == "x-vllm-priority"
