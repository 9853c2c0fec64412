"""A step's rows as the flat tensors that a forward pass and an attention backend read.

Rows are freely mixed: one-token rows (decode, or a chunk of one) and longer chunks that start anywhere. They are
put in an order that attention likes, one-token rows first by context length; `order` leads back. Index arithmetic
is done here, once per step, on the host; layers only read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from llmhost.core.step import Row
from llmhost.engines.drawing import places_of, scored_of


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What attention backends implement against. T tokens over R rows; tensors are on the model's device.

    Row r's tokens are flat places `offsets[r] .. offsets[r + 1] - 1`, at positions from `starts[r]` on. Its keys and
    values for positions below `ends[r]` are, once the layer has written, in `block_tables[r]`.
    """

    order: list[int]
    """Which of the given rows stands at each place."""
    decode_rows: int
    """The first so many rows have one token each and are sorted by context length."""
    starts: list[int]
    ends: list[int]
    offsets: list[int]
    """R + 1 numbers, from 0 to T."""
    input_ids: Tensor
    """[1, T]"""
    positions: Tensor
    """[1, T]"""
    slots: Tensor
    """[T]: where each token's key and value go, as block * block_tokens + offset."""
    block_tables: Tensor
    """[R, most blocks of any row]; a shorter row repeats its own last block, so that no row reads another's."""
    entered: Tensor | None
    """Blocks whose first position is written in this step and whose last one is not: they hold leftovers."""
    sampled: Tensor
    """Flat places of the tokens after which one is to be drawn, in row order; a row with guesses has several."""
    scored: Tensor | None
    """Flat places of the tokens after which a prompt token is scored, in row order; None where there are none."""


def lay_out(rows: Sequence[Row], *, block_tokens: int, device: torch.device) -> StepLayout:
    """Flatten `rows`, which are not empty and each feed at least one token."""
    order = sorted(range(len(rows)), key=lambda i: _rank(rows[i]))
    ordered = [rows[i] for i in order]
    starts = [row.start for row in ordered]
    lengths = np.array([len(row.tokens) for row in ordered])
    firsts = np.array(starts)
    ends = firsts + lengths
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    total = int(offsets[-1])

    used = (ends + block_tokens - 1) // block_tokens
    tables = _block_tables(ordered, used.tolist())
    row_of = np.repeat(np.arange(len(ordered)), lengths)
    positions = np.arange(total) + (firsts - offsets[:-1])[row_of]
    slots = tables[row_of, positions // block_tokens] * block_tokens + positions % block_tokens
    is_entered = ((used - 1) * block_tokens >= firsts) & (ends % block_tokens != 0)
    drawn = np.array([places_of(row) for row in ordered])
    scored = np.array([scored_of(row) for row in ordered])

    ids = np.fromiter(chain.from_iterable(row.tokens for row in ordered), np.int64, total)
    sampled, asked = runs(offsets[1:] - drawn, drawn), runs(offsets[:-1], scored)
    entered = tables[is_entered, -1]
    on_device = _to_device([ids, positions, slots, tables, entered, sampled, asked], device)
    return StepLayout(
        order=order,
        decode_rows=int((lengths == 1).sum()),
        starts=starts,
        ends=ends.tolist(),
        offsets=offsets.tolist(),
        input_ids=on_device[0][None],
        positions=on_device[1][None],
        slots=on_device[2],
        block_tables=on_device[3],
        entered=on_device[4] if len(entered) else None,
        sampled=on_device[5],
        scored=on_device[6] if len(asked) else None,
    )


def runs(
    firsts: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    lengths: "np.ndarray[tuple[int], np.dtype[np.int64]]",
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Whole numbers that follow each other, from each of `firsts` on, so many as its length says."""
    before = np.cumsum(lengths) - lengths
    runs: np.ndarray[tuple[int], np.dtype[np.int64]]
    runs = np.arange(lengths.sum()) + np.repeat(firsts - before, lengths)
    return runs


def _rank(row: Row) -> tuple[bool, int, int]:
    length = len(row.tokens)
    return (length > 1, row.start, length)


def _block_tables(
    rows: Sequence[Row], used: Sequence[int]
) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    counts = np.array(used)
    flat = chain.from_iterable(row.blocks[:count] for row, count in zip(rows, used, strict=True))
    known = np.fromiter(flat, np.int64, int(counts.sum()))
    # Where each place of the table is found among the known ones: a row's own, its last one from there on.
    places = np.minimum(np.arange(max(used)), (counts - 1)[:, None])
    places += (np.cumsum(counts) - counts)[:, None]
    tables: np.ndarray[tuple[int, int], np.dtype[np.int64]] = known[places]
    return tables


def _to_device(
    arrays: Sequence["np.ndarray[tuple[int, ...], np.dtype[np.int64]]"], device: torch.device
) -> list[Tensor]:
    """The arrays as tensors there. A GPU gets all of them by one copy, which the host does not wait for."""
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays]))
    there = flat.pin_memory().to(device, non_blocking=True)
    parts = torch.split(there, [one.size for one in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
