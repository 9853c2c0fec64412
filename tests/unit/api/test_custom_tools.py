"""Custom tools: told to models as functions of one argument, and to clients as what they are."""

import json
from typing import Any

import msgspec
import pytest
from tests.unit.api.test_tools import HERMES, Model, model

from llmhost.api.openai import parse_chat
from llmhost.core.errors import BadRequest
from llmhost.core.ports import Marks
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.reading import reading_of
from llmhost.testing import FAKE_MODEL
from llmhost.text.words import WordTokenizer

RUN = {"type": "custom", "custom": {"name": "run", "description": "Runs code."}}
REGEX = {
    "type": "custom",
    "custom": {
        "name": "sum",
        "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9+]+"}},
    },
}
LARK = {
    "type": "custom",
    "custom": {
        "name": "patch",
        "format": {
            "type": "grammar",
            "grammar": {"syntax": "lark", "definition": 'start: "+" WORD\nWORD: /[a-z"\\n]+/'},
        },
    },
}
F = {"type": "function", "function": {"name": "f"}}


def parsed(**fields: Any) -> GenerationRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(msgspec.json.encode(body), "req_1", None)[0]


def test_a_custom_tool_is_a_function_of_one_text_to_the_model() -> None:
    request = parsed(tools=[RUN, REGEX, F])
    assert request.tools is not None
    run, sums, _ = (tool["function"] for tool in request.tools)

    assert request.custom_tools == {"run", "sum"}
    assert run["parameters"]["properties"] == {"input": {"type": "string"}}
    assert run["parameters"]["required"] == ["input"]
    assert sums["parameters"]["properties"]["input"]["pattern"] == "^(?:[0-9+]+)$"
    assert sums["strict"] is True
    assert "[0-9+]+" in sums["description"]
    assert request.may_call


@pytest.mark.parametrize("choice", ["required", {"type": "custom", "custom": {"name": "patch"}}])
def test_one_call_is_enough_where_a_text_has_no_end_of_its_own(choice: Any) -> None:
    request = parsed(tools=[LARK], tool_choice=choice)

    assert request.grammar is not None
    wish = json.loads(request.grammar.text)
    assert wish["many"] is False
    assert wish["tools"][0]["lark"].startswith("start:")


@pytest.mark.parametrize(
    ("tools", "choice", "code", "param"),
    [
        ([{"type": "custom"}], "auto", "missing_required_parameter", "tools[0].custom"),
        (
            [F, {"type": "custom", "custom": {"name": "c", "format": {"type": "grammar"}}}],
            *("auto", "missing_required_parameter", "tools[1].custom.format.grammar"),
        ),
        ([RUN], {"type": "custom", "custom": {"name": "c"}}, "invalid_value", "tool_choice"),
        (
            [RUN],
            {"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "custom"}]}},
            *("missing_required_parameter", "tool_choice.allowed_tools.tools[0].function"),
        ),
    ],
)
def test_a_custom_tool_that_can_not_be_is_refused_by_its_place(
    tools: Any, choice: Any, code: str, param: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed(tools=tools, tool_choice=choice)

    assert (refused.value.code, refused.value.param) == (code, param)


async def test_a_grammar_is_kept_by_models_whose_calls_are_held_and_refused_beside_a_form() -> None:
    call = '<tool_call>\n<function=patch>\n<parameter=input>\n+a"\nb\n</parameter>\n</function>\n</tool_call>'
    async with model(Marks("qwen3_coder")) as m:
        told = await said(m, *call, tools=[F, LARK])
    async with model(HERMES) as m:
        escaped = await said(
            m,
            r'<tool_call>{"name": "patch", "arguments": {"input": "+a\"',
            r'\nb"}}</tool_call>',
            tools=[F, LARK],
        )
        beside = await m.host.chat(
            "hello", model="m", tools=[F, LARK], response_format={"type": "json_object"}
        )

    assert told == escaped == [{"type": "custom", "custom": {"name": "patch", "input": '+a"\nb'}}]
    error = beside.json()["error"]
    assert (beside.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == "tools[1].custom.format.grammar"


def test_the_grammar_of_a_text_is_what_its_calls_are_held_to() -> None:
    request = parsed(tools=[F, LARK])
    marks = WordTokenizer(64)
    marks.marks = Marks("qwen3_coder")

    reading = reading_of(request, FAKE_MODEL, marks, (1,))

    assert reading is not None and reading.grammar is not None
    tools = json.loads(reading.grammar.text)["tools"]
    assert tools[1]["lark"].startswith("start:")
    assert tools[1]["at"] == "[1].custom.format.grammar.definition"
    assert reading.grammar.is_strict


def called(response: Any, *, is_stream: bool) -> list[Any]:
    if not is_stream:
        return list(response.json()["choices"][0]["message"]["tool_calls"])
    calls: list[Any] = []
    for line in response.text.split("\n\n"):
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            for piece in choice["delta"].get("tool_calls", ()):
                if "id" in piece:
                    calls.append({name: fact for name, fact in piece.items() if name != "index"})
                    continue
                kind = calls[piece["index"]]["type"]
                (name,) = piece[kind]
                calls[piece["index"]][kind][name] += piece[kind][name]
    return calls


async def said(m: Model, *pieces: str, **body: Any) -> list[Any]:
    """The calls of an answer, streamed and whole."""
    told = []
    for is_stream in (False, True):
        asked = await m.ask(**body, stream=is_stream)
        for piece in pieces:
            m.engine.say(0, piece)
        m.engine.end(0)
        response = await asked
        found = called(response, is_stream=is_stream)
        told.append([{k: v for k, v in call.items() if k != "id"} for call in found])
        assert all(call["id"].startswith("call_") for call in found)
        m.engine.specs.clear()
    assert told[0] == told[1]
    return told[0]


async def test_calls_of_a_model_are_those_of_custom_tools_as_they_come() -> None:
    text = 'print("hé")\n\\ 😀'
    call = json.dumps({"name": "run", "arguments": {"input": text}})
    other = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    async with model(HERMES) as m:
        pieces = [*f"<tool_call>{call}</tool_call>", other]
        told = await said(m, *pieces, tools=[RUN, F])

    assert told == [
        {"type": "custom", "custom": {"name": "run", "input": text}},
        {"type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]


async def test_calls_that_must_be_are_told_likewise() -> None:
    async with model() as m:
        escaped = await said(
            m,
            '[{"name": "run", "arguments": {"input": "a\\n',
            'b"}}]',
            tools=[RUN],
            tool_choice="required",
        )
        plain = await said(
            m,
            '{"name": "patch", "input": +a"\nb',
            '"}',
            tools=[LARK, RUN],
            tool_choice="required",
        )

    assert escaped == [{"type": "custom", "custom": {"name": "run", "input": "a\nb"}}]
    assert plain == [{"type": "custom", "custom": {"name": "patch", "input": '+a"\nb"}'}}]
