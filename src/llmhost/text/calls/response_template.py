"""How a model's answers are to be read, as its own files tell: transformers' `response_template`, read and checked.

A template names the parts of an answer, and the marks that each begins and ends with. Of the parts that it may have
those are known that a chat can say: content, thoughts and calls. Any other is refused, and so the whole template.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import regex

from llmhost.text.calls.outline import Outline, outline_of
from llmhost.text.calls.template_values import MOST_SECONDS, PARSERS, check_transform

RESPONSE_TEMPLATE = "response_template"
"""As `tool_format` in models.toml names what such a template says."""
Role = Literal["content", "thought", "call"]
ROLES: Mapping[str, Role] = {
    "content": "content",
    "reasoning_content": "thought",
    "reasoning": "thought",
    "thinking": "thought",
    "tool_calls": "call",
}
_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_PART_KEYS = {
    *("open", "open_pattern", "close", "close_pattern", "content", "content_args"),
    *("repeats", "join", "optional", "transform", "transform_each"),
}
_OF_CALLS = ("text", "json", "xml-inline", "kv-lines")


class UnreadableTemplate(ValueError):
    """A template that asks for something that is not known here; the message names it."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a part begins or ends with."""

    pattern: Any
    literals: tuple[str, ...]
    """The texts that it is one of; none where it is a pattern."""
    begins: frozenset[str]
    """The first characters of those."""
    may_grow: bool
    """What has matched at the end of the text may match more with what comes."""
    spelled: str
    """For a look at which special tokens are in it."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    role: Role
    opens: Anchor | None
    closes: Anchor | None
    parser: str
    args: Mapping[str, Any]
    join: str | None
    transform: Any
    is_each: bool
    """The transform is for each item of a list."""
    outline: Outline | None = None
    """Of calls that can be told before their end."""

    @property
    def strips(self) -> bool:
        return bool(self.args.get("strip", True))


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    parts: tuple[Part, ...]
    start: Anchor
    """What comes before an answer in its prompt."""

    @property
    def rest(self) -> Part | None:
        """The part of what is in no other."""
        return next((part for part in self.parts if part.opens is None), None)

    @property
    def has_calls(self) -> bool:
        return any(part.role == "call" for part in self.parts)

    @property
    def thoughts(self) -> tuple[str, str] | None:
        """What thoughts stand between, where that is one text before and one behind."""
        for part in self.parts:
            if part.role == "thought" and part.opens and part.closes:
                around = (*part.opens.literals, *part.closes.literals)
                return (around[0].strip(), around[1].strip()) if len(around) == 2 else None
        return None

    def shown(self, special: tuple[str, ...]) -> tuple[str, ...]:
        """Which of the special tokens have to be seen."""
        anchors = [each for part in self.parts for each in (part.opens, part.closes) if each]
        return tuple(text for text in special if any(text in each.spelled for each in anchors))

    def after_start(self, prompt: str) -> str | None:
        """What of the answer its prompt says already; None where the prompt has no start in it, or it takes too long
        to find."""
        last = None
        try:
            for found in self.start.pattern.finditer(prompt, timeout=MOST_SECONDS):
                last = found
        except TimeoutError:
            return None
        return None if last is None else prompt[last.end() :]


@lru_cache(maxsize=64)
def template_of(text: str) -> ResponseTemplate:
    """Read a template, which is JSON. Raises UnreadableTemplate."""
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise UnreadableTemplate("it is no object")
    if raw.get("version", 1) != 1:
        raise UnreadableTemplate(f"its version {raw['version']!r} is not known")
    _check_keys("the template", raw, _KEYS)
    fields = raw.get("fields")
    if not isinstance(fields, dict) or not fields:
        raise UnreadableTemplate("it has no fields")
    parts = tuple(_part(name, each) for name, each in fields.items())
    if sum(part.opens is None for part in parts) > 1:
        raise UnreadableTemplate("two of its fields have no beginning")
    start = _anchor("the template", raw, "start_anchor")
    if start is None:
        raise UnreadableTemplate("it has no 'start_anchor'")
    return ResponseTemplate(parts, start)


def _part(name: str, raw: Any) -> Part:
    where = f"field {name!r}"
    if name not in ROLES:
        raise UnreadableTemplate(f"{where} is none of {', '.join(ROLES)}")
    if not isinstance(raw, dict):
        raise UnreadableTemplate(f"{where} is no object")
    _check_keys(where, raw, _PART_KEYS)
    role, parser, args = ROLES[name], raw.get("content", "text"), raw.get("content_args", {})
    if parser not in (_OF_CALLS if role == "call" else ("text",)):
        raise UnreadableTemplate(f"{where}: content {parser!r} is not known for it")
    _check_args(where, parser, args)
    transform, is_each = raw.get("transform"), raw.get("transform_each", False)
    if transform is not None and role != "call":
        raise UnreadableTemplate(f"{where}: a transform of text is not known")
    try:
        check_transform(transform)
    except ValueError as error:
        raise UnreadableTemplate(f"{where}: {error}") from error
    join = raw.get("join")
    if join is not None and (not isinstance(join, str) or role == "call"):
        raise UnreadableTemplate(f"{where}: 'join' is for texts")
    opens = _anchor(where, raw, "open")
    if opens is not None and opens.pattern.fullmatch(""):
        raise UnreadableTemplate(f"{where} may begin with nothing")
    return Part(
        name=name,
        role=role,
        opens=opens,
        closes=_anchor(where, raw, "close"),
        parser=parser,
        args=args,
        join=join,
        transform=transform,
        is_each=bool(is_each),
        outline=_outline(role, parser, args, transform, is_each=bool(is_each)),
    )


def _outline(
    role: Role, parser: str, args: Mapping[str, Any], transform: Any, *, is_each: bool
) -> Outline | None:
    if role != "call" or (parser == "xml-inline" and regex.fullmatch(args["tag_pattern"], "")):
        return None
    return outline_of(parser, args, transform, is_each=is_each)


def _check_keys(where: str, raw: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(raw.keys() - known):
        raise UnreadableTemplate(f"{where} has {unknown[0]!r}, which is not known")


def _check_args(where: str, parser: str, args: Any) -> None:
    if not isinstance(args, dict):
        raise UnreadableTemplate(f"{where}: 'content_args' is no object")
    if parser == "xml-inline":
        pattern = args.get("tag_pattern")
        if not isinstance(pattern, str) or "key" not in _compiled(where, pattern).groupindex:
            raise UnreadableTemplate(f"{where}: 'tag_pattern' has no group 'key'")
    pairs = args.get("string_delims", [])
    if not isinstance(pairs, list) or not all(_is_pair(each) for each in pairs):
        raise UnreadableTemplate(f"{where}: 'string_delims' are no pairs of texts")
    for name in ("line_sep", "kv_sep"):
        if not isinstance(args.get(name, ":"), str) or not args.get(name, ":"):
            raise UnreadableTemplate(f"{where}: {name!r} is no text")
    if (inner := args.get("value_parser")) is not None:
        if not isinstance(inner, dict) or inner.get("name", "text") not in tuple(PARSERS):
            raise UnreadableTemplate(f"{where}: its 'value_parser' is not known")
        _check_args(where, inner.get("name", "text"), inner.get("args", {}))


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(each, str) and each for each in value)
    )


def _anchor(where: str, raw: Mapping[str, Any], name: str) -> Anchor | None:
    if name in raw and f"{name}_pattern" in raw:
        raise UnreadableTemplate(f"{where} has both {name!r} and '{name}_pattern'")
    if f"{name}_pattern" in raw:
        pattern = raw[f"{name}_pattern"]
        if not isinstance(pattern, str):
            raise UnreadableTemplate(f"{where}: '{name}_pattern' is no text")
        return Anchor(_compiled(where, pattern), (), frozenset(), True, pattern.replace("\\", ""))
    if name not in raw:
        return None
    said = raw[name]
    several = said if isinstance(said, list) else [said]
    if not several or not all(isinstance(each, str) and each for each in several):
        raise UnreadableTemplate(f"{where}: {name!r} is no text, or an empty one")
    texts = tuple(dict.fromkeys(several))
    longest = sorted(texts, key=len, reverse=True)
    may_grow = any(a != b and a.startswith(b) for a in texts for b in texts)
    pattern = "|".join(map(regex.escape, longest))
    begins = frozenset(text[0] for text in texts)
    return Anchor(_compiled(where, pattern), texts, begins, may_grow, "\n".join(texts))


def _compiled(where: str, pattern: str) -> Any:
    try:
        return regex.compile(pattern, regex.DOTALL)
    except (regex.error, RecursionError) as error:
        raise UnreadableTemplate(f"{where}: the pattern {pattern!r} is wrong: {error}") from error
