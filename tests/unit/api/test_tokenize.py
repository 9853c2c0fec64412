"""Tokenize, detokenize and apply-template on a whole node, in vLLM's and llama.cpp's shapes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from llmhost.config.schema.engines import FakeOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.testing import TestHost, make_host
from llmhost.text.words import WordTokenizer

WORDS = WordTokenizer(4096)
IDS = WORDS.encode("baba babe")


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[TestHost]:
    async with make_host() as made:
        yield made


async def ask(host: TestHost, path: str, **body: Any) -> Any:
    response = await host.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def refusal(host: TestHost, path: str, **body: Any) -> dict[str, Any]:
    response = await host.client.post(path, json=body)
    assert response.status_code == 400, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
async def test_a_prompt_is_told_in_vllms_shape(host: TestHost, path: str) -> None:
    body = {"model": "fake", "prompt": "baba babe", "return_token_strs": True}

    answer = await ask(host, path, **body)

    assert (answer["tokens"], answer["count"]) == (IDS, 2)
    assert answer["max_model_len"] > 0
    assert answer["token_strs"] == [" baba", " babe"]


async def test_a_chat_is_told_as_its_template_writes_it(host: TestHost) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "baba"}]}]

    answer = await ask(host, "/tokenize", model="fake", messages=messages)
    written = await ask(host, "/apply-template", model="fake", messages=messages)

    assert written == {"prompt": "user: baba\nassistant:"}
    assert answer["tokens"] == WORDS.encode(written["prompt"])


async def test_content_is_told_in_llama_cpps_shape(host: TestHost) -> None:
    assert await ask(host, "/tokenize", content="baba babe") == {"tokens": IDS}
    pieces = await ask(host, "/tokenize", content="baba", with_pieces=True)
    assert pieces == {"tokens": [{"id": IDS[0], "piece": " baba"}]}


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_ids_become_text_under_both_names(host: TestHost, path: str) -> None:
    answer = await ask(host, path, tokens=IDS)
    assert answer == {"prompt": "baba babe", "content": "baba babe"}


async def test_nothing_has_no_tokens(host: TestHost) -> None:
    assert (await ask(host, "/tokenize", model="fake", prompt=""))["count"] == 0
    assert (await ask(host, "/detokenize", tokens=[]))["prompt"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"content": "a", "parse_special": False}, "parse_special"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, "x"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1, 99999]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/apply-template", {}, "messages"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_name(
    host: TestHost, path: str, body: dict[str, Any], param: str
) -> None:
    assert (await refusal(host, path, model="fake", **body))["param"] == param


async def test_a_model_is_named_where_there_are_several_and_none_is_metered() -> None:
    embedder = ModelSpec(engine="fake", options=FakeOptions(task="embed"))
    async with make_host(models={"one": ModelSpec(engine="fake"), "vectors": embedder}) as host:
        assert (await refusal(host, "/tokenize", prompt="baba"))["param"] == "model"
        assert (await ask(host, "/tokenize", model="vectors", prompt="baba"))["count"] == 1
        assert host.entries() == []


async def test_a_stranger_is_told_nothing() -> None:
    async with make_host() as host:
        key = await host.make_key("acme", models=("other",))
        for path in ("/tokenize", "/detokenize", "/apply-template"):
            assert (await host.client.post(path, json={"tokens": [1]})).status_code == 401
        headers = {"authorization": f"Bearer {key}"}
        body = {"model": "fake", "prompt": "baba"}
        refused = await host.client.post("/tokenize", json=body, headers=headers)
    assert refused.status_code == 403
