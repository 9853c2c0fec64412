"""Items as messages: what belongs to one turn, and what no order of items can break."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.api.loose import Raw
from llmhost.api.responses.sealed import Seal
from llmhost.api.responses.strict import is_strict
from llmhost.api.responses.truncate import turns_of
from llmhost.api.responses.turns import SUMMARY, Turns, kept_item, read_items
from llmhost.core.errors import BadRequest, InvalidEncryptedContent

SEAL = Seal(b"k" * 32, "key:1")


def messages(items: list[Any], instructions: str | None = None) -> tuple[dict[str, Any], ...]:
    turns = Turns(SEAL, instructions)
    turns.add_all(read_items(Raw(json.dumps(items).encode())))
    return turns.finish()


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "fine"}
THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}


def said(text: str, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": text}


def test_thoughts_text_and_calls_in_a_row_are_one_turn() -> None:
    function = {"name": "f", "arguments": "{}"}
    assert messages(
        [said("go", "user"), THOUGHT, said("wait"), CALL, RESULT, THOUGHT, said("so")]
    ) == (
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": "wait",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "fine", "name": "f"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
    )


def test_instructions_and_what_instructs_at_the_beginning_are_one_message() -> None:
    assert messages([said("b", "developer"), said("c", "user")], "a") == (
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c"},
    )


def test_a_compaction_stands_before_the_next_users_message() -> None:
    sealed = {"type": "compaction", "encrypted_content": SEAL.close("all of it")}

    assert messages([sealed, said("go on", "user")]) == (
        {"role": "user", "content": f"{SUMMARY}all of it\n\ngo on"},
    )
    assert messages([sealed]) == ({"role": "user", "content": f"{SUMMARY}all of it"},)


def test_what_is_sealed_is_opened_for_its_own_scope_alone() -> None:
    sealed = SEAL.close("secret\N{SNOWMAN}")

    assert SEAL.open(sealed, "x") == "secret\N{SNOWMAN}"
    assert SEAL.close("secret\N{SNOWMAN}") != sealed
    for seal, text in ((Seal(b"k" * 32, "key:2"), sealed), (SEAL, sealed[:-4]), (SEAL, "gAAAA")):
        with pytest.raises(InvalidEncryptedContent):
            seal.open(text, "x")


texts = st.text(max_size=5)
parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image", "x"])},
        optional={"text": texts, "refusal": texts},
    ),
    max_size=3,
)
content = texts | parts | st.none()
anything = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            [
                *("message", "function_call", "function_call_output", "reasoning", "compaction"),
                *("custom_tool_call", "custom_tool_call_output", "item_reference", "x"),
            ]
        ),
        "role": st.sampled_from(["user", "assistant", "system", "developer"]),
        "content": content,
        "call_id": texts,
        "name": texts,
        "arguments": texts,
        "input": texts,
        "output": texts | parts,
        "summary": parts,
        "encrypted_content": texts,
        "id": texts,
    },
)


@given(st.lists(anything, max_size=8))
def test_any_items_are_messages_or_refused_and_what_is_kept_says_the_same(items: list[Any]) -> None:
    read = read_items(Raw(json.dumps(items).encode()))
    try:
        told = messages(items)
        kept = [kept_item(item, f"input[{place}]") for place, item in enumerate(read)]
    except BadRequest as refusal:
        assert refusal.param is not None
        assert refusal.param.startswith("input[")
        return

    again = Turns(SEAL)
    again.add_kept([msgspec.json.encode(item) for item in kept], "input")
    assert again.finish() == told
    assert all(item["id"] and item["type"] for item in kept)


@given(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=12))
def test_turns_are_all_messages_in_their_order(roles: list[str]) -> None:
    known = [{"role": role, "content": str(n)} for n, role in enumerate(roles)]

    first, turns = turns_of(known)

    assert [*first, *(message for turn in turns for message in turn)] == known
    assert all(turn[0]["role"] == "user" for turn in turns[1:])


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("null", True),
        ('{"type":"object","properties":{},"additionalProperties":false}', True),
        ('{"type":"object","properties":{"a":{"type":"string"}}}', False),
        (
            '{"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false}',
            True,
        ),
        ('{"type":"object","properties":{},"additionalProperties":false,"if":{}}', False),
        ("[1]", False),
        ("[" * 99, False),
    ],
)
def test_tools_are_strict_whose_parameters_are_made_for_it(schema: str, expected: bool) -> None:
    assert is_strict(Raw(schema.encode())) is expected
