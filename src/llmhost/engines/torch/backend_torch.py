"""Attention over block tables in plain torch, for every device that torch has.

One-token rows of 16 bits on the CPU have machine code of our own (`native`). Others of similar length are gathered
together and attend in one call, but for long ones on the CPU (`decode_rows`). Each longer chunk attends on its own, a
first chunk directly over the fresh keys, a later one on some CPUs by code of our own, or else tile by tile if it is
short and its past long (`chunk_rows`).
Masks and block indices are made once per step and shared by all layers.
A kernel backend replaces this file: it reads the same StepLayout and has the same `attend`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmhost.engines.torch import chunk_rows
from llmhost.engines.torch.chunk_rows import Chunk, ChunkAttention, tiled
from llmhost.engines.torch.cpu_linear import lacks_arithmetic
from llmhost.engines.torch.decode_rows import WORTHWHILE_ELEMENTS, Past, RowAttention, pasts
from llmhost.engines.torch.kv import KeyValue, as_kept, bits
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.native.choice import (
    MOST_TOKENS,
    Seen,
    SeenByChunk,
    Shape,
    by_code,
    chunks_code,
    rows_code,
)

GROUP_OVERHEAD_BLOCKS = 32
"""Padding, in blocks, that costs about as much as one more group of rows."""

THREADS_OF_A_ROW = 3
"""So many threads attend to gathered rows about as fast as one does to a row where it lies."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of equal token count that attend in one call: flat places `first` to `last`, exclusive."""

    first: int
    last: int
    rows: int
    blocks: Tensor | None = None
    """[rows * blocks per row], or None to attend causally over the fresh keys alone."""
    length: int = 0
    """Gathered positions per row that take part."""
    mask: Tensor | None = None
    """Added to the scores, [rows, 1, tokens per row, length]; None where every position counts."""
    pasts: tuple[Past, ...] | None = None
    """What each row sees, where rows attend one by one."""
    seen: Seen | SeenByChunk | None = None
    """What code of our own is told to look at."""
    chunk: Chunk | None = None
    """What a short chunk sees, where it attends tile by tile."""


class Scores(NamedTuple):
    """How a layer scores keys, beside the product of query and key."""

    scaling: float | None = None
    """Factor on the product; 1 / sqrt(head_dim) when None."""
    window: int | None = None
    """Only the last so many positions are seen, the query's own included."""
    softcap: float | None = None
    """Scores are bounded to softcap * tanh(score / softcap)."""
    sinks: Tensor | None = None
    """[heads]: for each head the score of a place that takes its share of the weight and gives nothing."""

    @property
    def is_plain(self) -> bool:
        """torch's fused call computes them."""
        return self.softcap is None and self.sinks is None


class Scratch:
    """Room for one layer's gathered keys and values, kept over layers and steps.

    Fresh memory for each gather costs more than the gather: at 64 rows and 128 tokens of context, 9,000 page
    faults and half of the time of a step.
    """

    def __init__(self) -> None:
        self._room = KeyValue(torch.empty(0), torch.empty(0))
        self.rows = RowAttention()
        self.chunks = ChunkAttention()

    def close(self) -> None:
        self.rows.close()

    def gather(self, cache: KeyValue, blocks: Tensor) -> KeyValue:
        """The cache's `blocks`, valid until the next call."""
        size = len(blocks) * cache.key[0].numel()
        room = self._room
        if room.key.numel() < size or (room.key.dtype, room.key.device) != (
            cache.key.dtype,
            cache.key.device,
        ):
            room = self._room = KeyValue(cache.key.new_empty(size), cache.key.new_empty(size))
        shape = (len(blocks), *cache.key.shape[1:])
        return KeyValue(
            *(
                _select(cached, blocks, place[:size].view(shape))
                for cached, place in zip(cache, room, strict=True)
            )
        )


