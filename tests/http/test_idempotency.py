"""`Idempotency-Key` on a real server, with the real client: retries, crowds, clients that leave, servers that die."""

import json
import sqlite3
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
from openai import OpenAI
from server_process import Node, chat_body, events, eventually

from llmhost.testing import fake_words

NewNode = Callable[..., Node]

SETTINGS = """
[server]
heartbeat_s = 0.05
[idempotency]
grace_s = {grace_s}
[models.slow]
engine = "fake"
[models.slow.price]
output = "2.00"
[models.slow.options]
token_delay_ms = 20
[models.late]
engine = "fake"
load = "request"
"""
REPLAYED = "idempotent-replayed"
ORIGINAL = "x-llmhost-original-request-id"


def keyed() -> dict[str, str]:
    """Headers with a key that nobody has used."""
    return {"idempotency-key": f"test-{uuid4()}"}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "slow", "prompt": "hello world", "max_tokens": 40, "stream": True, **changes}


def ask(node: Node, headers: dict[str, str], **changes: Any) -> httpx.Response:
    return node.post("/v1/completions", body(**changes), headers=headers)


def text_of(response: httpx.Response) -> str:
    *chunks, done = events(response)
    assert done == "[DONE]"
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])


@contextmanager
def begun(node: Node, headers: dict[str, str], **changes: Any) -> Iterator[str]:
    """A client that has read the first piece of its answer, and leaves at the end of the block; its request's id."""
    with httpx.Client(timeout=60, verify=False) as http:
        url = f"{node.url}/v1/completions"
        with http.stream("POST", url, json=body(**changes), headers=headers) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if line.startswith("data: "):
                    break
            yield response.headers["x-request-id"]


