"""The time of many steps and what it cost, split over the sequences that were in all of them, in one go. Pure.

The outcome is that of `split_exactly` for each step, added up, to the nanosecond and the nano-dollar.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llmhost.core.step import split_exactly

WORTHWHILE = 128
"""Shares from which on arrays are quicker than a list after the other."""
MOST_PRODUCT = 2**62

Table = np.ndarray[Any, np.dtype[np.int64]]


class TimeOfStep(NamedTuple):
    """`number` is how many steps came before it since the sequences' units were told: they grow by one in each."""

    number: int
    ns: int
    nano: int


def shares_of(units: Sequence[int], steps: Sequence[TimeOfStep]) -> tuple[list[int], list[int]]:
    """Nanoseconds and nano-dollars of each sequence, in all of these steps together."""
    if len(units) * len(steps) < WORTHWHILE or _is_large(units, steps):
        return _one_by_one(units, steps)
    numbers, ns, nano = (np.array(column, np.int64) for column in zip(*steps, strict=True))
    shares_ns = _split(ns, np.array(units, np.int64) + numbers[:, None])
    if not nano.any():
        return shares_ns.sum(0).tolist(), [0] * len(units)
    return shares_ns.sum(0).tolist(), _split(nano, shares_ns).sum(0).tolist()


def _is_large(units: Sequence[int], steps: Sequence[TimeOfStep]) -> bool:
    """Products might not fit into 64 bits; or a step took no time at all, which is split evenly."""
    most_ns = max(step.ns for step in steps)
    most_units = max(units) + steps[-1].number
    most_nano = max(step.nano for step in steps)
    return max(most_units, most_nano) * most_ns >= MOST_PRODUCT or not all(s.ns for s in steps)


def _split(totals: Table, weights: Table) -> Table:
    """Largest remainder, ties to the earlier place: a line for each total."""
    whole = weights.sum(1, keepdims=True)
    shares, rests = np.divmod(totals[:, None] * weights, whole)
    left = totals - shares.sum(1)
    order = np.argsort(-rests, axis=1, kind="stable")
    np.put_along_axis(shares, order, np.take_along_axis(shares, order, 1) + _first(left, order), 1)
    return shares


def _first(counts: Table, order: Table) -> Table:
    """One in the first so many places of each line."""
    return (np.arange(order.shape[1]) < counts[:, None]).astype(np.int64)


def _one_by_one(units: Sequence[int], steps: Sequence[TimeOfStep]) -> tuple[list[int], list[int]]:
    all_ns, all_nano = [0] * len(units), [0] * len(units)
    for number, ns, nano in steps:
        shares = split_exactly(ns, [each + number for each in units])
        all_ns = [a + b for a, b in zip(all_ns, shares, strict=True)]
        if nano:
            cost = split_exactly(nano, shares)
            all_nano = [a + b for a, b in zip(all_nano, cost, strict=True)]
    return all_ns, all_nano
