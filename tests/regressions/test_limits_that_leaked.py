"""Limits that counted once a replica, forgot tokens, let bursts past, or were passed by who asked at once."""

import threading
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from server_process import Node, eventually, http_bytes

NewNode = Callable[..., Node]


def holder(node: Node, org: str, **limits: int) -> dict[str, str]:
    return {"authorization": f"Bearer {node.create_key(org, **limits)['key']}"}


def ask(node: Node, key: dict[str, str], **more: object) -> httpx.Response:
    body = {"model": "echo", "prompt": "x", "max_tokens": 1, **more}
    return node.post("/v1/completions", body, headers=key)


def at_once(count: int, act: Callable[[], int]) -> Counter[int]:
    """What so many callers that start together get."""
    found: list[int] = []
    gate = threading.Barrier(count)

    def run() -> None:
        gate.wait()
        found.append(act())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return Counter(found)


def test_a_burst_of_first_requests_does_not_pass_a_limit(node: Node, org: str) -> None:
    """The first requests of a key were all let in before the first of them was counted."""
    key = holder(node, org, requests_per_minute=5)

    statuses = at_once(30, lambda: ask(node, key).status_code)

    assert 5 <= statuses[200] <= 6  # a twelfth of a minute may pass meanwhile
    assert statuses[200] + statuses[429] == 30


def test_tokens_of_streams_count_against_a_limit_of_tokens(node: Node, org: str) -> None:
    key = holder(node, org, output_tokens_per_minute=100)
    node.post(
        "/v1/completions",
        {"model": "echo", "prompt": "x", "max_tokens": 100, "stream": True},
        headers=key,
    ).read()

    refused = ask(node, key, max_tokens=50)

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 20


def test_tokens_that_are_asked_for_at_once_are_counted_before_they_are_made(
    node: Node, org: str
) -> None:
    """Tokens were counted when answers had ended, so that all that began together were let in."""
    key = holder(node, org, output_tokens_per_minute=100)

    statuses = at_once(12, lambda: ask(node, key, model="slow", max_tokens=25).status_code)

    assert 4 <= statuses[200] <= 5
    assert statuses[200] + statuses[429] == 12


def test_a_limit_is_one_for_all_models_and_routes(node: Node, org: str) -> None:
    """Each deployment, and each way in, had a limit of its own: the limit was multiplied."""
    key = holder(node, org, requests_per_minute=3)
    chat = {"model": "echo", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    ways = [
        lambda: ask(node, key),
        lambda: ask(node, key, model="slow"),
        lambda: node.post("/v1/chat/completions", chat, headers=key),
        lambda: node.post("/v1/embeddings", {"model": "embedder", "input": "x"}, headers=key),
        lambda: node.post("/score", {"model": "judge", "text_1": "a", "text_2": "b"}, headers=key),
    ]

    statuses = [way().status_code for way in ways]

    assert statuses == [200, 200, 200, 429, 429]


def test_a_new_secret_is_no_new_allowance(node: Node, org: str) -> None:
    made = node.create_key(org, requests_per_minute=2)
    statuses = []
    for _ in range(4):
        key = {"authorization": f"Bearer {made['key']}"}
        statuses.append(ask(node, key).status_code)
        made = node.admin("POST", f"/keys/{made['id']}/rotate", {"overlap_s": 0}).json()

    assert statuses == [200, 200, 429, 429]


def test_an_edited_limit_does_not_forget_what_was_used(node: Node, org: str) -> None:
    """Editing a rule began its window anew."""
    made = node.create_key(org, requests_per_minute=4)
    key = {"authorization": f"Bearer {made['key']}"}
    for _ in range(4):
        assert ask(node, key).status_code == 200

    node.admin("PATCH", f"/keys/{made['id']}", {"requests_per_minute": 5}).raise_for_status()

    assert [ask(node, key).status_code for _ in range(3)].count(200) <= 2


@pytest.mark.parametrize("leave", ["early", "amid", "in the queue"])
def test_places_of_clients_that_left_are_free_again(node: Node, org: str, leave: str) -> None:
    """A limit on requests at once shrank with each client that left, until nobody got in."""
    key = holder(node, org, max_concurrency=2)
    body = {"model": "slow", "prompt": "x", "max_tokens": 5000, "stream": True}
    request = http_bytes("/v1/completions", body, headers=key)
    for _ in range(5):
        with node.raw() as one, node.raw() as two, node.raw() as three:
            for connection in (one, two) if leave != "early" else ():
                connection.sendall(request)
            if leave == "early":
                one.sendall(request[:-5])
            else:
                eventually(lambda: node.loaded("slow")["running"] == 2, "they do not run")
            if leave == "in the queue":
                three.sendall(request)
                eventually(
                    lambda: node.metric("llmhost_limit_waiting", dimension="key"), "nobody waits"
                )
        eventually(lambda: node.is_idle("slow"), "something goes on")
    eventually(lambda: not node.metric("llmhost_limit_waiting"), "somebody still waits")

    statuses = at_once(2, lambda: ask(node, key, max_tokens=3).status_code)

    assert statuses == Counter({200: 2})
