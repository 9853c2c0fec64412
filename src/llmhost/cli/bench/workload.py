"""What is asked, and when: requests and their arrivals, drawn from a seed. Pure.

A seed gives the same requests each time. A server that keeps computed prompts answers the second run of a seed
faster, so `bench` draws a new one unless it is told which.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

from llmhost.cli.bench.lengths import Lengths

_TEXT = (
    "the of and to in is was for on that with as it at by from his an were are which this be had "
    "or has first new one but out two time more no about up year only some work when into who now "
    "where after well then over long city part house place state high small large end line"
)
WORDS = tuple(_TEXT.split())
"""Short common words: most tokenizers have one token for each with its space."""

FIRST_ID = 100
"""Lower ids are often special tokens; those may end a prompt or be refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests as their generator makes them."""

    prompt: Lengths
    output: Lengths
    seed: int
    prefix_tokens: int = 0
    """Tokens that all prompts of one group begin with, on top of the prompt's own."""
    prefix_groups: int = 1
    as_text: bool = False
    """Words instead of token ids: a token each, about."""
    vocab: int = 2000
    """Token ids are below this."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    number: int
    prompt: list[int] | str
    max_tokens: int


def asks(work: Workload, part: str = "run") -> Iterator[Ask]:
    """Requests without end. Those of another `part` share the prefixes and nothing else."""
    rng = Random(f"{work.seed}:{part}")
    prefixes = [
        _units(work, work.prefix_tokens, Random(f"{work.seed}:prefix:{group}"))
        for group in range(work.prefix_groups)
    ]
    for number in count():
        own = _units(work, work.prompt.draw(rng), rng)
        whole = prefixes[rng.randrange(work.prefix_groups)] + own
        prompt = " ".join(WORDS[unit] for unit in whole) if work.as_text else whole
        yield Ask(number, prompt, work.output.draw(rng))


def _units(work: Workload, length: int, rng: Random) -> list[int]:
    """Numbers of words, or token ids."""
    if work.as_text:
        return rng.choices(range(len(WORDS)), k=length)
    return rng.choices(range(min(FIRST_ID, work.vocab // 2), work.vocab), k=length)


def arrivals(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """When requests are due, in seconds: gamma-distributed gaps with a mean of 1 / `rate`.

    A `burstiness` of 1 is a Poisson process; below 1 they come in bursts, above 1 more evenly. An infinite rate
    makes all of them due at once.
    """
    if math.isinf(rate):
        while True:
            yield 0.0
    rng, due = Random(f"{seed}:arrivals"), 0.0
    while True:
        due += rng.gammavariate(burstiness, 1 / (rate * burstiness))
        yield due
