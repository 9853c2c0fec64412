"""What of a request is worked on the HTTP loop, and what is refused before it is worked on at all."""

import asyncio
from typing import Any

import pytest

from llmhost.config.schema import Settings
from llmhost.config.schema.safety import SafetySettings
from llmhost.testing import make_host
from llmhost.text.words import WordTokenizer

SHORT = {"role": "user", "content": "hi"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
BODIES: dict[str, tuple[dict[str, Any], bool]] = {
    "short": ({"messages": [SHORT]}, False),
    "switches": ({"messages": [SHORT], "chat_template_kwargs": {"on": True}}, False),
    "long": ({"messages": [{**SHORT, "content": "x " * 3000}]}, True),
    "many": ({"messages": [{**SHORT, "content": ""}] * 100}, True),
    "long name": ({"messages": [{**SHORT, "name": "x" * 5000}]}, True),
    "calls": ({"messages": [SHORT, CALLS, SHORT]}, True),
    "variables": ({"messages": [SHORT], "chat_template_kwargs": {"docs": [{}]}}, True),
}


@pytest.mark.parametrize("name", BODIES)
async def test_whatever_may_take_long_to_render_is_rendered_in_a_thread(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, is_in_thread = BODIES[name]
    on_loop: list[bool] = []

    def render(self: WordTokenizer, *_: object, **__: object) -> str:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            on_loop.append(False)
        else:
            on_loop.append(True)
        return "hi"

    async with make_host() as host:
        monkeypatch.setattr(WordTokenizer, "render_chat", render)
        answer = await host.client.post(
            "/v1/chat/completions", json={"model": "fake", "max_tokens": 1, **body}
        )

    assert answer.status_code == 200
    assert on_loop == [not is_in_thread]


async def test_a_prompt_that_is_too_long_is_refused_before_it_is_tokenised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("it was tokenised")

    safety = SafetySettings(max_prompt_chars=10)
    async with make_host(settings=Settings(safety=safety)) as host:
        monkeypatch.setattr(WordTokenizer, "encode", encode)
        chat = await host.chat("x" * 11)
        ids = await host.client.post("/v1/completions", json={"model": "fake", "prompt": [1] * 11})

    for answer, param in ((chat, "messages"), (ids, "prompt")):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
