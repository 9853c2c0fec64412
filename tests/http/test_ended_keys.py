"""A key that ends while its request is on the way, or waits: it is not let in any more."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from server_process import Node, eventually, http_bytes

SETTINGS = """
[limits]
failed_auth_per_minute = 0
[models.echo]
engine = "fake"
[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 10
"""

End = Callable[[Node, str], None]


def revoke(node: Node, key_id: str) -> None:
    node.admin("DELETE", f"/keys/{key_id}").raise_for_status()


def disable(node: Node, key_id: str) -> None:
    node.admin("PATCH", f"/keys/{key_id}", {"disabled": True}).raise_for_status()


def rotate(node: Node, key_id: str) -> None:
    node.admin("POST", f"/keys/{key_id}/rotate", {"overlap_s": 0}).raise_for_status()


def archive_team(node: Node, key_id: str) -> None:
    org = node.admin("GET", f"/keys/{key_id}").json()["org"]
    node.admin("DELETE", f"/teams/{org}/red").raise_for_status()


def disable_org(node: Node, key_id: str) -> None:
    org = node.admin("GET", f"/keys/{key_id}").json()["org"]
    node.admin("PATCH", f"/orgs/{org}", {"disabled": True}).raise_for_status()


WAYS: dict[str, End] = {
    "revoked": revoke,
    "disabled": disable,
    "rotated": rotate,
    "archived": archive_team,
    "org disabled": disable_org,
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("ended"), SETTINGS)
    try:
        yield node.start()
        assert node.stop() == 0
        assert "Traceback" not in node.log()
    finally:
        node.close()


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(12).split()[1])


@pytest.mark.parametrize("way", WAYS)
def test_a_body_that_comes_after_its_key_has_ended_is_refused(node: Node, way: str) -> None:
    """A stranger could keep a connection half open, and come back with it."""
    made = node.create_key(f"slow-{way.replace(' ', '-')}", team="red")
    headers = {"authorization": f"Bearer {made['key']}"}
    request = http_bytes(
        "/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 1}, headers=headers
    )
    before = len(node.entries())
    with node.raw() as connection:
        connection.sendall(request[:-10])
        assert node.get("/v1/models", headers=headers).status_code == 200
        WAYS[way](node, made["id"])
        connection.sendall(request[-10:])
        status = status_of(connection)

    assert status == 401
    assert all(entry["outcome"] == "refused" for entry in node.entries()[before:])


@pytest.mark.parametrize("way", WAYS)
def test_who_waits_for_a_place_is_not_let_in_when_the_key_has_ended(node: Node, way: str) -> None:
    org = f"queue-{way.replace(' ', '-')}"
    made = node.create_key(org, team="red", max_concurrency=1)
    headers = {"authorization": f"Bearer {made['key']}"}
    long = {"model": "slow", "prompt": "x", "max_tokens": 50_000, "stream": True}
    short = {"model": "echo", "prompt": "x", "max_tokens": 1}
    with node.raw() as running, node.raw() as waiting:
        running.sendall(http_bytes("/v1/completions", long, headers=headers))
        eventually(lambda: node.loaded("slow")["running"], "nothing runs")
        waiting.sendall(http_bytes("/v1/completions", short, headers=headers))
        eventually(lambda: node.metric("llmhost_limit_waiting", dimension="key"), "nobody waits")
        WAYS[way](node, made["id"])
        assert node.loaded("slow")["running"] == 1  # what runs goes on
        running.close()
        status = status_of(waiting)

    assert status == 401
    eventually(lambda: node.is_idle("slow"), "the stream goes on")


def test_a_raised_limit_is_the_next_requests_whoever_waits(node: Node) -> None:
    made = node.create_key("raised", max_concurrency=1)
    headers = {"authorization": f"Bearer {made['key']}"}
    long = {"model": "slow", "prompt": "x", "max_tokens": 50_000, "stream": True}
    short = {"model": "echo", "prompt": "x", "max_tokens": 1}
    with node.raw() as running, node.raw() as waiting:
        running.sendall(http_bytes("/v1/completions", long, headers=headers))
        eventually(lambda: node.loaded("slow")["running"], "nothing runs")
        waiting.sendall(http_bytes("/v1/completions", short, headers=headers))
        eventually(lambda: node.metric("llmhost_limit_waiting", dimension="key"), "nobody waits")
        node.admin("PATCH", f"/keys/{made['id']}", {"max_concurrency": 3}).raise_for_status()
        late = node.post("/v1/completions", short, headers=headers)
        assert node.loaded("slow")["running"] == 1
        running.close()
        assert status_of(waiting) == 200

    assert late.status_code == 200
    eventually(lambda: node.is_idle("slow"), "the stream goes on")


def test_a_lowered_limit_counts_those_that_run(node: Node) -> None:
    made = node.create_key("lowered", max_concurrency=3)
    headers = {"authorization": f"Bearer {made['key']}"}
    long = {"model": "slow", "prompt": "x", "max_tokens": 50_000, "stream": True}
    with node.raw() as one, node.raw() as two, node.raw() as third:
        for connection in (one, two):
            connection.sendall(http_bytes("/v1/completions", long, headers=headers))
        eventually(lambda: node.loaded("slow")["running"] == 2, "they do not run")
        node.admin("PATCH", f"/keys/{made['id']}", {"max_concurrency": 1}).raise_for_status()
        third.sendall(http_bytes("/v1/completions", {**long, "max_tokens": 1}, headers=headers))
        eventually(lambda: node.metric("llmhost_limit_waiting", dimension="key"), "nobody waits")
        one.close()
        eventually(lambda: node.loaded("slow")["running"] == 1, "one does not end")
        assert node.metric("llmhost_limit_waiting", dimension="key") == 1
        two.close()
        assert status_of(third) == 200
    eventually(lambda: node.is_idle("slow"), "something goes on")


def test_an_expiry_is_kept_to_the_second_by_those_that_wait_too(node: Node) -> None:
    soon = int(time.time()) + 2
    made = node.create_key("expiring", max_concurrency=1, expires_at=soon)
    headers = {"authorization": f"Bearer {made['key']}"}
    long = {"model": "slow", "prompt": "x", "max_tokens": 50_000, "stream": True}
    with node.raw() as running, node.raw() as waiting:
        running.sendall(http_bytes("/v1/completions", long, headers=headers))
        last = {**headers, "connection": "close"}
        waiting.sendall(http_bytes("/v1/completions", long, headers=last))
        eventually(
            lambda: node.get("/v1/models", headers=headers).status_code == 401, "it does not expire"
        )
        running.close()
        answer = b"".join(iter(lambda: waiting.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"expired" in answer
