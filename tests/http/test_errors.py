"""What is refused, as the OpenAI client sees it: the class, the body, and whether to try again."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from server_process import Node, chat_body, events, eventually, http_bytes

ASK: list[Any] = [{"role": "user", "content": "say something"}]
ClientOf = Callable[[Node, str], OpenAI]


def assert_openai_body(response: httpx.Response) -> dict[str, Any]:
    """The error object, after a look at its form."""
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert "Traceback" not in error["message"]
    return error


# ------------------------------------------------------------ 400


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": "hello"}, "messages", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"temperature": 2.01}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"stop": [""]}, "stop", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_value"),
    ({"seed": "x"}, "seed", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"model": 5}, "model", "invalid_value"),
    ({"model": None}, "model", "missing_required_parameter"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"4096": 1}}, "logit_bias", "invalid_value"),
    ({"stop_token_ids": [4096]}, "stop_token_ids", "invalid_value"),
    ({"allowed_token_ids": [4096]}, "allowed_token_ids", "invalid_value"),
    ({"bad_words": [" "]}, "bad_words[0]", "invalid_value"),
    ({"min_tokens": 10**9}, "min_tokens", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"timeout_ms": 0}, "timeout_ms", "invalid_value"),
    (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "tools",
        "unsupported_parameter",
    ),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "invalid_grammar"),
    (
        {"structured_outputs": {"choice": ["hello"]}},
        "structured_outputs.choice",
        "unsupported_parameter",
    ),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
]


@pytest.mark.parametrize(
    ("change", "param", "code"), BAD_FIELDS, ids=[f"{p}={c}" for c, p, _ in BAD_FIELDS]
)
def test_a_wrong_field_is_named(
    open_node: Node, change: dict[str, Any], param: str, code: str
) -> None:
    response = open_node.post("/v1/chat/completions", {**chat_body(max_tokens=1), **change})

    assert response.status_code == 400
    error = assert_openai_body(response)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert "x-should-retry" not in response.headers


BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt[1]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [4096]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**30]}, "prompt"),
    ({"prompt": ["x"] * 129}, "prompt"),
    ({"best_of": 4, "n": 5}, "best_of"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"suffix": "end"}, "suffix"),
    ({"logprobs": 21}, "logprobs"),
]


@pytest.mark.parametrize(
    ("change", "param"), BAD_COMPLETIONS, ids=[str(c)[:30] for c, _ in BAD_COMPLETIONS]
)
def test_a_wrong_field_of_a_completion_is_named(
    open_node: Node, change: dict[str, Any], param: str
) -> None:
    response = open_node.post("/v1/completions", {"model": "echo", "prompt": "x", **change})

    assert response.status_code == 400
    assert assert_openai_body(response)["param"] == param


@pytest.mark.parametrize(
    "name", ["messages", "tools", "self", "add_generation_prompt", "conversation"]
)
def test_template_arguments_that_are_the_servers_own_are_refused_or_harmless(
    open_node: Node, name: str
) -> None:
    response = open_node.chat(max_tokens=1, chat_template_kwargs={name: []})

    assert response.status_code in (200, 400), response.text


BAD_BODIES = {
    "cut off": b'{"model": "echo", "messages": [',
    "empty": b"",
    "not an object": b"[1, 2]",
    "a number": b"5",
    "NaN": b'{"model": "echo", "messages": [{"role":"user","content":"x"}], "temperature": NaN}',
    "infinity": b'{"model": "echo", "messages": [{"role":"user","content":"x"}], "top_p": 1e999}',
    "invalid UTF-8": b'{"model": "echo", "messages": [{"role":"user","content":"\xff\xfe"}]}',
    "half a surrogate pair": b'{"model": "\\ud800", "messages": [{"role":"user","content":"x"}]}',
    "too deep": b'{"model": "echo", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("raw", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_is_not_json_is_a_bad_request(open_node: Node, raw: bytes) -> None:
    response = open_node.post("/v1/chat/completions", content=raw)

    assert response.status_code == 400
    assert assert_openai_body(response)["type"] == "invalid_request_error"


def test_the_client_raises_bad_request(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=ASK, temperature=3)

    assert caught.value.param == "temperature"
    assert caught.value.code == "invalid_value"
    assert caught.value.request_id is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_with_both_numbers_before_anything_is_sent(
    client: OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="narrow", messages=[{"role": "user", "content": "x " * 70}], stream=stream
        )

    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "72" in caught.value.message and "64" in caught.value.message


def test_an_answer_that_is_too_long_is_refused_too(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="narrow", prompt="x y z", max_tokens=62)

    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"


def test_a_huge_name_of_a_model_is_not_repeated_back(open_node: Node) -> None:
    response = open_node.chat(model="x" * 900_000)

    assert response.status_code in (400, 404)
    assert len(response.content) < 2_000


# ------------------------------------------------------------ 401, 403, 404, 405, 413


def test_a_wrong_key_is_an_authentication_error(keyed_node: Node, client_of: ClientOf) -> None:
    for wrong in ("wrong", "lh-sk-000000000000-0000", "lh-sk-"):
        with pytest.raises(openai.AuthenticationError) as caught:
            client_of(keyed_node, wrong).chat.completions.create(model="echo", messages=ASK)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client_of(keyed_node, wrong).models.list()


def test_no_key_at_all_is_an_authentication_error(keyed_node: Node) -> None:
    for response in (keyed_node.chat(), keyed_node.get("/v1/models")):
        assert response.status_code == 401
        assert assert_openai_body(response)["code"] == "invalid_api_key"


def test_a_stranger_hears_that_he_is_one_before_what_is_wrong_with_his_request(
    keyed_node: Node,
) -> None:
    assert keyed_node.post("/v1/chat/completions", content=b"{").status_code == 401


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_stranger_with_a_large_body_is_answered_before_it_is_sent(
    keyed_node: Node, is_announced: bool
) -> None:
    size = {"content-length": "900000"} if is_announced else {"transfer-encoding": "chunked"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in size.items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}\r\n"
    with keyed_node.raw() as connection:
        connection.sendall(head.encode() + b"ffff\r\n" + b"x" * 1000)
        answer = b""
        while piece := connection.recv(65536):  # the server closes what it does not want to read
            answer += piece

    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()
    assert b'"code":"invalid_api_key"' in answer


def test_a_client_of_a_stranger_gets_its_answer_while_it_sends(keyed_node: Node) -> None:
    response = keyed_node.post("/v1/chat/completions", content=b"x" * 900_000)

    assert response.status_code == 401
    assert keyed_node.get("/health").status_code == 200


def test_a_key_works_in_each_place_where_clients_put_it(keyed_node: Node) -> None:
    key = keyed_node.create_key("places")["key"]

    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
        {"x-api-key": key},
    ):
        said = keyed_node.post("/v1/chat/completions", chat_body(max_tokens=1), headers=headers)
        assert said.status_code == 200
        assert keyed_node.get("/v1/models", headers=headers).status_code == 200


def test_a_model_that_a_key_may_not_use_is_denied(keyed_node: Node, client_of: ClientOf) -> None:
    key = keyed_node.create_key("narrow", models=["parrot"])["key"]
    limited = client_of(keyed_node, key)

    with pytest.raises(openai.PermissionDeniedError) as caught:
        limited.chat.completions.create(model="other", messages=ASK)

    assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")
    assert {model.id for model in limited.models.list()} == {"echo", "parrot"}
    assert limited.chat.completions.create(model="echo", messages=ASK, max_tokens=1).choices
    with pytest.raises((openai.PermissionDeniedError, openai.NotFoundError)):
        limited.models.retrieve("other")


def test_an_unknown_model_is_not_found_and_the_nearest_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="ecco", messages=ASK)

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "'echo'" in caught.value.message


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v2/chat/completions", "/%00", "/é"])
def test_an_unknown_route_is_not_found(open_node: Node, path: str) -> None:
    for response in (open_node.get(path), open_node.post(path, {})):
        assert response.status_code == 404
        assert_openai_body(response)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/chat/completions"),
        ("PUT", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/v1/models"),
        ("POST", "/health"),
    ],
)
def test_a_wrong_method_is_not_allowed(open_node: Node, method: str, path: str) -> None:
    response = open_node.http.request(method, open_node.url + path)

    assert response.status_code == 405
    assert_openai_body(response)


def test_a_body_that_is_too_large_is_refused(open_node: Node) -> None:
    announced = open_node.post("/v1/chat/completions", content=b" " * 1_000_001)
    chunked = open_node.post("/v1/chat/completions", content=(b" " * 100_000 for _ in range(11)))

    for response in (announced, chunked):
        assert response.status_code == 413
        assert assert_openai_body(response)["code"] == "request_too_large"
    assert open_node.chat(max_tokens=1).status_code == 200


def test_a_body_too_large_for_an_admin_route_is_refused_too(open_node: Node) -> None:
    response = open_node.admin("POST", "/orgs", {"name": "x" * 1_000_001})

    assert response.status_code == 413
    assert_openai_body(response)


# ------------------------------------------------------------ 429, 503


def test_a_key_with_a_rate_is_told_when_to_come_back(keyed_node: Node, client_of: ClientOf) -> None:
    made = keyed_node.create_key("hasty", requests_per_minute=2)
    client = client_of(keyed_node, made["key"])
    first = client.chat.completions.with_raw_response.create(
        model="echo", messages=ASK, max_tokens=1
    )
    client.chat.completions.create(model="echo", messages=ASK, max_tokens=1)

    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="echo", messages=ASK, max_tokens=1)

    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert caught.value.code == "rate_limit_exceeded"
    headers = caught.value.response.headers
    assert 0 < int(headers["retry-after"]) <= 31
    assert 0 < int(headers["retry-after-ms"]) <= 30_000
    assert headers["x-should-retry"] == "true"
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert_openai_body(
        httpx.Response(429, headers=dict(headers), json=caught.value.response.json())
    )


def test_one_key_in_a_hurry_holds_up_no_other(keyed_node: Node, client_of: ClientOf) -> None:
    hasty = keyed_node.create_key("hasty", requests_per_minute=1)["key"]
    calm = keyed_node.create_key("hasty")["key"]
    client_of(keyed_node, hasty).completions.create(model="echo", prompt="x")

    with pytest.raises(openai.RateLimitError):
        client_of(keyed_node, hasty).completions.create(model="echo", prompt="x")

    assert client_of(keyed_node, calm).completions.create(model="echo", prompt="x").choices


def test_a_full_queue_is_an_overload_that_says_when_to_come_back(open_node: Node) -> None:
    body = http_bytes(
        "/v1/completions", {"model": "single", "prompt": "x", "max_tokens": 9999, "stream": True}
    )
    with open_node.raw() as running, open_node.raw() as waiting:
        running.sendall(body)
        eventually(lambda: open_node.loaded("single")["running"], "nothing runs")
        waiting.sendall(body)
        eventually(lambda: open_node.loaded("single")["waiting"], "nothing waits")

        response = open_node.post("/v1/completions", {"model": "single", "prompt": "x"})

    assert response.status_code == 503
    assert assert_openai_body(response)["code"] == "server_is_overloaded"
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["x-should-retry"] == "true"
    eventually(lambda: open_node.is_idle("single"), "sequences whose clients left go on")


# ------------------------------------------------------------ in the middle


def test_a_failure_in_mid_stream_is_one_error_event_and_no_done(open_node: Node) -> None:
    response = open_node.chat(model="fragile", max_tokens=9, stream=True)

    *chunks, last = events(response)
    assert response.status_code == 200
    assert set(last) == {"error"}
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * len(chunks)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)


def test_the_client_raises_on_a_failure_in_mid_stream(client: OpenAI) -> None:
    got = []
    with (
        pytest.raises(openai.APIError) as caught,
        client.chat.completions.create(
            model="fragile", messages=ASK, max_tokens=9, stream=True
        ) as stream,
    ):
        got += list(_texts(stream))

    assert "failed after 3 tokens" in str(caught.value)


def _texts(stream: Any) -> Iterator[str]:
    for chunk in stream:
        yield chunk.choices[0].delta.content or ""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_no_choice_of_a_failed_stream_has_a_reason_that_clients_do_not_know(
    open_node: Node, path: str
) -> None:
    body = {"model": "fragile", "max_tokens": 9, "stream": True, "n": 3}
    prompt = {"messages": ASK} if "chat" in path else {"prompt": "x"}

    *chunks, last = events(open_node.post(path, {**body, **prompt}))

    assert set(last) == {"error"}
    reasons = {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]}
    assert reasons <= {None, "stop", "length"}


def test_a_failure_of_an_answer_that_is_not_streamed_is_a_server_error(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="fragile", messages=ASK, max_tokens=9)

    assert caught.value.code == "engine_failed"
    assert caught.value.response.headers["x-should-retry"] == "false"
