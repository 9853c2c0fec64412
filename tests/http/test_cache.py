"""Kept answers as clients see them: on every text route, across a kill, and gone when they are to be."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from server_process import Node, eventually

SETTINGS = """
[cache]
use = "deterministic"
[models.echo]
engine = "fake"
[models.echo.price]
input = "1"
output = "2"
[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 20
[models.vectors]
engine = "fake"
[models.vectors.options]
task = "embed"
[models.semantic]
engine = "fake"
[models.semantic.cache]
embedder = "vectors"
min_similarity = 0.8
"""
ALIKE = {"x-llmhost-cache": "semantic"}
SAY = [{"role": "user", "content": "hello there"}]
WORDS = {"model": "echo", "messages": SAY, "max_tokens": 5, "temperature": 0}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("cache"), SETTINGS).start()
    yield node
    node.close()


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def asked(node: Node, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return node.post("/v1/chat/completions", {**WORDS, **more}, headers=headers)


def ask_alike(node: Node, text: str) -> httpx.Response:
    body = {"model": "semantic", "stop": ["a", "e", "i", "o"], "max_tokens": 90}
    return asked(node, messages=[{"role": "user", "content": text}], headers=ALIKE, **body)


def met(response: Any) -> str:
    return str(response.headers.get("x-llmhost-cache"))


def test_a_kept_answer_is_replayed_whole_and_as_a_stream(node: Node, client: openai.OpenAI):
    first = client.chat.completions.with_raw_response.create(**WORDS)
    again = client.chat.completions.with_raw_response.create(**WORDS)
    streamed = client.chat.completions.with_raw_response.create(
        **WORDS, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(streamed.parse())

    text = first.parse().choices[0].message.content
    assert [met(first), met(again), met(streamed)] == ["miss", "hit", "hit"]
    assert again.parse().choices[0].message.content == text
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert (again.headers["x-llmhost-cost-usd"], again.headers["age"]) == ("0.00", "0")
    usage, before = again.parse().usage, first.parse().usage
    assert usage.total_tokens == before.total_tokens == chunks[-1].usage.total_tokens
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens
    entry = node.entry(again.headers["x-request-id"])
    assert (entry["amount_nano"], entry["price_version"]) == (0, "echo+cache/1")
    assert (entry["outcome"], entry["from_cache"]) == ("answered", "hit")
    assert node.entry(first.headers["x-request-id"])["from_cache"] is None


def test_routes_share_what_the_model_said(node: Node, client: openai.OpenAI):
    asked(node)
    answer = client.responses.with_raw_response.create(
        model="echo", input="hello there", max_output_tokens=5, temperature=0
    )
    with anthropic.Anthropic(base_url=node.url, api_key="none", max_retries=0) as claude:
        message = claude.messages.with_raw_response.create(
            model="echo", messages=SAY, max_tokens=5, extra_body={"temperature": 0}
        )

    text = asked(node).json()["choices"][0]["message"]["content"]
    assert (met(answer), answer.parse().output_text) == ("hit", text)
    assert (met(message), message.parse().content[0].text) == ("hit", text)


def test_a_question_that_is_alike_has_the_answer_and_the_check_is_told(node: Node):
    first = ask_alike(node, "how do I reset my secret password")
    again = ask_alike(node, "hello how do I reset my secret password please")
    other = ask_alike(node, "how do I reset my 2 secret passwords")

    assert [met(answer) for answer in (first, again, other)] == ["miss", "semantic", "miss"]
    assert 0.8 <= float(again.headers["x-llmhost-cache-similarity"]) < 1
    assert again.json()["choices"] == first.json()["choices"]
    assert again.json()["usage"]["prompt_tokens"] > first.json()["usage"]["prompt_tokens"]
    assert node.entry(again.headers["x-request-id"])["amount_nano"] == 0

    def row() -> dict[str, Any]:
        rows = node.admin("GET", "/cache/stats").json()["data"]
        return next(row for row in rows if row["model"] == "semantic@1")

    eventually(lambda: row()["semantic_checks"] == 1, "nothing was checked")
    assert row()["false_hit_rate"] in (0.0, 1.0)
    assert "semantic@1" in node.cli("cache", "stats").stdout
    assert refused_of(asked(node, headers=ALIKE)) == (400, "x-llmhost-cache")


def refused_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["param"]


def test_of_twenty_identical_requests_at_the_same_time_one_runs(node: Node):
    with ThreadPoolExecutor(20) as threads:
        body = {"model": "slow", "temperature": 0, "max_tokens": 20}
        answers = list(threads.map(lambda _: asked(node, **body), range(20)))

    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert [met(answer) for answer in answers].count("miss") == 1
    entries = [node.entry(answer.headers["x-request-id"]) for answer in answers]
    assert sum(entry["tokens"]["output"] for entry in entries) == 400
    assert sum(entry["engine_ns"] > 0 for entry in entries) == 1


def test_a_caller_can_ask_for_a_kept_answer_alone(node: Node):
    only = {"x-llmhost-cache": "only"}
    refused = asked(node, max_tokens=7, headers=only)
    assert (refused.status_code, refused.json()["error"]["code"]) == (504, "cache_miss")
    assert refused.headers["x-should-retry"] == "false"

    asked(node, max_tokens=7)
    assert met(asked(node, max_tokens=7, headers=only)) == "hit"
    assert asked(node, headers={"x-llmhost-cache": "maybe"}).status_code == 400


def test_an_empty_name_forgets_nothing(node: Node):
    asked(node, max_tokens=11)
    for name in ("model", "org", "tag"):
        refused = node.admin("POST", "/cache/purge", {name: ""})
        assert refused.status_code == 400

    assert met(asked(node, max_tokens=11)) == "hit"


def test_two_organisations_never_have_each_others_answers(node: Node):
    keys = [node.create_key(org)["key"] for org in ("acme", "other")]
    try:
        seen = [
            met(asked(node, max_tokens=9, headers={"authorization": f"Bearer {key}"}))
            for key in (*keys, *keys)
        ]
    finally:
        for row in node.admin("GET", "/keys").json()["data"]:
            node.admin("DELETE", f"/keys/{row['id']}")

    assert seen == ["miss", "miss", "hit", "hit"]


def test_operators_see_what_is_saved_and_have_it_forgotten(node: Node):
    key = node.create_key("forgetful")["key"]
    bearer = {"authorization": f"Bearer {key}"}
    tagged = {**bearer, "x-llmhost-cache-tag": "nightly"}
    asked(node, headers=tagged)
    assert met(asked(node, headers=bearer)) == "hit"
    assert json.loads(node.cli("cache", "show", "--json").stdout)["total"]["hits"] > 0
    rows = json.loads(node.cli("cache", "stats", "--json").stdout)
    assert {(row["org"], row["hits"] > 0) for row in rows} >= {("forgetful", True)}
    assert json.loads(node.cli("cache", "policies", "--json").stdout) == []
    assert node.metric("llmhost_cache_requests_total", result="hit") > 0

    assert node.admin("POST", "/cache/purge", {}).status_code == 400
    purged = node.cli("cache", "purge", "--org", "forgetful", "--tag", "nightly", "--json")
    assert json.loads(purged.stdout) == {"purged": 1}
    assert met(asked(node, headers=bearer)) == "miss"


def test_kept_answers_outlive_a_kill_and_a_stopped_node_forgets_them(node: Node, tmp_path: Path):
    other = Node(tmp_path, SETTINGS).start()
    try:
        asked(other)
        ask_alike(other, "how do I reset my secret password")
        on_disk = other.admin
        eventually(
            lambda: on_disk("GET", "/cache").json()["disk_answers"] == 2, "nothing was written"
        )
        other.admin("POST", "/cache/purge", {"tag": "none"})  # what was learnt is on disk then
        other.kill()
        other.start()
        assert met(asked(other)) == "hit"
        again = ask_alike(other, "hello how do I reset my secret password please")
        assert met(again) == "semantic"

        other.stop()
        assert json.loads(other.cli("cache", "show", "--json").stdout)["disk_answers"] == 2
        other.cli("cache", "purge", "--everything")
        other.start()
        assert met(asked(other)) == "miss"
        again = ask_alike(other, "hello how do I reset my secret password please")
        assert met(again) == "miss"
    finally:
        other.close()
