"""Answers read by the template of a model's own files, whole and cut at every place, as transformers reads them."""

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.text.answer_templates import EXAMPLES, JSON_CALLS, LISTED, QUOTED, TAGGED
from tests.unit.text.test_calls import SCHEMAS, Found
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.utils.chat_parsing import parse_response

from llmhost.text.calls.pieces import Piece
from llmhost.text.calls.response_template import Anchor, UnreadableTemplate, template_of
from llmhost.text.calls.templated import MOST_HELD, Templated
from llmhost.text.tokenizer import load_tokenizer

EACH = pytest.mark.parametrize("name", EXAMPLES)
PARIS = [("get_weather", {"city": "Paris <b> é", "days": 3}), ("now", {})]
TOOLS = [{"function": {"name": name, "parameters": each}} for name, each in SCHEMAS.items()]


def reader_for(raw: dict[str, Any], before: str = "") -> Templated:
    return Templated(template_of(json.dumps(raw)), SCHEMAS, before)


def read(raw: dict[str, Any], *parts: str, before: str = "") -> tuple[Found, bool]:
    reader, found = reader_for(raw, before), Found()
    for part in parts:
        found.add(reader.push(part))
    found.add(reader.finish())
    return found, reader.is_complete


@EACH
def test_content_thoughts_and_calls_are_told_apart(name: str) -> None:
    raw, text = EXAMPLES[name]
    found, is_complete = read(raw, text)

    assert found.content == "Sure."
    assert found.thoughts == ("Hm." if "Hm." in text else "")
    assert found.read == PARIS
    assert is_complete


@EACH
def test_an_answer_is_the_same_wherever_it_is_cut(name: str) -> None:
    raw, text = EXAMPLES[name]
    whole = read(raw, text)

    assert all(read(raw, text[:at], text[at:]) == whole for at in range(len(text)))
    assert read(raw, *text) == whole


@EACH
@given(data=st.data())
@settings(max_examples=60)
def test_any_beginning_reads_the_same_in_any_pieces(name: str, data: st.DataObject) -> None:
    raw, text = EXAMPLES[name]
    text = text[: data.draw(st.integers(0, len(text)))]
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    parts = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]

    assert read(raw, *parts) == read(raw, text)


@EACH
@given(
    text=st.text(alphabet='<|>/[]{}()":,=\\ntool_cals@end x1', max_size=60), at=st.integers(0, 60)
)
@settings(max_examples=60)
def test_no_text_breaks_a_reader(name: str, text: str, at: int) -> None:
    raw, said = EXAMPLES[name]
    mixed = said[:at] + text + said[at:]
    found, is_complete = read(raw, *mixed)

    assert (found, is_complete) == read(raw, mixed)
    assert not is_complete or all(isinstance(arguments, dict) for _, arguments in found.read)


@EACH
@given(data=st.data())
@example(data=None)
@settings(max_examples=40)
def test_what_transformers_reads_is_read(name: str, data: st.DataObject | None) -> None:
    raw, text = EXAMPLES[name]
    if data is not None and name != "lines":
        inside = st.text(alphabet="a<b>é 1\n|/", max_size=8)
        text = text.replace("Sure.", data.draw(inside) + "y").replace("Hm.", data.draw(inside))
    message = parse_response(text, raw, prefix="", tools=TOOLS)
    thoughts = next(
        (message[key] for key in ("reasoning_content", "thinking", "reasoning") if key in message),
        "",
    )
    calls = [call["function"] for call in message["tool_calls"]]

    found, _ = read(raw, *text)

    assert (found.content, found.thoughts) == (message.get("content", ""), thoughts)
    assert found.read == [(call["name"], call["arguments"]) for call in calls]


def test_text_is_told_as_it_comes() -> None:
    reader = reader_for(JSON_CALLS)

    assert reader.push("Sure, ") == [Piece("Sure,")]
    assert reader.push("go <") == [Piece(" go")]
    assert reader.push("b> it") == [Piece(" <b> it")]
    assert reader.push("\n<tool_c") == []


def test_a_call_is_told_when_its_part_has_ended() -> None:
    reader = reader_for(QUOTED)
    assert reader.push("<|tool_call>call:now{") == []
    assert reader.is_within_call

    assert reader.push("}<tool_call|>") == [Piece("", 0, "now"), Piece("{}", 0)]
    assert reader.is_complete


def test_an_answer_goes_on_where_its_prompt_ends() -> None:
    found, _ = read(TAGGED, "\nHm. </think>\n\nSure.", before="<think>\n")
    assert (found.thoughts, found.content) == ("Hm.", "Sure.")

    found, _ = read(TAGGED, "Sure.", before="<think>\n\n</think>\n\n")
    assert (found.thoughts, found.content) == ("", "Sure.")

    found, _ = read(TAGGED, " it is.", before="So")
    assert found.content == " it is."


def test_a_part_that_is_no_call_is_content_marks_and_all() -> None:
    text = '<tool_call>{"name": 5}</tool_call>'
    found, is_complete = read(JSON_CALLS, *text)

    assert (found.content, found.calls, is_complete) == (text, [], False)


def test_a_call_that_was_cut_is_not_complete() -> None:
    found, is_complete = read(JSON_CALLS, '<tool_call>{"name": "now", "arguments"')
    assert (found.calls, is_complete) == ([], False)

    found, is_complete = read(TAGGED, "<tool_call><function=now><parameter=a>1</parameter>")
    assert (found.read, is_complete) == ([("now", {"a": "1"})], False)


def test_content_in_several_parts_is_put_together() -> None:
    found, _ = read(LISTED, "[SAY]a[/SAY] b [SAY] c [/SAY]")
    assert found.content == "a / c"

    found, _ = read(JSON_CALLS, "a<think>b</think>c<think>d</think>")
    assert (found.content, found.thoughts) == ("a\nc", "b\nd")


