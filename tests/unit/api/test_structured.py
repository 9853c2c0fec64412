"""What form an answer is asked to have, in whatever words clients ask for it."""

import json
from typing import Any

import pytest

from llmhost.api.openai import parse_chat, parse_completion
from llmhost.api.structured import MAX_FORM_BYTES
from llmhost.api.tools import MAX_TOOLS
from llmhost.core.errors import BadRequest
from llmhost.core.grammar import GrammarSpec
from llmhost.core.request import GenerationRequest

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather now",
        "parameters": SCHEMA,
        "strict": True,
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


def chat(**fields: Any) -> GenerationRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body).encode(), "req_1", None)[0]


def completion(**fields: Any) -> GenerationRequest:
    body = {"model": "m", "prompt": "hi", **fields}
    return parse_completion(json.dumps(body).encode(), "req_1", None)[0]


def form(**fields: Any) -> tuple[str, str, bool, str | None]:
    spec = chat(**fields).grammar
    assert spec is not None
    return spec.kind, spec.text, spec.is_strict, spec.param


def refusal(**fields: Any) -> tuple[str | None, str | None]:
    with pytest.raises(BadRequest) as refused:
        chat(**fields)
    return refused.value.code, refused.value.param


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", **fields}}


def test_openai_asks_with_response_format() -> None:
    text = json.dumps(SCHEMA)
    strict = {"response_format": json_schema(schema=SCHEMA, strict=True)}
    loose = {"response_format": json_schema(schema=SCHEMA)}
    alone = {"response_format": {"type": "json_object", "schema": SCHEMA}}

    assert form(**strict) == ("json_schema", text, True, "response_format")
    assert form(**loose) == ("json_schema", text, False, "response_format")
    assert form(**alone) == ("json_schema", text, False, "response_format")
    assert form(response_format={"type": "json_object"})[0] == "json_object"
    assert chat(response_format={"type": "text"}).grammar is None
    assert completion(**strict).grammar == chat(**strict).grammar


@pytest.mark.parametrize(
    ("name", "value", "kind", "text"),
    [
        ("json", SCHEMA, "json_schema", json.dumps(SCHEMA)),
        ("json", json.dumps(SCHEMA), "json_schema", json.dumps(SCHEMA)),
        ("regex", "a+", "regex", "a+"),
        ("choice", ["a", "é"], "choice", '["a", "\\u00e9"]'),
        ("grammar", 'start: "a"', "lark", 'start: "a"'),
        ("grammar", 'root ::= "a"', "gbnf", 'root ::= "a"'),
    ],
)
def test_vllm_asks_with_structured_outputs_and_guided_fields(
    name: str, value: Any, kind: str, text: str
) -> None:
    now = form(structured_outputs={name: value})
    before = form(**{f"guided_{name}": value})

    assert now == (kind, text, True, f"structured_outputs.{name}")
    assert before == (kind, text, True, f"guided_{name}")
    assert completion(**{f"guided_{name}": value}).grammar == GrammarSpec(kind, text)


