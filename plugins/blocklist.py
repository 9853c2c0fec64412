"""Refuses words, in prompts and in answers: those in blocklist.txt beside this file, else those below.

One word a line; lines that start with # are comments.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from llmhost import Refusal, hookimpl
from llmhost.core.request import GenerationRequest

WORDS = ("examplebadword",)
FILE = Path(__file__).with_suffix(".txt")


def read_words() -> tuple[str, ...]:
    if not FILE.exists():
        return WORDS
    lines = (line.strip() for line in FILE.read_text("utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def pattern_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the words, whole. What is before one is looked at last: it is quicker to find a word's letters."""
    found = (re.escape(word.casefold()) for word in words)
    return re.compile("|".join(rf"{word}(?<!\w{word})(?!\w)" for word in found) or "(?!)")


BLOCKED = pattern_of(read_words())


def has_blocked_word(text: str) -> bool:
    return BLOCKED.search(text.casefold()) is not None


@hookimpl
def check_input(request: GenerationRequest) -> Refusal | None:
    if has_blocked_word(request.text):
        return Refusal("The prompt uses a word that is blocked here.", code="blocked_word")
    return None


@hookimpl
def check_output(text: str) -> Refusal | None:
    return Refusal("The answer uses a blocked word.") if has_blocked_word(text) else None
