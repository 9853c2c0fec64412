"""What may come after the opener of a call that a model begins by itself: grammars of the formats that can be held.

Spaces are where models were trained to say them, as Python's json writes. Marks have lines of their own, because in
one vocabulary they are text, and in another tokens that stand for no text.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmhost.text.calls.tagged import GLM, MINIMAX, QWEN, SEED, Tags
from llmhost.text.grammar_pythonic import pythonic_arguments, pythonic_calls
from llmhost.text.grammar_tagged import bare_rules, tagged_arguments, tagged_rules, tagged_text
from llmhost.text.lark_in_json import escaped_lark

SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
GAP = "gap: /[ \\n]{1,2}/"


@dataclass(frozen=True, slots=True)
class HeldFormat:
    """How calls of one format begin, and what comes then."""

    openers: tuple[str, ...]
    first: tuple[str, ...] = ()
    """What calls begin with besides, where an answer begins with it; it is part of what comes then."""
    names_first: bool = False
    """An answer that begins as a list of calls is one."""
    rules: "Callable[[Sequence[str], bool], Rules]" = lambda names, many: ([], ())
    arguments: Callable[[int, Mapping[str, Any]], list[str]] = lambda place, schema: [
        f"args{place}: %json {json.dumps(schema)}"
    ]
    """Lines of the grammar for what the tool in that place is given. May raise Unspeakable."""
    text: Callable[[int, str], list[str]] = lambda place, lark: json_text(place, lark)
    """The same for a tool that takes one text, which is held to a grammar in Lark. May raise Unspeakable."""


Rules = tuple[list[str], tuple[str, ...]]
"""Lines of a Lark grammar, in which the arguments of tool i are `args<i>`, and what its marks say: `mark0`, ..."""


def json_text(place: int, lark: str, before: str = '{"input": "', after: str = '"}') -> list[str]:
    """What a tool is given that takes one text, where that is a string of JSON. Raises Unspeakable."""
    said = f"{quoted(before)} text{place} {quoted(after)}"
    return [f"args{place}: {said}", f"text{place}: %lark {{\n{escaped_lark(lark)}\n}}"]


def quoted(text: str) -> str:
    """A Lark string that stands for `text`."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def options(heads: Sequence[str], tail: str) -> list[str]:
    """`call`: one of several heads, each with the arguments of its tool behind it."""
    rules = [f"call{i}: {head} args{i} {tail}" for i, head in enumerate(heads)]
    return [*rules, "call: " + " | ".join(f"call{i}" for i in range(len(heads)))]


def _objects(names: Sequence[str], key: str = "arguments") -> list[str]:
    heads = [quoted(f'{{"name": {json.dumps(name)}, {json.dumps(key)}: ') for name in names]
    return options(heads, '"}"')


def _more(many: bool, between: str = "") -> str:
    return f"call ({between} call)*" if many else "call"


def _hermes(names: Sequence[str], many: bool) -> Rules:
    return [GAP, "start: gap? call gap? mark0", *_objects(names)], ("</tool_call>",)


def _list(names: Sequence[str], many: bool) -> Rules:
    return [GAP, f'start: gap? "[" {_more(many, quoted(", "))} "]"', *_objects(names)], ()


def _mistral(names: Sequence[str], many: bool) -> Rules:
    named = [f"named{i}: {quoted(name)} mark0 args{i}" for i, name in enumerate(names)]
    one = " | ".join(f"named{i}" for i in range(len(names)))
    listed = f'list: "[" {_more(many, quoted(", "))} "]"'
    return [GAP, f"start: gap? (list | {one})", listed, *named, *_objects(names)], ("[ARGS]",)


def _llama(names: Sequence[str], many: bool) -> Rules:
    return [f"start: {_more(many, quoted('; '))}", *_objects(names, "parameters")], ()


def _special(words: str) -> str:
    return "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"


_DEEPSEEK = tuple(map(_special, ("tool call begin", "tool sep", "tool call end", "tool calls end")))


def _deepseek_v3(names: Sequence[str], many: bool) -> Rules:
    heads = [
        f'mark0 "function" mark1 {quoted(name + chr(10) + "```json" + chr(10))}' for name in names
    ]
    calls = options(heads, f"{quoted(chr(10) + '```')} mark2")
    return [f"start: {_more(many, quoted(chr(10)))} mark3", *calls], _DEEPSEEK


def _deepseek_v31(names: Sequence[str], many: bool) -> Rules:
    heads = [f"mark0 {quoted(name)} mark1" for name in names]
    return [f"start: {_more(many)} mark3", *options(heads, "mark2")], _DEEPSEEK


def _kimi(names: Sequence[str], many: bool) -> Rules:
    heads = [f"mark0 {quoted(f'functions.{name}:')} /[0-9]{{1,3}}/ mark1" for name in names]
    marks = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
    calls = options(heads, "mark2")
    return [f"start: {_more(many)} mark3", *calls], (*marks, "<|tool_calls_section_end|>")


def _in_python(closer: str, names: Sequence[str], many: bool) -> Rules:
    listed = f'start: gap? "[" {_more(many, quoted(", "))} "]" gap? mark0'
    return [GAP, listed, *pythonic_calls(names)], (closer,)


def _in_lines_of_python(names: Sequence[str], many: bool) -> Rules:
    lines = f"start: gap? {_more(many, quoted(chr(10)))} gap? mark0"
    return [GAP, lines, *pythonic_calls(names)], ("</function_calls>",)