def calls(**fields: Any) -> tuple[list[str], bool]:
    spec = chat(**fields).grammar
    assert spec is not None
    assert spec.kind == "tool_calls"
    wish = json.loads(spec.text)
    return [tool["name"] for tool in wish["tools"]], wish["many"]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_a_tool_choice_says_which_tools_and_how_many_calls() -> None:
    tools = [WEATHER, NOW]

    assert calls(tools=tools, tool_choice="required") == (["get_weather", "now"], True)
    once = calls(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert once == (["get_weather", "now"], False)
    assert calls(tools=tools, tool_choice=named("now")) == (["now"], False)
    assert calls(tools=tools, tool_choice=allowed("required", "now")) == (["now"], True)
    assert chat(tools=tools, tool_choice="none").grammar is None
    assert chat(tool_choice="auto").grammar is None


def test_tools_reach_the_prompt_as_they_were_sent() -> None:
    request = chat(tools=[WEATHER, NOW], tool_choice=named("now"))

    assert request.tools == (WEATHER, NOW)
    assert chat(tools=[WEATHER], tool_choice="none").tools is None


def test_tools_that_may_be_called_hold_the_answer_to_nothing() -> None:
    tools = [WEATHER, NOW]
    free = chat(tools=tools)
    once = chat(tools=tools, tool_choice="auto", parallel_tool_calls=False)
    some = chat(tools=tools, tool_choice=allowed("auto", "now"))

    assert (free.may_call, free.most_calls, free.grammar) == (True, None, None)
    assert free.tools == (WEATHER, NOW)
    assert (once.may_call, once.most_calls) == (True, 1)
    assert (some.may_call, some.tools) == (True, (NOW,))
    assert not chat(tools=tools, tool_choice="required").may_call
    assert not chat(tools=[]).may_call


def test_a_tools_own_schema_and_strictness_are_kept() -> None:
    spec = chat(tools=[WEATHER, NOW], tool_choice="required").grammar
    assert spec is not None
    weather, now = json.loads(spec.text)["tools"]

    assert (weather["parameters"], weather["strict"]) == (SCHEMA, True)
    assert now["parameters"] == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
    assert now["strict"] is False


def test_a_format_of_content_is_no_matter_where_calls_are_required() -> None:
    fields = {"tools": [NOW], "tool_choice": "required"}

    assert calls(**fields, response_format={"type": "json_object"}) == (["now"], True)
    assert refusal(**fields, guided_regex="a") == ("invalid_value", "guided_regex")


INVALID = "invalid_value"
UNSUPPORTED = "unsupported_parameter"
MISSING = "missing_required_parameter"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": {}}, MISSING, "response_format.type"),
        ({"response_format": {"type": "grammar"}}, UNSUPPORTED, "response_format.type"),
        ({"response_format": json_schema()}, MISSING, "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": 5}}, INVALID, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, INVALID, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, INVALID, "guided_regex"),
        (
            {"structured_outputs": {"structural_tag": {"triggers": ["<"]}}},
            *(INVALID, "structured_outputs.structural_tag"),
        ),
        (
            {"structured_outputs": {"structural_tag": {"format": {"type": "sequence"}}}},
            *(UNSUPPORTED, "structured_outputs.structural_tag.format"),
        ),
        (
            {
                "structured_outputs": {
                    "structural_tag": {
                        "triggers": ["<f="],
                        "structures": [{"begin": "<g>", "schema": {}, "end": ""}],
                    }
                }
            },
            *(INVALID, "structured_outputs.structural_tag[0]"),
        ),
        ({"guided_whitespace_pattern": " "}, UNSUPPORTED, "guided_whitespace_pattern"),
        ({"guided_choice": "a"}, INVALID, "guided_choice"),
        ({"guided_json": {"x": "x" * MAX_FORM_BYTES}}, INVALID, "guided_json"),
        ({"tools": [{}]}, MISSING, "tools[0].type"),
        ({"tools": [NOW, {"type": "web_search"}]}, UNSUPPORTED, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, MISSING, "tools[0].function"),
        ({"tools": [NOW, named("a b")]}, INVALID, "tools[1].function.name"),
        ({"tools": [NOW] * (MAX_TOOLS + 1)}, INVALID, "tools"),
        ({"tool_choice": "required"}, INVALID, "tool_choice"),
        ({"tools": [NOW], "tool_choice": "any"}, INVALID, "tool_choice"),
        ({"tools": [NOW], "tool_choice": named("then")}, INVALID, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function"}}, INVALID, "tool_choice"),
        ({"tools": [NOW], "tool_choice": allowed("required")}, INVALID, "tool_choice"),
        ({"tools": [NOW], "tool_choice": 5}, INVALID, "tool_choice"),
    ],
)
def test_what_can_not_be_meant_is_refused_by_name(
    fields: dict[str, Any], code: str, param: str
) -> None:
    assert refusal(**fields) == (code, param)


def test_parameters_that_are_no_object_are_refused() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}

    assert refusal(tools=[tool], tool_choice="required") == (
        "invalid_function_parameters",
        "tools[0].function.parameters",
    )


def test_broken_text_in_a_schema_is_a_refusal() -> None:
    body = b'{"model":"m","prompt":"hi","guided_json":{"a":"\xff"}}'

    with pytest.raises(BadRequest):
        parse_completion(body, "req_1", None)


def test_rules_read_what_the_form_could_have_the_model_say() -> None:
    escaped = {"structured_outputs": {"choice": ["b\u00f6se"]}}

    assert "böse" in completion(**escaped).text
    assert "Weather now" in chat(tools=[WEATHER], tool_choice="required").text
    assert "Weather now" not in chat(tools=[WEATHER], tool_choice="none").text


@pytest.mark.parametrize("is_text", [False, True])
def test_both_shapes_of_a_structural_tag_are_read(is_text: bool) -> None:
    older = {
        "type": "structural_tag",
        "triggers": ["<f="],
        "structures": [{"begin": "<f=get>", "schema": {"type": "object"}, "end": "</f>"}],
    }
    content = {"type": "json_schema", "json_schema": {"type": "object"}}
    tag = {"type": "tag", "begin": "<f=get>", "content": content, "end": "</f>"}
    newer = {
        "type": "structural_tag",
        "format": {"type": "triggered_tags", "triggers": ["<f="], "tags": [tag]},
    }
    forms = [
        chat(structured_outputs={"structural_tag": json.dumps(one) if is_text else one}).grammar
        for one in (older, newer)
    ]

    assert forms[0] is not None
    assert forms[0] == forms[1]
    assert json.loads(forms[0].text) == [
        {"trigger": "<f=", "begin": "<f=get>", "end": "</f>", "schema": {"type": "object"}}
    ]
