"""What models find in texts, asked for by /v1/moderations on a whole node."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.unit.pipeline.node import settled, until
from tests.unit.pipeline.scripted import MarkedWords, scripted_node

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.config.schema.server import ServerSettings
from llmhost.core.ports import Marks
from llmhost.engines.fake_pooling import fake_scores
from llmhost.safety.guards.labels import OPENAI
from llmhost.testing import FAKE_MODEL, TestHost, make_host
from llmhost.text.words import WordTokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = WordTokenizer(4096)
LABELS = ("violence", "spam", "safe")
JUDGE = ModelSpec(
    engine="fake",
    options={"task": "classify", "labels": LABELS},
    max_sequence_length=32,
    guard="auto",
    price=PriceSettings(input="1.00"),
)
MODELS = {
    "fake": FAKE_MODEL,
    "judge": JUDGE,
    "embedder": ModelSpec(engine="fake", options={"task": "embed"}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[TestHost]:
    async with make_host(models=MODELS) as made:
        yield made


async def moderate(host: TestHost, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = await host.client.post("/v1/moderations", json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def expected(text: str) -> dict[str, float]:
    scores = fake_scores(WORDS.encode(text), None, len(LABELS))
    return dict(zip(LABELS[:2], scores, strict=False))


async def test_each_text_has_every_category_of_openai_and_those_of_the_model(
    host: TestHost,
) -> None:
    answer = await moderate(host, input=["one two", "three"], model="judge")

    assert answer["id"].startswith("modr-")
    assert answer["model"] == "judge"
    for result, text in zip(answer["results"], ["one two", "three"], strict=True):
        assert {*OPENAI, "spam"} == result["categories"].keys() == result["category_scores"].keys()
        said = {name: result["category_scores"][name] for name in ("violence", "spam")}
        assert said == pytest.approx(expected(text), abs=1e-6)
        assert result["category_applied_input_types"]["violence"] == ["text"]
        assert result["category_applied_input_types"]["hate"] == []
        assert result["category_scores"]["hate"] == 0
        flags = {name: score >= 0.5 for name, score in result["category_scores"].items()}
        assert result["categories"] == flags
        assert result["flagged"] == any(flags.values())


async def test_it_is_metered_and_paid_for_like_any_other_request(host: TestHost) -> None:
    await moderate(host, input=["one two", "three"], include_cost=True)
    entry = (await settled(host))[-1]

    assert entry["model"] == "judge@1"
    assert entry["tokens"] == {"fresh_input": 3, "cached_input": 0, "output": 0}
    assert (entry["outcome"], entry["amount_nano"]) == ("answered", 3_000)


async def test_without_a_model_the_first_declared_guard_is_asked_that_the_key_may_use() -> None:
    async with make_host(models={**MODELS, "other": JUDGE}) as host:
        key = await host.make_key(models=("other",))
        none = await host.make_key(models=("fake",))
        answers = [
            await host.client.post(
                "/v1/moderations", json={"input": "x"}, headers={"authorization": f"Bearer {each}"}
            )
            for each in (await host.make_key(), key, none)
        ]

    assert [a.json().get("model") for a in answers] == ["judge", "other", None]
    assert answers[-1].status_code == 404
    assert answers[-1].json()["error"]["code"] == "model_not_found"


async def test_a_long_text_is_read_in_windows_and_its_worst_one_counts(host: TestHost) -> None:
    long = " ".join(f"word{i}" for i in range(100))
    answer = await moderate(host, input=long)
    entry = (await settled(host))[-1]

    windows = [range(start, min(start + 32, 100)) for start in range(0, 85, 28)]
    worst = max(expected(" ".join(f"word{i}" for i in part))["spam"] for part in windows)
    assert answer["results"][0]["category_scores"]["spam"] == pytest.approx(worst)
    assert entry["tokens"]["fresh_input"] == sum(map(len, windows))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "  "}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", {"type": "text", "text": "b"}]}, "input[1]"),
        ({"input": [{"type": "text"}]}, "input[0].text"),
        ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input[0].type"),
        ({"input": "a", "model": "fake"}, "model"),
        ({"input": "a", "model": "embedder"}, "model"),
    ],
)
async def test_what_can_not_be_judged_is_refused_by_name(
    host: TestHost, body: dict[str, Any], param: str
) -> None:
    error = (await moderate(host, 400, **body))["error"]

    assert error["param"] == param


async def test_the_parts_of_one_input_are_judged_together(host: TestHost) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    [result] = (await moderate(host, input=parts))["results"]

    assert result["category_scores"]["spam"] == pytest.approx(expected("one\ntwo")["spam"])


async def test_rules_do_not_refuse_a_text_whose_harm_is_asked_for() -> None:
    settings = Settings(server=ServerSettings(), safety=SafetySettings(blocked_words=("bad",)))
    async with make_host(models=MODELS, settings=settings) as host:
        await moderate(host, input="bad")
        assert (await host.chat("bad")).status_code == 400


async def test_a_guard_that_generates_is_asked_in_its_own_form_and_read() -> None:
    words = MarkedWords(Marks(guard="llama-guard-3"))
    async with scripted_node(words, guard="auto") as (host, engine):
        asked = asyncio.create_task(moderate(host, input=["a", "b"]))
        await until(lambda: len(engine.specs) == 2)
        shown = words.rendered["messages"]
        for index, text in enumerate(("unsafe\nS1,S10", "safe")):
            engine.say(index, text)
            engine.end(index)
        first, second = (await asked)["results"]
        entry = (await settled(host))[-1]

    assert shown == [{"role": "user", "content": [{"type": "text", "text": "b"}]}]
    assert engine.specs[0].sampling.is_greedy
    assert engine.specs[0].max_new_tokens == 24
    assert [name for name, on in first["categories"].items() if on] == ["hate", "violence"]
    assert not second["flagged"]
    assert entry["tokens"]["output"] == 2


async def test_an_answer_that_can_not_be_read_is_no_verdict() -> None:
    async with scripted_node(MarkedWords(Marks()), guard="chat") as (host, engine):
        asked = asyncio.create_task(moderate(host, 503, input="a"))
        await until(lambda: bool(engine.specs))
        engine.say(0, "Hello!")
        engine.end(0)

        assert (await asked)["error"]["code"] == "safety_unavailable"
