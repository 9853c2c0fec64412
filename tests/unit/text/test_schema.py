"""Schemas in other words mean what they meant."""

import json
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from llmhost.text.grammar_source import LIMITS, Unreadable, read_grammar
from llmhost.text.schema import enforceable


class Bytes:
    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


BYTES = LLTokenizer(TokenizerWrapper(Bytes()), slices=[])


def matcher(schema: Any) -> LLMatcher:
    grammar = read_grammar("json_schema", json.dumps(schema), is_strict=True)
    return LLMatcher(BYTES, grammar, log_level=0, limits=LIMITS)


def takes(held: LLMatcher, value: Any) -> bool:
    said, held = list(json.dumps(value, separators=(",", ":")).encode()), held.deep_copy()
    return bool(held.consume_tokens(said) and held.is_accepting())


def test_a_date_is_a_day_of_the_calendar() -> None:
    held = matcher({"type": "string", "format": "date"})
    day = date(1895, 12, 31)

    while day < date(1905, 1, 2):
        assert takes(held, day.isoformat())
        day += timedelta(days=1)
    for leap in ("2000-02-29", "2024-02-29", "0004-02-29"):
        assert takes(held, leap)
    for wrong in (
        "1900-02-29",
        "2023-02-29",
        "2024-02-30",
        "2024-04-31",
        "0000-02-29",
        "0000-01-01",
    ):
        assert not takes(held, wrong)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date-time", "2024-02-29T23:59:59.5+01:00", "2023-02-29T23:59:59Z"),
        ("date-time", "2024-12-31T23:59:59Z", "2024-12-31T23:59:60Z"),
        ("time", "23:59:59Z", "23:59:60Z"),
        ("time", "23:59:59.123456789-01:30", "23:59:59.1234567890Z"),
    ],
)
def test_times_are_those_that_clocks_show(name: str, right: str, wrong: str) -> None:
    for schema in ({"format": name}, {"format": name, "pattern": "^2", "maxLength": 30}):
        held = matcher({"type": ["string", "null"], **schema})
        assert takes(held, right)
        assert takes(held, None)
        assert not takes(held, wrong)


@pytest.mark.parametrize(
    "text", ["P1Y", "P3Y6M4DT12H30M5S", "PT0S", "P2W", "P999999999D", "PT36H", "P1DT2S", "P10M"]
)
def test_a_duration_is_any_but_an_endless_one(text: str) -> None:
    held = matcher({"type": "string", "format": "duration"})

    assert takes(held, text)
    assert not takes(held, text.replace("P", "P1234567890Y", 1))


def test_what_only_looks_like_a_schema_is_left_alone() -> None:
    data = {"format": "date", "oneOf": [{"const": 1}, {"const": 2}]}
    schema = {
        "const": data,
        "enum": [data],
        "default": data,
        "properties": {"format": {}, "oneOf": {}},
    }

    assert enforceable(schema) == schema
    assert enforceable(True) is True


TAGS = {"cat": {"meow": {"type": "integer"}}, "dog": {"bark": {"type": "boolean"}}}


def branch(tag: str) -> dict[str, Any]:
    properties = {"kind": {"const": tag, "type": "string"}, **TAGS[tag]}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def test_a_union_by_tag_can_be_enforced_as_pydantic_writes_it() -> None:
    mapping = {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}
    held = matcher(
        {
            "$defs": {"Cat": branch("cat"), "Dog": branch("dog")},
            "discriminator": {"mapping": mapping, "propertyName": "kind"},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        }
    )

    assert takes(held, {"kind": "cat", "meow": 1})
    assert takes(held, {"kind": "dog", "bark": True})
    assert not takes(held, {"kind": "cat", "bark": True})


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "number"}, {"type": "integer"}],
        [{"type": "string"}, {"minLength": 5}],
        [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}],
        [{"const": 1}, {"const": 1.0}],
        [{**branch("cat"), "required": []}, {**branch("dog"), "required": []}],
        [{"$ref": "#/$defs/loop"}, {"const": 1}],
    ],
)
def test_branches_that_may_both_match_are_refused(branches: list[Any]) -> None:
    schema = {"oneOf": branches, "$defs": {"loop": {"$ref": "#/$defs/loop"}}}

    assert "oneOf" in enforceable(schema)
    if "$ref" not in branches[0]:
        with pytest.raises(Unreadable, match="anyOf"):
            matcher(schema)


VALUES = st.sampled_from([None, True, 1, 1.5, "a", "b", {"t": "a"}, {"t": "b", "x": 1}, [], {}])
PARTS = st.sampled_from(
    [
        {"type": "string"},
        {"type": ["integer", "null"]},
        {"type": "number"},
        {"const": "a"},
        {"enum": ["b", 1, None]},
        {"type": "object", "properties": {"t": {"const": "a"}}, "required": ["t"]},
        {"type": "object", "properties": {"t": {"$ref": "#/$defs/b"}}, "required": ["t"]},
        {"type": "object", "properties": {"t": {"const": "b"}}},
        {"type": "array"},
        True,
    ]
)


@settings(deadline=None)
@given(one=st.lists(PARTS, min_size=1, max_size=3), some=st.lists(PARTS, max_size=2), value=VALUES)
def test_the_same_values_match(one: list[Any], some: list[Any], value: Any) -> None:
    from jsonschema import Draft202012Validator  # takes a second, which nobody shall wait for

    schema: dict[str, Any] = {"oneOf": one, "$defs": {"b": {"enum": ["b"]}}}
    if some:
        schema["anyOf"] = some

    before = Draft202012Validator(schema).is_valid(value)
    after = Draft202012Validator(enforceable(schema)).is_valid(value)

    assert before == after
