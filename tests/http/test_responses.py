"""The Responses API as its own client sees it, which takes no answer that its types don't know, and over the wire."""

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from server_process import Node, eventually

from llmhost.engines.builtin.corpus import pairs, tool_dialogues, tools
from llmhost.testing import fake_chat_words

ASK: list[Any] = [{"role": "user", "content": "say something"}]
BODY: dict[str, Any] = {"model": "echo", "max_output_tokens": 4, "input": "say something"}
NO_ARGUMENTS = {
    "parameters": {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    },
    "strict": True,
}
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


def test_a_custom_tool_is_given_a_text(tiny: OpenAI, tiny_node: Node) -> None:
    sums: Any = {
        "type": "custom",
        "name": "calculate",
        "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]{2}\\+[0-9]{2}"},
    }
    body: Any = {"model": "tiny", "tools": [sums], "temperature": 0}
    choice: Any = {"type": "custom", "name": "calculate"}
    first = tiny.responses.create(input="what is 40 and 2?", tool_choice=choice, **body)
    call: Any = first.output[0]

    assert (call.type, call.name) == ("custom_tool_call", "calculate")
    assert re.fullmatch(r"\d\d\+\d\d", call.input)
    told = events_of(tiny_node, {**body, "input": "what is 40 and 2?", "tool_choice": choice})
    deltas = [e["delta"] for e in told if e["type"] == "response.custom_tool_call_input.delta"]
    done = next(e for e in told if e["type"] == "response.custom_tool_call_input.done")
    assert "".join(deltas) == done["input"] == call.input
    result: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "42"}
    second = tiny.responses.create(
        input=[result], previous_response_id=first.id, max_output_tokens=8, **body
    )
    assert second.usage is not None
    kept: list[Any] = list(tiny.responses.input_items.list(second.id))
    assert [item.type for item in kept] == ["custom_tool_call_output"]


def test_a_tool_in_a_namespace_is_called_by_both_its_names(tiny: OpenAI, tiny_node: Node) -> None:
    find: Any = {"type": "function", "name": "find", "description": "", **NO_ARGUMENTS}
    space: Any = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [find]}
    body: Any = {"model": "tiny", "tools": [space], "temperature": 0, "tool_choice": "required"}
    first = tiny.responses.create(input="who?", parallel_tool_calls=False, **body)
    call: Any = first.output[0]

    assert (call.type, call.namespace, call.name) == ("function_call", "crm", "find")
    told = events_of(tiny_node, {**body, "input": "who?"})
    added = next(e["item"] for e in told if e["type"] == "response.output_item.added")
    assert (added["namespace"], added["name"]) == ("crm", "find")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "nobody"}
    free: Any = {**body, "tool_choice": "none", "max_output_tokens": 4}
    assert tiny.responses.create(input=[result], previous_response_id=first.id, **free).usage


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


# ------------------------------------------------------------ what is kept


def test_the_client_reads_lists_counts_and_deletes_what_is_kept(client: OpenAI) -> None:
    made = client.responses.create(**BODY, metadata={"for": "a test"})

    assert client.responses.retrieve(made.id) == made
    listed = client.responses.input_items.list(made.id)
    assert [item.type for item in listed] == ["message"]
    counted = client.responses.input_tokens.count(model="echo", input=BODY["input"])
    assert made.usage is not None
    assert counted.input_tokens == made.usage.input_tokens
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**BODY, previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"
    assert refused.value.param == "previous_response_id"


def test_a_response_in_the_background_is_followed_from_any_place(client: OpenAI) -> None:
    body = {**BODY, "model": "slow", "max_output_tokens": 12}
    with client.responses.create(**body, background=True, stream=True) as stream:
        begun: list[Any] = [event for event, _ in zip(stream, range(3), strict=False)]
    name = begun[0].response.id

    rest: list[Any] = list(client.responses.retrieve(name, stream=True, starting_after=2))

    numbers = [event.sequence_number for event in [*begun, *rest]]
    assert numbers == list(range(len(numbers)))
    assert begun[1].type == "response.queued"
    assert [event.response.status for event in begun[:3]] == ["queued", "queued", "in_progress"]
    assert rest[-1].type == "response.incomplete"
    assert rest[-1].response == client.responses.retrieve(name)
    assert list(client.responses.retrieve(name, stream=True, starting_after=2)) == rest
    assert client.responses.cancel(name).status == "incomplete"


