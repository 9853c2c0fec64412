"""What the tiny guard learns from and is measured by: the templates in `guard_texts/`, made into texts.

No two files share a template, and `words.txt` keeps words for measuring alone. Knows nothing of tokens or training.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TEXTS = Path(__file__).parent / "guard_texts"
LABELS = ("violence", "harassment", "hate", "self-harm", "sexual", "illicit", "injection")
"""What the guard tells apart; a text may have several, or none."""
_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A way to say something, and the labels of what is said."""

    text: str
    labels: frozenset[str]


@dataclass(frozen=True, slots=True)
class Example:
    """One text and its labels."""

    text: str
    labels: frozenset[str]


@cache
def templates(name: str) -> tuple[Template, ...]:
    """Those of a file, such as `train`. Raises ValueError that names a line with an unknown label or word."""
    return tuple(_read(name))


@cache
def words() -> Mapping[str, tuple[str, ...]]:
    """By name, what may stand for `{name}`; names that end with + are for measuring alone."""
    found = {}
    for line in _lines("words"):
        name, _, choices = line.partition(":")
        found[name] = tuple(choice.strip() for choice in choices.split("|"))
    return found


def fill(template: Template, rng: random.Random, *, is_held_out: bool = False) -> Example:
    """One text of a template. Held-out texts have the words that are kept for them half of the time."""
    text = template.text
    while _CHOICE.search(text):
        text = _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), text)
    text = _SLOT.sub(lambda found: _word(found[1], rng, is_held_out), text)
    text = _SLOT.sub(lambda found: _word(found[1], rng, is_held_out), text)
    return Example(" ".join(text.split()), template.labels)


def taught() -> tuple[Template, ...]:
    """What the guard learns from."""
    return (*templates("train"), *templates("harmless"))


def held_out() -> list[Example]:
    """What the guard is measured by: always the same texts, each once."""
    return _examples("held_out", is_held_out=True)


def validation() -> list[Example]:
    """What its thresholds are chosen by: other templates, with words that it learns."""
    return _examples("validation", is_held_out=False)


def _examples(name: str, *, is_held_out: bool, per_template: int = 12) -> list[Example]:
    rng, examples = random.Random(0), {}
    for template in templates(name):
        for _ in range(per_template):
            example = fill(template, rng, is_held_out=is_held_out)
            examples[example.text] = example
    return list(examples.values())


def of_label(pool: Sequence[Template]) -> dict[frozenset[str], list[Template]]:
    """Templates by the labels that they have."""
    sorted_in: dict[frozenset[str], list[Template]] = {}
    for template in pool:
        sorted_in.setdefault(template.labels, []).append(template)
    return sorted_in


def _word(name: str, rng: random.Random, is_held_out: bool) -> str:
    known = words()
    kept = known.get(f"{name}+", ())
    if is_held_out and kept and rng.random() < 0.5:
        return rng.choice(kept)
    return rng.choice(known[name])


def _read(name: str) -> Iterator[Template]:
    labels: frozenset[str] = frozenset()
    for number, line in enumerate(_lines(name), 1):
        if line.startswith("[") and line.endswith("]"):
            labels = frozenset(line[1:-1].split())
            if unknown := labels - {*LABELS}:
                raise ValueError(f"{name}.txt: {sorted(unknown)[0]!r} is no label.")
        else:
            if unnamed := {*_SLOT.findall(line)} - words().keys():
                raise ValueError(f"{name}.txt, template {number}: no words for {sorted(unnamed)}.")
            yield Template(line, labels)


def _lines(name: str) -> Iterator[str]:
    for line in (TEXTS / f"{name}.txt").read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()
