"""Calls that a model begins by itself, held to its tools from their opener on."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.text.marked import TEMPLATES, tokenizer_of

from llmhost.core.errors import InvalidTool
from llmhost.core.grammar import GrammarSpec
from llmhost.core.step import GrammarState
from llmhost.text.calls.families import BY_NAME, reader_of
from llmhost.text.calls.pieces import Piece
from llmhost.text.grammar import fill_masks
from llmhost.text.grammar_calls import HELD
from llmhost.text.tokenizer import FileTokenizer

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rom"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"name": "get_weather", "parameters": WEATHER, "strict": True},
    {"name": "get", "parameters": {"type": "object"}, "strict": False},
]
ARGS = '{"city": "Oslo", "days": 3}'
OBJECT = f'{{"name": "get_weather", "arguments": {ARGS}}}'
BARS = str.maketrans("|", "\uff5c")
CALLS = {
    "hermes": f"<tool_call>\n{OBJECT}\n</tool_call>",
    "mistral": f"[TOOL_CALLS]get_weather[ARGS]{ARGS}",
    "granite": f"<|tool_call|>[{OBJECT}]",
    "phi4_mini": f"functools[{OBJECT}]",
    "llama3_json": f'<|python_tag|>{{"name": "get_weather", "parameters": {ARGS}}}',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    f"<|tool_call_argument_begin|>{ARGS}<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek_v31": (
        "<|tool▁calls▁begin|><|tool▁call▁begin|>get_weather<|tool▁sep|>"
        f"{ARGS}<|tool▁call▁end|><|tool▁calls▁end|>"
    ).translate(BARS),
    "deepseek_v3": (
        "<|tool▁calls▁begin|><|tool▁call▁begin|>function<|tool▁sep|>get_weather\n```json\n"
        f"{ARGS}\n```<|tool▁call▁end|><|tool▁calls▁end|>"
    ).translate(BARS),
}
TAGGED = (
    "{0}\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n{1}"
)
CALLS |= {
    "qwen3_coder": TAGGED.format("<tool_call>", "</tool_call>"),
    "seed_oss": TAGGED.format("<seed:tool_call>", "</seed:tool_call>"),
    "minimax": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
}
PYTHON = '[get_weather(city="Oslo", days=3)]'
CALLS |= {
    "glm": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "llama4_pythonic": f"<|python_start|>{PYTHON}<|python_end|>",
    "lfm2": f"<|tool_call_start|>{PYTHON}<|tool_call_end|>",
    "olmo3": f"<function_calls>\n{PYTHON[1:-1]}\n</function_calls>",
    "pythonic": PYTHON,
}
COMPACT = '{"city":"Oslo","days":3}'
HARMONY = "commentary to=functions.get_weather <|constrain|>json<|message|>"
CALLS |= {"harmony": f"<|channel|>{HARMONY}{COMPACT}"}
AT_FIRST = ("llama3_json", "pythonic")
"""Formats whose calls begin an answer."""
OTHERS = {
    "glm": "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rom</arg_value><arg_key>days</arg_key>"
    "<arg_value>3</arg_value></tool_call>",
    "harmony": f"<|start|>assistant<|channel|>{HARMONY.replace('<|constrain|>json', '')}{COMPACT}",
    "lfm2": f"<|tool_call_start|>{PYTHON[:-1]}, {PYTHON[1:]}<|tool_call_end|>",
    "mistral": f"[TOOL_CALLS] [{OBJECT}, {OBJECT}]",
    "llama3_json": f'{{"name": "get_weather", "parameters": {ARGS}}}',
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileTokenizer]:
    return {name: tokenizer_of(name, tmp_path_factory.mktemp(name)) for name in TEMPLATES}


def spec(name: str, tools: Sequence[Any] = TOOLS, *, many: bool = True) -> GrammarSpec:
    content = {"format": name, "many": many, "tools": list(tools)}
    return GrammarSpec("auto_calls", json.dumps(content), param="tools")


def allowed(tokenizer: FileTokenizer, state: GrammarState) -> set[int]:
    line = np.zeros((1, -(-tokenizer.vocab_size // 32)), np.int32)
    fill_masks([state], line)
    return set(np.unpackbits(line.view(np.uint8), bitorder="little").nonzero()[0].tolist())


def ids(tokenizer: FileTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def follow(tokenizer: FileTokenizer, state: GrammarState, text: str) -> int:
    """Say a text that is found to be allowed. How many of its tokens something was held to."""
    held = 0
    for place, token in enumerate(ids(tokenizer, text)):
        if not state.is_free:
            held += 1
            assert token in allowed(tokenizer, state), (text, place)
        state.accept(token)
    return held


def read(name: str, tokenizer: FileTokenizer, said: Sequence[int]) -> tuple[list[Piece], bool]:
    family = BY_NAME[name]
    watch, reader = tokenizer.watch((), family.openers), reader_of(family, {})
    pieces = [piece for token in said for piece in reader.push(watch.push(token))]
    pieces += [*reader.push(watch.flush()), *reader.finish()]
    return pieces, reader.is_complete


def test_every_format_that_is_held_is_tried_here() -> None:
    assert set(CALLS) == set(HELD)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("is_special", [True, False])
def test_a_call_in_the_format_is_allowed_and_held(
    name: str, is_special: bool, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(name, tmp_path, is_special=is_special)
    for text in (CALLS[name], OTHERS.get(name, CALLS[name])):
        state = tokenizer.grammar(spec(name), ())
        before = "" if name in AT_FIRST else "Let me see < [ .\n"
        assert follow(tokenizer, state, before) == 0
        assert follow(tokenizer, state, text) >= (10 if "city=" in text else len(COMPACT))
        if name != "llama3_json":
            assert state.is_free
            assert follow(tokenizer, state, "Done.") == 0
        assert not state.is_ended


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_allowed_is_a_call_of_a_tool(
    name: str, seed: int, tokenizers: dict[str, FileTokenizer]
) -> None:
    tokenizer, draw = tokenizers[name], random.Random(seed)
    state = tokenizer.grammar(spec(name, TOOLS[:1]), ())
    before = "<|channel|>" if name == "harmony" else ""
    opener = ids(tokenizer, before + (*HELD[name].openers, "[get_weather(")[0])
    said = list(opener)
    for token in opener:
        state.accept(token)
    while not state.is_free:
        may = allowed(tokenizer, state)
        assert may
        if may & tokenizer.eos_ids:
            break  # where more calls may come, and need not
        said.append(draw.choice(sorted(may)))
        state.accept(said[-1])
        if len(said) > 600:
            return
    pieces, is_complete = read(name, tokenizer, said)

    assert is_complete
    assert "".join(piece.text for piece in pieces if piece.call is None) == ""
    assert {piece.name for piece in pieces if piece.name} == {"get_weather"}
    arguments = json.loads("".join(piece.text for piece in pieces if piece.call == 0))
    assert set(arguments) == {"city", "days"}
    assert arguments["city"] in ("Oslo", "Rom")


@pytest.mark.parametrize("name", CALLS)
def test_one_call_ends_the_answer_where_there_may_be_one(
    name: str, tokenizers: dict[str, FileTokenizer]
) -> None:
    state = tokenizers[name].grammar(spec(name, many=False), ())
    follow(tokenizers[name], state, CALLS[name])

    assert state.is_ended


def test_names_and_strict_arguments_are_held_and_others_are_any_object(
    tokenizers: dict[str, FileTokenizer],
) -> None:
    tokenizer = tokenizers["hermes"]

    def next_after(text: str) -> set[str]:
        state = tokenizer.grammar(spec("hermes"), ())
        follow(tokenizer, state, text)
        may = allowed(tokenizer, state)
        return {tokenizer.decode([token], skip_special_tokens=False) for token in may}

    assert next_after('<tool_call>{"name": "') == {"g"}
    assert next_after('<tool_call>{"name": "get') == {"_", '"'}
    assert next_after('<tool_call>{"name": "get_weather", "arguments": {"city": "') == {"O", "R"}
    assert "x" in next_after('<tool_call>{"name": "get", "arguments": {"')
    assert next_after(f"<tool_call>{OBJECT}") == {"\n", " ", "</tool_call>"}


def test_an_opener_amid_thoughts_is_a_thought(tokenizers: dict[str, FileTokenizer]) -> None:
    tokenizer = tokenizers["hermes"]
    state = tokenizer.grammar(spec("hermes"), ids(tokenizer, "Hi.<think>"))
    begun = tokenizer.grammar(spec("hermes"), ())

    assert follow(tokenizer, state, "a <tool_call> is none</think>") == 0
    assert follow(tokenizer, begun, "<think>a <tool_call> is none</think>") == 0
    assert follow(tokenizer, state, CALLS["hermes"]) == follow(tokenizer, begun, CALLS["hermes"])


def test_a_token_that_does_not_fit_behind_an_opener_frees_the_call(
    tokenizers: dict[str, FileTokenizer],
) -> None:
    tokenizer = tokenizers["mistral"]
    state = tokenizer.grammar(spec("mistral"), ())
    for token in ids(tokenizer, "[TOOL_CALLS]Z"):
        state.accept(token)

    assert state.is_free
    assert follow(tokenizer, state, CALLS["mistral"]) > len(ARGS)


def test_guesses_end_before_an_opener(tokenizers: dict[str, FileTokenizer]) -> None:
    tokenizer = tokenizers["mistral"]
    state = tokenizer.grammar(spec("mistral"), ())
    text = ids(tokenizer, "ab[TOOL_CALLS]get[ARGS]{}")

    assert state.valid_prefix(text) == 2
    follow(tokenizer, state, "ab[TOOL_CALLS]")
    assert state.valid_prefix(text[3:]) == len(text) - 3
    assert state.valid_prefix(text) == 0


def test_a_strict_tool_that_can_not_be_enforced_is_refused(
    tokenizers: dict[str, FileTokenizer],
) -> None:
    tools = [TOOLS[0], {"name": "f", "parameters": {"not": {}}, "strict": True}]

    with pytest.raises(InvalidTool) as refused:
        tokenizers["hermes"].compile_grammar(spec("hermes", tools))
    assert refused.value.param == "tools[1].function.parameters"


PATCH = r"""start: "*** Begin Patch" LF hunk+ "*** End Patch" LF?
hunk: "*** Add File: " name LF add+
name: /(.+)/
add: "+" /(.*)/ LF -> line
%import common.LF
"""
WITH_TEXT = {
    "hermes": '<tool_call>\n{{"name": "f", "arguments": {{"input": {}}}}}\n</tool_call>',
    "mistral": '[TOOL_CALLS]f[ARGS]{{"input": {}}}',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{{"input": {}}}<|tool_call_end|><|tool_calls_section_end|>',
    "harmony": 'commentary to=functions.f <|constrain|>json<|message|>{{"input":{}}}',
    "lfm2": "<|tool_call_start|>[f(input={})]<|tool_call_end|>",
}


@pytest.mark.parametrize("name", WITH_TEXT)
def test_a_text_follows_its_grammar_within_json(
    name: str, tokenizers: dict[str, FileTokenizer]
) -> None:
    tokenizer = tokenizers[name]
    tools = [TOOLS[1], {"name": "f", "strict": True, "lark": PATCH, "at": "[1].x"}]

    def is_said(text: str) -> bool:
        state = tokenizer.grammar(spec(name, tools), ())
        for token in ids(tokenizer, WITH_TEXT[name].format(json.dumps(text, ensure_ascii=False))):
            if not state.is_free and token not in allowed(tokenizer, state):
                return False
            state.accept(token)
        return state.is_free

    assert is_said('*** Begin Patch\n*** Add File: ä.py\n+x = "\\n"\n+\n*** End Patch')
    assert not is_said("*** Begin Patch\n*** End Patch")
    assert not is_said("x")
    with pytest.raises(InvalidTool) as refused:
        broken = {**tools[1], "lark": r"start: /[^\n]*x/"}
        tokenizer.compile_grammar(spec(name, [broken]))
    assert refused.value.param == "tools[1].x"
    assert "where [^\\n] ends" in refused.value.message
