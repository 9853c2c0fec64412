"""A grammar of a text as a grammar of the same text within a string of JSON, where quotes, backslashes and control
characters are escaped.

An escape is more than one character, and the library's lexer goes on with what it has begun as long as it can, and
never back. So no terminal here begins with anything else and goes on with an escape: terminals that have any become
rules, of terminals that are one escape or have none. Of several ways to escape a character the one of Python's json is
meant. Runs in the child that reads grammars.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmhost.text.grammar_tagged import Unspeakable
from llmhost.text.pattern_in_json import (
    escaped_pattern,
    escaped_range,
    escaped_text,
    is_one,
    said_by,
)

_TOKENS = re.compile(
    r"""(?P<comment>(?://|\#)[^\n]*)
    | (?P<first>"(?:\\.|[^"\\])*")(?P<case>i?)\s*\.\.\s*(?P<last>"(?:\\.|[^"\\])*")
    | (?P<string>"(?:\\.|[^"\\])*")(?P<any_case>i?)
    | /(?P<pattern>(?:\\.|[^/\\\n])+)/(?P<flags>[a-z]*)
    | %import\s+common\.(?P<common>\w+)(?:[ \t]*->[ \t]*(?P<alias>\w+))?
    | %ignore[ \t]+(?:/(?P<ignored>(?:\\.|[^/\\\n])+)/(?P<ignored_flags>[a-z]*)|(?P<ignored_name>\w+))
    | (?:(?<=\n)|\A)[ \t]*[?!]*(?P<head>\w+)(?P<about>\.-?\d+|\[[^\]\n]*\])?[ \t]*:
    | (?P<other>%\w+|@\w+|<[^>\s]+>|[&~])
    | (?P<alias_of>->[ \t]*\w+)
    | (?P<name>\w+)""",
    re.VERBOSE,
)
_LINES = ("head", "common", "ignored", "ignored_name")
"""Tokens that begin a line of their own."""
_COMMON = {
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\[^\n])*"',
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"[\r\n]+",
}
"""Terminals of the library with characters that are escaped. Its others have none."""
_ALONE = re.compile(
    r"[ \t]*/(?P<pattern>(?:\\.|[^/\\\n])+)/(?P<flags>[a-z]*)[ \t]*(?:(?://|#)[^\n]*)?(?=\n|\Z)(?!\s*\|)"
)
"""A terminal that is one pattern."""


@dataclass(frozen=True, slots=True)
class _Terminals:
    rules: Mapping[str, str]
    """Those that become rules, with what these are called: those that have escapes, or others that do."""
    patterns: Mapping[str, tuple[str, str]]
    """Those that are one pattern, with its flags."""


NOTHING = _Terminals({}, {})


def escaped_lark(lark: str) -> str:
    """Raises Unspeakable for what can't be rewritten."""
    terminals = _terminals_of(lark)
    _check_ignored(lark, terminals)
    return _TOKENS.sub(lambda found: _Token(found, terminals).rewritten(), lark)


def _terminals_of(lark: str) -> _Terminals:
    here = ""
    uses: dict[str, set[str]] = {}
    escaping: set[str] = set()
    patterns = {name: (pattern, "") for name, pattern in _COMMON.items()}
    for found in _TOKENS.finditer(lark):
        if found["head"]:
            here = found["head"]
            uses[here] = set()
            if (alone := _ALONE.match(lark, found.end())) is not None:
                patterns[here] = (alone["pattern"], alone["flags"])
        elif found["common"] in _COMMON:
            escaping.add(found["alias"] or found["common"])
        elif here and found["name"]:
            uses[here].add(found["name"])
        elif here and _Token(found, NOTHING).has_escapes:
            escaping.add(here)
    while more := {name for name, those in uses.items() if those & escaping} - escaping:
        escaping |= more
    rules = {name: f"of_{name.lower()}" for name in escaping if name.isupper()}
    return _Terminals(rules, patterns)


def _check_ignored(lark: str, terminals: _Terminals) -> None:
    """What is ignored may come between terminals and not within one, and those with escapes become several. Raises
    Unspeakable."""
    lark = _TOKENS.sub(lambda found: "" if found["comment"] else found[0], lark)
    tokens = list(_TOKENS.finditer(lark))
    ignored = {found["ignored_name"] for found in tokens if found["ignored_name"]}
    if not ignored and not any(found["ignored"] for found in tokens):
        return
    here = ""
    for found, after in zip(tokens, [*tokens[1:], None], strict=True):
        here = found["head"] or here
        if (name := found["alias"] or found["common"] or here) in ignored:
            continue
        behind = lark[found.end() : after and after.start()].strip(" \t\n")
        is_last = after is None or any(after[kind] for kind in _LINES)
        goes_on = behind not in ("", "|") or not (behind or is_last or found["head"])
        if _Token(found, terminals).is_several or (goes_on and here in terminals.rules):
            raise Unspeakable(f"within a string of JSON {name} can't be kept from what is ignored")


@dataclass(frozen=True, slots=True)
class _Token:
    found: "re.Match[str]"
    terminals: _Terminals

    @property
    def has_escapes(self) -> bool:
        found = self.found
        is_terminal = (found["string"] or found["pattern"] or found["first"]) is not None
        return is_terminal and self.rewritten() != found[0]

    @property
    def is_several(self) -> bool:
        """It becomes more than one terminal, one after the other."""
        found = self.found
        if found["common"] in _COMMON:
            return (found["alias"] or found["common"]) in self.terminals.rules
        if found["string"]:
            return self.has_escapes and len(said_by(found["string"])) > 1
        return bool(found["pattern"]) and self.has_escapes and not is_one(found["pattern"])

    def rewritten(self) -> str:
        found = self.found
        if found["comment"]:
            return ""
        if found["first"]:
            return escaped_range(said_by(found["first"]), said_by(found["last"])) or found[0]
        if found["string"]:
            return escaped_text(said_by(found["string"]), found["any_case"]) or found[0]
        if found["pattern"]:
            return escaped_pattern(found["pattern"], found["flags"]) or found[0]
        return self._word()

    def _word(self) -> str:
        found, rules = self.found, self.terminals.rules
        if found["common"]:
            return self._imported(found["common"], found["alias"] or found["common"])
        if found["ignored"]:
            return self._ignored(found["ignored"], found["ignored_flags"])
        if found["ignored_name"] in rules:
            if found["ignored_name"] not in self.terminals.patterns:
                raise Unspeakable(f"within a string of JSON {found[0]} is not possible")
            return self._ignored(*self.terminals.patterns[found["ignored_name"]])
        if found["head"]:
            if found["about"] and (found["about"].startswith("[") or found["head"] in rules):
                raise Unspeakable(f"within a string of JSON no rule can be {found['about']}")
            return found[0].replace(found["head"], rules.get(found["head"], found["head"]))
        if found["other"]:
            raise Unspeakable(f"within a string of JSON a text can't be held to {found['other']!r}")
        return rules.get(found["name"], found[0]) if found["name"] else found[0]

    def _imported(self, common: str, name: str) -> str:
        if common not in _COMMON:
            return self.found[0]
        return f"{self.terminals.rules[name]}: {escaped_pattern(_COMMON[common], '')}"

    def _ignored(self, pattern: str, flags: str) -> str:
        """One character at a time, as what is ignored may be so often."""
        made = escaped_pattern(pattern, flags, is_one=True)
        return self.found[0] if made is None else f"%ignore {made}"
