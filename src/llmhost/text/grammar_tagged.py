"""What calls that write each argument between tags are held to: Qwen's coders, Seed, MiniMax, GLM.

A text stands between its tags as it is, up to the tag behind it; everything else stands there as JSON. Arguments come
in the order of the schema, those that need not be there or not. GLM's tags are literals of their own, because in its
vocabularies they are tokens, and its values have no line ends around them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmhost.text.calls.inputs import INPUT
from llmhost.text.calls.tagged import GLM, Tags

_ABOUT = frozenset(("title", "description", "default", "examples", "deprecated"))
"""Keywords that say nothing of what is valid."""
OF_OBJECT = _ABOUT | {
    *("type", "properties", "required", "additionalProperties"),
    *("$defs", "definitions", "$schema", "x-guidance"),
}
_OF_TEXT = _ABOUT | {"type", "enum", "const", "pattern", "minLength", "maxLength"}
ANY_NAME = '/[^<>\\n"]{1,128}/'
NEWLINE = 'nl: "\\n"?'


class Unspeakable(Exception):
    """What a schema demands that can't be held to between tags."""


def tagged_rules(
    tags: Tags, names: Sequence[str], many: bool, *, is_repeated: bool
) -> tuple[list[str], tuple[str, ...]]:
    """Lines of a Lark grammar. `is_repeated`: within one pair of outer tags there may be several calls."""
    calls = [
        f"call{i}: {_quoted(tags.name + name + tags.name_end)} nl args{i} {_quoted(tags.call_end)} nl"
        for i, name in enumerate(names)
    ]
    one = " | ".join(f"call{i}" for i in range(len(names)))
    more = "call+" if many and is_repeated else "call"
    start = f"start: nl {more} mark0"
    return [NEWLINE, start, *calls, f"call: {one}"], (tags.closer,)


def bare_rules(names: Sequence[str], many: bool) -> tuple[list[str], tuple[str, ...]]:
    """The same for GLM, whose names have no tags."""
    calls = [f"call{i}: {_quoted(name)} nl args{i}" for i, name in enumerate(names)]
    one = " | ".join(f"call{i}" for i in range(len(names)))
    return [NEWLINE, "start: nl call mark0", *calls, f"call: {one}"], (GLM.closer,)


def tagged_arguments(tags: Tags, place: int, schema: Mapping[str, Any]) -> list[str]:
    """What stands within a call of the tool in that place. Raises Unspeakable."""
    if "properties" not in schema and not schema.keys() - {"type", "x-guidance"} - _ABOUT:
        rule = f"{_named(tags, ANY_NAME)} any{place} nl"
        return [f"args{place}: ({rule})*", _text(f"any{place}", "/(?s:.*)/", tags)]
    if more := sorted(schema.keys() - OF_OBJECT):
        raise Unspeakable(f"arguments between tags can't be held to {', '.join(more)}")
    lines: list[str] = []
    parts: list[str] = []
    for number, (name, each) in enumerate(schema.get("properties", {}).items()):
        if tags.is_name_bare and "<" in name:
            raise Unspeakable(f"an argument between tags can't be named {name!r}")
        value = f"value{place}x{number}"
        lines += _value(value, each, schema, tags)
        part = f"{_named(tags, _quoted(name), name)} {value} nl"
        parts.append(part if name in schema.get("required", ()) else f"({part})?")
    said = " ".join(parts) or '""'
    return [f"args{place}: {said}", *lines]


def tagged_text(tags: Tags, place: int, lark: str) -> list[str]:
    """The same of a tool that takes one text, which follows a grammar of its own."""
    nl = "" if tags.is_name_bare else "nl"
    said = f"{nl} text{place} {nl} {_quoted(tags.value_end)} nl"
    head = f"args{place}: {_named(tags, _quoted(INPUT), INPUT)} {said}"
    return [head, f"text{place}: %lark {{\n{lark}\n}}"]


def _named(tags: Tags, said: str, name: str | None = None) -> str:
    """The tags of an argument's name, with the rule or literal that it is between them; in one literal if it is one."""
    if tags.is_name_bare:
        return f'{_quoted(tags.key)} {said} "</arg_key>" nl {_quoted(tags.value)}'
    if name is not None:
        return _quoted(tags.key + name + tags.value)
    return f"{_quoted(tags.key)} {said} {_quoted(tags.value)}"


def _value(rule: str, schema: Any, root: Mapping[str, Any], tags: Tags) -> list[str]:
    words, nl = _words(schema), "" if tags.is_name_bare else "nl"
    if words is not None:
        listed = " | ".join(_quoted(word) for word in words)
        return [f"{rule}: {nl} ({listed}) {nl} {_quoted(tags.value_end)}"]
    if not isinstance(schema, Mapping) or schema.get("type") != "string":
        defs = {name: root[name] for name in ("$defs", "definitions", "x-guidance") if name in root}
        inner = {**defs, **schema} if isinstance(schema, Mapping) else schema
        return [
            f"{rule}: {nl} {rule}j {nl} {_quoted(tags.value_end)}",
            f"{rule}j: %json {json.dumps(inner)}",
        ]
    if more := sorted(schema.keys() - _OF_TEXT):
        raise Unspeakable(f"a text between tags can't be held to {', '.join(more)}")
    if "enum" in schema or "const" in schema:
        raise Unspeakable("a text between tags can't be one of these")
    return [*_shape(rule, schema), _text(rule, f"SHAPE{rule.upper()}", tags)]


def _words(schema: Any) -> list[str] | None:
    """Texts of which it must be one, where each can be read as nothing else than that."""
    if not isinstance(schema, Mapping) or schema.get("type", "string") != "string":
        return None
    words = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if schema.keys() - _ABOUT - {"type", "enum", "const"} or not words:
        return None
    is_text = "type" in schema
    fine = [isinstance(word, str) and _is_bare(word, is_text=is_text) for word in words]
    return list(words) if all(fine) else None


def _is_bare(word: str, *, is_text: bool) -> bool:
    """It is the same without quotes."""
    if not word or "<" in word or word != word.strip():
        return False
    if is_text:
        return True
    try:
        json.loads(word)
    except ValueError:
        return word.lower() not in ("true", "false")
    return False


def _shape(rule: str, schema: Mapping[str, Any]) -> list[str]:
    """A terminal: the length and the pattern of a text."""
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    wanted = ["/(?s:.*)/"]
    if least or most is not None:
        wanted.append(f"/(?s:.){{{least},{'' if most is None else most}}}/")
    if (pattern := schema.get("pattern")) is not None:
        begin = "" if pattern.startswith("^") else "(?s:.*)"
        end = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.*)"
        inner = pattern.removeprefix("^") if not begin else pattern
        inner = inner.removesuffix("$") if not end else inner
        escaped = inner.replace("\\/", "/").replace("/", "\\/")
        wanted.append(f"/{begin}(?:{escaped}){end}/")
    return [f"SHAPE{rule.upper()}: {' & '.join(wanted[1:] or wanted)}"]


def _text(rule: str, shape: str, tags: Tags) -> str:
    """All up to the tag behind it."""
    return f"{rule}[suffix={_quoted(tags.value_end)}]: {shape}"


def _quoted(text: str) -> str:
    """A Lark string that stands for `text`."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