def test_a_response_that_is_cancelled_stops_and_is_billed(client: OpenAI, open_node: Node) -> None:
    body = {**BODY, "model": "slow", "max_output_tokens": 5000}
    queued = client.responses.create(**body, background=True)
    assert queued.status == "queued"

    cancelled = client.responses.cancel(queued.id)

    assert cancelled == client.responses.retrieve(queued.id)
    assert cancelled.status == "cancelled"
    entry = open_node.entry(queued.id.replace("resp_", "req_"))
    assert entry["outcome"] == "cancelled"
    assert cancelled.usage is not None
    assert cancelled.usage.output_tokens == entry["tokens"]["output"]
    eventually(lambda: open_node.is_idle("slow"), "its sequence goes on")


def test_conversations_hold_what_is_said_in_them(client: OpenAI) -> None:
    conversation = client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "my name is Ada"}],
        metadata={"topic": "names"},
    )
    first = client.responses.create(**BODY, conversation=conversation.id)
    assert first.conversation is not None
    assert first.conversation.id == conversation.id
    second = client.responses.create(**BODY, conversation={"id": conversation.id})
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens

    items: list[Any] = list(client.conversations.items.list(conversation.id, order="asc", limit=2))
    assert [item.role for item in items] == ["user", "user", "assistant", "user", "assistant"]
    one: Any = client.conversations.items.retrieve(items[0].id, conversation_id=conversation.id)
    assert one.content[0].text == "my name is Ada"
    client.conversations.items.delete(items[0].id, conversation_id=conversation.id)
    client.conversations.items.create(
        conversation.id, items=[{"role": "user", "content": "and another"}]
    )
    assert len(list(client.conversations.items.list(conversation.id))) == 5
    changed = client.conversations.update(conversation.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    assert client.conversations.retrieve(conversation.id) == changed
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**BODY, conversation=conversation.id)


def test_a_conversation_is_made_compact_and_gone_on_with(client: OpenAI) -> None:
    long = "once upon a time there was a very long story " * 4
    compacted = client.responses.compact(
        model="echo", input=long, extra_body={"max_output_tokens": 8}
    )
    assert [item.type for item in compacted.output] == ["compaction"]
    assert compacted.usage.output_tokens == 8

    items: list[Any] = [*compacted.output, {"role": "user", "content": "go on"}]
    assert client.responses.create(**{**BODY, "input": items}).usage is not None
    forged = [{**items[0].to_dict(), "encrypted_content": "lhs1_AAAA"}, items[1]]
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{**BODY, "input": forged})
    assert refused.value.code == "invalid_encrypted_content"
    assert refused.value.param == "input[0].encrypted_content"


