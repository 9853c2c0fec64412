"""Families that write each argument between tags, as text: Qwen's coders, Seed, GLM, MiniMax.

What is a number or an object by the tool's schema is read as JSON, and everything else is the text between the tags.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmhost.text.calls.json_calls import loaded
from llmhost.text.calls.pieces import Piece, Reader, Steps

Schemas = Mapping[str, Mapping[str, Any]]
"""Of each tool by its name, the JSON schema of its parameters."""


TEXT_OR_NULL = "string or null"
"""A type whose texts stay texts, even those that look like numbers."""


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around a call, its name, and the name and the text of each argument."""

    opener: str
    closer: str
    name: str
    name_end: str
    call_end: str
    """The end of one call within `closer`; the same as that where there is one call only."""
    key: str
    value: str
    value_end: str
    is_name_bare: bool = False
    """The name has no end of its own: it ends where the line or the first key does."""


QWEN = Tags(
    opener="<tool_call>",
    closer="</tool_call>",
    name="<function=",
    name_end=">",
    call_end="</function>",
    key="<parameter=",
    value=">",
    value_end="</parameter>",
)
SEED = replace(QWEN, opener="<seed:tool_call>", closer="</seed:tool_call>")
MINIMAX = Tags(
    opener="<minimax:tool_call>",
    closer="</minimax:tool_call>",
    name='<invoke name="',
    name_end='">',
    call_end="</invoke>",
    key='<parameter name="',
    value='">',
    value_end="</parameter>",
)
GLM = Tags(
    opener="<tool_call>",
    closer="</tool_call>",
    name="",
    name_end="\n",
    call_end="</tool_call>",
    key="<arg_key>",
    value="<arg_value>",
    value_end="</arg_value>",
    is_name_bare=True,
)


class Tagged(Reader):
    def __init__(self, tags: Tags, schemas: Schemas) -> None:
        self._tags = tags
        self._schemas = schemas
        super().__init__()

    def read(self) -> Steps[None]:
        tags = self._tags
        while (yield from self.say_until(tags.opener)) is not None:
            if tags.is_name_bare:
                yield from self._bare()
                continue
            while True:
                _, mark = yield from self.until(tags.name, tags.closer)
                if mark != tags.name:
                    break
                name, mark = yield from self.until(tags.name_end)
                if mark is not None:
                    yield from self._arguments(name)

    def _bare(self) -> Steps[None]:
        """A call whose name ends with the line, or where the first argument or the end begins."""
        tags, name = self._tags, ""
        while True:
            said, mark = self.feed.until(tags.name_end, tags.key, tags.call_end)
            name += said
            if mark is not None and (name.strip() or mark != tags.name_end):
                break
            if mark is None and not (yield from self.more()):
                yield from self.say(tags.opener + name)
                return
        if mark != tags.name_end:
            self.feed.text = mark + self.feed.text if mark else self.feed.text
        yield from self._arguments(name)

    def _arguments(self, name: str) -> Steps[None]:
        tags, name, opening = self._tags, name.strip(), "{"
        kinds = kinds_of(self._schemas.get(name))
        call = yield from self.begin(name)
        while True:
            _, mark = yield from self.until(tags.key, tags.call_end)
            if mark != tags.key:
                break
            key, mark = yield from self.until(tags.value)
            if tags.is_name_bare:
                key = key.replace("</arg_key>", "")
            if mark is None:
                return
            key = key.strip()
            yield Piece(f"{opening}{json.dumps(key, ensure_ascii=False)}: ", call)
            opening = ", "
            if not (yield from self._value(call, kinds.get(key))):
                return
        yield Piece("}" if opening != "{" else "{}", call)
        if mark is not None:
            self.end()

    def _value(self, call: int, kind: str | None) -> Steps[bool]:
        """Tell an argument: a text as it comes, anything else when all of it is there. Whether it has its end."""
        if kind != "string":
            text, mark = yield from self.until(self._tags.value_end)
            yield Piece(as_json(text, kind), call)
            return mark is not None
        yield Piece('"', call)
        mark = yield from self._text(call)
        yield Piece('"', call)
        return mark is not None

    def _text(self, call: int) -> Steps[str | None]:
        """A text without the line ends that stand around it."""
        is_first, kept = not self._tags.is_name_bare, ""
        while True:
            said, mark = self.feed.until(self._tags.value_end)
            if is_first and said:
                is_first, said = False, said.removeprefix("\n")
            said = kept + said
            kept = ""
            if not self._tags.is_name_bare and said.endswith("\n"):
                said, kept = said[:-1], "\n"
            if said:
                yield Piece(json.dumps(said, ensure_ascii=False)[1:-1], call)
            if mark is not None or not (yield from self.more()):
                return mark


def kinds_of(schema: Mapping[str, Any] | None) -> dict[str, str]:
    """The type of each parameter that has just one, beside null."""
    properties = (schema or {}).get("properties")
    if not isinstance(properties, dict):
        return {}
    found = {name: _kind(each) for name, each in properties.items() if isinstance(each, dict)}
    return {name: kind for name, kind in found.items() if kind is not None}


def _kind(schema: Mapping[str, Any]) -> str | None:
    kinds, either = schema.get("type"), schema.get("anyOf")
    if kinds is None and isinstance(either, list):
        kinds = [one.get("type") if isinstance(one, dict) else None for one in either]
    if not isinstance(kinds, list):
        return kinds if isinstance(kinds, str) else None
    several = [one for one in kinds if one != "null"]
    if len(several) != 1 or not isinstance(several[0], str):
        return None
    is_open = several[0] == "string" and len(kinds) > 1
    return TEXT_OR_NULL if is_open else several[0]


def as_json(text: str, kind: str | None) -> str:
    """A value that is no text by its schema, or of which that is not known."""
    bare = text.strip()
    value = None if kind == TEXT_OR_NULL else loaded(bare)
    if value is not None or bare == "null":
        return bare
    if kind == "boolean" and bare.lower() in ("true", "false"):
        return bare.lower()
    return json.dumps(text.removeprefix("\n").removesuffix("\n"), ensure_ascii=False)
