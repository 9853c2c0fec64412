"""Tools in namespaces: one name to the model, two to whoever sends them and gets their calls."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.api.test_custom_tools import parsed
from tests.unit.api.test_response_turns import messages, said

from llmhost.api.loose import Raw
from llmhost.api.responses.events import Silence
from llmhost.api.responses.items import Items
from llmhost.api.responses.namespaces import flat_name
from llmhost.api.responses.resource import beginning
from llmhost.api.responses.turns import kept_item, read_items
from llmhost.api.responses.wire import Asked, parse_response
from llmhost.core.errors import BadRequest
from llmhost.core.ports import Marks
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.reading import reading_of
from llmhost.testing import FAKE_MODEL
from llmhost.text.calls.pieces import Piece
from llmhost.text.grammar import refusal
from llmhost.text.grammar_source import Unreadable, read_grammar
from llmhost.text.words import WordTokenizer

FIND = {
    "type": "function",
    "name": "find",
    "description": "Finds.",
    "parameters": {"type": "object"},
}
NOTE = {"type": "custom", "name": "note"}
CRM = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [FIND, NOTE]}
MAIL = {"type": "namespace", "name": "mcp__mail__", "description": "", "tools": [FIND]}


def asked(**body: Any) -> Asked:
    known = {"model": "m", "input": "hi", "tools": [FIND, CRM, MAIL], **body}
    return parse_response(json.dumps(known).encode(), "req_1", None)[1]


def names(found: Asked) -> list[str]:
    return [tool["function"]["name"] for tool in found.request.tools or ()]


def test_the_model_knows_tools_in_namespaces_by_one_name() -> None:
    found = asked()

    assert names(found) == ["find", "crm__find", "crm__note", "mcp__mail__find"]
    assert found.request.tools is not None
    told = [tool["function"].get("description") for tool in found.request.tools]
    assert told == ["Finds.", "Customers.\n\nFinds.", None, "Finds."]
    assert found.request.custom_tools == {"crm__note"}
    assert beginning(found, 0)["tools"][1]["tools"][0]["name"] == "find"


def test_calls_come_back_with_both_names() -> None:
    found = asked()
    items = Items("req_1", None, Silence(), None, found.request.custom_tools, found.spaces)
    for call, name in enumerate(["find", "crm__find", "crm__note", "mcp__mail__find", "other"]):
        items._say([Piece("", call, name), Piece("{}", call)])
    items.finish()

    assert [(item["type"], item["name"], item.get("namespace")) for item in items.output] == [
        ("function_call", "find", None),
        ("function_call", "find", "crm"),
        ("custom_tool_call", "note", "crm"),
        ("function_call", "find", "mcp__mail__"),
        ("function_call", "other", None),
    ]


def test_calls_of_before_are_told_by_the_one_name() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "find", "namespace": "crm"}
    result = {"type": "function_call_output", "call_id": "c", "output": "none"}
    told = messages([said("go", "user"), {**call, "arguments": "{}"}, result])

    assert told[1]["tool_calls"][0]["function"]["name"] == "crm__find"
    assert told[2]["name"] == "crm__find"
    [item] = read_items(Raw(json.dumps([{**call, "arguments": "{}"}]).encode()))
    assert kept_item(item, "input[0]")["namespace"] == "crm"


@pytest.mark.parametrize(
    ("choice", "allowed"),
    [
        ({"type": "function", "name": "find"}, ["find"]),
        ({"type": "function", "name": "find", "namespace": "crm"}, ["crm__find"]),
        ({"type": "custom", "name": "note"}, ["crm__note"]),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "namespace", "name": "crm"}],
            },
            ["crm__find", "crm__note"],
        ),
    ],
)
def test_a_choice_may_name_what_is_in_a_namespace(choice: Any, allowed: list[str]) -> None:
    found = asked(tool_choice=choice)

    assert found.request.grammar is not None
    held = json.loads(found.request.grammar.text)["tools"]
    assert [tool["name"] for tool in held] == allowed


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "namespace", "tools": [FIND]}]}, "tools[0].name"),
        ({"tools": [FIND, {**CRM, "tools": []}]}, "tools[1].tools"),
        ({"tools": [{**CRM, "tools": [CRM]}]}, "tools[0].tools[0].type"),
        ({"tools": [{**CRM, "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
        ({"tools": [{**CRM, "tools": [{**FIND, "type": "shell"}]}]}, "tools[0].tools[0].type"),
        ({"tools": [CRM, {**FIND, "name": "crm__find"}]}, "tools[1].name"),
        (
            {"tools": [FIND, {**CRM, "tools": [{**FIND, "parameters": {"type": "string"}}]}]},
            "tools[1].tools[0].parameters",
        ),
        ({"tool_choice": {"type": "function", "name": "gone", "namespace": "crm"}}, "tool_choice"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "tools": [{"type": "namespace", "name": "x"}],
                }
            },
            "tool_choice.tools",
        ),
    ],
)
def test_what_is_wrong_in_a_namespace_is_refused_by_its_place(body: Any, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        asked(**body)

    assert refused.value.param == param


@given(
    st.from_regex(r"[a-z]{1,5}(__)?", fullmatch=True), st.from_regex(r"[a-z]{1,5}", fullmatch=True)
)
def test_a_flat_name_has_one_joint(namespace: str, name: str) -> None:
    assert flat_name(namespace, name).split("__") == [namespace.removesuffix("__"), name]
    assert flat_name(None, name) == name


@pytest.mark.parametrize("name", ["summary", "generate_summary"])
def test_of_thoughts_there_is_as_much_summary_as_is_made(name: str) -> None:
    assert beginning(asked(reasoning={name: "auto"}), 0)["reasoning"]["summary"] == "auto"
    with pytest.raises(BadRequest) as refused:
        asked(reasoning={name: "concise"})
    assert (refused.value.code, refused.value.param) == (
        "unsupported_parameter",
        f"reasoning.{name}",
    )


NOT = {
    "type": "object",
    "properties": {"a": {"not": {}}},
    "required": ["a"],
    "additionalProperties": False,
}
UNHELD = {"type": "function", "name": "f", "parameters": NOT, "strict": True}
HERMES = WordTokenizer(64)
HERMES.marks = Marks("hermes")


def place_of_fault(request: GenerationRequest) -> str | None:
    """What is named when the answer's form can't be kept, whether calls must be or may be."""
    spec = request.grammar
    if spec is None:
        reading = reading_of(request, FAKE_MODEL, HERMES, (1,))
        assert reading is not None
        spec = reading.grammar
    assert spec is not None
    with pytest.raises(Unreadable) as fault:
        read_grammar(spec.kind, spec.text, is_strict=spec.is_strict)
    return refusal(spec, fault.value).param


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_schema_that_can_not_be_enforced_is_named_where_the_body_has_it(choice: str) -> None:
    plain = asked(tools=[FIND, UNHELD], tool_choice=choice)
    inner = asked(tools=[FIND, {**CRM, "tools": [FIND, UNHELD]}], tool_choice=choice)
    function = {key: value for key, value in UNHELD.items() if key != "type"}
    some = {"mode": choice, "tools": [{"type": "function", "function": {"name": "f"}}]}
    chat = parsed(
        tools=[
            {"type": "function", "function": {"name": "find"}},
            {"type": "function", "function": function},
        ],
        tool_choice={"type": "allowed_tools", "allowed_tools": some},
    )

    assert place_of_fault(plain.request) == "tools[1].parameters"
    assert place_of_fault(inner.request) == "tools[1].tools[1].parameters"
    assert place_of_fault(chat) == "tools[1].function.parameters"


def test_a_name_that_looks_like_a_place_is_none() -> None:
    with pytest.raises(BadRequest) as refused:
        asked(tool_choice={"type": "function", "name": "tools[7]"})

    assert "'tools[7]'" in refused.value.message