class StepAttention:
    """Attention of one step, in all layers."""

    def __init__(
        self, layout: StepLayout, scratch: Scratch, *, block_tokens: int, dtype: torch.dtype
    ) -> None:
        self._layout = layout
        self._scratch = scratch
        self._block_tokens = block_tokens
        self._dtype = dtype
        self._spans: dict[tuple[int | None, bool, Shape | None], list[Span]] = {}

    def attend(self, query: Tensor, fresh: KeyValue, cache: KeyValue, scores: Scores) -> Tensor:
        """Attend with `query` [1, heads, T, head_dim] in one layer; returns [1, T, heads, head_dim].

        `fresh` are the step's keys and values [1, kv_heads, T, head_dim]; `cache` are the layer's
        [blocks, block_tokens, kv_heads, head_dim] with the fresh ones written. A query at position p sees p and
        what is before it.
        """
        fresh = as_kept(fresh, cache.key.dtype)
        shape = self._shape(query, cache, scores)
        outs = [
            self._attend_span(span, query, fresh, cache, scores, shape)
            for span in self._spans_for(scores.window, scores.is_plain, shape, cache)
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    def _shape(self, query: Tensor, cache: KeyValue, scores: Scores) -> Shape | None:
        """What code of our own would be made for; on the CPU alone."""
        if cache.key.device.type != "cpu":
            return None
        kv_heads, head_dim = cache.key.shape[2:]
        return Shape(
            kv_heads=kv_heads,
            queries=query.shape[1] // kv_heads,
            head_dim=head_dim,
            block_tokens=self._block_tokens,
            dtype=cache.key.dtype,
            softcap=scores.softcap,
            has_sinks=scores.sinks is not None,
        )

    def _attend_span(
        self,
        span: Span,
        query: Tensor,
        fresh: KeyValue,
        cache: KeyValue,
        scores: Scores,
        shape: Shape | None,
    ) -> Tensor:
        """The span's part of the result, [1, span.last - span.first, heads, head_dim]."""
        scaling = query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling
        asked = (scaling, scores.softcap, scores.sinks)
        if span.seen is not None:
            assert shape is not None
            part = query[0, :, span.first : span.last].transpose(0, 1)
            return by_code(shape, part, cache, span.seen, scaling, scores.sinks)[None]
        if span.pasts is not None:
            alone = query[0, :, span.first : span.last].transpose(0, 1)
            return self._scratch.rows.attend(alone, cache, span.pasts, *asked)[None]
        if span.chunk is not None:
            part, attend = query[0, :, span.first : span.last], self._scratch.chunks.attend
            return attend(part, cache, span.chunk, *asked).transpose(0, 1)[None]
        q = _per_row(query, span)
        if span.blocks is None:
            key, value = _per_row(fresh.key, span), _per_row(fresh.value, span)
        else:
            gathered = self._scratch.gather(cache, span.blocks)
            key, value = (_in_rows(part, span).to(query.dtype) for part in gathered)
        if scores.is_plain:
            out = F.scaled_dot_product_attention(
                q,
                key,
                value,
                attn_mask=span.mask,
                is_causal=span.blocks is None,
                scale=scores.scaling,
                enable_gqa=q.shape[1] != key.shape[1],
            )
        else:
            out = _step_by_step(q, key, value, span.mask, scores)
        return out.transpose(1, 2).flatten(0, 1)[None]

    def _spans_for(
        self, window: int | None, is_plain: bool, shape: Shape | None, cache: KeyValue
    ) -> list[Span]:
        spans = self._spans.get((window, is_plain, shape))
        if spans is None:
            rows = self._layout.decode_rows
            if rows and shape is not None and rows_code(shape) is not None:
                spans = [Span(0, rows, rows, seen=Seen(self._layout, rows, window))]
            else:
                spans = list(self._rows_by_torch(window, cache.key[0, 0].numel()))
            spans += self._chunks(window, is_plain, shape)
            self._spans[window, is_plain, shape] = spans
        return spans

    def _rows_by_torch(self, window: int | None, position_elements: int) -> Iterator[Span]:
        layout = self._layout
        together = self._rows_together(window, position_elements)
        _, counts = self._blocks(0, together, window)
        for first, last in split_by_length(counts):
            yield self._gathered(first, last, window)
        if together < layout.decode_rows:
            rows = range(together, layout.decode_rows)
            seen = tuple(pasts(layout, rows, self._block_tokens, window))
            yield Span(together, layout.decode_rows, len(rows), pasts=seen)

    def _chunks(self, window: int | None, is_plain: bool, shape: Shape | None) -> Iterator[Span]:
        layout = self._layout
        row = layout.decode_rows
        while row < len(layout.starts):
            tokens = layout.ends[row] - layout.starts[row]
            is_fresh = layout.starts[row] == 0 and is_plain
            if is_fresh and (window is None or tokens <= window):
                last = self._equal_fresh_rows(row)
                yield Span(layout.offsets[row], layout.offsets[last], last - row)
            elif self._has_code(row, window, shape):
                last = row + 1
                seen = SeenByChunk(layout.block_tables[row], layout.ends[row])
                yield Span(layout.offsets[row], layout.offsets[last], 1, seen=seen)
            elif self._is_tiled(row, window):
                last = row + 1
                (past,) = pasts(layout, [row], self._block_tokens, None)
                size = chunk_rows.LARGE_TILE if _several_threads() else chunk_rows.TILE_POSITIONS
                yield Span(layout.offsets[row], layout.offsets[last], 1, chunk=tiled(past, size))
            else:
                last = row + 1
                yield self._gathered(row, last, window)
            row = last

    def _rows_together(self, window: int | None, position_elements: int) -> int:
        """One-token rows that are gathered; those after them see more, and go one by one.

        With many threads all are gathered, as a row has one of them alone.
        """
        layout = self._layout
        if torch.get_num_threads() > THREADS_OF_A_ROW * layout.decode_rows:
            return layout.decode_rows
        short = WORTHWHILE_ELEMENTS[self._dtype.itemsize] // position_elements
        if layout.block_tables.device.type != "cpu" or (window is not None and window <= short):
            return layout.decode_rows
        return bisect_right(layout.ends, short, hi=layout.decode_rows)

    def _has_code(self, row: int, window: int | None, shape: Shape | None) -> bool:
        """A chunk on a CPU without 16-bit arithmetic, which no window cuts off."""
        end = self._layout.ends[row]
        return (
            shape is not None
            and end - self._layout.starts[row] <= MOST_TOKENS
            and (window is None or end <= window)
            and lacks_arithmetic(self._dtype)
            and chunks_code(shape) is not None
        )

    def _is_tiled(self, row: int, window: int | None) -> bool:
        layout, end = self._layout, self._layout.ends[row]
        most = chunk_rows.MOST_AT_ONCE if _several_threads() else chunk_rows.MOST_TOKENS
        return (
            end >= chunk_rows.LEAST_POSITIONS
            and end - layout.starts[row] <= most
            and (window is None or end <= window)
            and layout.block_tables.device.type == "cpu"
            and lacks_arithmetic(self._dtype)
        )

    def _blocks(self, first: int, last: int, window: int | None) -> tuple[list[int], list[int]]:
        """Of rows `first` to `last`, exclusive: the block with the first position that each sees, and how many it
        reads from there on."""
        size, layout = self._block_tokens, self._layout
        firsts = [
            0 if window is None else max(start + 1 - window, 0) // size
            for start in layout.starts[first:last]
        ]
        ends = layout.ends[first:last]
        return firsts, [-(-end // size) - at for end, at in zip(ends, firsts, strict=True)]

    def _equal_fresh_rows(self, row: int) -> int:
        """Rows from `row` on that start at 0 and have as many tokens: the place after the last of them."""
        layout, last = self._layout, row + 1
        while last < len(layout.starts) and (
            layout.starts[last] == 0 and layout.ends[last] == layout.ends[row]
        ):
            last += 1
        return last

    def _gathered(self, first: int, last: int, window: int | None) -> Span:
        """Rows `first` to `last`, exclusive, that read as many blocks each from the cache as the longest of them."""
        layout, size, rows = self._layout, self._block_tokens, last - first
        begin, end = layout.offsets[first], layout.offsets[last]
        bases, counts = self._blocks(first, last, window)
        count = max(counts)
        tables = layout.block_tables[first:last]
        width = tables.shape[1]
        columns = torch.tensor(bases, device=tables.device)[:, None] + torch.arange(
            count, device=tables.device
        )
        tables = tables.gather(1, columns.clamp_(max=width - 1))
        lengths = [
            stop - base * size for stop, base in zip(layout.ends[first:last], bases, strict=True)
        ]
        length = max(lengths)
        is_decode = end - begin == rows
        if is_decode and window is None and min(lengths) == length:
            mask = None
        else:
            at = columns[:, :1] * size + torch.arange(length, device=tables.device)
            queries = layout.positions[0, begin:end].view(rows, -1, 1)
            hidden = at[:, None] > queries
            if window is not None:
                hidden |= at[:, None] <= queries - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=hidden.device)
            mask = mask.masked_fill_(hidden, float("-inf"))[:, None]
        return Span(begin, end, rows, tables.reshape(-1), length, mask)


def _several_threads() -> bool:
    return torch.get_num_threads() > 1


def split_by_length(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Cut rows, sorted by block count, into groups to pad to their longest: `(first, last)`, exclusive.

    A cut is made where the rows below it are less than half as long and padding them would cost more than
    another group does.
    """
    groups: list[tuple[int, int]] = []
    last = len(counts)
    for row in range(len(counts) - 1, -1, -1):
        longest, here = counts[last - 1], counts[row]
        if here * 2 < longest and (row + 1) * (longest - here) > GROUP_OVERHEAD_BLOCKS:
            groups.append((row + 1, last))
            last = row + 1
    if last:
        groups.append((0, last))
    return groups[::-1]


def _select(cached: Tensor, blocks: Tensor, place: Tensor) -> Tensor:
    torch.index_select(bits(cached), 0, blocks, out=bits(place))
    return place


def _per_row(tensor: Tensor, span: Span) -> Tensor:
    """[1, heads, T, dim] to the span's [rows, heads, tokens per row, dim]."""
    part = tensor[0, :, span.first : span.last]
    return part.view(part.shape[0], span.rows, -1, part.shape[2]).transpose(0, 1)


def _in_rows(gathered: Tensor, span: Span) -> Tensor:
    """Gathered blocks as the span's [rows, kv_heads, length, head_dim]."""
    rows = gathered.view(span.rows, -1, *gathered.shape[2:])
    return rows[:, : span.length].transpose(1, 2)


def _step_by_step(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, asked: Scores
) -> Tensor:
    """Attention with bounded scores or with sinks, which torch's fused call doesn't have."""
    rows, heads, tokens, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads * tokens, dim)
    scaling = dim**-0.5 if asked.scaling is None else asked.scaling
    scores = grouped @ key.transpose(-1, -2) * scaling
    if asked.softcap is not None:
        scores = torch.tanh(scores / asked.softcap) * asked.softcap
    if mask is not None:
        scores = scores + mask.repeat(1, 1, heads // kv_heads, 1)
    if asked.sinks is None:
        weights = F.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        sinks = asked.sinks.view(1, kv_heads, -1, 1).repeat_interleave(tokens, 2)
        sinks = sinks.expand(rows, -1, -1, -1)
        every = torch.cat([scores.float(), sinks.float()], dim=-1)
        weights = F.softmax(every, dim=-1)[..., :-1]
    return (weights.to(query.dtype) @ value).view(rows, heads, tokens, dim)
