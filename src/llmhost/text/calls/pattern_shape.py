"""What a pattern of a template is made of, where that is texts, white space and named groups, one after the other.

Such a pattern says how a model writes, and not only how that is found. Others say the latter alone.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    name: str


@dataclass(frozen=True, slots=True)
class Space:
    is_needed: bool
    """Else there may be none."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


Bit = Text | Group | Space

_SPACE = re.compile(r"(?:\\s|\\n| |\[ ?(?:\\[snrt])+\])(?P<often>[*?+][?+]?)|\\s")
_ESCAPES = {"n": "\n", "t": "\t"}
_PLAIN = re.compile(r"[^\\.^$*+?{}\[\]|()]")


def shape_of(pattern: str) -> tuple[Bit, ...] | None:
    """None where it is made of anything else."""
    at = 0
    bits: list[Bit] = []
    while at < len(pattern):
        if (space := _SPACE.match(pattern, at)) is not None:
            bits.append(Space(is_needed=(space["often"] or "+").startswith("+")))
            at = space.end()
        elif pattern.startswith("(?P<", at):
            end = _group_end(pattern, at)
            if end is None:
                return None
            bits.append(Group(pattern[at + 4 : pattern.index(">", at)]))
            at = end
        elif (char := _char(pattern, at)) is not None:
            text, at = char
            last = bits.pop() if bits and isinstance(bits[-1], Text) else Text("")
            assert isinstance(last, Text)
            bits.append(Text(last.text + text))
        else:
            return None
    return tuple(bits)


def _char(pattern: str, at: int) -> tuple[str, int] | None:
    """One character that stands for itself, and what comes next."""
    if pattern[at] != "\\":
        said, end = pattern[at], at + 1
        if not _PLAIN.match(said):
            return None
    else:
        escaped, end = pattern[at + 1 : at + 2], at + 2
        said = _ESCAPES.get(escaped, escaped)
        if escaped.isalnum() and escaped not in _ESCAPES:
            return None
    return None if pattern[end : end + 1] in ("*", "+", "?", "{") else (said, end)


def _group_end(pattern: str, at: int) -> int | None:
    """Behind the group that begins here; None where it is repeated or has no end."""
    depth, is_class = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif is_class:
            is_class = char != "]"
        elif char == "[":
            is_class = True
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if not depth:
                return None if pattern[at + 1 : at + 2] in ("*", "+", "?", "{") else at + 1
        at += 1
    return None
