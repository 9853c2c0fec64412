"""Terminals of a grammar within a string of JSON: texts, ranges and patterns, as rules that keep escapes apart.

A pattern with escapes is taken if it is characters and sets, each perhaps repeated, one after the other: then it is
plain where the parts of it end. Each function gives None where nothing is escaped and the terminal stays what it is.
"""

import json
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

from llmhost.text.grammar_tagged import Unspeakable

ESCAPED = ('"', "\\", *map(chr, range(32)))
_UNESCAPED = r'[^"\\\x00-\x1f]'
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}


def said_by(string: str) -> str:
    """What a string of a grammar stands for. Raises Unspeakable."""
    try:
        return str(json.loads(string, strict=False))
    except ValueError:
        raise Unspeakable(f"{string} is no string as JSON has them") from None


def escaped_text(text: str, any_case: str = "") -> str | None:
    parts = re.split(r'(["\\\x00-\x1f])', text)
    if len(parts) == 1:
        return None
    said = [
        _quoted(_escape(part)) if part in ESCAPED else _quoted(part) + any_case
        for part in parts
        if part
    ]
    return f"({' '.join(said)})"


def escaped_range(first: str, last: str) -> str | None:
    members = [char for char in ESCAPED if len(first) == len(last) == 1 and first <= char <= last]
    said = f"[\\x{{{ord(first[:1] or ' '):x}}}-\\x{{{ord(last[:1] or ' '):x}}}]"
    return _Set(said, tuple(members), last >= " ").rule("") if members else None


def escaped_pattern(pattern: str, flags: str, *, is_one: bool = False) -> str | None:
    """As a rule, or with `is_one` as a terminal of a character where the pattern is a set, repeated or not. Raises
    Unspeakable."""
    parts = _parts(pattern, "s" in flags)
    if parts is None or not any(part.members for part, _ in parts):
        if parts is None and _may_escape(pattern, "s" in flags):
            raise Unspeakable(
                f"within a string of JSON a text can't be held to the pattern {pattern}"
            )
        return None
    if set(flags) - {"s", "u"}:
        raise Unspeakable(f"within a string of JSON a pattern can't have the flags {flags}")
    if is_one:
        if len(parts) != 1:
            raise Unspeakable(f"within a string of JSON the pattern {pattern} can't be ignored")
        return f"/{parts[0][0].terminal}/"
    for place, (part, often) in enumerate(parts):
        if part.is_run(often) and any(after.meets(part) for after in _following(parts, place)):
            raise Unspeakable(
                f"within a string of JSON it isn't plain where {part.said} ends in {pattern}"
            )
    return f"({' '.join(part.rule(often) for part, often in parts)})"


def is_one(pattern: str) -> bool:
    """Whether a pattern is one set, once."""
    parts = _parts(pattern, takes_line_ends=True)
    return parts is not None and len(parts) == 1 and not parts[0][1]


def _following(parts: "list[tuple[_Set, str]]", place: int) -> "Iterator[_Set]":
    """What may come behind the part in that place."""
    for part, often in parts[place + 1 :]:
        yield part
        if often not in ("*", "?") and not often.startswith("{0"):
            return


class _Set(NamedTuple):
    """One of some characters."""

    said: str
    """As a pattern."""
    members: tuple[str, ...]
    """Those that are escaped."""
    has_others: bool

    @property
    def others(self) -> str:
        return f"[{self.said}&&{_UNESCAPED}]"

    @property
    def escapes(self) -> str:
        return "|".join(re.sub(r"[\\\"]", r"\\\g<0>", _escape(char)) for char in self.members)

    @property
    def terminal(self) -> str:
        return "|".join([*([self.others] if self.has_others else []), self.escapes])

    def is_run(self, often: str) -> bool:
        """Whether characters that are not escaped come as one, up to the first that can't be of it."""
        return self.has_others and (often in ("*", "+") or (bool(often) and not self.members))

    def rule(self, often: str) -> str:
        """Characters that are not escaped come in runs, where there may be any number."""
        if not self.members:
            return f"/{self.said}{often}/"
        run = "+" if often in ("*", "+") else ""
        either = [f"/{self.others}{run}/"] if self.has_others else []
        return f"({' | '.join([*either, f'/{self.escapes}/'])}){often}"

    def meets(self, other: "_Set") -> bool:
        """Whether a character that is not escaped is in both."""
        first, second = re.compile(self.said), re.compile(other.said)
        return any(second.match(found[0]) for found in first.finditer(_others()))


