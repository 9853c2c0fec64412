"""Ollama's API on a whole node: lines, whole answers, thoughts, calls, vectors, models, and how it says no."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.unit.pipeline.scripted import MarkedWords, scripted_node

from llmhost.config.schema import Settings
from llmhost.config.schema.engines import FakeOptions
from llmhost.config.schema.limits import LimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.core.output import FinishReason
from llmhost.core.ports import Marks
from llmhost.core.thoughts import ThoughtIds
from llmhost.testing import TestHost, fake_chat_words, make_host

THINKING = Marks("hermes", ("<think>", "</think>"))
ASK = [{"role": "user", "content": "say something"}]
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call>'
PRICED = ModelSpec(engine="fake", price=PriceSettings(input="1.00", output="2.00"))
MODELS = {
    "m": PRICED,
    "vectors": ModelSpec(engine="fake", options=FakeOptions(task="embed")),
}


async def send(host: TestHost, route: str = "chat", **fields: Any) -> httpx.Response:
    body: dict[str, Any] = {"model": "m", **fields}
    if route == "chat":
        body.setdefault("messages", ASK)
    return await host.client.post(f"/api/{route}", json=body)


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def added_up(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a chat's lines add up to."""
    said: dict[str, Any] = {"content": "", "thinking": "", "tool_calls": []}
    for line in lines:
        message = line["message"]
        said["content"] += message["content"]
        said["thinking"] += message.get("thinking", "")
        said["tool_calls"] += message.get("tool_calls", [])
    return said


async def spoken(*pieces: str, **fields: Any) -> dict[str, Any]:
    """What a model that says these is heard to say, and why it ended."""
    async with scripted_node(MarkedWords(THINKING, is_thinking=False)) as (host, engine):
        asked = asyncio.create_task(send(host, **fields))
        while not engine.specs:
            assert not asked.done(), asked.result().text
            await asyncio.sleep(0)
        for piece in pieces:
            engine.say(0, piece)
        engine.end(0, FinishReason.STOP)
        response = await asked
    if fields.get("stream") is False:
        assert response.status_code == 200, response.text
        whole = response.json()
        return {**added_up([whole]), "done_reason": whole["done_reason"]}
    lines = lines_of(response)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    return {**added_up(lines), "done_reason": lines[-1]["done_reason"]}


@pytest.mark.parametrize("stream", [None, False])
async def test_thoughts_text_and_calls_are_told_apart(stream: bool | None) -> None:
    said = ("<thi", "nk>hm, ", "well</think>", "Let me see. ", CALL[:30], CALL[30:50], CALL[50:])

    heard = await spoken(*said, tools=[TOOL], stream=stream)

    assert (heard["thinking"], heard["content"]) == ("hm, well", "Let me see.")
    arguments = {"index": 0, "name": "now", "arguments": {"zone": "UTC"}}
    assert heard["tool_calls"] == [{"function": arguments}]
    assert heard["done_reason"] == "stop"


@pytest.mark.parametrize("stream", [None, False])
async def test_several_calls_are_told_each_once(stream: bool | None) -> None:
    heard = await spoken(CALL, CALL, tools=[TOOL], stream=stream)

    assert [call["function"]["index"] for call in heard["tool_calls"]] == [0, 1]


async def test_who_asks_not_to_think_hears_no_thoughts() -> None:
    heard = await spoken("<think>hm</think>Hello.", think=False)
    assert (heard["thinking"], heard["content"]) == ("", "Hello.")


async def test_an_answer_comes_in_lines_that_add_up_to_the_whole_one() -> None:
    options = {"num_predict": 6}
    async with make_host(models=MODELS) as host:
        streamed = lines_of(await send(host, options=options))
        whole = (await send(host, options=options, stream=False)).json()
        entries = host.entries()

    words = fake_chat_words(ASK, 6)
    assert added_up(streamed)["content"] == whole["message"]["content"] == words
    for end in (streamed[-1], whole):
        assert (end["done"], end["done_reason"]) == (True, "length")
        assert (end["prompt_eval_count"], end["eval_count"]) == (4, 6)
        parts = ("load_duration", "prompt_eval_duration", "eval_duration")
        assert end["total_duration"] == sum(end[part] for part in parts) > 0
    assert [entry["amount_nano"] for entry in entries] == [4_000 + 12_000] * 2
    assert streamed[-1]["llmhost"]["cost_usd"] == "0.000016"


