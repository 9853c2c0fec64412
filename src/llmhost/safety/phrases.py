"""Many words as one expression that shares their beginnings: an alternation would try each of them at each place of a
text. Pure; what a word is, and where it may begin and end, is not known here."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

DEEPEST = 40
"""Branches within branches; below, words are listed one by one. `re` compiles them recursively."""


@dataclass(slots=True)
class _Node:
    end: str | None = None
    """What must follow, of a word that ends here."""
    children: "dict[str, _Node]" = field(default_factory=dict)


def pattern_of(
    words: Iterable[str], begins: Callable[[str], str], ends: Callable[[str], str]
) -> str:
    """An expression for words in which a blank stands for any. `begins` and `ends` say what must be before and after a
    word. Of words that begin alike the longest is found."""
    roots: dict[str, _Node] = {}
    for word in words:
        node = roots.setdefault(begins(word), _Node())
        for char in word:
            node = node.children.setdefault(char, _Node())
        node.end = ends(word)
    return "|".join(before + _expression(root, 0) for before, root in roots.items())


def _expression(node: _Node, depth: int) -> str:
    literal: list[str] = []
    while node.end is None and len(node.children) == 1:
        [(char, node)] = node.children.items()
        literal.append(_char(char))
    if depth < DEEPEST:
        ways = [_char(c) + _expression(child, depth + 1) for c, child in node.children.items()]
    else:
        ways = list(_listed(node))
    if node.end is not None:
        ways.append(node.end)
    return "".join(literal) + (ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})")


def _listed(node: _Node) -> Iterable[str]:
    """What words go on with below a node, the longest first of those that begin alike."""
    waiting = [("", node)]
    found: list[str] = []
    while waiting:
        said, at = waiting.pop()
        if at.end is not None and at is not node:
            found.append(said + at.end)
        waiting += ((said + _char(char), child) for char, child in at.children.items())
    return reversed(found)


def _char(char: str) -> str:
    return r"\s+" if char == " " else re.escape(char)
