"""The seam between the scheduler and whatever runs a model: one forward pass as plain data.

Decode, chunked prefill, prefix hits and speculation are one case: a row feeds `tokens` of a sequence, starting at
position `start`, and wants a token drawn after the last of them, or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmhost.core.errors import EngineFailed
from llmhost.core.request import Purpose, Sampling


class Row(NamedTuple):
    """One sequence's part of a step."""

    seq_id: int
    tokens: Sequence[int]
    """Token ids to feed, at positions start .. start + len(tokens) - 1."""
    start: int
    """Positions below this are in the KV cache already."""
    blocks: Sequence[int]
    """Block table: position p lives in blocks[p // block_tokens] at offset p % block_tokens."""
    sampling: Sampling
    seed: int
    wants_token: bool
    """False for a prefill chunk that does not reach the end of what is known."""
    purpose: Purpose = Purpose.CALLER


Drawn = int | None | EngineFailed
"""What a runner says of one row: the token, nothing because none was wanted, or why this row alone failed."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did and what it cost: cost, latency prediction and capacity all read this one event.

    `drawn[i]` is the token drawn for row i, or None where none was wanted. `started_ns` and `ended_ns` bound the
    device's busy interval (monotonic nanoseconds). `shares_ns` splits that interval over the rows and adds up to it.
    """

    rows: Sequence[Row]
    drawn: Sequence[Drawn]
    started_ns: int
    ended_ns: int
    shares_ns: Sequence[int]

    @property
    def work_units(self) -> list[int]:
        """Relative work of each row, by which `shares_ns` were made."""
        return [work_units(row) for row in self.rows]

    @property
    def busy_ns(self) -> int:
        return self.ended_ns - self.started_ns


def split_exactly(total: int, weights: Sequence[int]) -> list[int]:
    """Share `total` in proportion to `weights` in whole units; the shares add up to `total` exactly.

    Largest remainder; ties go to the earlier place. With all weights zero the shares are as even as they can be.
    """
    if not weights:
        return []
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    left = total - sum(shares)
    if left:
        remainders = [total * weight % whole for weight in weights]
        for i in sorted(range(len(weights)), key=remainders.__getitem__, reverse=True)[:left]:
            shares[i] += 1
    return shares


def work_units(row: Row) -> int:
    """Relative work of a row: tokens fed, each weighted by the context it attends to.

    One unit is a token's matrix work; attention adds a unit per 1,024 tokens of context. The weights are a first
    model, to be fitted per deployment from measured steps.
    """
    fed = len(row.tokens)
    return fed * 1024 + fed * (row.start + fed)