def test_to_others_nothing_that_is_kept_exists(
    keyed_node: Node, client_of: Callable[[Node, str], OpenAI]
) -> None:
    mine, others = (
        strict(client_of(keyed_node, keyed_node.create_key("acme", **facts)["key"]))
        for facts in ({}, {})
    )
    made = mine.responses.create(**BODY)
    held = mine.conversations.create()

    for ask in (
        lambda: others.responses.retrieve(made.id),
        lambda: others.responses.delete(made.id),
        lambda: others.responses.cancel(made.id),
        lambda: others.responses.input_items.list(made.id),
        lambda: others.conversations.retrieve(held.id),
        lambda: others.conversations.delete(held.id),
        lambda: others.conversations.items.list(held.id),
        lambda: others.responses.create(**BODY, conversation=held.id),
        lambda: others.responses.create(
            **{**BODY, "input": [{"type": "item_reference", "id": made.output[0].id or ""}]}
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError):
        others.responses.create(**BODY, previous_response_id=made.id)
    assert mine.responses.retrieve(made.id) == made


SLOW = """
[models.slow]
engine = "fake"
[models.slow.price]
output = "2.00"
[models.slow.options]
token_delay_ms = 20
"""


def test_what_is_kept_outlives_a_killed_process_and_what_ran_has_failed(
    new_node: Callable[..., Node], client_of: Callable[[Node, str], OpenAI]
) -> None:
    node = new_node(SLOW).start()
    client = strict(client_of(node, "any"))
    body = {**BODY, "model": "slow"}
    kept = client.responses.create(**body)
    stream = client.responses.create(
        **{**body, "max_output_tokens": 5000}, background=True, stream=True
    )
    begun: list[Any] = [event for event, _ in zip(stream, range(8), strict=False)]
    name = begun[0].response.id

    node.kill()
    node.start()

    client = strict(client_of(node, "any"))
    assert client.responses.retrieve(kept.id) == kept
    assert client.responses.create(**body, previous_response_id=kept.id).status == "incomplete"
    lost = client.responses.retrieve(name)
    assert lost.status == "failed"
    assert lost.error is not None
    assert lost.error.code == "server_error"
    last: Any = list(client.responses.retrieve(name, stream=True, starting_after=7))
    assert [(event.type, event.sequence_number) for event in last] == [("response.failed", 8)]
    entry = node.entry(name.replace("resp_", "req_"))
    assert (entry["outcome"], entry["code"]) == ("cancelled", "process_ended")
    assert entry["amount_nano"] > 0


def test_what_breaks_amid_a_stream_is_told_as_its_last_events(open_node: Node) -> None:
    told = events_of(open_node, {**BODY, "model": "fragile", "max_output_tokens": 9})

    assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]
    assert told[-2]["error"]["type"] == "server_error"
    assert told[-2]["message"] == told[-2]["error"]["message"]
    failed = told[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    again = open_node.get(f"/v1/responses/{failed['id']}").json()
    assert again == failed


def test_a_response_that_took_too_long_says_what_it_has_used(open_node: Node) -> None:
    body = {**BODY, "model": "slow", "max_output_tokens": 5_000, "timeout_ms": 500}

    *_, error, last = events_of(open_node, body)

    assert (error["code"], last["type"]) == ("deadline_exceeded", "response.failed")
    usage = last["response"]["usage"]
    entry = open_node.entry(last["response"]["id"].replace("resp_", "req_"))
    assert usage["output_tokens"] == entry["tokens"]["output"] > 0
    assert usage["llmhost"]["cost_usd"]


def test_a_response_that_failed_is_no_part_of_its_conversation(open_node: Node) -> None:
    name = open_node.post("/v1/conversations", {}).json()["id"]
    body = {**BODY, "model": "fragile", "max_output_tokens": 9, "conversation": name}

    told = events_of(open_node, body)

    assert told[-1]["type"] == "response.failed"
    assert open_node.get(f"/v1/conversations/{name}/items").json()["data"] == []


def test_a_stream_whose_client_leaves_is_kept_as_cancelled(open_node: Node) -> None:
    body = {**BODY, "model": "slow", "max_output_tokens": 5_000, "stream": True}
    with open_node.http.stream("POST", f"{open_node.url}/v1/responses", json=body) as answer:
        first = next(line for line in answer.iter_lines() if line.startswith("data: "))
    path = f"/v1/responses/{json.loads(first[6:])['response']['id']}"

    eventually(lambda: open_node.get(path).status_code == 200, "it is nowhere")
    kept = open_node.get(path).json()
    assert kept["status"] == "cancelled"
    entry = open_node.entry(kept["id"].replace("resp_", "req_"))
    assert kept["usage"]["output_tokens"] == entry["tokens"]["output"]


def test_an_answer_whose_client_did_not_wait_for_it_is_kept_as_cancelled(open_node: Node) -> None:
    body = {**BODY, "model": "slow", "max_output_tokens": 5_000, "metadata": {"trip": "short"}}
    with pytest.raises(httpx.ReadTimeout):
        open_node.http.post(f"{open_node.url}/v1/responses", json=body, timeout=0.5)

    def kept() -> list[dict[str, Any]]:
        with closing(
            sqlite3.connect(f"file:{open_node.data_dir}/state.db?mode=ro", uri=True)
        ) as db:
            rows = db.execute("SELECT resource FROM responses").fetchall()
        found = [json.loads(row[0]) for row in rows]
        return [each for each in found if each["metadata"] == {"trip": "short"}]

    eventually(lambda: bool(kept()), "it is nowhere")
    [only] = kept()
    again = open_node.get(f"/v1/responses/{only['id']}").json()
    assert again["status"] == "cancelled"
    assert again["output"][0]["status"] == "incomplete"
    assert again["usage"]["output_tokens"] > 0
