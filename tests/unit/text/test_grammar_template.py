"""Calls by a model's own template, held to its tools where the template tells how they are written."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.text.answer_templates import JSON_CALLS, LINES, LISTED, OF_CALLS, QUOTED, TAGGED
from tests.unit.text.test_held_calls import ARGS, TOOLS, allowed, follow, ids
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmhost.core.grammar import GrammarSpec
from llmhost.text.calls.pattern_shape import Group, Space, Text, shape_of
from llmhost.text.calls.response_template import template_of
from llmhost.text.calls.templated import Templated
from llmhost.text.grammar_template import template_format
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer

NAMED: dict[str, Any] = {
    "start_anchor": "x",
    "fields": {
        "content": {},
        "tool_calls": {
            "open_pattern": r"<\|call>(?P<name>\w+)<\|args>",
            "close": "<call|>",
            "content": "json",
            "transform": OF_CALLS,
        },
    },
}
MEMBERS: dict[str, Any] = {
    "start_anchor": "x",
    "fields": {
        "content": {},
        "tool_calls": {
            "open": "[CALLS]",
            "content": "json",
            "transform": {"name": "{tool}", "arguments": "{with}"},
            "transform_each": True,
        },
    },
}
CALLS = {
    "json": (JSON_CALLS, f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGS}}}\n</tool_call>'),
    "tagged": (
        TAGGED,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
    ),
    "named": (NAMED, f"<|call>get_weather<|args>{ARGS}<call|>"),
    "members": (MEMBERS, f'[CALLS] [{{"tool": "get_weather", "with": {ARGS}}}]'),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", CALLS)
SPECIAL = ("<tool_call>", "</tool_call>", "<|call>", "<|args>", "<call|>")


def tokenizer_in(folder: Path, *, is_special: bool) -> FileTokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<eos>", *(SPECIAL if is_special else ())])
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["special", "plain"])
def tokenizer(tmp_path_factory: pytest.TempPathFactory, request: Any) -> FileTokenizer:
    return tokenizer_in(tmp_path_factory.mktemp("marks"), is_special=request.param)


def spec(raw: dict[str, Any], tokenizer: FileTokenizer, tools: Any = TOOLS) -> GrammarSpec:
    shown = template_of(json.dumps(raw)).shown(tokenizer.marks.special)
    content = {
        "format": "response_template",
        "template": json.dumps(raw),
        "special": shown,
        "many": True,
        "tools": tools,
    }
    return GrammarSpec("auto_calls", json.dumps(content), param="tools")


@EACH
def test_a_call_as_the_template_has_it_is_allowed_and_held(
    name: str, tokenizer: FileTokenizer
) -> None:
    raw, text = CALLS[name]
    state = tokenizer.grammar(spec(raw, tokenizer), ())

    assert follow(tokenizer, state, "Let me see < [ .\n") == 0
    assert follow(tokenizer, state, text) >= 20
    assert state.is_free
    assert follow(tokenizer, state, "Done.") == 0


@EACH
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_allowed_is_read_as_a_call_of_the_tool(
    name: str, seed: int, tokenizer: FileTokenizer
) -> None:
    raw, text = CALLS[name]
    state, draw = tokenizer.grammar(spec(raw, tokenizer, TOOLS[:1]), ()), random.Random(seed)
    said = list[int]()
    for token in ids(tokenizer, text):
        said.append(token)
        state.accept(token)
        if not state.is_free:
            break
    while not state.is_free and len(said) < 600:
        may = allowed(tokenizer, state)
        assert may
        said.append(draw.choice(sorted(may)))
        state.accept(said[-1])
    watch = tokenizer.watch((), SPECIAL)
    reader = Templated(template_of(json.dumps(raw)), {}, "")
    pieces = [piece for token in said for piece in reader.push(watch.push(token))]
    pieces += [*reader.push(watch.flush()), *reader.finish()]

    assert "".join(piece.text for piece in pieces if piece.call is None) == ""
    assert {piece.name for piece in pieces if piece.name} == {"get_weather"}
    first = json.loads("".join(piece.text for piece in pieces if piece.call == 0))
    assert first["city"] in ("Oslo", "Rom")


PLAIN = json.dumps(NAMED)


@pytest.mark.parametrize(
    "raw",
    [
        LISTED,
        QUOTED,
        LINES,
        json.loads(PLAIN.replace(r"(?P<name>\\w+)", r"(?P<name>\\w+)(?P<id>\\d+)")),
        json.loads(PLAIN.replace(r"<\\|call>", r"(a|b)")),
        json.loads(PLAIN.replace(r"<\\|call>", "")),
        {"start_anchor": "x", "fields": {"content": {}}},
    ],
)
def test_a_template_that_does_not_tell_how_calls_are_written_is_only_read(raw: Any) -> None:
    assert template_format(json.dumps(raw), ()) is None


@pytest.mark.parametrize(
    ("pattern", "bits"),
    [
        (r"\s*a\n?(?P<n>[^)>]+)\s+\.", (Space(False), Text("a"), Space(False), Group("n"), Space(True), Text("."))),
        (r"<\|x\|>\n", (Text("<|x|>\n"),)),
        (r"a[ \n]*b", (Text("a"), Space(False), Text("b"))),
        (r"a+", None),
        (r"a|b", None),
        (r"\d", None),
        (r"(?P<name>a)?", None),
        (r"(?:a)", None),
    ],
)  # fmt: skip
def test_a_pattern_of_texts_spaces_and_names_has_a_shape(pattern: str, bits: Any) -> None:
    assert shape_of(pattern) == bits
