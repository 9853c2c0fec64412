"""Many choices in too little KV room: they make way for each other, and none is lost, cut or paid for twice."""

from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.node import asks, read_all, settled

from llmhost.config.schema import Settings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.sampling import Sampling
from llmhost.testing import FAKE_MODEL, TestHost, fake_words, make_host

CROWDED = {
    "m": msgspec.structs.replace(
        FAKE_MODEL, kv_memory="1536", max_sequence_length=256, options={"token_delay_ms": 1}
    )
}
"""24 blocks of 16 tokens, where one sequence takes up to 6; none ends before the last of a request has come."""
PROMPTS = ("hello", "other thing", "a third", "the last of them")
BODY: dict[str, Any] = {"model": "m", "prompt": PROMPTS, "max_tokens": 80}


def preemptions(host: TestHost) -> int:
    [deployment] = host.host.deployments.all()
    return deployment.replicas[0].engine.load().preemptions


async def test_all_choices_are_whole_and_paid_for_once() -> None:
    async with make_host(models=CROWDED) as host:
        answer = (await host.client.post("/v1/completions", json={**BODY, "n": 4})).json()
        [entry] = await settled(host)
        assert preemptions(host) > 0

    assert [choice["text"] for choice in answer["choices"]] == [
        fake_words(prompt, 80) for prompt in PROMPTS for _ in range(4)
    ]
    tokens = entry["tokens"]
    assert tokens["fresh_input"] + tokens["cached_input"] == sum(len(p.split()) for p in PROMPTS)
    assert tokens["output"] == 16 * 80


async def test_a_choice_that_is_stopped_leaves_those_that_make_way_alone() -> None:
    word = fake_words(PROMPTS[1], 80).split()[10]
    rules = Settings(safety=SafetySettings(window_chars=16, blocked_words=(word,)))
    async with make_host(models=CROWDED, settings=rules) as host:
        answer = (await host.client.post("/v1/completions", json={**BODY, "n": 4})).json()
        assert preemptions(host) > 0

    for choice in answer["choices"]:
        prompt = PROMPTS[choice["index"] // 4]
        if prompt == PROMPTS[1]:
            assert choice["finish_reason"] == "content_filter"
            assert word not in choice["text"]
        else:
            assert (choice["finish_reason"], choice["text"]) == ("length", fake_words(prompt, 80))


async def test_the_best_are_found_among_those_that_made_way() -> None:
    async with make_host(models=CROWDED) as host:
        body = {**BODY, "n": 1, "best_of": 4}
        answer = (await host.client.post("/v1/completions", json=body)).json()
        [entry] = await settled(host)
        assert preemptions(host) > 0

    assert [choice["text"] for choice in answer["choices"]] == [fake_words(p, 80) for p in PROMPTS]
    assert entry["tokens"]["output"] == 16 * 80


@pytest.mark.parametrize("best_of", [None, 16])
async def test_a_reader_who_leaves_a_crowd_leaves_nothing_behind(best_of: int | None) -> None:
    sampling = Sampling(temperature=0.0)
    async with make_host(models=CROWDED) as host:
        facts: dict[str, Any] = {"n": 4 if best_of else 16, "best_of": best_of}
        exchange = await host.host.processor.open(
            asks(max_tokens=200, sampling=sampling, **facts), None, {}
        )
        exchange.leave()
        [entry] = await settled(host)
        [deployment] = host.host.deployments.all()
        load = deployment.replicas[0].engine.load()
        again = await host.host.processor.open(asks(max_tokens=80), None, {})
        text = await read_all(again)

    assert entry["outcome"] == "cancelled"
    assert load.running == load.waiting == 0
    assert text == fake_words("hello world", 80)
