"""Parts of an answer that are calls, told before they have ended where their template's outline says how.

A reader here begins a call as soon as it is certain to be one by what has come. Until then nothing is told, so that a
part that turns out to be none can still be read as a whole. What breaks later stays a call, one that has no end.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import regex

from llmhost.text.calls.json_calls import loaded
from llmhost.text.calls.object_told import ObjectReader
from llmhost.text.calls.outline import Outline
from llmhost.text.calls.pieces import Piece, Steps, whole_characters
from llmhost.text.calls.tagged import Schemas, kinds_of
from llmhost.text.calls.template_values import MOST_SECONDS, Args, inner, text_of, typed

LEAST_NEW = 16
"""Characters that have to come before a pattern is tried again, and an eighth of what it is tried on."""
CONTEXT = 64
"""Characters before an argument that are kept, for patterns that look back."""


class Body(ObjectReader):
    """Tells the calls of one part, as long as `has_failed` is not set."""

    def __init__(self, outline: Outline, name: str | None, args: Args, schemas: Schemas) -> None:
        self.outline = outline
        self.name = name
        self.args = args
        self.schemas = schemas
        self.has_failed = False
        """A call that was begun is broken."""
        super().__init__(args)

    def fail(self) -> Steps[None]:
        """All that comes is the broken call's, if one was begun."""
        self.has_failed = bool(self.calls)
        while True:
            text = self.feed.cut(len(self.feed.text))
            if text and self.calls:
                yield Piece(text, self.calls - 1)
            if not (yield from self.more()):
                return

    def kinds(self, name: str) -> dict[str, str]:
        return kinds_of(self.schemas.get(name))


class OneObject(Body):
    """The part is the arguments of a call whose name is known."""

    def read(self) -> Steps[None]:
        if self.name and (yield from self.begins_object()):
            call = yield from self.begin(self.name)
            if (yield from self.tell_object(call, self.kinds(self.name))):
                self.end()
                return
        yield from self.fail()


class NamedObjects(Body):
    """The part is an object with a name and arguments, or a list of such. Other orders are read as a whole."""

    def read(self) -> Steps[None]:
        is_list = (yield from self.skip_space()) == "["
        if is_list:
            self.feed.cut(1)
        while (yield from self._one()):
            if not is_list:
                return
            char = yield from self.skip_space()
            if char == "]":
                self.end()
                return
            if char != ",":
                break
            self.feed.cut(1)
        yield from self.fail()

    def _one(self) -> Steps[bool]:
        if not (yield from self.begins_object()):
            return False
        name = yield from self._name()
        if name is None or not (yield from self.begins_object()):
            return False
        call = yield from self.begin(name)
        if not (yield from self.tell_object(call, self.kinds(name))):
            return False
        while (yield from self.skip_space()) == ",":  # what else is said of the call is nobody's
            self.feed.cut(1)
            if (yield from self._member()) is None:
                return False
        if not (yield from self.comes("}")):
            return False
        self.end()
        return True

    def _name(self) -> Steps[str | None]:
        """Take members up to the arguments, whose value comes next. None where that is not what comes."""
        name: str | None = None
        while (key := (yield from self._key_and_colon())) != self.outline.arguments_key:
            if key is None or key == "function":  # which goes before the other members
                return None
            yield from self.skip_space()
            value = loaded((yield from self.value()))
            if key == self.outline.name_key and isinstance(value, str):
                name = whole_characters(value)
            if (yield from self.skip_space()) != ",":
                return None
            self.feed.cut(1)
        return name or None

    def _member(self) -> Steps[str | None]:
        key = yield from self._key_and_colon()
        if key is not None:
            yield from self.skip_space()
            yield from self.value()
        return key

    def _key_and_colon(self) -> Steps[str | None]:
        if (yield from self.skip_space()) != '"':
            return None
        key = loaded((yield from self.value()))
        if not isinstance(key, str) or (yield from self.skip_space()) != ":":
            return None
        self.feed.cut(1)
        return key


class Pairs(Body):
    """The part names arguments one by one, which are told one by one."""

    past = 0
    """Characters at the front of the text that were told of already."""

    def read(self) -> Steps[None]:
        opening = "{"
        try:
            while (pair := (yield from self.pair())) is not None:
                if opening == "{":
                    assert self.name is not None, "others have no such reader"
                    yield from self.begin(self.name)
                yield Piece(f"{opening}{self._told(*pair)}", self.calls - 1)
                opening = ", "
        except (ValueError, RecursionError, OverflowError, TimeoutError):
            self.feed.cut(self.past)
            yield from self.fail()
            return
        if self.calls:
            yield Piece("}", self.calls - 1)

    @abstractmethod
    def pair(self) -> Steps[tuple[str, Any] | None]:
        """The next argument; None when there is none any more."""

    def _told(self, key: str, value: Any) -> str:
        assert self.name is not None
        made = typed(value, self.kinds(self.name).get(key))
        text = json.dumps({key: made}, ensure_ascii=False, allow_nan=False)
        return whole_characters(text[1:-1])


class Lines(Pairs):
    def pair(self) -> Steps[tuple[str, Any] | None]:
        mark: str | None = ""
        while mark is not None:
            line, mark = yield from self.until(self.args.get("line_sep", "\n"))
            key, between, value = text_of(line, self.args).partition(self.args.get("kv_sep", ":"))
            if between:
                said = inner(text_of(value, self.args), self.args.get("value_parser"))
                return text_of(key, self.args), said
        return None


class Tags(Pairs):
    """Arguments that a pattern finds."""

    _tried = 0
    """The length of the text when it was searched last."""

    def pair(self) -> Steps[tuple[str, Any] | None]:
        while True:
            if (found := self._search()) is not None:
                groups = found.groupdict()
                told = inner(groups.get("value") or "", self.args.get("value_parser"))
                self.feed.cut(kept := max(found.end() - CONTEXT, 0))
                self.past, self._tried = found.end() - kept, 0
                return groups.get("key") or "", told
            if not (yield from self.more()):
                return None

    def _search(self) -> Any:
        """The next argument, if what may come can't change where it ends."""
        text, is_over = self.feed.text, self.feed.is_over
        new = len(text) - max(self._tried, self.past)
        if not is_over and new < LEAST_NEW + (len(text) - self.past) // 8:
            return None
        self._tried = len(text)
        found = self._found(text)
        if is_over or found is None:
            return found
        again = self._found(text + found.group()) if found.end() < len(text) else None
        return found if again is not None and again.span() == found.span() else None

    def _found(self, text: str) -> Any:
        pattern = self.args["tag_pattern"]
        return regex.search(pattern, text, flags=regex.DOTALL, pos=self.past, timeout=MOST_SECONDS)


def body_of(
    parser: str,
    outline: Outline | None,
    args: Args,
    captures: Mapping[str, str],
    schemas: Schemas,
) -> Body | None:
    """The reader of one part; None where only its end tells."""
    if outline is None:
        return None
    name = outline.name_of(captures)
    if outline.arguments_key is not None:
        return NamedObjects(outline, None, args, schemas)
    return None if not name else READERS[parser](outline, name, args, schemas)


READERS: Mapping[str, type[Body]] = {
    "json": OneObject,
    "text": OneObject,
    "xml-inline": Tags,
    "kv-lines": Lines,
}
