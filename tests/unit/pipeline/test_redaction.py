"""What is redacted, on a whole node: neither the model nor the client sees it, and it is paid for as it is then."""

import json

import pytest
from tests.unit.pipeline.node import settled

from llmhost.config.schema import Settings
from llmhost.config.schema.safety import SafetySettings
from llmhost.testing import fake_words, make_host

WORDS = fake_words("hello", 60).split()
HIDES = SafetySettings(window_chars=16, blocked_words=(WORDS[20],), redact=("words", "pii"))
BODY = {"model": "fake", "prompt": "hello", "max_tokens": 60}
SAID = " ".join("[words]" if word == WORDS[20] else word for word in WORDS)


def told(text: str) -> list[dict]:
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [choice for event in events for choice in event["choices"]]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_word_of_an_answer_is_replaced_and_its_tokens_are_not_told(stream: bool) -> None:
    body = {**BODY, "stream": stream, "logprobs": 1, "return_token_ids": True}
    async with make_host(settings=Settings(safety=HIDES)) as host:
        answer = await host.client.post("/v1/completions", json=body)
        plain = await host.client.post("/v1/completions", json={**BODY, "stream": stream})
        entries = await settled(host)
    choices = told(answer.text) if stream else answer.json()["choices"]
    texts = told(plain.text) if stream else plain.json()["choices"]
    tokens = [t for c in choices if c["logprobs"] for t in c["logprobs"]["tokens"]]
    offsets = [t for c in choices if c["logprobs"] for t in c["logprobs"]["text_offset"]]

    assert "".join(choice["text"] for choice in choices) == SAID
    assert "".join(choice["text"] for choice in texts) == SAID
    assert WORDS[20] not in answer.text
    assert len(tokens) == sum(len(choice.get("token_ids", ())) for choice in choices)
    assert 55 < len(tokens) < 60
    for at, token in zip(offsets, tokens, strict=True):
        assert SAID[at:].strip().startswith(token.strip())
    assert {entry["tokens"]["output"] for entry in entries} == {60}


async def test_a_prompt_is_run_counted_and_echoed_as_it_was_redacted() -> None:
    card = "4111 1111 1111 1111"
    async with make_host(settings=Settings(safety=HIDES)) as host:
        body = {"model": "fake", "max_tokens": 4, "echo": True}
        answer = await host.client.post("/v1/completions", json={**body, "prompt": f"my {card} is"})
        same = await host.client.post("/v1/completions", json={**body, "prompt": "my [card] is"})

    assert answer.json()["choices"] == same.json()["choices"]
    assert answer.json()["usage"]["prompt_tokens"] == same.json()["usage"]["prompt_tokens"]
    assert card not in answer.text
