"""The arguments of a call as they come: an object of JSON, or of what a template says stands for JSON.

Members are told one after the other, and texts in them piece by piece. A member that the tool's schema wants as
something else than the text that it is waits for its end, and so do lists and objects with strings between marks.
"""

import json

import regex

from llmhost.text.calls.json_calls import JsonReader, loaded
from llmhost.text.calls.pieces import Piece, Steps, whole_characters
from llmhost.text.calls.template_values import TYPED, Args, parsed, typed

_BARE_KEY = regex.compile(r"\w+")


class ObjectReader(JsonReader):
    """Steps for such objects."""

    def __init__(self, args: Args) -> None:
        self._args = args
        self._pairs: list[tuple[str, str]] = [tuple(pair) for pair in args.get("string_delims", ())]
        self._has_bare_keys = bool(args.get("unquoted_keys"))
        super().__init__()

    def begins_object(self) -> Steps[bool]:
        """Whether a brace and what may come behind it come next, of which the brace is taken."""
        if (yield from self.skip_space()) != "{":
            return False
        self.feed.cut(1)
        char = yield from self.skip_space()
        if char in ('"', "}"):
            return True
        return self._has_bare_keys and bool(_BARE_KEY.fullmatch(char))

    def tell_object(self, call: int, kinds: dict[str, str]) -> Steps[bool]:
        """Tell the object whose brace was taken. Whether it has its end, and is one."""
        opening = "{"
        while True:
            char = yield from self.skip_space()
            if char == "}":
                self.feed.cut(1)
                yield Piece("}" if opening != "{" else "{}", call)
                return True
            if opening != "{":
                if char != ",":
                    return False
                self.feed.cut(1)
            key = yield from self._key()
            if key is None or (yield from self.skip_space()) != ":":
                return False
            self.feed.cut(1)
            yield Piece(f"{opening}{json.dumps(key, ensure_ascii=False)}: ", call)
            opening = ", "
            if not (yield from self._tell_value(call, kinds.get(key))):
                return False

    def _key(self) -> Steps[str | None]:
        if (yield from self.skip_space()) == '"':
            key = loaded((yield from self.value()))
            return whole_characters(key) if isinstance(key, str) else None
        if not self._has_bare_keys:
            return None
        said, mark = yield from self.until(":")
        if mark is None or not _BARE_KEY.fullmatch(said):
            return None
        self.feed.text = mark + self.feed.text
        return said

    def _tell_value(self, call: int, kind: str | None) -> Steps[bool]:
        """Tell one value. Whether it is one."""
        char = yield from self.skip_space()
        for begin, end in self._pairs:
            if (yield from self.comes(begin)):
                return (yield from self._tell_marked(end, call, kind))
        if char and char in "{[" and (self._pairs or self._has_bare_keys):
            return (yield from self._tell_whole(call, (yield from self._nested()), kind))
        is_list_of_texts = char == "[" and kind != "array"
        if kind in TYPED and (char == '"' or is_list_of_texts):
            return (yield from self._tell_whole(call, (yield from self.value()), kind))
        return loaded_as_json((yield from self.value(call)))

    def _tell_whole(self, call: int, text: str, kind: str | None) -> Steps[bool]:
        """A value of which all is there."""
        try:
            value = typed(parsed(text, "json", self._args), kind)
            told = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (ValueError, RecursionError, TimeoutError):
            yield Piece(text, call)
            return False
        yield Piece(whole_characters(told), call)
        return True

    def _tell_marked(self, end: str, call: int, kind: str | None) -> Steps[bool]:
        """A text up to its mark."""
        if kind in TYPED:
            text, mark = yield from self.until(end)
            yield Piece(json.dumps(typed(text, kind), ensure_ascii=False), call)
            return mark is not None
        yield Piece('"', call)
        while True:
            said, mark = self.feed.until(end)
            if said:
                yield Piece(json.dumps(said, ensure_ascii=False)[1:-1], call)
            if mark is not None:
                yield Piece('"', call)
                return True
            if not (yield from self.more()):
                return False

    def _nested(self) -> Steps[str]:
        """Take a list or an object with strings between marks in it, up to the bracket that closes it."""
        ends, text, depth = dict(self._pairs), "", 0
        while True:
            said, mark = yield from self.until(*ends, '"', "{", "}", "[", "]")
            text += said + (mark or "")
            if mark is None:
                return text
            if mark in ends:
                said, mark = yield from self.until(ends[mark])
                text += said + (mark or "")
            elif mark == '"':
                self.feed.text = mark + self.feed.text
                text = text[:-1] + (yield from self.value())
            else:
                depth += 1 if mark in "{[" else -1
                if not depth:
                    return text


def loaded_as_json(text: str) -> bool:
    """Whether the text is a value of JSON."""
    return text == "null" or loaded(text) is not None
