"""What users of other servers' clients ran into, each as a test, with the client or as bare events.

Traps that are tested elsewhere, by the numbers of the list that these come from:

 2  calls end with `tool_calls`: test_structured.py, test_tools.py
 3  deltas of calls: also test_structured.py, tests/unit/api/test_calls.py, tests/unit/text/test_calls.py
 6  vectors as base64: test_pooling.py
10  events of responses: test_responses.py, tests/unit/api/test_responses.py
11  thoughts by both names, and taken back: tests/unit/api/test_tools.py, tests/unit/text/test_calls.py
13  Anthropic's usage, blocks and counts: test_messages.py, tests/unit/api/test_messages_frames.py
15  what becomes of each parameter: test_parameters.py, tests/docs/test_parameters.py
18  forms and tools beside streams: test_structured.py, test_streams_are_wholes.py
"""

import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import OpenAI
from server_process import Node, chat_body, events, eventually

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def chunks(node: Node, **body: Any) -> list[Any]:
    response = node.chat(**{"stream": True, "max_tokens": 4, **body})
    assert response.status_code == 200, response.text
    return list(events(response))


# 1 ---------------------------------------------------------- chunks without choices


def test_without_wish_for_usage_no_chunk_is_without_choices_and_none_has_usage(
    open_node: Node,
) -> None:
    *said, done = chunks(open_node)

    assert done == "[DONE]"
    assert all(chunk["choices"] and "usage" not in chunk for chunk in said)


def test_usage_is_alone_in_the_last_chunk_and_null_before(open_node: Node) -> None:
    *said, last, done = chunks(open_node, **WITH_USAGE)

    assert done == "[DONE]"
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in said)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


# 2 ---------------------------------------------------------- the end


@pytest.mark.parametrize("n", [1, 3])
def test_every_choice_of_a_stream_ends_with_exactly_one_reason(open_node: Node, n: int) -> None:
    *said, _ = chunks(open_node, n=n)

    ends = [c["index"] for chunk in said for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(ends) == list(range(n))
    for index in range(n):
        mine = [c for chunk in said for c in chunk["choices"] if c["index"] == index]
        assert mine[-1]["finish_reason"] == "length"
        assert mine[-1]["delta"] == {}


# 3 ---------------------------------------------------------- pieces of calls


def test_a_streamed_call_is_named_once_and_goes_on_in_texts(tiny_node: Node) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    asked = {"model": "tiny", "tools": [tool], "tool_choice": "required", "max_tokens": 200}

    *said, _ = chunks(tiny_node, **asked, temperature=0, parallel_tool_calls=False)

    pieces = [
        piece
        for chunk in said
        for choice in chunk["choices"]
        for piece in choice["delta"].get("tool_calls", ())
    ]
    first, *later = pieces
    assert (first["type"], first["function"]["name"]) == ("function", "get_weather")
    assert first["id"].startswith("call_")
    assert later
    assert all(piece.keys() == {"index", "function"} for piece in later)
    assert all(piece["function"].keys() == {"arguments"} for piece in later)
    assert all(type(piece["function"]["arguments"]) is str for piece in pieces)
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces))
    assert said[-1]["choices"][0]["finish_reason"] == "tool_calls"


# 4 ---------------------------------------------------------- history as clients write it

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "3"}
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "null": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT],
    "absent": [{"role": "assistant", "tool_calls": [CALL]}, RESULT],
    "empty": [{"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT],
    "parts": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
    "no calls": [{"role": "assistant", "content": "x", "tool_calls": []}],
    "null calls": [{"role": "assistant", "content": "x", "tool_calls": None}],
    "result in parts": [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {**RESULT, "content": [{"type": "text", "text": "3"}]},
    ],
    "refusal": [{"role": "assistant", "content": None, "refusal": "no"}],
    "annotations": [{"role": "assistant", "content": "x", "annotations": [], "audio": None}],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_what_an_assistant_said_is_taken_back_however_it_is_written(
    open_node: Node, name: str
) -> None:
    ask = {"role": "user", "content": "hi"}

    answer = open_node.chat(messages=[ask, *HISTORIES[name], ask], max_tokens=1)

    assert answer.status_code == 200, answer.text


def test_an_answer_without_calls_has_no_list_of_them(open_node: Node) -> None:
    message = open_node.chat(max_tokens=1).json()["choices"][0]["message"]

    assert "tool_calls" not in message
    assert "function_call" not in message


# 5 ---------------------------------------------------------- limits and roles


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@BOTH
def test_both_names_of_the_limit_limit(open_node: Node, name: str, stream: bool) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], name: 3}

    answer = open_node.post("/v1/chat/completions", {**body, **(WITH_USAGE if stream else {})})

    usage = list(events(answer))[-2]["usage"] if stream else answer.json()["usage"]
    assert usage["completion_tokens"] == 3


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_developer_may_speak_where_a_system_may(open_node: Node, role: str) -> None:
    messages = [{"role": role, "content": "be brief"}, {"role": "user", "content": "hi"}]

    assert open_node.chat(messages=messages, max_tokens=1).status_code == 200


