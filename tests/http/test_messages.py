"""Anthropic's API as its own client sees it, which takes no answer that its types don't know, and as it goes over the
wire."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import (
    Anthropic,
    AsyncAnthropic,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    beta_tool,
)
from server_process import Node, eventually, http_bytes

from llmhost.engines.builtin.corpus import tool_dialogues, tools
from llmhost.testing import fake_chat_words

GOLDEN = Path(__file__).parent / "golden"
ASK: list[Any] = [{"role": "user", "content": "say something"}]
BODY: dict[str, Any] = {"model": "echo", "max_tokens": 4, "messages": ASK}
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Oslo", "Rome"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
    "cache_control": {"type": "ephemeral"},
}


@pytest.fixture
def client_at() -> Iterator[Callable[..., Anthropic]]:
    made: list[Anthropic] = []

    def make(node: Node, **options: Any) -> Anthropic:
        chosen = {"api_key": "any", "max_retries": 0, **options}
        made.append(
            Anthropic(
                base_url=node.url,
                timeout=60,
                http_client=DefaultHttpxClient(verify=False),
                _strict_response_validation=True,
                **chosen,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def client(open_node: Node, client_at: Callable[..., Anthropic]) -> Anthropic:
    return client_at(open_node)


# ------------------------------------------------------------ answers


def test_a_message_is_answered_and_billed(client: Anthropic, open_node: Node) -> None:
    raw = client.messages.with_raw_response.create(**BODY)
    message = raw.parse()

    assert message.content[0].type == "text"
    assert message.content[0].text == fake_chat_words(ASK, 4)
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 4)
    assert raw.headers["x-llmhost-cost-usd"] == "0.000012"
    request_id = raw.headers["request-id"]
    assert message._request_id == request_id == raw.headers["x-request-id"]
    assert open_node.entry(request_id)["amount_nano"] == 12_000


def test_a_stream_is_the_whole_message_in_events(client: Anthropic) -> None:
    whole = client.messages.create(**BODY)
    with client.messages.stream(**BODY) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()

    assert text == fake_chat_words(ASK, 4)
    kept = {"content", "stop_reason", "stop_sequence", "usage", "role", "type"}
    assert streamed.model_dump(include=kept) == whole.model_dump(include=kept)


async def test_the_asynchronous_client_streams_and_counts(open_node: Node) -> None:
    async with AsyncAnthropic(
        base_url=open_node.url,
        api_key="any",
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(verify=False),
        _strict_response_validation=True,
    ) as client:
        async with client.messages.stream(**BODY) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        counted = await client.messages.count_tokens(model="echo", messages=ASK)

    assert text == fake_chat_words(ASK, 4)
    assert counted.input_tokens == 4


def test_the_end_of_a_stop_sequence_is_told_with_it(client: Anthropic) -> None:
    stop = fake_chat_words(ASK, 4).split()[2]
    asked = {**BODY, "max_tokens": 9, "stop_sequences": ["nowhere", stop]}

    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()

    for message in (whole, streamed):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
        assert message.content[0].type == "text"
        assert message.content[0].text == f"{' '.join(fake_chat_words(ASK, 2).split())} "


def test_an_answer_that_was_begun_is_gone_on_with(client: Anthropic) -> None:
    begun = [*ASK, {"role": "assistant", "content": "well I"}]

    message = client.messages.create(**{**BODY, "messages": begun})

    assert message.usage.input_tokens == 6  # its end has no new beginning of an answer


def test_more_than_there_is_room_for_ends_with_the_window(client: Anthropic) -> None:
    message = client.messages.create(**{**BODY, "model": "narrow", "max_tokens": 32_000})

    assert message.stop_reason == "model_context_window_exceeded"
    assert message.usage.output_tokens == 60


def test_a_prompt_that_is_too_long_is_counted_and_refused(client: Anthropic) -> None:
    long: Any = [{"role": "user", "content": "word " * 90}]

    counted = client.messages.count_tokens(model="narrow", messages=long)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="narrow", max_tokens=1, messages=long)

    assert counted.input_tokens == 92
    assert caught.value.api_message == "prompt is too long: 92 tokens > 63 maximum"
    assert caught.value.error_code == "context_length_exceeded"


def test_a_call_that_is_sent_again_is_run_once(client: Anthropic, open_node: Node) -> None:
    headers = {"idempotency-key": "messages-once"}

    one, other = (
        client.messages.with_raw_response.create(**BODY, extra_headers=headers) for _ in range(2)
    )

    assert one.parse().id == other.parse().id
    assert other.headers["idempotent-replayed"] == "true"
    assert other.headers["request-id"] == other.headers["x-request-id"]
    assert other.headers["request-id"] != one.headers["request-id"]
    open_node.entry(one.headers["x-request-id"])


def test_models_are_listed_for_this_client_too(client: Anthropic) -> None:
    listed = list(client.models.list())

    assert {"echo", "parrot"} <= {model.id for model in listed}
    assert client.models.retrieve("parrot") in listed


# ------------------------------------------------------------ the built-in model


def test_a_tool_that_must_be_called_is_called_by_its_schema(
    tiny_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    client = client_at(tiny_node)
    asked: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 200,
        "extra_body": {"temperature": 0},
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
    }

    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_message()

    for message in (whole, streamed):
        call = message.content[-1]
        assert message.stop_reason == "tool_use"
        assert call.type == "tool_use"
        assert call.name == "get_weather"
        assert list(call.input) == ["city", "days"]
    assert "input_json" in kinds
    call = whole.content[-1]
    assert call.type == "tool_use"
    turns = [
        *asked["messages"],
        {"role": "assistant", "content": whole.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": "sun"},
                {"type": "text", "text": "And so?"},
            ],
        },
    ]
    again = client.messages.create(**{**asked, "messages": turns, "tool_choice": {"type": "none"}})
    counted = client.messages.count_tokens(
        model="tiny", messages=turns, tools=[WEATHER], tool_choice={"type": "none"}
    )
    assert counted.input_tokens == again.usage.input_tokens + (
        again.usage.cache_read_input_tokens or 0
    )


def test_a_model_calls_a_tool_by_itself_and_goes_on_with_what_it_gave(
    tiny_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    client, dialogue = client_at(tiny_node), tool_dialogues()[0]
    functions = [tools()[name]["function"] for name in dialogue.tools]
    asked: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 100,
        "extra_body": {"temperature": 0},
        "tools": [
            {
                "name": function["name"],
                "description": function["description"],
                "input_schema": function["parameters"],
            }
            for function in functions
        ],
    }
    turns: list[Any] = [{"role": "user", "content": dialogue.questions[0]}]

    with client.messages.stream(messages=turns, **asked) as stream:
        called = stream.get_final_message()
    uses = [block for block in called.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": use.id, "content": call.response}
        for use, call in zip(uses, dialogue.calls, strict=True)
    ]
    turns += [
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": results},
    ]
    answered = client.messages.create(messages=turns, **asked)

    assert called.stop_reason == "tool_use"
    assert [(use.name, use.input) for use in uses] == [
        (call.name, call.arguments) for call in dialogue.calls
    ]
    assert answered.stop_reason == "end_turn"
    assert answered.content[0].type == "text"
    assert answered.content[0].text == dialogue.answer


def test_a_runner_of_tools_goes_on_where_the_server_keeps_no_conversation(
    tiny_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    """It asks for a thread first, and knows by the error's code that it has to send the whole conversation."""
    dialogue = tool_dialogues()[0]
    (function,) = [tools()[name]["function"] for name in dialogue.tools]
    (call,) = dialogue.calls
    given: list[dict[str, Any]] = []

    def run(**arguments: Any) -> str:
        given.append(arguments)
        return call.response

    tool = beta_tool(
        run,
        name=function["name"],
        description=function["description"],
        input_schema=function["parameters"],
    )
    runner = client_at(tiny_node).beta.messages.tool_runner(
        model="tiny",
        max_tokens=100,
        tools=[tool],
        messages=[{"role": "user", "content": dialogue.questions[0]}],
        extra_body={"temperature": 0},
    )
    last = runner.until_done()

    assert given == [call.arguments]
    assert last.content[0].type == "text"
    assert last.content[0].text == dialogue.answer


