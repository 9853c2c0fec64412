"""Families that write a call as JSON: an object with a name and arguments, or a name with arguments behind it."""

import json
from typing import Any

from llmhost.text.calls.json_value import ValueScan
from llmhost.text.calls.pieces import Piece, Reader, Steps, whole_characters

NAMES = ("name", "function_name")
ARGUMENTS = ("arguments", "parameters", "args")


class JsonReader(Reader):
    """Steps for objects, which families put between marks of their own."""

    def value(self, call: int | None = None) -> Steps[str]:
        """Take one value, told as the arguments of a call as it comes if there is one."""
        scan, text = ValueScan(), ""
        while True:
            part = self.feed.cut(scan.take(self.feed.text))
            text += part
            if part and call is not None:
                yield Piece(part, call)
            if scan.is_over or not (yield from self.more()):
                return text

    def arguments(self, call: int) -> Steps[None]:
        """Take a call's arguments: an object, or a text that holds one."""
        if (yield from self.skip_space()) == '"':
            told = loaded((yield from self.value()))
            yield Piece(whole_characters(told) if isinstance(told, str) else "{}", call)
        else:
            yield from self.value(call)

    def call_object(self, before: str = "") -> Steps[bool]:
        """Take `{"name": ..., "arguments": ...}`, in any order; what is none is content, with what came before it."""
        raw, early, call, has_arguments = before, "", -1, False
        while (char := (yield from self.skip_space())) and char in "{,":
            raw += self.skipped + self.feed.cut(1)
            is_key = (yield from self.skip_space()) == '"'
            raw += self.skipped
            if not is_key:
                break
            key_text = yield from self.value()
            raw += key_text
            is_pair = (yield from self.skip_space()) == ":"
            raw += self.skipped
            if not is_pair:
                break
            raw += self.feed.cut(1)
            yield from self.skip_space()
            raw += self.skipped
            key = loaded(key_text)
            if key in ARGUMENTS and call >= 0:
                has_arguments = True
                yield from self.arguments(call)
                continue
            told = yield from self.value()
            raw += told
            name = loaded(told)
            if key in NAMES and isinstance(name, str) and call < 0:
                call = yield from self.begin(name)
            elif key in ARGUMENTS:
                early = whole_characters(name) if isinstance(name, str) else told
        else:
            raw += self.skipped
        is_whole = yield from self.comes("}")
        if call < 0:
            yield from self.say(raw + ("}" if is_whole else ""))
            return False
        if not has_arguments:
            yield Piece(early or "{}", call)
        if is_whole:
            self.end()
        return is_whole

    def call_objects(self, before: str = "") -> Steps[bool]:
        """Take one object, or a list of them."""
        if (yield from self.skip_space()) != "[":
            return (yield from self.call_object(before + self.skipped))
        before += self.skipped + self.feed.cut(1)
        while (char := (yield from self.skip_space())) and char in "{,":
            before += self.skipped
            if char == ",":
                before += self.feed.cut(1)
                continue
            if not (yield from self.call_object(before)):
                return False
            before = ""
        if before.strip(", \n"):
            yield from self.say(before + self.skipped)
            return False
        return (yield from self.comes("]"))


class Between(JsonReader):
    """Objects, or lists of them, between two marks: hermes and what came after it, granite, phi."""

    def __init__(self, opener: str, closer: str | None) -> None:
        self._opener = opener
        self._closer = closer
        super().__init__()

    def read(self) -> Steps[None]:
        while (yield from self.say_until(self._opener)) is not None:
            before = self.calls
            yield from self.call_objects(self._opener)
            if self._closer is not None and self.calls > before:  # else its end is content as well
                yield from self.skip_space()
                yield from self.comes(self._closer)


