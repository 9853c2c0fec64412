"""A grammar of a text as a grammar of the same text within a string of JSON, where quotes, backslashes and control
characters are escaped.

An escape is more than one character, and the library's lexer goes on with what it has begun as long as it can, and
never back. So no terminal here begins with anything else and goes on with an escape: terminals that have any become
rules, of terminals that are one escape or have none. Of several ways to escape a character the one of Python's json is
meant. Runs in the child that reads grammars.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmhost.text.grammar_tagged import Unspeakable
from llmhost.text.pattern_in_json import escaped_pattern, escaped_range, escaped_text, said_by

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
_COMMON = {
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\[^\n])*"',
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"[\r\n]+",
}
"""Terminals of the library with characters that are escaped. Its others have none."""


def escaped_lark(lark: str) -> str:
    """Raises Unspeakable for what can't be rewritten."""
    names = _as_rules(lark)
    return _TOKENS.sub(lambda found: _Token(found, names).rewritten(), lark)


def _as_rules(lark: str) -> dict[str, str]:
    """Terminals that become rules, with what these are called: those that have escapes, or others that do."""
    uses, escaping, here = dict[str, set[str]](), set[str](), ""
    for found in _TOKENS.finditer(lark):
        if found["head"]:
            here = found["head"]
            uses[here] = set()
        elif found["common"] in _COMMON:
            escaping.add(found["alias"] or found["common"])
        elif here and found["name"]:
            uses[here].add(found["name"])
        elif here and _Token(found, {}).has_escapes:
            escaping.add(here)
    while more := {name for name, those in uses.items() if those & escaping} - escaping:
        escaping |= more
    return {name: f"of_{name.lower()}" for name in escaping if name.isupper()}


@dataclass(frozen=True, slots=True)
class _Token:
    found: "re.Match[str]"
    names: dict[str, str]

    @property
    def has_escapes(self) -> bool:
        found = self.found
        return (found["string"] or found["pattern"] or found["first"]) is not None and (
            self.rewritten() != found[0]
        )

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
        found = self.found
        if found["common"]:
            return self._imported(found["common"], found["alias"] or found["common"])
        if found["ignored"] or found["ignored_name"]:
            return self._ignored()
        if found["head"]:
            if found["about"] and (found["about"].startswith("[") or found["head"] in self.names):
                raise Unspeakable(f"within a string of JSON no rule can be {found['about']}")
            return found[0].replace(found["head"], self.names.get(found["head"], found["head"]))
        if found["other"]:
            raise Unspeakable(f"within a string of JSON a text can't be held to {found['other']!r}")
        return self.names.get(found["name"], found[0]) if found["name"] else found[0]

    def _imported(self, common: str, name: str) -> str:
        if common not in _COMMON:
            return self.found[0]
        return f"{self.names[name]}: {escaped_pattern(_COMMON[common], '')}"

    def _ignored(self) -> str:
        """One character at a time, as what is ignored may be so often."""
        found = self.found
        if found["ignored_name"] not in (None, "WS", "WS_INLINE", *_unescaped(self.names, found)):
            raise Unspeakable(f"within a string of JSON {found[0]} is not possible")
        pattern = found["ignored"] or _COMMON.get(found["ignored_name"], "")
        made = (
            escaped_pattern(pattern, found["ignored_flags"] or "", is_one=True) if pattern else None
        )
        return found[0] if made is None else f"%ignore {made}"


def _unescaped(names: dict[str, str], found: "re.Match[str]") -> Iterator[str]:
    if found["ignored_name"] not in names:
        yield found["ignored_name"]
