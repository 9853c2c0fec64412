"""A GGUF model in a whole node: what is computed once is found again, and requests get what they ask for."""

import json
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from llmhost.config.schema.models import ModelSpec
from llmhost.testing import make_host

MODELS = {
    "quant": ModelSpec(
        engine="llama", source="builtin:tiny-gguf", max_batch_size=8, options={"threads": 1}
    )
}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


async def test_a_node_reuses_prefixes_keeps_to_schemas_and_repeats_itself(tmp_path: Path) -> None:
    prompt = [(5 * n) % 400 + 10 for n in range(200)]
    asked = {"model": "quant", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    async with make_host(models=MODELS) as host:
        first = (await host.client.post("/v1/completions", json=asked)).json()
        longer = {**asked, "prompt": [*prompt, 7, 8, 9]}
        second = (await host.client.post("/v1/completions", json=longer)).json()
        body = {**asked, "temperature": 1.5, "seed": 5, "n": 3, "max_tokens": 12}
        drawn = [(await host.client.post("/v1/completions", json=body)).json() for _ in "ab"]
        chat = {
            "model": "quant",
            "messages": [{"role": "user", "content": "Is it so?"}],
            "max_tokens": 40,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA},
            },
        }
        held = (await host.client.post("/v1/chat/completions", json=chat)).json()

    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 192, "whole blocks of 16"
    texts = [[choice["text"] for choice in answer["choices"]] for answer in drawn]
    assert texts[0] == texts[1]
    assert len({*texts[0]}) > 1
    assert isinstance(json.loads(held["choices"][0]["message"]["content"])["ok"], bool)