# 7 ---------------------------------------------------------- errors


def test_an_overflow_is_a_400_also_of_a_stream(open_node: Node) -> None:
    answer = open_node.chat("a " * 100, model="narrow", stream=True)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "64" in error["message"]


ASKED: dict[str, Callable[[Node], httpx.Response]] = {
    "bad json": lambda n: n.post("/v1/chat/completions", content=b"{"),
    "bad body": lambda n: n.post("/v1/chat/completions", ["list"]),
    "bad form": lambda n: n.post("/v1/chat/completions", content=b"a=b"),
    "no body": lambda n: n.post("/v1/embeddings"),
    "no route": lambda n: n.get("/v1/nothing"),
    "wrong method": lambda n: n.post("/v1/models", {}),
    "no key": lambda n: n.get("/admin/v1/keys"),
    "bad number": lambda n: n.admin("GET", "/keys", limit="many"),
    "too large": lambda n: n.post("/v1/completions", content=b"x" * 1_000_001),
    "other host": lambda n: n.get("/v1/models", headers={"host": "evil.example"}),
    "a failure": lambda n: n.chat(model="fragile", max_tokens=9),
}


@pytest.mark.parametrize("name", ASKED)
def test_codes_are_texts_and_nothing_has_a_detail(open_node: Node, name: str) -> None:
    answer = ASKED[name](open_node)

    body = answer.json()
    assert answer.status_code >= 400
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)


# 8 is a row of test_error_table.py: a budget's 429 is not tried again.

# 9 ---------------------------------------------------------- usage


def test_what_a_cache_had_is_a_part_of_the_prompt(open_node: Node) -> None:
    text = "once upon a time " * 20

    first, again = (open_node.chat(text, max_tokens=1).json()["usage"] for _ in range(2))

    assert again["prompt_tokens"] == first["prompt_tokens"]
    assert 0 < again["prompt_tokens_details"]["cached_tokens"] < again["prompt_tokens"]
    assert again["total_tokens"] == again["prompt_tokens"] + again["completion_tokens"]


def test_who_hangs_up_before_the_usage_is_charged_all_the_same(open_node: Node) -> None:
    body = chat_body(model="slow", max_tokens=10_000, stream=True)
    with open_node.http.stream("POST", f"{open_node.url}/v1/chat/completions", json=body) as answer:
        name = answer.headers["x-request-id"]
        next(answer.iter_lines())

    entry = open_node.entry(name)
    assert entry["tokens"]["output"] > 0
    assert entry["amount_nano"] > 0
    eventually(lambda: open_node.is_idle("slow"), "it goes on for nobody")


# 12 --------------------------------------------------------- silence


def test_headers_do_not_wait_for_a_token_and_silence_is_a_comment(open_node: Node) -> None:
    body = chat_body(model="silent", max_tokens=1, stream=True)
    with open_node.http.stream("POST", f"{open_node.url}/v1/chat/completions", json=body) as answer:
        lines = list(answer.iter_lines())

    assert lines[0] == ": keep-alive"
    assert not [line for line in lines if line.startswith(("id:", "event:", "retry:"))]
    assert ":" not in lines  # a comment that says nothing has broken clients


def test_the_client_reads_over_silence(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="silent", messages=[{"role": "user", "content": "hi"}], max_tokens=1, stream=True
    )

    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"


# 14 --------------------------------------------------------- chunks


def test_chunks_agree_and_the_role_is_said_once(open_node: Node) -> None:
    *said, _ = chunks(open_node, logprobs=True, top_logprobs=2)

    for name in ("id", "created", "model", "object"):
        assert len({chunk[name] for chunk in said}) == 1
    assert type(said[0]["created"]) is int
    roles = [c["delta"].get("role") for chunk in said for c in chunk["choices"]]
    assert roles[0] == "assistant"
    assert not any(roles[1:])
    assert all("logprobs" in c for chunk in said for c in chunk["choices"])


