"""Every row of the table of errors that OpenAI's clients branch on: what brings it about, and what clients get.

Each row is asked of a real server by OpenAI's client, whose exception has the status, type, code and param. Two rows
need a model that can spell, and are in test_structured.py: `invalid_json_schema` and `invalid_function_parameters`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from server_process import Node, chat_body, eventually

SAY: list[Any] = [{"role": "user", "content": "one two three"}]


@dataclass(frozen=True)
class Row:
    status: int
    type: str
    code: str | None
    param: str | None
    ask: Callable[[OpenAI], Any]
    """With a client of the open node."""


def chat(client: OpenAI, **more: Any) -> Any:
    extra = more.pop("extra", {})
    model = more.pop("model", "echo")
    return client.chat.completions.create(
        model=model, messages=more.pop("messages", SAY), extra_body=extra, **more
    )


def raw(client: OpenAI, path: str, body: Any) -> Any:
    return client.post(path, body=body, cast_to=httpx.Response)


REQUEST = "invalid_request_error"
ROWS: dict[str, Row] = {
    "a field of a wrong type": Row(
        *(400, REQUEST, "invalid_value", "temperature"),
        lambda c: chat(c, extra={"temperature": "hot"}),
    ),
    "a field out of its range": Row(
        *(400, REQUEST, "invalid_value", "top_p"), lambda c: chat(c, top_p=2)
    ),
    "a field within a list": Row(
        *(400, REQUEST, "invalid_value", "messages[1].role"),
        lambda c: chat(c, messages=[*SAY, {"role": "king", "content": "x"}]),
    ),
    "a field that is absent": Row(
        *(400, REQUEST, "missing_required_parameter", "messages"),
        lambda c: raw(c, "/chat/completions", {"model": "echo"}),
    ),
    "a field that is not supported": Row(
        *(400, REQUEST, "unsupported_parameter", "web_search_options"),
        lambda c: chat(c, web_search_options={"search_context_size": "low"}),
    ),
    "options of a stream without one": Row(
        *(400, REQUEST, "invalid_value", "stream_options"),
        lambda c: chat(c, extra={"stream_options": {"include_usage": True}}),
    ),
    "likeliest tokens without log probabilities": Row(
        *(400, REQUEST, "invalid_value", "top_logprobs"), lambda c: chat(c, top_logprobs=2)
    ),
    "a chat that is too long": Row(
        *(400, REQUEST, "context_length_exceeded", "messages"),
        lambda c: chat(c, model="narrow", messages=[{"role": "user", "content": "a " * 100}]),
    ),
    "a prompt that is too long": Row(
        *(400, REQUEST, "context_length_exceeded", "prompt"),
        lambda c: c.completions.create(model="narrow", prompt="a " * 100),
    ),
    "an input that is too long": Row(
        *(400, REQUEST, "context_length_exceeded", "input"),
        lambda c: c.embeddings.create(model="embedder", input="a " * 100),
    ),
    "an answer that is too long, before its stream begins": Row(
        *(400, REQUEST, "context_length_exceeded", "messages"),
        lambda c: chat(c, model="narrow", max_tokens=1000, stream=True),
    ),
    "a chain of responses that is broken": Row(
        *(400, REQUEST, "previous_response_not_found", "previous_response_id"),
        lambda c: c.responses.create(model="echo", input="x", previous_response_id="resp_none"),
    ),
    "a model that is unknown": Row(
        *(404, REQUEST, "model_not_found", "model"), lambda c: chat(c, model="gpt-9")
    ),
    "a route that is unknown": Row(
        *(404, REQUEST, None, None), lambda c: raw(c, "/images/generations", {"prompt": "x"})
    ),
    "a response that is unknown": Row(
        *(404, REQUEST, None, None), lambda c: c.responses.retrieve("resp_none")
    ),
    "a file that is unknown": Row(
        *(404, REQUEST, None, None), lambda c: c.files.retrieve("file-none")
    ),
    "a batch that is unknown": Row(
        *(404, REQUEST, None, None), lambda c: c.batches.retrieve("batch_none")
    ),
    "a body that is too large": Row(
        *(413, REQUEST, "request_too_large", None),
        lambda c: chat(c, messages=[{"role": "user", "content": "a" * 1_000_001}]),
    ),
    "a failure that is the server's": Row(
        *(500, "server_error", "engine_failed", None),
        lambda c: chat(c, model="fragile", max_tokens=9),
    ),
}
KINDS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    404: openai.NotFoundError,
    500: openai.InternalServerError,
}


def raised(ask: Callable[[], Any]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask()
    return caught.value


def check(error: openai.APIStatusError, status: int, *facts: str | None) -> None:
    """Status, type, code and param, in a body with all four keys."""
    assert isinstance(error, KINDS.get(status, openai.APIStatusError))
    body = json.loads(error.response.content)["error"]
    assert list(body) == ["message", "type", "param", "code"]
    assert (error.status_code, body["type"], body["code"], body["param"]) == (status, *facts)
    assert body["message"]
    assert "Traceback" not in body["message"]
    assert error.response.headers["content-type"] == "application/json"
    assert error.request_id is not None
    assert error.request_id.startswith("req_")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_table(client: OpenAI, name: str) -> None:
    row = ROWS[name]

    error = raised(lambda: row.ask(client))

    check(error, row.status, row.type, row.code, row.param)
    if row.status < 500:
        assert "x-should-retry" not in error.response.headers


def test_a_wrong_key(keyed_node: Node, client_of: Callable[[Node, str], OpenAI]) -> None:
    error = raised(lambda: chat(client_of(keyed_node, "lh-sk-wrong")))

    check(error, 401, REQUEST, "invalid_api_key", None)
    assert isinstance(error, openai.AuthenticationError)


def test_a_model_that_the_key_lacks(
    keyed_node: Node, client_of: Callable[[Node, str], OpenAI]
) -> None:
    key = keyed_node.create_key("narrow", models=["other"])["key"]

    error = raised(lambda: chat(client_of(keyed_node, key)))

    check(error, 403, "permission_error", "model_not_allowed", "model")
    assert isinstance(error, openai.PermissionDeniedError)


def test_a_rate_where_trying_again_helps(
    keyed_node: Node, client_of: Callable[[Node, str], OpenAI]
) -> None:
    client = client_of(keyed_node, keyed_node.create_key("hasty", requests_per_minute=1)["key"])
    chat(client, max_tokens=1)

    error = raised(lambda: chat(client, max_tokens=1))

    check(error, 429, "rate_limit_error", "rate_limit_exceeded", None)
    headers = error.response.headers
    assert (headers["x-should-retry"], headers["x-ratelimit-remaining-requests"]) == ("true", "0")
    assert int(headers["retry-after-ms"]) > 0


SPENT = {
    "key": ("insufficient_quota", {}),
    "team": ("project_spend_limit_exceeded", {"team": "red"}),
    "org": ("organization_spend_limit_exceeded", {}),
    "balance": ("credit_balance_exhausted", {"period": "balance"}),
}


@pytest.mark.parametrize("whose", SPENT)
def test_a_budget_where_trying_again_does_not_help(
    keyed_node: Node, client_of: Callable[[Node, str], OpenAI], whose: str
) -> None:
    code, facts = SPENT[whose]
    team = {"team": facts["team"]} if "team" in facts else {}
    made = keyed_node.create_key(f"spent-{whose}", **team)
    wish = {"key": made["id"]} if whose == "key" else {"org": f"spent-{whose}", **facts}
    if whose == "balance":
        keyed_node.admin("POST", "/budgets", wish).raise_for_status()
        path = f"/orgs/spent-{whose}/credits"
        keyed_node.admin("POST", path, {"usd": "0.000000001"}).raise_for_status()
    else:
        keyed_node.admin("POST", "/budgets", {**wish, "usd": "0"}).raise_for_status()

    error = raised(lambda: chat(client_of(keyed_node, made["key"]), max_tokens=1))

    check(error, 429, "insufficient_quota", code, None)
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers


@pytest.fixture
def full(open_node: Node) -> Iterator[None]:
    """The model `single` has one answer under way and one that waits."""
    body = chat_body(model="single", max_tokens=100_000, stream=True)
    with (
        open_node.http.stream("POST", f"{open_node.url}/v1/chat/completions", json=body),
        open_node.http.stream("POST", f"{open_node.url}/v1/chat/completions", json=body),
    ):
        eventually(lambda: open_node.loaded("single")["waiting"] == 1, "nobody waits")
        yield


@pytest.mark.usefixtures("full")
def test_a_queue_that_is_full(client: OpenAI) -> None:
    error = raised(lambda: chat(client, model="single"))

    check(error, 503, "service_unavailable_error", "server_is_overloaded", None)
    assert int(error.response.headers["retry-after"]) >= 1
    assert error.response.headers["x-should-retry"] == "true"


def test_a_server_that_shuts_down(new_node: Callable[..., Node]) -> None:
    node = new_node("[models.slow]\nengine = 'fake'\n[models.slow.options]\ntoken_delay_ms = 5\n")
    node.start()
    body = chat_body(model="slow", max_tokens=100_000, stream=True)
    with (
        OpenAI(base_url=f"{node.url}/v1", api_key="any", max_retries=0) as client,
        node.http.stream("POST", f"{node.url}/v1/chat/completions", json=body) as running,
    ):
        assert running.status_code == 200
        node.signal(15)
        eventually(lambda: "server.draining" in node.log(), "it does not drain")
        error = raised(lambda: chat(client, model="slow"))

    check(error, 503, "service_unavailable_error", "server_is_overloaded", None)
    assert int(error.response.headers["retry-after"]) >= 1
    assert error.response.headers["connection"] == "close"


def test_a_failure_amid_a_stream_is_its_last_event(client: OpenAI) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(chat(client, model="fragile", max_tokens=9, stream=True))

    assert (caught.value.code, caught.value.type) == ("engine_failed", "server_error")
