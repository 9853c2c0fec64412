"""How many tokens prompts and answers have: one number, or a distribution. Pure."""

import math
import re
from dataclasses import dataclass
from random import Random

MOST_TOKENS = 10_000_000

SPELLINGS = "a number such as 512, uniform:16-1500, or lognormal:MEDIAN:SIGMA[:MOST] such as lognormal:200:0.8:4096"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts from `least` to `most`: evenly spread, or log-normal around `median`."""

    least: int
    most: int
    median: float | None = None
    sigma: float = 0.0
    """Standard deviation of the logarithm."""

    def draw(self, rng: Random) -> int:
        """One count. A log-normal draw beyond `most` is `most`."""
        if self.median is None:
            return rng.randint(self.least, self.most)
        count = round(rng.lognormvariate(math.log(self.median), self.sigma))
        return min(max(count, self.least), self.most)


def parse_lengths(text: str) -> Lengths:
    """One of `SPELLINGS`. Raises ValueError that repeats them."""
    lengths = _parse(text.strip())
    if lengths is None or not 1 <= lengths.least <= lengths.most <= MOST_TOKENS:
        raise ValueError(f"{text!r} is not {SPELLINGS}; counts are whole numbers from 1 on")
    return lengths


def _parse(text: str) -> Lengths | None:
    if re.fullmatch(r"[0-9]{1,9}", text):
        return Lengths(int(text), int(text))
    if match := re.fullmatch(r"uniform:([0-9]{1,9})-([0-9]{1,9})", text):
        return Lengths(int(match[1]), int(match[2]))
    number = r"([0-9]+(?:\.[0-9]+)?)"
    if match := re.fullmatch(rf"lognormal:{number}:{number}(?::([0-9]{{1,9}}))?", text):
        median, sigma = float(match[1]), float(match[2])
        if 1 <= median <= MOST_TOKENS and sigma <= 10:
            return Lengths(1, int(match[3] or MOST_TOKENS), median, sigma)
    return None
