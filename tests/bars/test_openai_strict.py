"""OpenAI's Python client where it takes no answer that its types do not know, over every route and parameter of it.

Left out is what its types do not allow though OpenAI's own server says it, and this one: a piece of a streamed
completion without a `finish_reason`, the first token of an echo, of which there is no log probability, a stored chat's
messages that are not the assistant's, and vectors as base64, which the client itself asks for.
"""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from openai import OpenAI
from pydantic import BaseModel
from server_process import Node, eventually
from test_clients import TINY

pytestmark = pytest.mark.bars

Bar = Callable[[str], None]
Call = Callable[[OpenAI], Any]
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "max_completion_tokens": 40,
}
SAY: dict[str, Any] = {
    "model": "tiny",
    "input": "What is the weather in Paris?",
    "max_output_tokens": 40,
}
FUNCTION = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 9}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
FLAT = {"type": "function", "strict": True, **FUNCTION}
NUMBER = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}}
CLOSED = {**NUMBER, "required": ["n"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": CLOSED}}

CHAT: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"top_p": 0.5, "seed": 7},
    {"frequency_penalty": 0.5, "presence_penalty": -0.5},
    {"logit_bias": {"5": -100}},
    {"n": 3},
    {"stop": ["e", "a"]},
    {"stop": "e"},
    {"max_tokens": 3},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 5},
    {"logprobs": True, "top_logprobs": 0},
    {"user": "me", "safety_identifier": "me", "prompt_cache_key": "k"},
    {"metadata": {"a": "b"}, "store": True},
    {"store": False},
    {"service_tier": "auto"},
    {"service_tier": "flex"},
    {"service_tier": "default"},
    {"reasoning_effort": "low"},
    {"verbosity": "low"},
    {"modalities": ["text"]},
    {"parallel_tool_calls": True, "tools": [TOOL]},
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": "none"},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": NAMED, "parallel_tool_calls": False},
    {"tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}]},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": FORM},
    {"extra_body": {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "return_token_ids": True}},
    {"extra_body": {"include_cost": True, "cache_salt": "s", "priority": 3}},
    {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
]
RESPONSES: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "top_p": 0.5},
    {"instructions": "Be short."},
    {"store": False},
    {"metadata": {"a": "b"}},
    {"user": "me", "safety_identifier": "me", "prompt_cache_key": "k"},
    {"service_tier": "flex"},
    {"truncation": "auto"},
    {"truncation": "disabled"},
    {"reasoning": {"effort": "low"}},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"max_tool_calls": 3, "tools": [FLAT]},
    {"tools": [FLAT]},
    {"tools": [FLAT], "tool_choice": "required"},
    {"tools": [FLAT], "tool_choice": {"type": "function", "name": "get_weather"}},
    {"tools": [FLAT], "tool_choice": "none", "parallel_tool_calls": False},
    {"text": {"format": {"type": "text"}, "verbosity": "low"}},
    {"text": {"format": {"type": "json_object"}}},
    {"text": {"format": {"type": "json_schema", "name": "n", "strict": True, "schema": CLOSED}}},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]},
]
COMPLETIONS: list[dict[str, Any]] = [
    {},
    {"prompt": ["one", "two"], "n": 2},
    {"prompt": [5, 6, 7]},
    {"prompt": [[5, 6], [7]]},
    {"echo": True},
    {"logprobs": 0},
    {"logprobs": 2},
    {"best_of": 3, "n": 2},
    {"stop": ["e"], "seed": 3, "temperature": 1, "top_p": 0.5, "user": "me"},
    {"frequency_penalty": 1, "presence_penalty": 1, "logit_bias": {"5": 10}},
]


class Number(BaseModel):
    n: Literal[1, 2]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("strict"), TINY)
    try:
        yield made.start()
        assert "Traceback" not in made.log()
    finally:
        made.close()