async def test_a_prompt_is_answered_as_a_response() -> None:
    async with make_host(models=MODELS) as host:
        lines = lines_of(await send(host, "generate", prompt="hi", options={"num_predict": 2}))
        raw = await send(
            host, "generate", prompt="hi", raw=True, stream=False, logprobs=True, top_logprobs=2,
            options={"num_predict": 2},
        )  # fmt: skip

    ask = [{"role": "user", "content": "hi"}]
    assert "".join(line["response"] for line in lines) == fake_chat_words(ask, 2)
    assert raw.json()["prompt_eval_count"] == 1
    first, second = raw.json()["logprobs"]
    assert first["token"] + second["token"] == " " + raw.json()["response"]
    assert len(first["top_logprobs"]) == 2


async def test_nothing_to_answer_has_the_model_loaded_and_is_free() -> None:
    models = {"m": ModelSpec(engine="fake", load="request", price=PRICED.price)}
    async with make_host(models=models) as host:
        assert (await host.client.get("/api/ps")).json()["models"] == []
        (line,) = lines_of(await send(host, messages=[], keep_alive="10m"))
        generated = (await send(host, "generate", stream=False)).json()
        (loaded,) = (await host.client.get("/api/ps")).json()["models"]
        entries = host.entries()

    assert (line["done"], line["done_reason"], line["message"]["content"]) == (True, "load", "")
    assert (generated["done_reason"], generated["response"]) == ("load", "")
    assert (loaded["model"], loaded["size_vram"]) == ("m:latest", 0)
    assert [entry["amount_nano"] for entry in entries] == [0, 0]


async def test_a_context_that_is_smaller_than_the_models_is_kept() -> None:
    async with make_host(models=MODELS) as host:
        small = (await send(host, options={"num_ctx": 7}, stream=False)).json()
        refused = await send(host, options={"num_ctx": 3})

    assert (small["prompt_eval_count"], small["eval_count"]) == (4, 3)
    assert small["done_reason"] == "length"
    assert refused.status_code == 400


async def test_vectors_come_in_both_shapes() -> None:
    async with make_host(models=MODELS) as host:
        new = (await send(host, "embed", model="vectors", input=["a b", "c"], dimensions=5)).json()
        old = (await send(host, "embeddings", model="vectors:latest", prompt="a b")).json()

    assert [len(vector) for vector in new["embeddings"]] == [5, 5]
    assert (new["model"], new["prompt_eval_count"]) == ("vectors", 3)
    assert new["total_duration"] >= new["load_duration"] >= 0
    assert len(old["embedding"]) == 64


async def test_models_are_told_of_to_those_who_may_use_them() -> None:
    async with make_host(models=MODELS) as host:
        key = await host.make_key("acme", models=("m",))
        headers = {"authorization": f"Bearer {key}"}
        tags = await host.client.get("/api/tags", headers=headers)
        ps = await host.client.get("/api/ps", headers=headers)
        shown = await host.client.post("/api/show", json={"model": "m:latest"}, headers=headers)
        hidden = await host.client.post("/api/show", json={"model": "vectors"}, headers=headers)
        stranger = await host.client.get("/api/tags")

    assert [row["name"] for row in tags.json()["models"]] == ["m:latest"]
    assert [row["name"] for row in ps.json()["models"]] == ["m:latest"]
    assert shown.json()["capabilities"] == ["completion"]
    assert shown.json()["model_info"]["llmhost.context_length"] > 0
    assert (hidden.status_code, stranger.status_code) == (403, 401)
    assert stranger.json().keys() == {"error"}


@pytest.mark.parametrize("marks", [THINKING, Marks("harmony", thought_ids=ThoughtIds((1,), (2,)))])
async def test_a_model_that_thinks_says_so_whatever_tells_its_thoughts(marks: Marks) -> None:
    async with scripted_node(MarkedWords(marks)) as (host, _):
        shown = (await host.client.post("/api/show", json={"model": "m"})).json()

    assert shown["capabilities"] == ["completion", "tools", "thinking"]


async def test_whoever_looks_finds_it_running_and_what_a_model_is_for() -> None:
    async with make_host(models=MODELS) as host:
        root, head = await host.client.get("/"), await host.client.head("/")
        version = await host.client.get("/api/version")
        shown = (await host.client.post("/api/show", json={"name": "vectors"})).json()

    assert (root.status_code, root.text) == (200, "Ollama is running")
    assert (head.status_code, head.text) == (200, "")
    told = tuple(map(int, version.json()["version"].split(".")))
    assert (0, 14, 0) <= told < (1, 0, 0), "clients ask for one with responses and messages"
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["llmhost.embedding_length"] == 64


