"""`Idempotency-Key` of files, batches and conversations: what was made is not made anew, whoever is killed between."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest
from anthropic import Anthropic, DefaultHttpxClient
from openai import OpenAI
from server_process import Node

FAKE = "[models.echo]\nengine = 'fake'\n"
LINE: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "echo", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]},
}
CONTENT = json.dumps(LINE).encode() + b"\n"
SAID: dict[str, Any] = {"role": "user", "content": "hi"}
REQUESTS: Any = [{"custom_id": "a", "params": LINE["body"]}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("keyed"), FAKE).start()
    yield made
    made.close()


def keyed(name: str = "") -> dict[str, str]:
    return {"idempotency-key": name or f"test-{uuid4()}"}


def upload(node: Node, headers: dict[str, str], content: bytes = CONTENT) -> httpx.Response:
    """As a form whose boundary is drawn anew."""
    form = {"file": ("in.jsonl", content)}
    return node.post("/v1/files", data={"purpose": "batch"}, files=form, headers=headers)


def batch(node: Node, headers: dict[str, str], **more: Any) -> httpx.Response:
    file = upload(node, keyed("input")).json()["id"]
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return node.post("/v1/batches", {**body, **more}, headers=headers)


def messages(node: Node, headers: dict[str, str], asked: Any = REQUESTS) -> httpx.Response:
    return node.post("/v1/messages/batches", {"requests": asked}, headers=headers)


def conversation(node: Node, headers: dict[str, str], **body: Any) -> httpx.Response:
    return node.post("/v1/conversations", {"items": [SAID], **body}, headers=headers)


def add(node: Node, headers: dict[str, str], name: str, *texts: str) -> httpx.Response:
    """Put items at the end of a conversation."""
    items = [{**SAID, "content": text} for text in texts]
    return node.post(f"/v1/conversations/{name}/items", {"items": items}, headers=headers)


OTHERS: dict[str, tuple[Callable[..., httpx.Response], dict[str, Any]]] = {
    "file": (upload, {"content": CONTENT * 2}),
    "batch": (batch, {"metadata": {"of": "another"}}),
    "messages": (messages, {"asked": [{**REQUESTS[0], "custom_id": "b"}]}),
    "conversation": (conversation, {"metadata": {"of": "another"}}),
}
MAKERS = pytest.mark.parametrize("what", OTHERS)


@MAKERS
def test_a_call_that_is_made_again_makes_nothing_and_tells_of_the_first(
    node: Node, what: str
) -> None:
    make, headers = OTHERS[what][0], keyed()

    first, again = make(node, headers), make(node, headers)

    assert (first.status_code, again.status_code) == (200, 200), again.text
    assert first.json()["id"] == again.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    original = again.headers["x-llmhost-original-request-id"]
    assert original == first.headers["x-request-id"] != again.headers["x-request-id"]
    assert make(node, keyed()).json()["id"] != first.json()["id"]
    assert make(node, {}).json()["id"] != first.json()["id"]


@MAKERS
def test_another_body_with_the_same_key_is_an_error(node: Node, what: str) -> None:
    make, other = OTHERS[what]
    headers = keyed()
    make(node, headers).raise_for_status()

    answer = make(node, headers, **other)

    assert answer.status_code == 422
    error = answer.json()["error"]
    if what == "messages":
        assert error["type"] == "invalid_request_error"
    else:
        assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")


@MAKERS
def test_a_key_that_can_not_be_one_is_refused(node: Node, what: str) -> None:
    answer = OTHERS[what][0](node, {"idempotency-key": "two words"})

    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["error"]["message"]


@MAKERS
def test_calls_at_the_same_time_make_one(node: Node, what: str) -> None:
    make, headers = OTHERS[what][0], keyed()

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: make(node, headers), range(6)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 5


def test_items_that_are_added_again_are_in_their_conversation_once(node: Node) -> None:
    name, headers = conversation(node, {}).json()["id"], keyed()
    path = f"/v1/conversations/{name}/items"

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: add(node, headers, name, "one", "two"), range(4)))

    first, *others = (answer.json() for answer in answers)
    assert len(first["data"]) == 2
    assert others == [first] * 3
    assert len(node.get(path).json()["data"]) == 3
    assert add(node, headers, name, "three").json()["error"]["code"] == "idempotency_key_reused"
    other = conversation(node, {}).json()["id"]
    assert "idempotent-replayed" not in add(node, headers, other, "one", "two").headers
    node.http.delete(f"{node.url}{path}/{first['first_id']}").raise_for_status()
    again = add(node, headers, name, "one", "two")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["data"] == first["data"][1:]
    node.http.delete(f"{node.url}/v1/conversations/{name}").raise_for_status()
    assert add(node, headers, name, "one", "two").status_code == 404


def test_items_with_ids_of_their_own_are_added_by_other_keys_too(node: Node) -> None:
    name = conversation(node, {}).json()["id"]
    body = {"items": [{**SAID, "id": "msg_mine"}]}

    for _ in range(2):
        added = node.post(f"/v1/conversations/{name}/items", body, headers=keyed())
        assert added.status_code == 200, added.text
    assert len(node.get(f"/v1/conversations/{name}/items").json()["data"]) == 2


def test_calls_that_made_nothing_leave_no_file(node: Node) -> None:
    headers = keyed()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: messages(node, headers), range(4)))

    batches = node.get("/v1/messages/batches", params={"limit": 1000}).json()["data"]
    inputs = {f"{each['id']}_requests.jsonl" for each in batches}
    files = [file["filename"] for file in node.get("/v1/files").json()["data"]]
    assert {name for name in files if name.endswith("_requests.jsonl")} == inputs


def test_what_a_key_made_is_found_after_a_kill_and_not_after_it_was_deleted(node: Node) -> None:
    known = {what: make(node, keyed(what)).json()["id"] for what, (make, _) in OTHERS.items()}
    node.kill()

    node.start()

    assert known == {
        what: make(node, keyed(what)).json()["id"] for what, (make, _) in OTHERS.items()
    }
    spare = upload(node, keyed("spare")).json()["id"]
    node.http.delete(f"{node.url}/v1/files/{spare}").raise_for_status()
    assert upload(node, keyed("spare")).status_code == 404


def test_clients_send_the_key_as_their_header(node: Node) -> None:
    with (
        OpenAI(base_url=f"{node.url}/v1", api_key="any", max_retries=0) as openai,
        Anthropic(
            base_url=node.url, api_key="any", max_retries=0, http_client=DefaultHttpxClient()
        ) as anthropic,
    ):
        file, key = ("in.jsonl", CONTENT), keyed()
        files = [
            openai.files.create(file=file, purpose="batch", extra_headers=key) for _ in range(2)
        ]
        batches = [
            anthropic.messages.batches.create(requests=REQUESTS, extra_headers=key)
            for _ in range(2)
        ]

    assert files[0] == files[1]
    assert batches[0].id == batches[1].id


def test_keys_of_others_are_their_own(keyed_node: Node) -> None:
    one, two = (keyed_node.create_key(org)["key"] for org in ("one", "two"))

    made = [
        upload(keyed_node, {**keyed("same"), "authorization": f"Bearer {key}"}).json()["id"]
        for key in (one, two, one)
    ]

    assert made[0] == made[2] != made[1]
