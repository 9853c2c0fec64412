"""What lines of batches and kept answers pay of another price: a part of it, and a fee beside. Pure.

Such prices are versions of their own, whose note says of which version they are which part, so that a period can be
rated again at another price and everybody's part stays what it was.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from llmhost.core.units import dollars_to_nano, nano_to_dollars
from llmhost.cost.pricing import Rates, scaled

_NOTE = re.compile(r"(\d+(?:/\d+)?) of ([^\s,]+)(?:, and \$([\d.]+) each)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a price."""

    version: str
    """Of which price."""
    factor: Fraction
    fee_nano: int = 0
    """For each request, beside."""

    @property
    def note(self) -> str:
        """`1/2 of tiny/3`, or `1/2 of tiny/3, and $0.01 each`."""
        fee = f", and ${nano_to_dollars(self.fee_nano)} each" if self.fee_nano else ""
        return f"{self.factor} of {self.version}{fee}"

    def rates(self, whole: Rates) -> Rates:
        """What is paid where `whole` is the price."""
        part = scaled(whole, self.factor)
        return replace(part, request_nano=part.request_nano + self.fee_nano)


def share_in(note: str | None) -> Share | None:
    """What `Share.note` has written; None for the note of somebody else."""
    match = _NOTE.fullmatch(note or "")
    if match is None:
        return None
    fee = match[3]
    return Share(match[2], Fraction(match[1]), 0 if fee is None else dollars_to_nano(fee))
