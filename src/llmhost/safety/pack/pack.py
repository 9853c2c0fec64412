"""Those rules of the pack that a policy looks for, over one piece of text.

What most text has not is found out first, see `traits.py`; then literals, with the fastest search that there is.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache

from llmhost.safety.pack.injection import INJECTION
from llmhost.safety.pack.personal import PERSONAL
from llmhost.safety.pack.rule import PackRule, Trait
from llmhost.safety.pack.secrets import RECOGNISED_CHARS, SECRETS
from llmhost.safety.pack.traits import has_number, long_runs
from llmhost.safety.verdict import Direction, Finding, Tier
from llmhost.safety.window import Piece

RULES = {rule.name: rule for rule in (*SECRETS, *PERSONAL, *INJECTION)}
CATEGORIES = tuple(dict.fromkeys(rule.category for rule in RULES.values()))
NAMES = (*CATEGORIES, *RULES)
"""All that a policy may look for."""


def nearest(name: str) -> str | None:
    """The name of the pack that was meant by one that there is not."""
    return next(iter(get_close_matches(name, NAMES, 1)), None)


class Pack:
    """The rules of these names, in that direction."""

    def __init__(self, names: Sequence[str], direction: Direction) -> None:
        wanted = [r for r in RULES.values() if r.name in names or r.category in names]
        if direction is Direction.OUTPUT:
            wanted = [rule for rule in wanted if rule.is_for_output]
        self._by_trait = {
            trait: [rule for rule in wanted if rule.trait is trait]
            for trait in (None, *Trait)
            if any(rule.trait is trait for rule in wanted)
        }
        literals = [literal for rule in wanted for literal in rule.literals]
        self._heads = re.compile("|".join(map(re.escape, literals)))
        """Whether any of them is there, in a short text: in a long one, one search each is faster."""
        self._is_folded = any(rule.is_folded for rule in wanted)
        self.overlap_chars = RECOGNISED_CHARS if wanted else 0

    def __bool__(self) -> bool:
        return bool(self.overlap_chars)

    def judge_piece(self, piece: Piece, overlap_chars: int) -> list[Finding]:
        """Places are those in the text that the piece is of."""
        rules = self._possible(piece.text)
        return [found for rule in rules for found in _found(rule, piece, overlap_chars)]

    def is_clean(self, text: str) -> bool:
        """Whether none of them can find anything. False says nothing."""
        return not self._possible(text)

    def _possible(self, text: str) -> list[PackRule]:
        """Those that may find something."""
        data = text.encode("ascii", "replace")
        possible: list[PackRule] = []
        for trait, rules in self._by_trait.items():
            if trait is Trait.LONG_RUN:
                runs = long_runs(text, data)
                if runs and self._heads.search(runs) is not None:
                    possible += [rule for rule in rules if _says(rule, runs)]
            elif trait is Trait.NUMBER:
                if has_number(text, data):
                    possible += rules
            elif trait is Trait.STRANGE:
                if not text.isascii():
                    possible += rules
            else:
                lower = text.lower() if self._is_folded else text
                possible += [r for r in rules if _says(r, lower if r.is_folded else text)]
        return possible


def _says(rule: PackRule, text: str) -> bool:
    if not rule.literals:
        return True
    for literal in rule.literals:
        if literal in text:
            return not rule.and_literals or any(more in text for more in rule.and_literals)
    return False


def _found(rule: PackRule, piece: Piece, overlap_chars: int) -> list[Finding]:
    total = len(piece.text)
    return [
        Finding(rule.category, rule.name, Tier.RULES, start=piece.at(start), end=piece.at(end))
        for start, end in rule.find(piece.text, piece.start)
        # What touches an end that is none may go on there: the next piece shows it whole, if it can.
        if piece.is_end or end < total or end - start > overlap_chars
    ]


@lru_cache(256)
def pack_of(names: tuple[str, ...], direction: Direction) -> Pack:
    return Pack(names, direction)
