"""What a rule of the pack is: literals that a text must have, and then a search that takes linear time."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

Span = tuple[int, int]
Find = Callable[[str, int], Iterator[Span]]
"""Places in a text, from some character on, in order. What is before may be looked back at."""


class Trait(StrEnum):
    """What a text must have before anything else of a rule is looked for."""

    LONG_RUN = "long run"
    """Literals are looked for in it and just before it."""
    NUMBER = "number"
    STRANGE = "strange"
    """Characters beyond ASCII."""


@dataclass(frozen=True, slots=True)
class PackRule:
    """One rule. A search is only made in a text that has its `trait`, one of `literals` and one of `and_literals`."""

    name: str
    """Such as `pii.card`: its category, and what a redaction leaves in the text's place."""
    find: Find
    literals: tuple[str, ...] = ()
    """None where the trait is all that is asked."""
    and_literals: tuple[str, ...] = ()
    is_folded: bool = False
    """Literals are looked for in the text in lower case."""
    trait: Trait | None = None
    tail: re.Pattern[str] | None = None
    """What still belongs to a find that goes on after the window that it was recognised in; None where that can't be,
    because nothing that is found is longer than what a window holds back."""
    is_for_output: bool = True

    @property
    def category(self) -> str:
        return self.name.partition(".")[0]


LETTERS = "A-Za-z0-9"


def matches(pattern: str, flags: int = 0) -> Find:
    """Every match of an expression, or of its one group. It has to be linear: no repetition within another that
    could match the same in several ways, and bounded gaps."""
    compiled = re.compile(pattern, flags)
    group = compiled.groups

    def find(text: str, start: int) -> Iterator[Span]:
        return (match.span(group) for match in compiled.finditer(text, start))

    return find


def tokens(*heads: str, body: str, least: int, most: int | None = None) -> Find:
    """A known beginning and so many characters of a class after it, with no letter or digit before it."""
    repeat = f"{{{least},{'' if most is None else most}}}"
    start = "|".join(heads)
    end = "" if most is None else f"(?![{LETTERS}])"
    compiled = re.compile(f"(?:{start}){body}{repeat}{end}")

    def find(text: str, begin: int) -> Iterator[Span]:
        for match in compiled.finditer(text, begin):
            if match.start() == 0 or not is_letter(text[match.start() - 1]):
                yield match.span()

    return find


def is_letter(char: str) -> bool:
    """Of those that keys are made of."""
    return char.isascii() and char.isalnum()


def is_free(text: str, start: int, end: int) -> bool:
    """Whether no letter or digit touches what stands there."""
    return (start == 0 or not is_letter(text[start - 1])) and (
        end == len(text) or not is_letter(text[end])
    )