def test_a_prompt_is_computed_ahead_of_its_answer(
    tiny_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    client = client_at(tiny_node)
    asked: dict[str, Any] = {
        "model": "tiny",
        "system": "You are kind and brief, and you were never asked like this before.",
        "messages": ASK,
    }

    ahead = client.messages.create(max_tokens=0, **asked)
    answered = client.messages.create(max_tokens=1, **asked)

    assert (ahead.content, ahead.stop_reason) == ([], "max_tokens")
    assert (ahead.usage.cache_read_input_tokens, ahead.usage.output_tokens) == (0, 0)
    assert answered.usage.cache_read_input_tokens >= 16
    assert tiny_node.entry(ahead._request_id or "")["tokens"]["output"] == 0


def test_a_schema_of_the_output_is_kept(
    tiny_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    schema = WEATHER["input_schema"]

    message = client_at(tiny_node).messages.create(
        model="tiny",
        max_tokens=200,
        messages=ASK,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )

    assert message.stop_reason == "end_turn"
    assert message.content[0].type == "text"
    assert list(json.loads(message.content[0].text)) == ["city", "days"]


# ------------------------------------------------------------ errors


def test_errors_are_those_of_the_client(
    client: Anthropic, keyed_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    for kind, fields, error_type, code in (
        (anthropic.NotFoundError, {"model": "nix"}, "not_found_error", "model_not_found"),
        (
            *(anthropic.BadRequestError, {"messages": image}),
            *("invalid_request_error", "unsupported_parameter"),
        ),
        (
            *(anthropic.BadRequestError, {"max_tokens": -1}),
            *("invalid_request_error", "invalid_value"),
        ),
    ):
        with pytest.raises(kind) as caught:
            client.messages.create(**{**BODY, **fields})
        assert (caught.value.type, caught.value.error_code) == (error_type, code)
        assert caught.value.request_id is not None

    with pytest.raises(anthropic.AuthenticationError) as stranger:
        client_at(keyed_node).messages.create(**BODY)
    assert stranger.value.type == "authentication_error"


def test_a_key_works_in_either_header(
    keyed_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    key = keyed_node.create_key("messages")["key"]

    by_header = client_at(keyed_node, api_key=key)
    by_bearer = client_at(keyed_node, api_key=None, auth_token=key)

    for client in (by_header, by_bearer):
        message = client.messages.create(**BODY)
        entry = keyed_node.entry(f"req_{message.id.removeprefix('msg_')}")
        assert entry["org"] == "messages"
        assert client.messages.count_tokens(model="echo", messages=ASK).input_tokens == 4
    assert key not in keyed_node.log()


def test_limits_and_budgets_hold_here_too(
    keyed_node: Node, client_at: Callable[..., Anthropic]
) -> None:
    limited = keyed_node.create_key("slow", requests_per_minute=1)["key"]
    poor = keyed_node.create_key("poor", budget_usd="0.000001")["key"]
    client = client_at(keyed_node, api_key=limited)
    client.messages.create(**BODY)

    with pytest.raises(anthropic.RateLimitError) as slowed:
        client.messages.create(**BODY)
    with pytest.raises(anthropic.RateLimitError) as refused:
        client_at(keyed_node, api_key=poor).messages.create(**BODY)

    assert slowed.value.type == "rate_limit_error"
    assert int(slowed.value.response.headers["retry-after"]) >= 1
    assert (refused.value.type, refused.value.error_code) == (
        *("billing_error", "insufficient_quota"),
    )
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_failure_amid_a_stream_is_an_event(client: Anthropic) -> None:
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(**{**BODY, "model": "fragile", "max_tokens": 9}) as stream,
    ):
        list(stream)

    assert caught.value.type == "api_error"
    assert caught.value.error_code == "engine_failed"


def test_other_methods_and_routes_have_anthropics_errors(open_node: Node) -> None:
    for answer, status, kind in (
        (open_node.get("/v1/messages"), 405, "invalid_request_error"),
        (open_node.get("/v1/messages/count_tokens"), 405, "invalid_request_error"),
        (open_node.post("/v1/messages/batches", {}), 400, "invalid_request_error"),
        (open_node.get("/v1/messages/files"), 404, "not_found_error"),
    ):
        body = answer.json()
        assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
        assert body["request_id"] == answer.headers["request-id"]


# ------------------------------------------------------------ the wire


def raw_stream(node: Node, body: dict[str, Any], **headers: str) -> list[bytes]:
    """The chunks of a stream's body, each as it was written."""
    path, asked = "/v1/messages?beta=true", {**body, "stream": True}
    with node.raw() as connection:
        connection.sendall(http_bytes(path, asked, headers=headers))
        file = connection.makefile("rb")
        while file.readline() != b"\r\n":
            pass
        chunks = []
        while size := int(file.readline(), 16):
            chunks.append(file.read(size))
            file.readline()
    return chunks


def test_a_stream_is_the_golden_one(open_node: Node) -> None:
    events: list[str] = []
    for event in b"".join(raw_stream(open_node, BODY)).decode().removesuffix("\n\n").split("\n\n"):
        plain = re.sub(r'"msg_[0-9a-f]{24}"', '"msg_ID"', event)
        piece = re.fullmatch(r'(.*"text_delta","text":")([^"]+)(".*)', plain, re.DOTALL)
        before = events and re.fullmatch(
            r'(.*"text_delta","text":")([^"]+)(".*)', events[-1], re.DOTALL
        )
        if piece and before:  # how many pieces there are is a matter of timing
            events[-1] = before[1] + before[2] + piece[2] + piece[3]
        else:
            events.append(plain)

    assert "\n\n".join(events) + "\n" == (GOLDEN / "messages.txt").read_text()


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "messages-ping"}])
def test_every_write_holds_whole_events_and_silence_is_filled_with_pings(
    open_node: Node, headers: dict[str, str]
) -> None:
    chunks = raw_stream(open_node, {**BODY, "model": "silent", "max_tokens": 1}, **headers)

    assert all(chunk.endswith(b"\n\n") for chunk in chunks)
    names = re.findall(rb"^event: (\w+)$", b"".join(chunks), re.MULTILINE)
    assert names[:2] == [b"message_start", b"ping"]
    assert [name for name in names if name != b"ping"] == [
        b"message_start",
        b"content_block_start",
        b"content_block_delta",
        b"content_block_stop",
        b"message_delta",
        b"message_stop",
    ]


def test_a_client_that_leaves_is_billed_for_what_it_was_given(open_node: Node) -> None:
    body = {**BODY, "model": "slow", "max_tokens": 400, "stream": True}
    with open_node.http.stream("POST", f"{open_node.url}/v1/messages", json=body) as response:
        request_id = response.headers["request-id"]
        next(response.iter_text())

    entry = open_node.entry(request_id)
    assert entry["tokens"]["output"] < 400
    eventually(lambda: open_node.is_idle("slow"), "the sequence went on")