@pytest.fixture(scope="module")
def patient_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A server that lets answers go on without readers."""
    node = Node(tmp_path_factory.mktemp("patient"), SETTINGS.format(grace_s=30)).start()
    try:
        yield node
        assert node.stop() == 0
        assert "Traceback" not in node.log()
    finally:
        node.close()


def test_the_openai_client_gets_one_answer_however_often_it_asks(
    client: OpenAI, open_node: Node
) -> None:
    ask: dict[str, Any] = chat_body(max_tokens=5)
    key = keyed()

    answers = [
        client.chat.completions.with_raw_response.create(**ask, extra_headers=key) for _ in range(3)
    ]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len({answer.parse().id for answer in answers}) == 1
    assert [answer.headers.get(REPLAYED) for answer in answers] == [None, "true", "true"]
    assert [answer.headers.get(ORIGINAL) for answer in answers] == [None, ids[0], ids[0]]
    assert open_node.entry(ids[0])["amount_nano"] > 0
    assert not [e for e in open_node.entries() if e["request_id"] in ids[1:]]
    repeated = [x for x in open_node.log().splitlines() if ids[1] in x]
    assert len(repeated) == 1
    assert "request.repeated" in repeated[0]


def test_the_openai_client_reads_a_stream_again_as_it_was(client: OpenAI) -> None:
    ask: dict[str, Any] = chat_body(max_tokens=5, model="slow", stream=True)
    key = keyed()

    first = list(client.chat.completions.create(**ask, extra_headers=key))
    again = list(client.chat.completions.create(**ask, extra_headers=key))

    assert again == first


def test_the_openai_client_hears_of_another_body_and_does_not_try_again(open_node: Node) -> None:
    key = keyed()
    with OpenAI(
        base_url=f"{open_node.url}/v1",
        api_key="any",
        max_retries=3,
        http_client=openai.DefaultHttpxClient(verify=False),
    ) as client:
        client.chat.completions.create(**chat_body(max_tokens=5), extra_headers=key)
        before = open_node.metric("llmhost_requests_total", code="idempotency_key_reused")
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.chat.completions.create(**chat_body(max_tokens=6), extra_headers=key)

    assert caught.value.code == "idempotency_key_reused"
    after = open_node.metric("llmhost_requests_total", code="idempotency_key_reused")
    assert after - before == 1


def test_fifty_duplicates_at_once_are_one_request_with_one_answer(patient_node: Node) -> None:
    key = keyed()
    joined = patient_node.metric("llmhost_idempotent_replays_total")
    with ThreadPoolExecutor(50) as crowd:
        answers = list(crowd.map(lambda _: ask(patient_node, key), range(50)))

    ids = {answer.headers["x-request-id"] for answer in answers}
    originals = [answer for answer in answers if REPLAYED not in answer.headers]
    assert len(ids) == 50
    assert len(originals) == 1
    assert {text_of(answer) for answer in answers} == {fake_words("hello world", 40)}
    assert {answer.headers.get(ORIGINAL) for answer in answers} == {
        None,
        originals[0].headers["x-request-id"],
    }
    entries = [e for e in patient_node.entries() if e["request_id"] in ids]
    assert [e["tokens"]["output"] for e in entries] == [40]
    assert patient_node.metric("llmhost_idempotent_replays_total") - joined == 49


def test_a_duplicate_follows_the_first_and_gets_the_beginning_too(patient_node: Node) -> None:
    key = keyed()
    with begun(patient_node, key) as request_id:
        followed = ask(patient_node, key)

    assert followed.headers[ORIGINAL] == request_id
    assert text_of(followed) == fake_words("hello world", 40)
    assert patient_node.entry(request_id)["outcome"] == "answered"


def test_a_client_that_was_cut_off_comes_back_and_finds_its_answer(patient_node: Node) -> None:
    key = keyed()
    with begun(patient_node, key) as request_id:
        pass
    again = ask(patient_node, key)
    later = ask(patient_node, key)

    assert again.headers[ORIGINAL] == request_id
    assert text_of(again) == fake_words("hello world", 40)
    assert later.content.replace(b": keep-alive\n\n", b"") == again.content.replace(
        b": keep-alive\n\n", b""
    )
    assert patient_node.entry(request_id)["tokens"]["output"] == 40


def test_duplicates_wait_together_for_a_model_that_loads(patient_node: Node) -> None:
    key = keyed()
    with ThreadPoolExecutor(5) as crowd:
        answers = list(crowd.map(lambda _: ask(patient_node, key, model="late"), range(5)))

    assert len({answer.content for answer in answers}) == 1
    assert [REPLAYED in answer.headers for answer in answers].count(False) == 1


def test_whoever_does_not_come_back_in_time_pays_for_what_was_made_and_asks_anew(
    new_node: NewNode,
) -> None:
    node = new_node(SETTINGS.format(grace_s=0.05)).start()
    key = keyed()
    with begun(node, key, max_tokens=2000) as request_id:
        pass

    cut = node.entry(request_id)
    anew = ask(node, key, max_tokens=2000 - 1990)
    again = ask(node, key, max_tokens=2000 - 1990)

    assert cut["outcome"] == "cancelled"
    assert cut["amount_nano"] == 2000 * cut["tokens"]["output"]
    assert cut["tokens"]["output"] < 2000
    eventually(lambda: node.is_idle("slow"), "the sequence was not stopped")
    assert ORIGINAL not in anew.headers
    assert text_of(anew) == fake_words("hello world", 10)
    assert again.headers[ORIGINAL] == anew.headers["x-request-id"]


def test_a_finished_answer_is_replayed_by_the_next_process_after_a_kill(new_node: NewNode) -> None:
    node = new_node(SETTINGS.format(grace_s=30)).start()
    key = keyed()
    first = ask(node, key)
    node.kill()
    node.start()
    again = ask(node, key)
    other = ask(node, key, max_tokens=41)

    assert again.content == first.content.replace(b": keep-alive\n\n", b"")
    assert again.headers[ORIGINAL] == first.headers["x-request-id"]
    assert other.status_code == 422
    assert [e["tokens"]["output"] for e in node.entries() if e["outcome"] == "answered"] == [40]
    path = node.data_dir / "answers.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as file:
        [(kept,)] = file.execute("SELECT body FROM answers").fetchall()
    assert kept == again.content


def test_what_a_kill_cut_is_not_kept_and_runs_anew(new_node: NewNode) -> None:
    node = new_node(SETTINGS.format(grace_s=30)).start()
    key = keyed()
    with pytest.raises(httpx.HTTPError), begun(node, key) as cut_id:
        node.kill()
        raise httpx.ReadError("the server is gone")
    node.start()
    anew = ask(node, key)

    assert ORIGINAL not in anew.headers
    assert text_of(anew) == fake_words("hello world", 40)
    assert anew.headers["x-request-id"] != cut_id
    assert node.entry(anew.headers["x-request-id"])["tokens"]["output"] == 40
    assert node.verified()["ok"]


def test_tenants_with_the_same_key_have_answers_of_their_own(keyed_node: Node) -> None:
    made = [keyed_node.create_key(org) for org in ("idem-a", "idem-b", "idem-b")]
    same = keyed()
    raw = json.dumps(chat_body(max_tokens=4)).encode()

    def say(key: dict[str, Any]) -> httpx.Response:
        headers = {**same, "authorization": f"Bearer {key['key']}"}
        return keyed_node.post("/v1/chat/completions", content=raw, headers=headers)

    first, again = [say(key) for key in made], [say(key) for key in made]
    keyed_node.admin("DELETE", f"/keys/{made[0]['id']}").raise_for_status()

    assert not [answer for answer in first if REPLAYED in answer.headers]
    assert [answer.content for answer in again] == [answer.content for answer in first]
    assert len({answer.json()["id"] for answer in again}) == 3
    assert say(made[0]).status_code == 401
