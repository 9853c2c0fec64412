"""Calls of a template's own, told as they come, and the same wherever their text is cut."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.text.answer_templates import JSON_CALLS, LINES, OF_CALLS, QUOTED, TAGGED
from tests.unit.text.test_calls import Found
from tests.unit.text.test_response_template import TOOLS, read, reader_for
from transformers.utils.chat_parsing import parse_response

from llmhost.text.calls.outline import Outline, outline_of
from llmhost.text.calls.pieces import Piece


def with_calls(**fields: Any) -> dict[str, Any]:
    calls = {"open": "<call>", "close": "</call>", "content": "json", "repeats": True, **fields}
    return {"start_anchor": "x", "fields": {"tool_calls": calls, "content": {}}}


NAMED = with_calls(
    open_pattern=r"<call (?P<name>\w+)>", transform=OF_CALLS
)  # the pattern replaces "open"
del NAMED["fields"]["tool_calls"]["open"]
MEMBERS = with_calls(
    transform={"function": {"name": "{content.tool}", "arguments": "{content.with}"}}
)
LIST = with_calls(
    transform={"name": "{tool}", "arguments": "{with}"}, transform_each=True, repeats=False
)
TEXT = {**NAMED, "fields": {**NAMED["fields"]}}
TEXT["fields"]["tool_calls"] = {**NAMED["fields"]["tool_calls"], "content": "text"}

BEGINNINGS = {
    "json": (JSON_CALLS, '<tool_call>{"name": "get_weather", "arguments": {"city": "Par'),
    "tagged": (
        TAGGED,
        "<tool_call><function=get_weather><parameter=city>Par</parameter><parameter=days>12345678901234567",
    ),
    "quoted": (QUOTED, '<|tool_call>call:get_weather{city:<|"|>Par'),
    "lines": (LINES, "@get_weather\ncity=Par\nda"),
    "named": (NAMED, '<call get_weather>{"city": "Par'),
    "text": (TEXT, '<call get_weather>{"city": "Par'),
    "members": (MEMBERS, '<call>{"id": 7, "tool": "get_weather", "with": {"city": "Par'),
    "list": (LIST, '<call>[{"tool": "get_weather", "with": {"city": "Par'),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_arguments_are_told_before_their_call_has_ended(name: str) -> None:
    raw, text = BEGINNINGS[name]
    reader, found = reader_for(raw), Found()
    found.add(reader.push(text))

    [(called, arguments)] = found.calls
    assert called == "get_weather"
    assert arguments.startswith('{"city": "Par')
    assert reader.is_within_call
    assert not reader.is_complete


def test_a_member_that_its_tool_wants_as_a_number_waits_for_its_end() -> None:
    reader = reader_for(NAMED)
    assert reader.push('<call get_weather>{"days": "4')[-1] == Piece('{"days": ', 0)

    assert reader.push('2", "city"') == [Piece("42", 0)]


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text('ab\\"\n{}[],:é<', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab é", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["city", "days", "where", "is_exact", "é x"]), VALUES, max_size=4
)
SPOKEN = {
    "json": (JSON_CALLS, lambda said: f'<tool_call>\n{{"name": "get_weather", "arguments": {said}}}\n</tool_call>'),
    "named": (NAMED, lambda said: f"<call get_weather>{said}</call>"),
    "text": (TEXT, lambda said: f"<call get_weather> {said} </call>"),
    "members": (MEMBERS, lambda said: f'<call>{{"tool": "get_weather", "with": {said}, "id": [1, {{}}]}}</call>'),
    "backwards": (MEMBERS, lambda said: f'<call>{{"with": {said}, "tool": "get_weather"}}</call>'),
    "list": (LIST, lambda said: f'<call>[{{"tool": "f", "with": {said}}}, {{"tool": "f", "with": {{}}}}]</call>'),
}  # fmt: skip


def as_object(arguments: Any) -> Any:
    """Of a template whose arguments are a text, transformers gives that text."""
    return json.loads(arguments) if isinstance(arguments, str) else arguments


@pytest.mark.parametrize("name", SPOKEN)
@given(arguments=ARGUMENTS, indent=st.sampled_from([None, 1]), data=st.data())
@settings(max_examples=40)
def test_any_arguments_are_those_that_transformers_reads_in_any_pieces(
    name: str, arguments: dict[str, Any], indent: int | None, data: st.DataObject
) -> None:
    raw, spoken = SPOKEN[name]
    text = spoken(json.dumps(arguments, ensure_ascii=False, indent=indent))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    parts = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]

    found, is_complete = read(raw, *parts)

    message = parse_response(text, raw, prefix="", tools=TOOLS)
    calls = [call.get("function", call) for call in message["tool_calls"]]
    assert found.read == [(call["name"], as_object(call["arguments"])) for call in calls]
    assert is_complete
    assert read(raw, *text) == (found, is_complete)


MARK = '<|"|>'
PLAIN = st.text("ab é{}[],:\n", max_size=8)


@given(
    texts=st.dictionaries(
        st.sampled_from(["city", "units", "other"]), PLAIN | st.lists(PLAIN, max_size=2), max_size=3
    ),
    data=st.data(),
)
@settings(max_examples=60)
def test_texts_between_marks_of_the_model_are_told_in_any_pieces(
    texts: dict[str, str | list[str]], data: st.DataObject
) -> None:
    def spoken(value: str | list[str]) -> str:
        if isinstance(value, str):
            return MARK + value + MARK
        return "[" + ",".join(map(spoken, value)) + "]"

    members = ",".join(f"{key}:{spoken(value)}" for key, value in texts.items())
    text = f"<|tool_call>call:get_weather{{{members}}}<tool_call|>"
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))

    found, is_complete = read(
        QUOTED, *[text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
    )

    assert found.read == [("get_weather", texts)]
    assert is_complete


@given(values=st.lists(st.text("ab é<\n/", min_size=1, max_size=60), max_size=3), data=st.data())
@settings(max_examples=60)
def test_tagged_arguments_are_told_in_any_pieces(values: list[str], data: st.DataObject) -> None:
    tags = "".join(f"<parameter=k{i}>\n{value}\n</parameter>\n" for i, value in enumerate(values))
    text = f"<tool_call>\n<function=f>\n{tags}</function>\n</tool_call>"
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))

    found, is_complete = read(
        TAGGED, *[text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
    )

    message = parse_response(text, TAGGED, prefix="")
    assert found.read == [("f", message["tool_calls"][0]["function"]["arguments"])]
    assert is_complete


@pytest.mark.parametrize("value", [".*", "[^!]*"])
def test_an_argument_whose_pattern_takes_all_it_can_waits_for_the_end(value: str) -> None:
    raw = json.loads(json.dumps(TAGGED))
    pattern = rf"<parameter=(?P<key>\w+)>(?P<value>{value})</parameter>"
    raw["fields"]["tool_calls"]["content_args"]["tag_pattern"] = pattern
    text = (
        "<tool_call><function=f><parameter=a>1</parameter> and a long text that says nothing"
        "<parameter=b>2</parameter></function></tool_call>"
    )

    assert read(raw, *text) == read(raw, text)
    [(_, arguments)] = read(raw, *text)[0].read
    assert arguments == {"a": "1</parameter> and a long text that says nothing<parameter=b>2"}


@pytest.mark.parametrize(
    ("raw", "text", "told"),
    [
        (NAMED, '<call f>{"a": 1]</call>', '{"a": 1]'),
        (NAMED, '<call f>{"a": nope, "b": 1}</call>', '{"a": nope, "b": 1}'),
        (LIST, '<call>[{"tool": "f", "with": {"a": 1}}, 5]</call>', '{"a": 1}5]'),
        (MEMBERS, '<call>{"tool": "f", "with": {"a": 1}</call>', '{"a": 1}'),
    ],
)
def test_a_call_that_breaks_after_it_was_told_has_no_end(
    raw: dict[str, Any], text: str, told: str
) -> None:
    found, is_complete = read(raw, *text)

    assert found.calls == [["f", told]]
    assert not is_complete
    assert read(raw, text) == (found, is_complete)


def test_a_long_argument_is_searched_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmhost.text.calls import call_bodies

    searched, find = list[int](), call_bodies.Tags._found
    monkeypatch.setattr(
        call_bodies.Tags,
        "_found",
        lambda self, text: (searched.append(len(text)), find(self, text))[1],
    )
    text = (
        "<tool_call><function=f><parameter=a>"
        + "word " * 4000
        + "</parameter></function></tool_call>"
    )
    read(TAGGED, *(text[at : at + 4] for at in range(0, len(text), 4)))

    assert sum(searched) < 16 * len(text)


@pytest.mark.parametrize(
    ("parser", "transform", "is_each", "outline"),
    [
        ("json", None, False, Outline(name_key="name", arguments_key="arguments")),
        ("json", {"name": "f", "arguments": "{content}"}, False, Outline(name="f")),
        ("json", {"name": "{n}", "arguments": "{content}"}, False, Outline(capture="n")),
        ("json", {"name": "{n}", "arguments": "{content.a}"}, False, None),
        ("json", {"name": "{n}", "arguments": {"a": "{content}"}}, False, None),
        ("json", {"name": "{n}", "arguments": "{a.b}"}, True, None),
        ("text", None, False, None),
        ("kv-lines", {"name": "{n}", "arguments": "{content}"}, False, Outline(capture="n")),
        ("kv-lines", {"name": "{content.n}", "arguments": "{content.a}"}, False, None),
    ],
)
def test_of_some_transforms_it_is_plain_what_is_the_arguments(
    parser: str, transform: Any, is_each: bool, outline: Outline | None
) -> None:
    assert outline_of(parser, {}, transform, is_each=is_each) == outline
    assert outline_of(parser, {"merge_duplicates": True}, transform, is_each=is_each) is None


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_number_too_large_for_json_stays_the_text_that_it_is(size: int) -> None:
    reader, found = reader_for(QUOTED), Found()
    text = '<|tool_call>call:get_weather{days:<|"|>1e999<|"|>}<tool_call|>'
    for at in range(0, len(text), size):
        found.add(reader.push(text[at : at + size]))
    found.add(reader.finish())

    assert found.calls == [["get_weather", '{"days": "1e999"}']]
