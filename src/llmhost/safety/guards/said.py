"""What a guard said, token by token, and how sure it was of the word that decides."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmhost.core.errors import SafetyUnavailable

Likely = tuple[tuple[str, float], ...]
"""Texts that a token could have been, and their log probabilities."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer. `likely` has for each token what else it could have been; empty where nothing is known of that."""

    text: str
    tokens: tuple[str, ...] = ()
    likely: tuple[Likely, ...] = ()


def shares(said: Said, words: Sequence[str], *, after: str = "") -> dict[str, float]:
    """How likely each of `words` was where the answer says one of them, behind `after`. Together they are 1.

    Raises SafetyUnavailable where the answer says none of them.
    """
    place = _place(said.tokens, words, after)
    if place is not None and place < len(said.likely):
        weights = dict.fromkeys(words, 0.0)
        for text, logprob in said.likely[place]:
            if (word := _meant(text, words)) is not None:
                weights[word] += math.exp(logprob)
        if whole := math.fsum(weights.values()):
            return {word: weight / whole for word, weight in weights.items()}
    word = _in_text(said.text, words, after)
    return {each: float(each == word) for each in words}


def _place(tokens: Sequence[str], words: Sequence[str], after: str) -> int | None:
    """The token that begins the deciding word."""
    before = ""
    for place, token in enumerate(tokens):
        if _bare(after) in before and _meant(token, words) is not None:
            return place
        before += _bare(token)
    return None


def _meant(token: str, words: Sequence[str]) -> str | None:
    """The one word that a token is, or begins."""
    bare = _bare(token).strip(".,:;!\"'*<>")
    if not bare:
        return None
    if bare in words:
        return bare
    found = [word for word in words if word.startswith(bare)]
    return found[0] if len(found) == 1 else None


def _in_text(text: str, words: Sequence[str], after: str) -> str:
    """The first of the words that a text says."""
    rest = text.lower()
    if after:
        _, found, rest = rest.partition(after)
        rest = rest if found else ""
    places = {word: at.start() for word in words if (at := re.search(rf"\b{word}\b", rest))}
    if not places:
        raise SafetyUnavailable(
            f"The guard model said none of {', '.join(map(repr, words))}, so its answer can't be read."
            " Is its `guard` in models.toml the format that it was trained for?"
        )
    return min(places, key=places.__getitem__)


def _bare(text: str) -> str:
    return "".join(text.lower().split())