async def test_who_found_a_model_in_this_list_may_ask_for_it_elsewhere() -> None:
    """Editors list models by Ollama's API and ask by OpenAI's."""
    said = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    asked = [("chat/completions", said), ("messages", said), ("responses", {"input": "hi"})]
    async with make_host() as host:
        (row,) = (await host.client.get("/api/tags")).json()["models"]
        found = [
            await host.client.post(f"/v1/{route}", json={"model": row["name"], **body})
            for route, body in asked
        ]
        shown = await host.client.get(f"/v1/models/{row['name']}")
        other = await host.client.post("/v1/messages", json={"model": "fake:newest", **said})

    assert row["name"] == "fake:latest"
    assert [answer.json()["model"] for answer in found] == [row["name"]] * 3
    assert (shown.json()["root"], other.status_code) == ("fake", 404)


async def test_a_model_that_is_here_is_pulled_at_once() -> None:
    models = {**MODELS, "hidden": MODELS["vectors"]}
    async with make_host(models=models) as host:
        pulled = [
            await host.client.post("/api/pull", json=body)
            for body in ({"model": "vectors"}, {"name": "vectors:latest", "stream": False})
        ]
        key = await host.make_key("acme", models=("vectors",))
        headers = {"authorization": f"Bearer {key}"}
        hidden = await host.client.post("/api/pull", json={"model": "hidden"}, headers=headers)

    assert [answer.text for answer in pulled] == ['{"status":"success"}\n'] * 2
    assert hidden.status_code == 403


async def test_what_would_change_models_is_refused_with_a_reason() -> None:
    names = ("pull", "push", "create", "copy", "blobs/sha256:00")
    changes = [("DELETE", "/api/delete"), *(("POST", f"/api/{name}") for name in names)]
    async with make_host(models=MODELS) as host:
        refused = [await host.client.request(*change, json={"model": "o"}) for change in changes]
        blob = await host.client.head("/api/blobs/sha256:00")
        await host.make_key("acme")
        stranger = await host.client.post("/api/pull", json={"model": "m"})

    assert [response.status_code for response in refused] == [403] * len(changes)
    assert all("models.toml" in response.json()["error"] for response in refused)
    assert (blob.status_code, stranger.status_code) == (404, 401)


async def test_errors_are_one_sentence_and_have_the_usual_status() -> None:
    async with make_host(models=MODELS) as host:
        unknown = await send(host, model="nobody")
        broken = await host.client.post("/api/chat", content=b"{")
        toolless = await send(host, tools=[TOOL])
        wrong = await host.client.get("/api/chat")

    assert unknown.json().keys() == {"error"}
    assert unknown.json()["error"].startswith("model not found")
    assert "does not support tools" in toolless.json()["error"]
    statuses = [r.status_code for r in (unknown, broken, toolless, wrong)]
    assert statuses == [404, 400, 400, 405]


async def test_a_limit_holds_here_as_elsewhere() -> None:
    limited = Settings(limits=LimitSettings(requests_per_minute=1))
    async with make_host(models=MODELS, settings=limited) as host:
        key = await host.make_key("acme")
        host.client.headers["authorization"] = f"Bearer {key}"
        first = await send(host, options={"num_predict": 1})
        second = await send(host, "generate", prompt="hi")

    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json().keys() == {"error"}
    assert float(second.headers["retry-after"]) > 0


async def test_a_failure_amid_an_answer_is_its_last_line() -> None:
    fragile = ModelSpec(engine="fake", options=FakeOptions(fail_after_tokens=2))
    async with make_host(models={"m": fragile}) as host:
        lines = lines_of(await send(host, options={"num_predict": 5}))

    assert lines[-1].keys() == {"error"}
    assert lines[0]["message"]["content"]


async def test_a_call_with_thousands_of_objects_in_it_is_told_once() -> None:
    """Reading all of it again with each of them would hold up everybody for seconds."""
    rows = [{"a": 1}] * 3_000
    pieces = [f"{json.dumps(row)}{',' if n < len(rows) else ''}" for n, row in enumerate(rows, 1)]
    head = '<tool_call>{"name": "now", "arguments": {"rows": ['

    heard = await spoken(head, *pieces, "]}}</tool_call>", tools=[TOOL])

    assert [call["function"]["arguments"] for call in heard["tool_calls"]] == [{"rows": rows}]
