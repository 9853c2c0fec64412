"""The built-in model as a GGUF file, in a whole node: it gives the answers that the torch engine gives."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmhost.config.schema.models import ModelSpec
from llmhost.deploy.sources import BUILT_IN_MODELS
from llmhost.engines.builtin.corpus import KnownAnswer, known_answers
from llmhost.testing import TestHost, make_host
from llmhost.text.tokenizer import load_tokenizer

pytest.importorskip("llama_cpp")
AT_ONCE = 32
SAMPLE = 83
"""Every so many of the known answers are asked for, calls of tools among them."""


async def wrong(host: TestHost, wanted: Sequence[KnownAnswer]) -> list[tuple[str, str]]:
    """What was said in greedy answers, and what should have been, where they differ."""
    tokenizer = load_tokenizer(BUILT_IN_MODELS / "tiny")
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(known: KnownAnswer) -> tuple[str, str]:
        prompt = tokenizer.encode(tokenizer.render_chat(known.messages, tools=known.tools))
        body = {"model": "quant", "prompt": prompt, "max_tokens": 300, "temperature": 0}
        async with places:
            answer = await host.client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"], known.answer

    pairs = await asyncio.gather(*map(ask, wanted))
    return [(said, known) for said, known in pairs if said != known]


def models(**keys: object) -> dict[str, ModelSpec]:
    """On one thread: two that wait for each other on a busy machine take many times as long."""
    options = {"threads": 1}
    spec = ModelSpec(engine="llama", source="builtin:tiny-gguf", options=options, **keys)  # type: ignore[arg-type]
    return {"quant": spec}


async def test_a_sample_of_the_known_answers_comes_word_for_word(tmp_path: Path) -> None:
    async with make_host(models=models()) as host:
        assert await wrong(host, known_answers()[::SAMPLE]) == []
