"""Answers that are held to a form, as real clients ask for them: of the built-in model, and of the fake engine."""

import json
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field
from server_process import Node

from llmhost.testing import fake_words


@pytest.fixture
def tiny_client(tiny_node: Node, client_of: Callable[[Node, str], OpenAI]) -> OpenAI:
    return client_of(tiny_node, "any")


ASK: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]


class Unit(Enum):
    C = "celsius"
    F = "fahrenheit"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[Literal["sit", "roll"]] = Field(max_length=2)


class Report(BaseModel):
    unit: Unit
    degrees: float = Field(ge=-90, le=60)
    station: str = Field(max_length=12)
    day: str | None = Field(pattern="^20[0-9]{2}-[01][0-9]$")
    pet: Cat | Dog


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": "x", "parameters": parameters, "strict": True},
    }


TOOLS: list[Any] = [
    function(
        "get_weather", city={"enum": ["Oslo", "Rome"]}, days={"type": "integer", "maximum": 9}
    ),
    function("tell_time", zone={"type": "string", "maxLength": 6}),
]


@pytest.mark.parametrize("seed", range(3))
def test_a_pydantic_model_comes_back_parsed(tiny_client: OpenAI, seed: int) -> None:
    done = tiny_client.chat.completions.parse(
        model="tiny", messages=ASK, response_format=Report, seed=seed, max_tokens=400
    )

    choice = done.choices[0]
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Report)
    assert choice.message.content is not None
    assert Report.model_validate_json(choice.message.content) == choice.message.parsed


@pytest.mark.parametrize("seed", range(2))
def test_required_calls_keep_their_tools_schemas(tiny_client: OpenAI, seed: int) -> None:
    done = tiny_client.chat.completions.create(
        model="tiny", messages=ASK, tools=TOOLS, tool_choice="required", seed=seed, max_tokens=400
    )

    choice = done.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)
    for call in choice.message.tool_calls:
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        keys = {"get_weather": ["city", "days"], "tell_time": ["zone"]}
        assert list(arguments) == keys[call.function.name]


def test_a_call_and_its_result_are_taken_back(tiny_client: OpenAI) -> None:
    called = tiny_client.chat.completions.create(
        model="tiny", messages=ASK, tools=TOOLS, tool_choice="required", seed=1, max_tokens=400
    )
    message = called.choices[0].message
    assert message.tool_calls
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}
        for call in message.tool_calls
    ]
    sent: Any = {**message.to_dict(), "reasoning": "It is asked for."}
    done = tiny_client.chat.completions.create(
        model="tiny",
        messages=[*ASK, sent, *results],
        tools=TOOLS,
        tool_choice="none",
        reasoning_effort="low",
        max_tokens=20,
    )

    assert done.choices[0].message.content
    assert done.choices[0].message.tool_calls is None
    assert done.usage is not None
    assert done.usage.completion_tokens_details is not None
    assert done.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_streamed_call_adds_up_to_the_whole_one(tiny_client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": ASK,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "temperature": 0,
    }
    whole = tiny_client.chat.completions.create(**asked)
    with tiny_client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion()

    call = whole.choices[0].message.tool_calls[0]  # type: ignore[index]
    (put_together,) = streamed.choices[0].message.tool_calls or ()
    assert call.function.name == put_together.function.name == "get_weather"
    assert call.function.arguments == put_together.function.arguments
    assert streamed.choices[0].finish_reason == "tool_calls"
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds


@pytest.mark.parametrize(
    ("extra", "form"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, ("yes", "no")),
        ({"guided_choice": ["up"]}, ("up",)),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, ("a", "b")),
    ],
)
def test_vllms_extras_are_kept(tiny_client: OpenAI, extra: Any, form: tuple[str, ...]) -> None:
    done = tiny_client.completions.create(model="tiny", prompt="Say it:", extra_body=extra)

    assert done.choices[0].text in form
    assert done.choices[0].finish_reason == "stop"


def test_an_object_of_any_kind_is_json(tiny_client: OpenAI) -> None:
    done = tiny_client.chat.completions.create(
        model="tiny", messages=ASK, response_format={"type": "json_object"}, seed=1, max_tokens=600
    )

    if done.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(done.choices[0].message.content or ""), dict)
    assert (done.choices[0].message.content or "").startswith("{")


def test_tokens_that_end_an_answer_are_billed_like_others(tiny_client: OpenAI) -> None:
    done = tiny_client.completions.create(
        model="tiny", prompt="Say it:", extra_body={"guided_choice": ["yes"]}, logprobs=0
    )

    assert done.usage is not None
    assert done.choices[0].logprobs is not None
    tokens = done.choices[0].logprobs.tokens or []
    assert "".join(tokens) == "yes"
    assert done.usage.completion_tokens == len(tokens)


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "x",
                        "strict": True,
                        "schema": {"type": "array", "uniqueItems": True},
                    },
                }
            },
            "invalid_json_schema",
            "response_format",
        ),
        (
            {"tools": [TOOLS[0], function("f", a={"not": {}})], "tool_choice": "required"},
            "invalid_function_parameters",
            "tools[1].function.parameters",
        ),
        (
            {"extra_body": {"guided_json": {"multipleOf": 9_999_991, "type": "integer"}}},
            "invalid_json_schema",
            "guided_json",
        ),
    ],
)
def test_what_can_not_be_enforced_is_refused_before_the_answer(
    tiny_client: OpenAI, asked: dict[str, Any], code: str, param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(BadRequestError) as refused:
            tiny_client.chat.completions.create(model="tiny", messages=ASK, stream=stream, **asked)
        assert (refused.value.code, refused.value.param) == (code, param)


def test_the_fake_engine_can_be_held_to_its_own_words(client: OpenAI) -> None:
    free = fake_words("hi", 1)
    choices = ["baba babe", "bobo"]
    done = client.completions.create(
        model="echo", prompt="hi", extra_body={"structured_outputs": {"choice": choices}}
    )
    word = client.completions.create(
        model="echo", prompt="hi", extra_body={"guided_regex": "[a-z]+"}, max_tokens=4
    )

    assert done.choices[0].text in choices
    assert done.choices[0].finish_reason == "stop"
    assert word.choices[0].text == free
