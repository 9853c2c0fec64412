"""Attention of one-token rows on the CPU: each row on its own, in float32, over its blocks where they lie.

A row's keys and values are copied into a room that stays in the cache, widened on the way if they have 16 bits, and
not copied at all where they are float32 and lie in one piece. Nothing is padded or masked, so a row's result depends
on that row alone. Where the process computes with several threads, each takes a row after the other; with fewer rows
than threads, torch shares each row's computations.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.threads import Crew

WORTHWHILE_ELEMENTS = {2: 2**13, 4: 3 * 2**14}
"""By the bytes of an element: so many of a row's keys, from which on going through rows one by one costs less than
gathering several together. torch's own attention is slow in 16 bits on many CPUs: there it does so early."""


class Piece(NamedTuple):
    """Positions whose keys lie one after the other: slots `first` to `last`, exclusive, and where they go."""

    first: int
    last: int
    at: int


@dataclass(frozen=True, slots=True)
class Past:
    """What one row sees."""

    pieces: tuple[Piece, ...]
    length: int


def pasts(
    layout: StepLayout, rows: Sequence[int], block_tokens: int, window: int | None
) -> list[Past]:
    """Of one-token `rows`, what each sees: all before it and itself, or the last `window` positions."""
    tables = layout.block_tables.numpy()
    width = tables.shape[1]
    at = np.fromiter(rows, np.int64)
    ends = np.array(layout.ends)[at]
    firsts = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
    lows, highs = firsts // block_tokens, -(-ends // block_tokens)
    # A break at a place: the block after it does not follow the one there.
    breaks = np.flatnonzero(np.diff(tables, axis=1, append=-1) != 1)
    begins = np.searchsorted(breaks, at * width + lows)
    stops = np.searchsorted(breaks, at * width + highs - 1)
    shifts = (tables[at, lows] - lows) * block_tokens
    columns = (at, firsts, ends, shifts, begins, stops)
    found = []
    for row, first, end, shift, begin, stop in zip(*(c.tolist() for c in columns), strict=True):
        if begin == stop:
            found.append(Past((Piece(first + shift, end + shift, 0),), end - first))
        else:
            cuts = (breaks[begin:stop] - row * width + 1).tolist()
            found.append(_past(tables[row], cuts, first, end, block_tokens))
    return found


def _past(
    table: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    cuts: Sequence[int],
    first: int,
    end: int,
    size: int,
) -> Past:
    """`cuts` are the places in `table` at which runs of consecutive blocks begin, the first run left out."""
    pieces = []
    for low, high in pairwise((first // size, *cuts, -(-end // size))):
        begin, stop = max(low * size, first), min(high * size, end)
        shift = (int(table[low]) - low) * size
        pieces.append(Piece(begin + shift, stop + shift, begin - first))
    return Past(tuple(pieces), end - first)


class RowAttention:
    """The room that rows are copied to, kept over layers and steps, and the threads that compute them."""

    def __init__(self) -> None:
        self._rooms = _Rooms()
        self._crew: Crew | None = None

    def attend(
        self,
        query: Tensor,
        cache: KeyValue,
        rows: Sequence[Past],
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attend with `query` [rows, heads, head_dim], over `cache` [blocks, block_tokens, kv_heads, head_dim].

        Returns [rows, heads, head_dim], in the query's type.
        """
        count, heads, dim = query.shape
        keys, values = (part.view(-1, *part.shape[2:]) for part in cache)
        kv_heads = keys.shape[1]
        grouped = (query.float() * scaling).view(count, kv_heads, heads // kv_heads, dim)
        out = torch.empty_like(grouped)
        sunk = None if sinks is None else sinks.float().view(kv_heads, -1, 1)

        def attend_one(past: Past, asked: Tensor, answer: Tensor) -> None:
            scores = torch.bmm(asked, self._rooms.laid_out(keys, past).permute(1, 2, 0))
            weights = _weights(scores, softcap, sunk)
            torch.bmm(weights, self._rooms.laid_out(values, past).transpose(0, 1), out=answer)

        self._run([partial(attend_one, *one) for one in zip(rows, grouped, out, strict=True)])
        return out.view(count, heads, dim).to(query.dtype)

    def _run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run them all, at once where there are enough for several threads; a few share the threads one by one."""
        threads = torch.get_num_threads()
        if len(jobs) < threads or threads == 1:
            for job in jobs:
                job()
            return
        self._crew = self._crew or Crew(threads)
        self._crew.run(jobs)

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None


class _Rooms(threading.local):
    """Each thread has one."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.float32)

    def laid_out(self, flat: Tensor, past: Past) -> Tensor:
        """[length, kv_heads, head_dim] in float32, valid until the next call."""
        if flat.dtype is torch.float32 and len(past.pieces) == 1:
            first, last, _ = past.pieces[0]
            return flat[first:last]
        elements = past.length * flat.shape[1] * flat.shape[2]
        if self._room.numel() < elements:
            self._room = torch.empty(elements, dtype=torch.float32)
        room = self._room[:elements].view(past.length, *flat.shape[1:])
        for first, last, at in past.pieces:
            room[at : at + last - first].copy_(flat[first:last])
        return room


def _weights(scores: Tensor, softcap: float | None, sinks: Tensor | None) -> Tensor:
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if sinks is None:
        return scores.softmax(-1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