_ATOMS = re.compile(
    r"""(?P<any>\.)
    | (?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])
    | (?P<kind>\\[dDwWsS])
    | \\x(?P<two>[0-9a-fA-F]{2}) | \\u(?P<four>[0-9a-fA-F]{4}) | \\[xu]\{(?P<code>[0-9a-fA-F]+)\}
    | \\(?P<escape>.)
    | (?P<begin>\((?:\?(?P<scope>s?):|\?P?<\w+>|(?!\?)))
    | (?P<end>\))
    | (?P<flag>\(\?s\))
    | (?P<syntax>[|*+?^$({}])
    | (?P<char>.)""",
    re.VERBOSE | re.DOTALL,
)
_OFTEN = re.compile(r"(?:([*+?])|\{(\d+)(,?)(\d*)\})\??")


def _parts(pattern: str, takes_line_ends: bool) -> list[tuple[_Set, str]] | None:
    """Sets, with how often each comes; None for what is more than that."""
    at, scopes = 0, [takes_line_ends]
    parts: list[tuple[_Set, str]] = []
    while at < len(pattern):
        found = _ATOMS.match(pattern, at)
        assert found is not None
        at = found.end()
        if found["syntax"]:
            return None
        if found["flag"]:
            scopes[-1] = True
        elif found["begin"]:
            scopes.append(bool(found["scope"]) or scopes[-1])
        elif found["end"]:
            if len(scopes) == 1 or _OFTEN.match(pattern, at):
                return _last_is_quantified(parts, pattern, at)
            scopes.pop()
        else:
            often = _OFTEN.match(pattern, at)
            at = at if often is None else often.end()
            parts.append((_set_of(found, scopes[-1]), "" if often is None else _as_lark(often)))
    return parts


def _last_is_quantified(
    parts: list[tuple[_Set, str]], pattern: str, at: int
) -> list[tuple[_Set, str]] | None:
    """A group that is repeated is a set, if it is nothing else than one: `(?s:.)*`."""
    often = _OFTEN.match(pattern, at)
    is_alone = len(parts) == 1 and not parts[0][1] and pattern.count("(") == 1
    if often is None or not is_alone or often.end() != len(pattern):
        return None
    return [(parts[0][0], _as_lark(often))]


def _as_lark(often: "re.Match[str]") -> str:
    if often[1]:
        return str(often[1])
    return f"{{{often[2]}{often[3]}{often[4]}}}"


def _may_escape(pattern: str, takes_line_ends: bool) -> bool:
    """Whether any character or set of a pattern has members that are escaped."""
    atoms = [found for found in _ATOMS.finditer(pattern) if not found["syntax"]]
    kinds = ("begin", "end", "flag")
    return any(
        _set_of(found, takes_line_ends).members
        for found in atoms
        if not any(found[kind] for kind in kinds)
    )


def _set_of(found: "re.Match[str]", takes_line_ends: bool) -> _Set:
    if found["any"]:
        return _members(r"[\s\S]" if takes_line_ends else r"[^\n]")
    if found["set"] or found["kind"]:
        return _members(found["set"] or f"[{found['kind']}]")
    code = found["two"] or found["four"] or found["code"]
    if code:
        return _one(chr(int(code, 16)))
    if found["escape"] and found["escape"] not in _CONTROLS and found["escape"].isalnum():
        raise Unspeakable(f"within a string of JSON a pattern can't have \\{found['escape']}")
    return _one(_CONTROLS.get(found["escape"] or "", found["escape"] or found["char"]))


def _one(char: str) -> _Set:
    said = re.sub(r"[-.^$*+?{}\[\]|()\\/&~#]", r"\\\g<0>", char)
    return _Set(said, (char,) if char in ESCAPED else (), char not in ESCAPED)


@lru_cache(maxsize=256)
def _members(said: str) -> _Set:
    if re.search(r"&&|--|~~|\[.*\[|\\[pPuUN]|\\x\{", said):
        raise Unspeakable(f"within a string of JSON a pattern can't have {said}")
    try:
        one = re.compile(said)
    except re.error as error:
        raise Unspeakable(f"the pattern {said} is wrong: {error}") from None
    members = tuple(char for char in ESCAPED if one.fullmatch(char))
    return _Set(said, members, bool(one.search(_others() + said)))


def _escape(char: str) -> str:
    return json.dumps(char, ensure_ascii=False)[1:-1]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@cache
def _others() -> str:
    """All characters that need not be escaped, or some where there are planes of them. Takes milliseconds."""
    codes = (*range(32, 0xD800), *range(0xE000, 0x10000), 0x10000, 0x1F600, 0x10FFFF)
    return "".join(char for char in map(chr, codes) if char not in ESCAPED)
