"""Limits as real clients meet them: OpenAI's own reads the headers, raises, waits as told, and comes through."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from server_process import Node, chat_body, eventually, http_bytes

ClientOf = Callable[[Node, str], OpenAI]

ASK: Any = [{"role": "user", "content": "hello"}]

LIMITED = """
[server]
heartbeat_s = 0.1

[limits]
requests_per_minute = 600
burst_requests = 1
failed_auth_per_minute = 3
queue_size = 1
trusted_proxies = ["127.0.0.1"]

[models.echo]
engine = "fake"
[models.echo.limits]
input_tokens_per_minute = 1000
output_tokens_per_minute = 2000

[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 20
[models.slow.limits]
max_concurrency = 1
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Has a key, so that strangers are strangers; the test is a proxy that says for whom it calls."""
    node = Node(tmp_path_factory.mktemp("limited"), LIMITED)
    try:
        node.start()
        node.create_key("first")
        yield node
        assert node.stop() == 0
        assert "Traceback" not in node.log()
    finally:
        node.close()


@pytest.fixture
def client(node: Node, client_of: ClientOf) -> OpenAI:
    """Of a key of its own."""
    return client_of(node, node.create_key("acme")["key"])


def test_the_client_raises_on_a_rate_and_its_retries_wait_as_told(client: OpenAI) -> None:
    client.chat.completions.create(model="echo", messages=ASK, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(20):
            client.chat.completions.create(model="echo", messages=ASK, max_tokens=1)

    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert (headers["retry-after"], headers["x-should-retry"]) == ("1", "true")
    assert 0 < int(headers["retry-after-ms"]) <= 100
    patient = client.with_options(max_retries=3)
    for _ in range(5):
        assert patient.chat.completions.create(model="echo", messages=ASK, max_tokens=1).choices


def test_answers_and_streams_say_how_limits_stand(node: Node, client: OpenAI) -> None:
    patient = client.with_options(max_retries=3)
    whole = patient.chat.completions.with_raw_response.create(
        model="echo", messages=ASK, max_tokens=5
    )
    with patient.chat.completions.with_streaming_response.create(
        model="echo", messages=ASK, max_tokens=5, stream=True
    ) as stream:
        for _ in stream.iter_lines():
            pass

    for headers in (whole.headers, stream.headers):
        assert headers["x-ratelimit-limit-requests"] == "600"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-reset-requests"].endswith("ms")
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 1000
        assert headers["x-ratelimit-reset-tokens"].endswith("s")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "word " * 1001}, "1000 input tokens per minute"),
        ({"prompt": "x", "max_tokens": 2001}, "2000 output tokens per minute"),
    ],
)
def test_a_request_that_never_fits_is_not_retried(
    client: OpenAI, body: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.with_options(max_retries=9).completions.create(model="echo", **body)

    assert caught.value.code == "request_exceeds_limit"
    assert says in caught.value.message
    assert "retry-after" not in caught.value.response.headers


def test_a_waiting_request_runs_when_there_is_a_place_and_leaves_no_trace_when_its_client_does(
    node: Node,
) -> None:
    running, leaving, waiting = (
        {"authorization": f"Bearer {node.create_key(org)['key']}"} for org in ("a", "b", "c")
    )
    body = {"model": "slow", "prompt": "x", "max_tokens": 9999, "stream": True}

    def queue() -> float:
        return node.metric("llmhost_limit_waiting", dimension="model")

    with node.raw() as first:
        first.sendall(http_bytes("/v1/completions", body, headers=running))
        eventually(lambda: node.loaded("slow")["running"], "nothing runs")
        with node.raw() as second:
            second.sendall(http_bytes("/v1/completions", body, headers=leaving))
            eventually(lambda: queue() == 1, "nobody waits")
        eventually(lambda: queue() == 0, "who left still waits")
        answers: list[int] = []
        short = chat_body(model="slow", max_tokens=1)
        third = threading.Thread(
            target=lambda: answers.append(
                node.post("/v1/chat/completions", short, headers=waiting).status_code
            )
        )
        third.start()
        eventually(lambda: queue() == 1, "nobody waits")
    third.join(30)

    assert answers == [200]
    eventually(lambda: node.is_idle("slow"), "something still runs")


# -- limits that operators set ----------------------------------------------------------------------------------------


def test_a_teams_and_an_organisations_limits_hold_for_all_their_keys_and_over_a_kill(
    new_node: Callable[..., Node],
) -> None:
    node = new_node().start()
    made = [
        node.cli("orgs", "create", "acme", "--output-tpm", "60"),
        node.cli("teams", "create", "search", "--org", "acme", "--rpm", "3"),
        node.cli("keys", "create", "--org", "acme", "--team", "search", "--rpm", "2", "--json"),
        node.cli("keys", "create", "--org", "acme", "--team", "search", "--json"),
    ]
    assert [each.returncode for each in made] == [0] * 4, [each.stderr for each in made]
    one, other = (json.loads(each.stdout)["key"] for each in made[2:])

    def ask(key: str, **body: Any) -> str:
        answer = node.post(
            "/v1/completions",
            {"model": "echo", "prompt": "x", "max_tokens": 1, **body},
            headers={"authorization": f"Bearer {key}"},
        )
        if answer.status_code == 200:
            return "fine"
        message: str = answer.json()["error"]["message"]
        return f"{answer.status_code} {message.split(' may ')[0]}"

    assert [ask(one) for _ in range(3)] == ["fine", "fine", "429 This key"]
    assert [ask(other) for _ in range(2)] == ["fine", "429 The team 'search'"]
    assert node.cli("teams", "update", "search", "--org", "acme", "--rpm", "none").returncode == 0
    assert ask(other, max_tokens=50, stream=True) == "fine"
    assert ask(other, max_tokens=30) == "429 The organisation 'acme'"
    assert ask(other, max_tokens=61).startswith("400 The request asks for up to 61 output tokens")

    node.kill()
    node.start()
    assert [ask(one) for _ in range(3)] == ["fine", "fine", "429 This key"]
    assert ask(other, max_tokens=61).startswith("400 ")


def test_a_stream_that_is_left_gives_its_tokens_back(node: Node) -> None:
    """Tokens of streams are counted like any others, and no more of them than were made."""
    node.admin("PATCH", "/orgs/acme", {"output_tokens_per_minute": 1000}).raise_for_status()
    key = node.create_key("acme")["key"]
    body = {"model": "slow", "prompt": "x", "max_tokens": 900, "stream": True}
    headers = {"authorization": f"Bearer {key}"}
    with node.raw() as connection:
        connection.sendall(http_bytes("/v1/completions", body, headers=headers))
        head = connection.recv(4096)
    eventually(lambda: node.is_idle("slow"), "the stream goes on")

    assert b"x-ratelimit-remaining-tokens: 100" in head.lower()
    again = eventually(lambda: _tokens_left(node, headers), "a rate is in the way")
    assert 200 < again < 1000


def _tokens_left(node: Node, headers: dict[str, str]) -> int | None:
    body = {"model": "slow", "prompt": "x", "max_tokens": 1}
    answer = node.post("/v1/completions", body, headers=headers)
    return int(answer.headers["x-ratelimit-remaining-tokens"]) if answer.is_success else None


# -- strangers ------------------------------------------------------------------------------------------------------


def guess(node: Node, address: str, key: str = "wrong", path: str = "/v1/models") -> int:
    headers = {"authorization": f"Bearer {key}", "x-forwarded-for": address}
    return node.get(path, headers=headers).status_code


def test_an_address_can_not_try_keys_for_long(node: Node) -> None:
    key = node.create_key("first")["key"]
    before = node.metric("llmhost_limit_refusals_total", dimension="ip", limit="failed_auth")
    ours = "203.0.113.1"

    assert guess(node, ours, key) == 200
    tried = [
        guess(node, ours, path=path) for path in ("/v1/models", "/admin/v1/keys", "/v1/models/x")
    ]
    assert tried == [401, 401, 401]
    post = node.post("/v1/chat/completions", chat_body(), headers={"x-forwarded-for": ours})

    assert post.status_code == 429
    assert post.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(post.headers["retry-after"]) <= 20
    assert guess(node, ours, key) == 200, "a key that has worked from there goes on working"
    assert guess(node, ours, node.create_key("first")["key"]) == 429
    assert guess(node, "203.0.113.2", key) == 200
    assert guess(node, ours, node.admin_token, "/admin/v1/keys") == 200
    assert guess(node, ours, path="/health") == 200
    after = node.metric("llmhost_limit_refusals_total", dimension="ip", limit="failed_auth")
    assert after == before + 2
    assert f"address.blocked address={ours}" in node.log()
    assert "wrong" not in node.log()


def test_who_is_no_proxy_is_not_believed(new_node: Callable[..., Node], tmp_path: Path) -> None:
    node = new_node(
        "[limits]\nfailed_auth_per_minute = 3\n[models.echo]\nengine = 'fake'\n"
    ).start()
    node.create_key("first")

    assert [guess(node, f"203.0.113.{i}") for i in range(5)] == [401, 401, 401, 429, 429]
