"""The text that a custom tool is given, out of the JSON that a model calls it by: `{"input": "..."}`, as it comes.

Models know tools as functions with arguments, so a tool that takes plain text is one with a single argument.
"""

import json
import re

INPUT = "input"
"""The argument's name."""

LONGEST_HEAD = 1_000
"""More white space than that is no beginning of an object that is waited for."""

_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_BEGINS = re.compile(r'\s*(\{\s*("(i(n(p(u(t("(\s*(:\s*)?)?)?)?)?)?)?)?)?)?')
"""What may become a head."""
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class InputText:
    """Reads one call's arguments. What is no such object is told as it is."""

    def __init__(self) -> None:
        self._held = ""
        self._is_begun = False
        self._is_plain = False
        self._is_over = False

    def push(self, text: str) -> str:
        """What further arguments say."""
        if self._is_plain:
            return text
        if self._is_over:
            return ""
        self._held += text
        if not self._is_begun:
            if (head := _HEAD.match(self._held, 0, LONGEST_HEAD)) is not None:
                self._is_begun = True
                self._held = self._held[head.end() :]
            elif len(self._held) < LONGEST_HEAD and _BEGINS.fullmatch(self._held):
                return ""
            else:
                self._is_plain = True
                return self.finish()
        return self._said()

    def finish(self) -> str:
        """What was held back, at the end: an escape that was cut is nothing."""
        held, self._held = self._held, ""
        return "" if self._is_begun else held

    def _said(self) -> str:
        here, held = 0, self._held
        out: list[str] = []
        while here < len(held):
            char = held[here]
            if char == '"':
                self._is_over = True
                here = len(held)
            elif char != "\\":
                end = _next(held, here)
                out.append(held[here:end])
                here = end
            else:
                length = _escape(held, here)
                if length is None:
                    break
                out.append(_unescaped(held[here : here + length]))
                here += length
        self._held = held[here:]
        return "".join(out)


def _next(text: str, start: int) -> int:
    """Where the next quote or backslash stands."""
    found = [at for at in (text.find('"', start), text.find("\\", start)) if at >= 0]
    return min(found, default=len(text))


def _escape(text: str, start: int) -> int | None:
    """The length of an escape; None while some of it has not come. Both halves of a character are one."""
    if len(text) < start + 2:
        return None
    if text[start + 1] != "u":
        return 2
    if len(text) < start + 6:
        return None
    if text[start + 2 : start + 4].lower() not in ("d8", "d9", "da", "db"):
        return 6
    rest = text[start + 6 : start + 12]
    if not "\\u".startswith(rest[:2]):
        return 6
    return 12 if len(rest) == 6 else None


def _unescaped(text: str) -> str:
    if len(text) == 2:
        return _ESCAPES.get(text[1], text[1])
    try:
        said: str = json.loads(f'"{text}"')
        return said.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    except ValueError:
        return text
