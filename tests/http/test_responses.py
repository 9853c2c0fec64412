"""The Responses API as its own client sees it, which takes no answer that its types don't know, and over the wire."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node

from llmhost.engines.builtin.corpus import pairs, tool_dialogues, tools
from llmhost.testing import fake_chat_words

ASK: list[Any] = [{"role": "user", "content": "say something"}]
BODY: dict[str, Any] = {"model": "echo", "max_output_tokens": 4, "input": "say something"}
KEYS = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model"),
    *("previous_response_id", "instructions", "output", "error", "tools", "tool_choice"),
    *("truncation", "parallel_tool_calls", "text", "top_p", "presence_penalty"),
    *("frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage"),
    *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata"),
    *("safety_identifier", "prompt_cache_key"),
}


def strict(client: OpenAI) -> OpenAI:
    client._strict_response_validation = True
    return client


@pytest.fixture
def client(open_node: Node, client_of: Callable[[Node, str], OpenAI]) -> OpenAI:
    return strict(client_of(open_node, "any"))


@pytest.fixture
def tiny(tiny_node: Node, client_of: Callable[[Node, str], OpenAI]) -> OpenAI:
    return strict(client_of(tiny_node, "any"))


def events_of(node: Node, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a stream, as they go over the wire: each is one line of its name and one of its content."""
    told = []
    with node.http.stream("POST", f"{node.url}/v1/responses", json={**body, "stream": True}) as got:
        assert got.status_code == 200, got.read()
        text = "".join(got.iter_text())
    *frames, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for frame in frames:
        if frame.startswith(": "):
            continue
        name, data = frame.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    return told


def test_a_response_is_answered_and_billed(client: OpenAI, open_node: Node) -> None:
    raw = client.responses.with_raw_response.create(**BODY)
    response = raw.parse()

    assert response.output_text == fake_chat_words(ASK, 4)
    assert (response.status, response.object) == ("incomplete", "response")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (4, 4)
    assert json.loads(raw.text).keys() >= KEYS
    request_id = raw.headers["x-request-id"]
    assert response.id == f"resp_{request_id.removeprefix('req_')}"
    assert open_node.entry(request_id)["amount_nano"] == 12_000


def test_a_stream_has_its_events_in_order_and_ends_with_the_whole(open_node: Node) -> None:
    told = events_of(open_node, BODY)

    kinds = [event["type"].removeprefix("response.") for event in told]
    assert list(dict.fromkeys(kinds)) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        "incomplete",
    ]
    assert kinds.count("output_text.delta") >= 1
    last = told[-1]["response"]
    text = "".join(e["delta"] for e in told if e["type"] == "response.output_text.delta")
    assert last["output"][0]["content"][0]["text"] == text == fake_chat_words(ASK, 4)
    assert last["usage"]["total_tokens"] == 8
    assert told[0]["response"]["output"] == []


def test_the_client_assembles_a_stream_to_the_whole_response(tiny: OpenAI) -> None:
    body: Any = {"model": "tiny", "input": pairs()[0].questions[0], "temperature": 0}
    whole = tiny.responses.create(**body)
    with tiny.responses.stream(**body) as stream:
        list(stream)
        streamed = stream.get_final_response()

    assert whole.status == streamed.status == "completed"
    assert streamed.output_text == whole.output_text
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.total_tokens == whole.usage.total_tokens


def test_log_probabilities_come_with_each_piece_and_with_the_whole(tiny: OpenAI) -> None:
    body: Any = {
        "model": "tiny",
        "input": "hello",
        "max_output_tokens": 8,
        "temperature": 0,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    part: Any = tiny.responses.create(**body).output[-1]
    entries = part.content[0].logprobs

    assert "".join(entry.token for entry in entries) == part.content[0].text
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    streamed = [
        entry.token
        for event in tiny.responses.create(stream=True, **body)
        if event.type == "response.output_text.delta"
        for entry in event.logprobs
    ]
    assert streamed == [entry.token for entry in entries]


WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_a_function_that_has_to_be_called_is_and_its_result_is_gone_on_with(tiny: OpenAI) -> None:
    body: Any = {"model": "tiny", "tools": [WEATHER], "temperature": 0}
    first = tiny.responses.create(
        input="weather in Oslo?", tool_choice="required", parallel_tool_calls=False, **body
    )
    call: Any = first.output[0]

    assert [item.type for item in first.output] == ["function_call"]
    assert (call.name, call.status, first.status) == ("get_weather", "completed", "completed")
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    assert first.tools[0].to_dict()["strict"] is True
    second = tiny.responses.create(
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        max_output_tokens=8,
        **body,
    )
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


def test_calls_stream_their_arguments(tiny_node: Node) -> None:
    told = events_of(
        tiny_node,
        {
            "model": "tiny",
            "input": "weather?",
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "name": "get_weather"},
        },
    )
    kinds = [event["type"].removeprefix("response.") for event in told]

    assert list(dict.fromkeys(kinds)) == [
        *("created", "in_progress", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    deltas = [e["delta"] for e in told if e["type"].endswith("arguments.delta")]
    done = next(e for e in told if e["type"].endswith("arguments.done"))
    assert "".join(deltas) == done["arguments"] == told[-1]["response"]["output"][0]["arguments"]


def test_a_model_decides_upon_its_calls(tiny: OpenAI) -> None:
    dialogue = tool_dialogues()[0]
    listed: list[Any] = [
        {"type": "function", **tools()[name]["function"]} for name in dialogue.tools
    ]
    response = tiny.responses.create(
        model="tiny", input=dialogue.questions[0], tools=listed, temperature=0
    )

    calls = [item for item in response.output if item.type == "function_call"]
    assert [call.name for call in calls] == [call.name for call in dialogue.calls]


def test_an_answer_has_the_form_that_was_asked_for(tiny: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    response = tiny.responses.create(model="tiny", input="hello", text=form)

    assert json.loads(response.output_text).keys() == {"ok"}
    assert response.text is not None
    assert response.text.to_dict()["format"]["schema"] == schema  # type: ignore[index]