@pytest.mark.parametrize("raw", [JSON_CALLS, TAGGED], ids=["json", "tagged"])
def test_an_answer_of_marks_alone_is_read_in_parts(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    search, searched = Templated._search, list[int]()

    def counted(self: Templated, anchor: Anchor, text: str, start: int) -> Any:
        searched.append(len(text))
        return search(self, anchor, text, start)

    monkeypatch.setattr(Templated, "_search", counted)
    found, _ = read(raw, "<think>a</think>b" * 500)

    assert found.content == "\n".join("b" * 500)
    assert max(searched) < 1000


def test_what_a_pattern_holds_back_has_an_end() -> None:
    raw = {
        "start_anchor": "x",
        "fields": {"tool_calls": {"open_pattern": "<(a|b)*>"}, "content": {}},
    }
    reader = reader_for(raw)
    told = sum(len(piece.text) for _ in range(3) for piece in reader.push("<" + "a" * MOST_HELD))

    assert told >= 2 * MOST_HELD


def test_a_pattern_that_takes_for_ever_makes_no_marks() -> None:
    raw = {
        "start_anchor": "x",
        "fields": {"tool_calls": {"open_pattern": "(a+)+b(?=c)(?<=d)"}, "content": {}},
    }
    text = "a" * 40 + "!"

    assert read(raw, *text)[0].content == text


def test_characters_that_stand_for_strings_are_no_call() -> None:
    text = '<tool_call>{"arguments": {"a": \x017\x02}, "name": "now"}</tool_call>'
    assert read(JSON_CALLS, text)[0].content == text


def test_a_part_that_ends_before_the_next_one_ends_wherever_it_is_cut() -> None:
    raw = {
        "start_anchor": "x",
        "fields": {
            "thinking": {"open": "<t>", "close_pattern": "(?=<call>)"},
            "tool_calls": {"open": "<call>", "close": "</call>", "content": "json"},
            "content": {},
        },
    }
    text = '<t>hm<call>{"name": "now"}</call>'

    assert read(raw, *text) == read(raw, text)
    assert read(raw, text)[0].read == [("now", {})]


def test_a_beginning_that_takes_for_ever_to_find_is_none() -> None:
    raw = {"fields": {"content": {}}, "start_anchor_pattern": "(a|aa)+x(?=[yz])"}
    assert template_of(json.dumps(raw)).after_start("a" * 60 + "xa") is None


TOO_MUCH: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "version 2"),
    ({"x-regex": "a"}, "'x-regex'"),
    ({"fields": {}}, "no fields"),
    ({"fields": {"images": {}}}, "'images' is none of content, "),
    ({"fields": {"content": {"open": ""}}}, "'open' is no text"),
    ({"fields": {"content": {"open_pattern": "("}}}, "the pattern '\\(' is wrong"),
    ({"fields": {"content": {"open_pattern": "a*"}}}, "may begin with nothing"),
    ({"fields": {"content": {"open": "a", "open_pattern": "a"}}}, "has both"),
    ({"fields": {"content": {"content": "json"}}}, "content 'json' is not known"),
    ({"fields": {"content": {"transform": "{content}"}}}, "a transform of text"),
    ({"fields": {"content": {"strict": True}}}, "'strict'"),
    ({"fields": {"content": {}, "thinking": {}}}, "two of its fields"),
    ({"fields": {"tool_calls": {"content": "yaml"}}}, "content 'yaml'"),
    ({"fields": {"tool_calls": {"content": "xml-inline"}}}, "no group 'key'"),
    ({"fields": {"tool_calls": {"transform": {"name": "f_{content}"}}}}, "than a placeholder"),
    ({"start_anchor": None}, "'start_anchor'"),
    ({"start_anchor": 7}, "'start_anchor' is no text"),
    ({"fields": {"content": {"open": [["a"]]}}}, "'open' is no text"),
    ({"fields": {"content": {"open": []}}}, "'open' is no text"),
    ({"fields": {"content": {"open_pattern": "(" * 3000 + ")" * 3000}}}, "is wrong"),
    (
        {"fields": {"tool_calls": {"content_args": {"value_parser": {"name": ["a"]}}}}},
        "'value_parser' is not known",
    ),
]


@pytest.mark.parametrize(("change", "why"), TOO_MUCH, ids=[why for _, why in TOO_MUCH])
def test_a_template_that_asks_for_more_is_refused_by_name(change: dict[str, Any], why: str) -> None:
    with pytest.raises(UnreadableTemplate, match=why):
        template_of(json.dumps({**JSON_CALLS, **change}))


def folder_with(template: Any, folder: Path) -> Path:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<eos>", "<|channel>", "<channel|>", "<|tool_call>", "<unused>"])
    raw.save(str(folder / "tokenizer.json"))
    config = {"chat_template": "{{ messages }}", "response_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_tokenizer_brings_its_template(tmp_path: Path) -> None:
    marks = load_tokenizer(folder_with(QUOTED, tmp_path)).marks

    assert marks.call_format == "response_template"
    assert marks.response_template is not None
    template = template_of(marks.response_template)
    assert set(marks.special) - {*template.shown(marks.special)} == {"<unused>"}
    assert marks.thought_ids is not None


def test_a_template_that_is_not_followed_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "llmhost.tokenizer"):
        marks = load_tokenizer(folder_with({**QUOTED, "version": 7}, tmp_path)).marks

    assert (marks.call_format, marks.response_template) == (None, None)
    [record] = caplog.records
    assert record.message == "response_template.refused"
    assert "version 7" in record.__dict__["facts"]["why"]
