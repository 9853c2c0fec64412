"""What callers hear of safety, in the shape of each API: errors, ends, headers and the ids of reviews."""

import asyncio
from typing import Any

import pytest
from tests.unit.pipeline.node import WAIT_S

from llmhost.config.schema import Settings
from llmhost.config.schema.safety import SafetySettings
from llmhost.testing import TestHost, fake_chat_words, make_host

BAD = "AKIA" + "QYLPMN5HFIZSB2C7"
SAY = [{"role": "user", "content": f"my key is {BAD}"}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAY, "max_tokens": 4},
    "/v1/completions": {"prompt": SAY[0]["content"]},
    "/v1/responses": {"input": SAY[0]["content"]},
    "/v1/messages": {"messages": SAY, "max_tokens": 4},
    "/api/chat": {"messages": SAY, "options": {"num_predict": 4}},
}


async def ask(host: TestHost, path: str, **more: Any) -> Any:
    return await host.client.post(path, json={"model": "fake", **ASKS[path], **more})


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_has_each_apis_own_shape(stream: bool) -> None:
    settings = Settings(safety=SafetySettings(block=("secret",)))
    async with make_host(settings=settings) as host:
        answers = {path: await ask(host, path, stream=stream) for path in ASKS}
    bodies = {path: answer.json() for path, answer in answers.items()}

    assert {answer.status_code for answer in answers.values()} == {400}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        assert bodies[path]["error"]["code"] == "content_policy_violation"
        assert "secret.aws_key" in bodies[path]["error"]["message"]
    assert bodies["/v1/messages"]["type"] == "error"
    assert bodies["/v1/messages"]["error"]["type"] == "invalid_request_error"
    assert "secret.aws_key" in bodies["/api/chat"]["error"]
    assert not any(BAD in answer.text for answer in answers.values())


async def test_a_review_is_named_in_the_error_and_in_a_header() -> None:
    settings = Settings(safety=SafetySettings(review=("secret",)))
    async with make_host(settings=settings) as host:
        answer = await ask(host, "/v1/chat/completions")

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["review_id"] == answer.headers["x-llmhost-review"]
    assert error["review_id"] in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
async def test_a_warning_passes_and_is_told_in_a_header(path: str) -> None:
    settings = Settings(safety=SafetySettings(warn=("secret",)))
    async with make_host(settings=settings) as host:
        whole = await ask(host, path, stream=False)
        stream = await ask(host, path, stream=True)

    for answer in (whole, stream):
        assert answer.status_code == 200
        assert answer.headers["x-llmhost-safety"] == "warn; rule=secret.aws_key"


async def test_what_passes_has_no_header_and_what_was_redacted_of_an_answer_has_one() -> None:
    body = [{"role": "user", "content": "hello"}]
    word = fake_chat_words(body, 8).split()[3]
    hides = SafetySettings(blocked_words=(word,), redact=("words",))
    looks = SafetySettings(block=("secret",))
    headers = []
    for safety in (hides, looks):
        async with make_host(settings=Settings(safety=safety)) as host:
            answer = await host.client.post(
                "/v1/chat/completions", json={"model": "fake", "messages": body, "max_tokens": 8}
            )
            headers.append(answer.headers.get("x-llmhost-safety"))

    assert headers == ["redact; rule=blocked_words[0]", None]


async def test_analytics_and_metrics_say_what_was_decided() -> None:
    settings = Settings(safety=SafetySettings(block=("secret",), warn=("pii",)))
    async with make_host(settings=settings) as host:
        await ask(host, "/v1/chat/completions")
        warned = [{"role": "user", "content": "write to me@example.org"}]
        await ask(host, "/v1/chat/completions", messages=warned)
        rows = await recorded(host, 2)
        metrics = (await host.client.get("/metrics")).text

    assert rows == [("block", "secret.aws_key", None), ("warn", "pii.email", None)]
    for labels in ('action="block",category="secret"', 'action="warn",category="pii"'):
        assert f'llmhost_safety_decisions_total{{{labels},direction="input"}} 1.0' in metrics


async def recorded(host: TestHost, count: int) -> list[Any]:
    query = "SELECT safety_action, safety_rule, review_id FROM requests ORDER BY seq"
    reader = host.host.analytics._reader
    async with asyncio.timeout(WAIT_S):
        while True:
            rows = await asyncio.to_thread(reader.read_now, lambda c: c.execute(query).fetchall())
            if len(rows) == count:
                return rows
