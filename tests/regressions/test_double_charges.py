"""One answer was charged twice: to who had to ask again for it, and to who left in the moment that it ended."""

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
from openai import OpenAI
from paid_models import OUTPUT_NANO, Key
from server_process import Node, eventually, http_bytes

Entries = Callable[[], list[dict[str, Any]]]

TOKENS = 150
"""Of the model `slow`, a second and a half."""


@pytest.fixture
def hasty(node: Node, key: Key) -> Iterator[OpenAI]:
    """A client that waits less than answers of the model `slow` take, and tries again by itself."""
    with OpenAI(
        base_url=f"{node.url}/v1",
        api_key=key["authorization"].removeprefix("Bearer "),
        timeout=0.5,
        max_retries=30,
        http_client=openai.DefaultHttpxClient(verify=False),
    ) as client:
        yield client


def test_a_retry_after_a_timeout_is_charged_once(hasty: OpenAI, entries: Entries) -> None:
    answer = hasty.completions.with_raw_response.create(
        model="slow",
        prompt="a b c",
        max_tokens=TOKENS,
        extra_headers={"idempotency-key": str(uuid4())},
    )

    original = answer.headers["x-llmhost-original-request-id"]
    (entry,) = entries()
    assert answer.retries_taken > 0
    assert entry["request_id"] == original
    assert entry["tokens"]["output"] == TOKENS
    assert entry["amount_nano"] == entry["tokens"]["fresh_input"] * 1000 + TOKENS * OUTPUT_NANO


def test_a_stream_that_was_cut_and_asked_for_again_is_charged_once(
    node: Node, key: Key, entries: Entries
) -> None:
    headers = {**key, "idempotency-key": str(uuid4())}
    body = {"model": "slow", "prompt": "a b c", "max_tokens": TOKENS, "stream": True}
    for _ in range(3):
        with (
            httpx.Client(timeout=60, verify=False) as http,
            http.stream("POST", f"{node.url}/v1/completions", json=body, headers=headers) as cut,
        ):
            assert next(cut.iter_lines()).startswith("data: ")
    whole = node.post("/v1/completions", body, headers=headers)

    assert whole.text.endswith("data: [DONE]\n\n")
    (entry,) = entries()
    assert entry["tokens"]["output"] == TOKENS


def test_a_request_that_came_twice_at_once_is_charged_once(
    node: Node, key: Key, entries: Entries
) -> None:
    raw = json.dumps({"model": "slow", "prompt": "a b c", "max_tokens": 20}).encode()
    headers = {**key, "idempotency-key": str(uuid4())}

    def ask(_: int) -> httpx.Response:
        return node.post("/v1/completions", content=raw, headers=headers)

    with ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(ask, range(8)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(entries()) == 1


def test_a_retry_takes_nothing_of_a_budget_and_passes_where_it_is_spent(
    node: Node, org: str, entries: Entries
) -> None:
    body = {"model": "echo", "prompt": "a b c", "max_tokens": 5}
    secret = node.create_key(org, budget_usd="0.000013")["key"]  # 3 tokens in, 5 out
    key = {"authorization": f"Bearer {secret}"}
    headers = {**key, "idempotency-key": str(uuid4())}
    first = node.post("/v1/completions", body, headers=headers)
    again = [node.post("/v1/completions", body, headers=headers) for _ in range(3)]
    other = node.post("/v1/completions", body, headers=key)

    assert first.status_code == 200, first.text
    assert {answer.content for answer in again} == {first.content}
    assert (other.status_code, other.json()["error"]["code"]) == (429, "insufficient_quota")
    assert sum(entry["amount_nano"] for entry in entries()) == 13_000


@pytest.mark.parametrize("has_key", [False, True])
def test_whoever_leaves_in_the_moment_that_an_answer_ends_is_charged_once(
    node: Node, key: Key, entries: Entries, has_key: bool
) -> None:
    """Settling what was answered and settling what was left behind must not both happen."""
    count = 40
    for i in range(count):
        headers = {**key, **({"idempotency-key": str(uuid4())} if has_key else {})}
        body = {"model": "echo", "prompt": "a b c", "max_tokens": 3, "stream": True}
        with node.raw() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(http_bytes("/v1/completions", body, headers=headers))
            connection.recv(1 + i * 40)  # and away, with a reset, ever later

    eventually(lambda: len(entries()) == count, "not every request has its entry")
    eventually(lambda: node.is_idle("echo"), "a sequence goes on")
    found = entries()
    assert len({entry["request_id"] for entry in found}) == len(found) == count
    assert {entry["outcome"] for entry in found} <= {"answered", "cancelled"}