class Mistral(JsonReader):
    """`[TOOL_CALLS]` before a list of objects, or before each `name[CALL_ID]id[ARGS]{...}`, of which parts may lack."""

    MARK = "[TOOL_CALLS]"

    def read(self) -> Steps[None]:
        while (yield from self.say_until(self.MARK)) is not None:
            char = yield from self.skip_space()
            if char and char in "[{":
                yield from self.call_objects(self.MARK)
            else:
                yield from self._named()

    def _named(self) -> Steps[None]:
        name = ""
        while True:
            said, mark = self.feed.until("[CALL_ID]", "[ARGS]", "{")
            name += said
            if mark is not None or not (yield from self.more()):
                break
        if mark is None:
            yield from self.say(self.MARK + name)
            return
        call = yield from self.begin(name.strip())
        if mark == "[CALL_ID]":
            _, mark = yield from self.until("[ARGS]", "{")
        if mark == "{":
            self.feed.text = "{" + self.feed.text
        yield from self.skip_space()
        if loaded_whole((yield from self.value(call))):
            self.end()


class Llama(JsonReader):
    """The whole answer is objects with `;` between them, after a mark or none. An object without a name is content."""

    MARK = "<|python_tag|>"

    def read(self) -> Steps[None]:
        yield from self.comes(self.MARK)
        while True:
            if (yield from self.skip_first_space()) == "{":
                is_call = yield from self.call_object()
                if is_call and (yield from self.skip_space()) in (";", ","):
                    self.feed.cut(1)
                    continue
            mark = yield from self.say_until(self.MARK)
            if mark is None:
                return

    def skip_first_space(self) -> Steps[str]:
        """As `skip_space`, but white space before anything else is content unless a call comes."""
        space = ""
        while not self.feed.text or self.feed.text.isspace():
            space += self.feed.cut(len(self.feed.text))
            if not (yield from self.more()):
                break
        bare = self.feed.text.lstrip()
        space += self.feed.cut(len(self.feed.text) - len(bare))
        yield from self.say(space)
        return self.feed.text[:1]


class Sectioned(JsonReader):
    """Calls within a section, each with its name before its arguments: DeepSeek and Kimi."""

    def __init__(
        self,
        section: tuple[str, str],
        call: tuple[str, str],
        *,
        before_arguments: str,
        before_name: str | None = None,
        fence: str | None = None,
    ) -> None:
        """`before_name`: between the kind of a call and its name. `fence`: what stands around arguments."""
        self._section = section
        self._call = call
        self._before_arguments = before_arguments
        self._before_name = before_name
        self._fence = fence
        super().__init__()

    def read(self) -> Steps[None]:
        begin, end = self._section
        while (yield from self.say_until(begin)) is not None:
            while True:
                _, mark = yield from self.until(self._call[0], end)
                if mark != self._call[0]:
                    break
                yield from self._one()

    def _one(self) -> Steps[None]:
        if self._before_name is not None:
            yield from self.until(self._before_name)
        name, mark = yield from self.until(self._before_arguments)
        if mark is None:
            yield from self.say(name)
            return
        call = yield from self.begin(function_name(name))
        if self._fence is not None:
            yield from self.until(self._fence)
        if (yield from self.skip_space()) != "{":
            told, mark = yield from self.until(self._call[1])
            yield Piece(told.strip() or "{}", call)
            if mark is not None and not told.strip():
                self.end()
            return
        if loaded_whole((yield from self.value(call))):
            self.end()
        yield from self.until(self._call[1])


def function_name(text: str) -> str:
    """Kimi's `functions.get_weather:0` and others' plain names."""
    name = text.strip().removeprefix("functions.")
    head, mark, number = name.rpartition(":")
    return head if mark and number.isdigit() else name


def loaded(text: str) -> Any:
    """The value, or None for what is no JSON, such as Python's NaN, or is nested deeper than can be read."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(word: str) -> None:
    raise ValueError(word)


def loaded_whole(text: str) -> bool:
    """Whether the text is a whole object."""
    return isinstance(loaded(text), dict)
