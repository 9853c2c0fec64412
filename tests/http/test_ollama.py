"""Ollama's API of a real server, read line by line as Ollama's own clients read it."""

import json
from typing import Any

import pytest
from server_process import Node, eventually

ASK = [{"role": "user", "content": "say something"}]


def streamed(node: Node, path: str, body: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    with node.http.stream("POST", f"{node.url}{path}", json=body, **options) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.iter_lines()]


def test_every_line_is_an_object_and_silence_is_one_that_says_nothing(open_node: Node) -> None:
    body = {"model": "silent:latest", "messages": ASK, "options": {"num_predict": 3}}

    lines = streamed(open_node, "/api/chat", body)

    silent = [line for line in lines if not line["model"]]
    assert silent, "the model says nothing for longer than the server is silent"
    assert all(line["message"] == {"role": "assistant", "content": ""} for line in silent)
    assert lines[-1]["model"] == "silent:latest"
    assert lines[-1]["eval_count"] == 3
    assert lines[-1]["prompt_eval_duration"] >= 0.7e9


def test_an_answer_is_billed_as_any_other(open_node: Node) -> None:
    body = {"model": "echo", "prompt": "hi", "stream": False, "options": {"num_predict": 5}}

    response = open_node.post("/api/generate", body)

    answer, entry = response.json(), open_node.entry(response.headers["x-request-id"])
    assert (
        entry["tokens"]["fresh_input"] + entry["tokens"]["cached_input"]
        == answer["prompt_eval_count"]
    )
    assert entry["tokens"]["output"] == answer["eval_count"] == 5
    assert response.headers["x-llmhost-cost-usd"] == answer_cost(entry)


def answer_cost(entry: dict[str, Any]) -> str:
    return f"{entry['amount_nano'] / 1e9:.6f}".rstrip("0")


def test_a_repeated_stream_is_the_first_one_to_the_byte(open_node: Node) -> None:
    body = {"model": "slow", "messages": ASK, "options": {"num_predict": 4}}
    key = {"idempotency-key": "ollama-1"}

    first = streamed(open_node, "/api/chat", body, headers=key)
    second = streamed(open_node, "/api/chat", body, headers=key)

    assert first == second


def test_who_leaves_a_stream_stops_it(open_node: Node) -> None:
    body = {"model": "slow", "messages": ASK, "options": {"num_predict": 4000}}
    with open_node.http.stream("POST", f"{open_node.url}/api/chat", json=body) as response:
        next(response.iter_lines())
    eventually(lambda: open_node.is_idle("slow"), "the answer goes on without a reader")


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/chat", "/api/embed"])
def test_a_stranger_is_told_in_ollamas_shape(keyed_node: Node, path: str) -> None:
    method = "GET" if path in ("/api/tags", "/api/ps") else "POST"
    response = keyed_node.http.request(method, f"{keyed_node.url}{path}", json={"model": "echo"})
    assert response.status_code == 401
    assert response.json().keys() == {"error"}


def test_the_built_in_model_answers_in_a_form(tiny_node: Node) -> None:
    form = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form |= {"additionalProperties": False}
    body = {"model": "tiny", "messages": ASK, "format": form, "stream": False}

    answer = tiny_node.post("/api/chat", {**body, "options": {"num_predict": 40}}).json()

    assert json.loads(answer["message"]["content"]).keys() == {"n"}
