"""What lines of batches and kept answers pay of another price: a part of it. Pure.

Such prices are versions of their own, whose note says of which version they are which part, so that a period can be
rated again at another price and everybody's part stays what it was.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from llmhost.cost.pricing import Rates, scaled

_NOTE = re.compile(r"(\d+(?:/\d+)?) of (\S+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a price."""

    version: str
    """Of which price."""
    factor: Fraction

    @property
    def note(self) -> str:
        """`1/2 of tiny/3`."""
        return f"{self.factor} of {self.version}"

    def rates(self, whole: Rates) -> Rates:
        """What is paid where `whole` is the price."""
        return scaled(whole, self.factor)


def share_in(note: str | None) -> Share | None:
    """What `Share.note` has written; None for the note of somebody else."""
    match = _NOTE.fullmatch(note or "")
    return None if match is None else Share(match[2], Fraction(match[1]))