def test_a_strict_client_takes_every_answer(node: Node, bar: Bar) -> None:
    url = f"{node.url}/v1"
    failed: list[str] = []
    calls = list(_calls())
    with OpenAI(
        base_url=url, api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        for name, call in calls:
            try:
                call(client)
            except Exception as error:  # noqa: BLE001 - all of them are told at the end
                failed.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    bar(f"openai-python, strict: {len(calls)} calls, {len(failed)} failed")
    assert not failed, "\n".join(failed)
    assert len(calls) > 100


def _calls() -> Iterator[tuple[str, Call]]:
    for more in CHAT:
        yield f"chat {more}", _chat(more)
        yield f"chat, streamed {more}", _chat_stream(more)
    for more in RESPONSES:
        yield f"response {more}", _response(more)
        yield f"response, streamed {more}", _response_stream(more)
    for more in COMPLETIONS:
        yield f"completion {more}", _completion(more)
    for call in (
        chat_parse,
        chat_stream_helper,
        stored_chats,
        response_parse,
        response_stream_helper,
        kept_responses,
        background,
        counted_tokens,
        compaction,
        conversations,
        embeddings,
        models,
        files,
        batches,
    ):
        yield call.__name__, call


def _chat(more: dict[str, Any]) -> Call:
    return lambda client: client.chat.completions.create(**{**ASK, **more})


def _chat_stream(more: dict[str, Any]) -> Call:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return lambda client: list(client.chat.completions.create(**{**ASK, **options, **more}))


def _response(more: dict[str, Any]) -> Call:
    return lambda client: client.responses.create(**{**SAY, **more})


def _response_stream(more: dict[str, Any]) -> Call:
    return lambda client: list(client.responses.create(**{**SAY, **more, "stream": True}))


def _completion(more: dict[str, Any]) -> Call:
    asked = {"model": "tiny", "prompt": "Once upon", "max_tokens": 5}
    return lambda client: client.completions.create(**{**asked, **more})


def chat_parse(client: OpenAI) -> None:
    answer = client.chat.completions.parse(**ASK, response_format=Number)
    assert isinstance(answer.choices[0].message.parsed, Number)


def chat_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASK, response_format=Number) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Number)


def stored_chats(client: OpenAI) -> None:
    chats = client.chat.completions
    made = chats.create(**ASK, store=True, metadata={"by": "strict"})
    assert chats.retrieve(made.id).id == made.id
    assert made.id in [chat.id for chat in chats.list(metadata={"by": "strict"})]
    chats.update(made.id, metadata={"by": "nobody"})
    assert chats.delete(made.id).deleted


def response_parse(client: OpenAI) -> None:
    assert isinstance(client.responses.parse(**SAY, text_format=Number).output_parsed, Number)


def response_stream_helper(client: OpenAI) -> None:
    with client.responses.stream(**SAY, text_format=Number) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_response().output_parsed, Number)


def kept_responses(client: OpenAI) -> None:
    first = client.responses.create(**SAY)
    second = client.responses.create(**SAY, previous_response_id=first.id)
    assert client.responses.retrieve(second.id).output_text == second.output_text
    assert list(client.responses.input_items.list(second.id))
    client.responses.delete(first.id)


def background(client: OpenAI) -> None:
    made = client.responses.create(**SAY, background=True)
    eventually(
        lambda: client.responses.retrieve(made.id).status in ("completed", "incomplete"),
        "the response did not end",
    )
    client.responses.cancel(made.id)
    streamed = client.responses.create(**SAY, background=True, stream=True)
    named = next(iter(streamed)).response.id  # type: ignore[union-attr]
    assert list(client.responses.retrieve(named, stream=True, starting_after=1))


def counted_tokens(client: OpenAI) -> None:
    assert client.responses.input_tokens.count(model="tiny", input="Hello").input_tokens > 1


def compaction(client: OpenAI) -> None:
    assert client.responses.compact(model="tiny", input="Hello").output


def conversations(client: OpenAI) -> None:
    talks = client.conversations
    made = talks.create(items=[{"type": "message", "role": "user", "content": "Hello"}])
    client.responses.create(**SAY, conversation=made.id)
    talks.items.create(made.id, items=[{"type": "message", "role": "user", "content": "And?"}])
    items = list(talks.items.list(made.id))
    assert len(items) == 4
    talks.items.retrieve(items[0].id or "", conversation_id=made.id)
    talks.items.delete(items[0].id or "", conversation_id=made.id)
    talks.update(made.id, metadata={"a": "b"})
    assert talks.retrieve(made.id).metadata == {"a": "b"}
    assert talks.delete(made.id).deleted


def embeddings(client: OpenAI) -> None:
    for given in ("one", ["one", "two"], [5, 6], [[5, 6], [7]]):
        asked = {"model": "tiny-embed", "input": given, "user": "me"}
        assert client.embeddings.create(**asked, encoding_format="float").data


def models(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} >= {"tiny", "tiny-embed"}
    assert client.models.retrieve("tiny").id == "tiny"


def files(client: OpenAI) -> None:
    made = _uploaded(client)
    assert client.files.retrieve(made).id == made
    assert made in [file.id for file in client.files.list(purpose="batch")]
    assert client.files.content(made).read()
    assert client.files.delete(made).deleted


def batches(client: OpenAI) -> None:
    made = client.batches.create(
        input_file_id=_uploaded(client),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"a": "b"},
    )
    eventually(
        lambda: client.batches.retrieve(made.id).status == "completed", "the batch did not end"
    )
    done = client.batches.retrieve(made.id)
    line = json.loads(client.files.content(done.output_file_id or "").text)
    assert line["response"]["status_code"] == 200
    assert made.id in [batch.id for batch in client.batches.list()]


def _uploaded(client: OpenAI) -> str:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ASK}
    text = io.BytesIO(json.dumps(line).encode())
    return client.files.create(file=("lines.jsonl", text), purpose="batch").id
