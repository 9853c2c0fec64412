"""What calls are held to that a model writes by a template of its own files, where that tells how it writes them.

That is where marks are texts, or patterns of texts, white space and the function's name; and what stands between them
is JSON, or arguments between tags. Others are read, and not held.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from llmhost.text.calls.outline import Outline
from llmhost.text.calls.pattern_shape import Bit, Group, Space, Text, shape_of
from llmhost.text.calls.response_template import RESPONSE_TEMPLATE, Anchor, Part, template_of
from llmhost.text.calls.tagged import Tags
from llmhost.text.grammar_calls import GAP, HELD, HeldFormat, Rules, json_text, options, quoted
from llmhost.text.grammar_tagged import NEWLINE, tagged_arguments, tagged_text


@dataclass(frozen=True, slots=True)
class _Marks:
    """What stands around a call, without its opener."""

    head: tuple[Bit, ...]
    tail: tuple[Bit, ...]
    special: tuple[str, ...]
    """Texts in them that may be tokens without text."""


def form_of(wish: dict[str, Any]) -> HeldFormat:
    """The format that a grammar of calls was asked for in."""
    if wish["format"] != RESPONSE_TEMPLATE:
        return HELD[wish["format"]]
    form = template_format(wish["template"], tuple(wish["special"]))
    assert form is not None, "others are not asked for"
    return form


@lru_cache(maxsize=64)
def template_format(template: str, special: tuple[str, ...]) -> HeldFormat | None:
    """`special`: the special tokens of the vocabulary that the template names. None where it does not tell enough."""
    parts = [part for part in template_of(template).parts if part.role == "call"]
    if len(parts) != 1 or parts[0].opens is None:
        return None
    part, outline = parts[0], parts[0].outline
    head, tail = _bits(part.opens), _bits(part.closes) if part.closes else ()
    while head and isinstance(head[0], Space):
        head = head[1:]
    if not head or tail is None or not isinstance(head[0], Text) or not head[0].text:
        return None
    opener, *behind = _split(head[0].text, special)
    if (
        outline is None
        or not _is_named(outline, head)
        or any(isinstance(bit, Group) for bit in tail)
    ):
        return None
    rest = (*(Text(each) for each in behind), *head[1:])
    return _format(part, outline, opener, _Marks(rest, tail, special))


def _bits(anchor: Anchor | None) -> tuple[Bit, ...] | None:
    """Of several texts the first is how it is written."""
    if anchor is None:
        return ()
    if anchor.literals:
        return (Text(anchor.literals[0]),)
    return shape_of(anchor.pattern.pattern)


def _is_named(outline: Outline, head: Sequence[Bit]) -> bool:
    """Whether the opener has the name, and no other group, or each call says it."""
    if outline.name is not None:
        return False
    groups = [bit.name for bit in head if isinstance(bit, Group)]
    return groups == ([] if outline.capture is None else [outline.capture])


def _split(text: str, special: Sequence[str]) -> list[str]:
    """The text cut at its special tokens, the longest first."""
    for token in sorted(special, key=len, reverse=True):
        before, found, after = text.partition(token)
        if found:
            return [*_split(before, special), token, *_split(after, special)]
    return [text] if text else []


def _format(part: Part, outline: Outline, opener: str, marks: _Marks) -> HeldFormat | None:
    if part.parser == "xml-inline":
        tags = _tags(part.args)
        if tags is None:
            return None
        return HeldFormat(
            (opener,),
            rules=partial(_rules, outline, marks, is_tagged=True),
            arguments=partial(tagged_arguments, tags),
            text=partial(tagged_text, tags),
        )
    if part.parser not in ("json", "text") or part.args.keys() & {"unquoted_keys", "string_delims"}:
        return None
    rules = partial(_rules, outline, marks, is_list=part.is_each)
    return HeldFormat((opener,), rules=rules, text=json_text)


def _tags(args: Any) -> Tags | None:
    """What stands around an argument's name and its text, which may have white space around it."""
    inner = args.get("value_parser") or {}
    is_raw = inner.get("name", "text") == "text" or (
        inner["name"] == "json" and inner.get("args", {}).get("allow_non_json")
    )
    bits = shape_of(args["tag_pattern"])
    match bits:
        case (
            Text(key),
            Group("key"),
            Text(value),
            Space(False),
            Group("value"),
            Space(False),
            Text(end),
        ) if is_raw:
            return Tags("", "", "", "", "", key, value, end)
    return None


def _rules(
    outline: Outline,
    marks: _Marks,
    names: Sequence[str],
    many: bool,
    *,
    is_tagged: bool = False,
    is_list: bool = False,
) -> Rules:
    said = _Said(marks.special)
    around = "nl" if is_tagged else "gap?"
    tail = said.bits(marks.tail[1:] if Space(False) in marks.tail[:1] else marks.tail)
    end = f"{around} {tail}" if tail else ""
    if outline.name_key is not None:
        heads = [
            quoted(f"{{{json.dumps(outline.name_key)}: {json.dumps(name)}, {json.dumps(outline.arguments_key)}: ")
            for name in names
        ]  # fmt: skip
        more = 'call (", " call)*' if many else "call"
        inner = f'"[" {more} "]"' if is_list else "call"
        start = f"start: {said.bits(marks.head)} gap? {inner} {end}"
        return [GAP, NEWLINE, start, *options(heads, '"}"')], tuple(said.marks)
    heads = [f"{said.bits(marks.head, name)} {around}" for name in names]
    calls = options(heads, end)
    return [GAP, NEWLINE, "start: call", *calls], tuple(said.marks)


class _Said:
    """Bits as a grammar says them. Tokens become marks."""

    def __init__(self, special: Sequence[str]) -> None:
        self._special = special
        self.marks: list[str] = []

    def bits(self, bits: Sequence[Bit], name: str = "") -> str:
        return " ".join(filter(None, (self._bit(bit, name) for bit in bits)))

    def _bit(self, bit: Bit, name: str) -> str:
        if isinstance(bit, Space):
            return "gap" if bit.is_needed else "gap?"
        if isinstance(bit, Group):
            return quoted(name)
        return " ".join(self._text(each) for each in _split(bit.text, self._special) if each)

    def _text(self, text: str) -> str:
        if text not in self._special:
            return quoted(text)
        if text not in self.marks:
            self.marks.append(text)
        return f"mark{self.marks.index(text)}"
