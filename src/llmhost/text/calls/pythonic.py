"""Families that write calls as Python does: `[get_weather(city="Paris"), now()]`. Nothing of it is ever run."""

import ast
import json
import re
from typing import Any

from llmhost.text.calls.pieces import Piece, Reader, Steps, whole_characters

_SLASH = re.compile(r"(?<!\\)((?:\\\\)*)\\/")
"""As JSON may write a slash, and Python does not."""
LONGEST_NAME = 512
"""What is longer is content, and is not held back to see whether a call comes of it."""


class Pythonic(Reader):
    """Calls between two marks, or, without an opener, an answer that begins as a list of calls."""

    def __init__(self, opener: str | None = None, closer: str | None = None) -> None:
        self._opener = opener
        self._closer = closer
        super().__init__()

    def read(self) -> Steps[None]:
        if self._opener is None:
            if (yield from self._is_list()):
                yield from self._calls("")
            yield from self.say_rest()
            return
        while (yield from self.say_until(self._opener)) is not None:
            yield from self._calls(self._opener)
            if self._closer is not None:
                yield from self.skip_space()
                yield from self.comes(self._closer)

    def _is_list(self) -> Steps[bool]:
        """Whether the answer so far can be nothing but a list of calls: a bracket, a name and a parenthesis."""
        while True:
            bare = self.feed.text.lstrip()
            name = bare[1:].lstrip()
            if bare and (bare[0] != "[" or (name and not (name[0].isalpha() or name[0] == "_"))):
                return False
            head, mark, _ = name.partition("(")
            if len(head) > LONGEST_NAME:
                return False
            if mark or not all(part.isidentifier() for part in head.split(".") if part):
                return bool(mark) and _is_name(head)
            if not (yield from self.more()):
                return False

    def _calls(self, before: str) -> Steps[None]:
        """Take calls up to what is none. What can't be read is content."""
        is_list = (yield from self.skip_space()) == "["
        if is_list:
            before += self.feed.cut(1)
        while True:
            char = yield from self.skip_space()
            if char in (",", "\n"):
                self.feed.cut(1)
                continue
            if is_list and char == "]":
                self.feed.cut(1)
                return
            if not char or not (char.isalpha() or char == "_"):
                return
            self.is_within_call = True
            text = yield from self._one()
            self.is_within_call = False
            found = read_call(text)
            if found is None:
                yield from self.say(before + text)
                return
            name, arguments = found
            call = yield from self.begin(name)
            yield Piece(whole_characters(json.dumps(arguments, ensure_ascii=False)), call)
            self.end()
            before = ""

    def _one(self) -> Steps[str]:
        """Take a name and all between its parentheses."""
        scan, text = _CallScan(), ""
        while True:
            text += self.feed.cut(scan.take(self.feed.text))
            if scan.is_over or not (yield from self.more()):
                return text


class _CallScan:
    """Where a call's last parenthesis closes."""

    __slots__ = ("_depth", "_is_escaped", "_quote", "is_over")

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._is_escaped = False
        self.is_over = False

    def take(self, text: str) -> int:
        for place, char in enumerate(text):
            if self._quote:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == self._quote:
                    self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in "([{":
                self._depth += 1
            elif char in ")]}":
                self._depth -= 1
                if self._depth <= 0:
                    self.is_over = True
                    return place + 1
        return len(text)


def read_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """`f(a=1)` as a name and its arguments, which are literals. None for anything else."""
    text = _SLASH.sub(r"\1/", text.strip())
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.Call) or tree.args:
        return None
    name = ast.unparse(tree.func)
    if not _is_name(name):
        return None
    try:
        arguments = {each.arg: _literal(each.value) for each in tree.keywords if each.arg}
        json.dumps(arguments, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return None
    return name, arguments


def _literal(node: ast.expr) -> Any:
    """A literal's value; `true`, `false` and `null` are meant as JSON has them. Raises ValueError."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.List):
        return [_literal(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _literal(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    return ast.literal_eval(node)


def _is_name(text: str) -> bool:
    return bool(text) and all(part.isidentifier() for part in text.strip().split("."))
