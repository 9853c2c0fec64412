"""Messages in the shapes that clients send, and what a chat template gets of them."""

import json
from typing import Any

import msgspec
import pytest

from llmhost.api.bodies import WireMessage
from llmhost.api.chat_messages import message_of
from llmhost.core.errors import BadRequest, UnsupportedParameter

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def sent(**message: Any) -> dict[str, Any]:
    raw = msgspec.json.encode({"role": "assistant", **message})
    return message_of(msgspec.json.decode(raw, type=WireMessage), 3)


@pytest.mark.parametrize("calls", [None, []])
def test_an_assistant_that_says_and_calls_nothing_has_said_an_empty_text(calls: Any) -> None:
    assert sent(tool_calls=calls) == {"role": "assistant", "content": ""}
    assert sent(tool_calls=calls, content=None) == {"role": "assistant", "content": ""}
    assert sent(tool_calls=calls, content="x") == {"role": "assistant", "content": "x"}


def test_calls_stand_without_content() -> None:
    assert sent(tool_calls=[CALL]) == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_what_older_clients_say_of_a_call_is_a_call() -> None:
    told = sent(function_call=CALL["function"])

    assert told["tool_calls"] == [{"type": "function", "function": CALL["function"]}]


def test_what_a_custom_tool_was_given_is_an_argument() -> None:
    custom = {"id": "call_1", "type": "custom", "custom": {"name": "run", "input": 'say "hi"\n'}}
    (told,) = sent(tool_calls=[custom])["tool_calls"]

    assert (told["id"], told["type"], told["function"]["name"]) == ("call_1", "function", "run")
    assert json.loads(told["function"]["arguments"]) == {"input": 'say "hi"\n'}


def test_a_refusal_is_what_was_said() -> None:
    assert sent(refusal="No.")["content"] == "No."
    assert sent(content=[{"type": "refusal", "refusal": "No."}])["content"] == "No."
    assert sent(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == {
        "role": "assistant",
        "content": "ab",
    }


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    ],
)
def test_what_is_no_text_is_refused_by_its_place(part: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        sent(role="user", content=[{"type": "text", "text": "look"}, part])

    assert refused.value.param == "messages[3].content[1].type"
    assert part["type"] in refused.value.message


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
def test_others_have_to_say_something(role: str) -> None:
    with pytest.raises(BadRequest) as refused:
        sent(role=role)

    assert refused.value.param == "messages[3].content"