def test_a_whole_answer_has_the_key_of_log_probabilities_also_without_them(open_node: Node) -> None:
    assert open_node.chat(max_tokens=1).json()["choices"][0]["logprobs"] is None


def test_log_probabilities_are_json_numbers_whatever_can_not_be_said(open_node: Node) -> None:
    allowed = {"allowed_token_ids": [7], "logprobs": True, "top_logprobs": 20}

    text = open_node.chat(max_tokens=2, **allowed).text

    assert "Infinity" not in text
    assert "NaN" not in text
    (choice,) = json.loads(text, parse_constant=lambda _: pytest.fail("no JSON"))["choices"]
    for entry in choice["logprobs"]["content"]:
        assert len(entry["top_logprobs"]) == 20
        assert all(math.isfinite(each["logprob"]) for each in entry["top_logprobs"])


# 16 --------------------------------------------------------- names of models


@BOTH
def test_an_alias_is_answered_by_its_name_and_a_strange_one_not_at_all(
    open_node: Node, stream: bool
) -> None:
    if stream:
        assert {c["model"] for c in chunks(open_node, model="parrot") if c != "[DONE]"} == {
            "parrot"
        }
    else:
        assert open_node.chat(model="parrot", max_tokens=1).json()["model"] == "parrot"
    assert open_node.chat(model="ECHO", stream=stream).status_code == 404


# 17 --------------------------------------------------------- seeds


def test_the_same_seed_says_the_same_alone_and_among_others(open_node: Node) -> None:
    def said(stream: bool = False) -> str:
        body = {"seed": 11, "temperature": 1.5, "max_tokens": 20}
        if stream:
            *all_of_it, _ = chunks(open_node, **body)
            return "".join(c["choices"][0]["delta"].get("content") or "" for c in all_of_it)
        content: str = open_node.chat(**body).json()["choices"][0]["message"]["content"]
        return content

    alone = said()
    busy = chat_body(model="echo", max_tokens=100_000, stream=True)
    with open_node.http.stream("POST", f"{open_node.url}/v1/chat/completions", json=busy):
        assert said() == said(stream=True) == alone


# 19 --------------------------------------------------------- probes


def test_a_key_is_tried_out_by_listing_models(
    keyed_node: Node, client_of: Callable[[Node, str], OpenAI]
) -> None:
    good = keyed_node.create_key("prober")["key"]

    assert {model.id for model in client_of(keyed_node, good).models.list()} >= {"echo", "parrot"}
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert keyed_node.get("/v1/models", headers=headers).status_code == 401


# 20 --------------------------------------------------------- what evaluations ask for


def test_prompts_choices_and_echo_go_together(open_node: Node) -> None:
    body = {"model": "echo", "prompt": ["a b", "c"], "n": 2, "echo": True, "max_tokens": 2}

    choices = open_node.post("/v1/completions", body).json()["choices"]

    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"].startswith("a b") for choice in choices] == [True, True, False, False]


def test_a_text_is_scored_without_an_answer(open_node: Node) -> None:
    body = {"model": "echo", "prompt": "a b c", "echo": True, "logprobs": 1, "max_tokens": 0}

    (choice,) = open_node.post("/v1/completions", body).json()["choices"]

    assert choice["text"] == "a b c"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["tokens"]) == 3


# ------------------------------------------------------------ what is no text

PICTURE = "data:image/png;base64,iVBORw0KGgo="
ASKED_WITH_MEDIA: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    "sound in a chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages[0].content[0].type",
    ),
    "responses": (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]},
        "input[0].content[0].type",
    ),
    "messages": (
        "/v1/messages",
        {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "messages[0].content[0].type",
    ),
    "tokenize": (
        "/tokenize",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    "moderations": ("/v1/moderations", {"input": [{"type": "image_url"}]}, "input[0].type"),
}


@pytest.mark.parametrize("name", ASKED_WITH_MEDIA)
def test_pictures_and_sound_are_refused_by_their_place(open_node: Node, name: str) -> None:
    path, body, place = ASKED_WITH_MEDIA[name]

    answer = open_node.post(path, {"model": "judge" if name == "moderations" else "echo", **body})

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    told = error.get("details", error)
    assert told["param"] == place
    assert told.get("code", told.get("error_code")) == "unsupported_parameter"
