"""What time and bytes cost, in whole nano-dollars that add up: a rate is a fraction, and what is left over is carried.

No float comes near it. What the units are, and whose the money is, is not known here.
"""

from dataclasses import dataclass

HOUR_NS = 3_600 * 10**9


@dataclass(frozen=True, slots=True)
class Rate:
    """`nano` nano-dollars for every `per` units."""

    nano: int = 0
    per: int = 1

    @property
    def is_free(self) -> bool:
        return self.nano == 0

    def whole(self, units: int) -> int:
        """What so many units cost, without the fraction of a nano-dollar."""
        return self.nano * units // self.per


FREE = Rate()


class Meter:
    """Sums up what is used. What it has said so far is never more than a nano-dollar behind the exact amount.

    `nano * rate.per + rest == units * rate.nano`, always. One thread at a time.
    """

    __slots__ = ("nano", "rate", "rest", "units")

    def __init__(self, rate: Rate = FREE) -> None:
        self.rate = rate
        self.units = 0
        self.nano = 0
        self.rest = 0
        """What `nano` lacks, in parts of a nano-dollar: below `rate.per`."""

    def take(self, units: int) -> int:
        """The nano-dollars that these units add."""
        self.units += units
        if not self.rate.nano:
            return 0
        per = self.rate.per
        total = self.rest + units * self.rate.nano
        nano = total // per
        self.rest = total - nano * per
        self.nano += nano
        return nano

    @property
    def error_nano(self) -> int:
        """0 while the books are right."""
        return self.nano * self.rate.per + self.rest - self.units * self.rate.nano