def _only_python(names: Sequence[str], many: bool) -> Rules:
    return [f'start: "[" {_more(many, quoted(", "))} "]"', *pythonic_calls(names)], ()


def _pythonic(opener: str, rules: "Callable[[Sequence[str], bool], Rules]") -> HeldFormat:
    return HeldFormat((opener,), rules=rules, arguments=pythonic_arguments, text=_python_text)


def _harmony(names: Sequence[str], many: bool) -> Rules:
    """Up to the object's end: what comes then ends the answer, and is the model's to say."""
    head = 'head: " "? (mark0 "json")? mark1'
    return [head, "start: call", *options([f"{quoted(name)} head" for name in names], "")], (
        *("<|constrain|>", "<|message|>"),
    )


_python_text = partial(json_text, before='input="', after='"')


def _compact(place: int, schema: Mapping[str, Any]) -> list[str]:
    options = {**schema["x-guidance"], "item_separator": ",", "key_separator": ":"}
    return [f"args{place}: %json {json.dumps({**schema, 'x-guidance': options})}"]


def _tagged(tags: Tags, *, is_repeated: bool = False) -> HeldFormat:
    return HeldFormat(
        (tags.opener,),
        rules=partial(tagged_rules, tags, is_repeated=is_repeated),
        arguments=partial(tagged_arguments, tags),
        text=partial(tagged_text, tags),
    )


HELD: Mapping[str, HeldFormat] = {
    "hermes": HeldFormat(("<tool_call>",), rules=_hermes),
    "granite": HeldFormat(("<|tool_call|>",), rules=_list),
    "phi4_mini": HeldFormat(("functools",), rules=_list),
    "mistral": HeldFormat(("[TOOL_CALLS]",), rules=_mistral),
    "llama3_json": HeldFormat(("<|python_tag|>",), ('{"name": ',), rules=_llama),
    "deepseek_v3": HeldFormat((_special("tool calls begin"),), rules=_deepseek_v3),
    "deepseek_v31": HeldFormat((_special("tool calls begin"),), rules=_deepseek_v31),
    "kimi_k2": HeldFormat(("<|tool_calls_section_begin|>",), rules=_kimi),
    "qwen3_coder": _tagged(QWEN),
    "seed_oss": _tagged(SEED, is_repeated=True),
    "minimax": _tagged(MINIMAX, is_repeated=True),
    "glm": replace(_tagged(GLM), rules=bare_rules),
    "llama4_pythonic": _pythonic("<|python_start|>", partial(_in_python, "<|python_end|>")),
    "lfm2": _pythonic("<|tool_call_start|>", partial(_in_python, "<|tool_call_end|>")),
    "olmo3": _pythonic("<function_calls>", _in_lines_of_python),
    "harmony": HeldFormat(
        ("commentary to=functions.",),
        rules=_harmony,
        arguments=_compact,
        text=partial(json_text, before='{"input":"'),
    ),
    "pythonic": HeldFormat(
        (), names_first=True, rules=_only_python, arguments=pythonic_arguments, text=_python_text
    ),
}
"""By the names of `text/calls/families.py`."""


def calls_grammar(
    form: HeldFormat, names: Sequence[str], arguments: Sequence[Sequence[str]], *, many: bool
) -> str:
    """Lark, of a format, for tools of those `names`; `arguments` are what the format makes of each."""
    lines, marks = form.rules(names, many)
    lines += [line for each in arguments for line in each]
    return "\n".join([*lines, *(mark_line(i, quoted(mark)) for i, mark in enumerate(marks))])


def mark_line(place: int, said: str) -> str:
    return f"mark{place}: {said}"


_UP_TO = re.compile(r"(\w+)\[suffix=(\"[^\"]*\")\]: (.*)")


def with_tokens(lark: str, tokens: Mapping[str, int]) -> str:
    """The grammar with those marks and tags as tokens that stand for no text in a vocabulary."""
    tags = {quoted(text): token for text, token in tokens.items() if re.fullmatch("<.+>", text)}
    tags = {said: token for said, token in tags.items() if said in lark}
    is_theirs = False
    lines: list[str] = []
    for line in lark.split("\n"):
        is_theirs = line != "}" if is_theirs else line.endswith("%lark {")
        lines += [line] if is_theirs else _with_tags(line, tags)
    for at in range(len(lines) - 1, -1, -1):
        head, _, said = lines[at].partition(": ")
        if not head.startswith("mark"):
            break
        if (token := tokens.get(json.loads(said))) is not None:
            lines[at] = f"{head}: <[{token}]>"
    return "\n".join(lines)


def _with_tags(line: str, tags: Mapping[str, int]) -> list[str]:
    """A line whose literals that are such tokens are these, and what goes up to one does as well."""
    if not tags or line.startswith(("SHAPE", "mark")) or "%json" in line:
        return [line]
    found = _UP_TO.fullmatch(line)
    if found is not None and (token := tags.get(found[2])) is not None:
        text = f"UP{found[1].upper()}"
        return [f"{found[1]}: {text} <[{token}]>", f"{text}: {found[3]}"]
    for said, token in tags.items():
        line = re.sub(rf"(?<=[ (]){re.escape(said)}", f"<[{token}]>", line)
    return [line]
