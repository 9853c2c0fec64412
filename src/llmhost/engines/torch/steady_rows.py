"""Attention in float32 on the CPU whose numbers at a position depend on what that position sees, and on nothing else:
not on other rows, on how a text was cut into chunks, or on where its keys lie.

torch's product of two matrices adds up in the order of positions where there are few to add and the first has a few
rows, so queries are repeated where they are too few. What a position doesn't see weighs nothing in its place, and
adding nothing changes no sum. Values are summed up over tiles of positions, counted from the text's first, one tile
after the other.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from llmhost.engines.torch.backend_torch import Scores, split_by_length
from llmhost.engines.torch.kv import KeyValue, KvShape
from llmhost.engines.torch.layout import StepLayout

TILES = (256, 192, 128)
"""Positions whose values are summed up by one product: the first that holds on this machine. Longer sums torch cuts,
and where depends on their length: those beyond some 380 with AVX-512, and beyond 192 without."""
LEAST = 16
"""Fewer positions take other routines, so that so many are read: of a block, whose rest weighs nothing."""
DIM_PER_QUERY = 16
"""Of a head's numbers, for each query that is needed beside it."""
LEAST_QUERIES = 4
"""However few numbers a head has."""
AT_ONCE = 64
"""Tokens of a chunk that attend together: their scores stay in the cache."""
WORTHWHILE_ELEMENTS = 3 * 2**13
"""Of a row's keys: from so many on it attends where they lie; shorter rows are gathered and attend together."""
LEAST_WEIGHT = 1e-30
"""Less is nothing: products with numbers that are no normal float32 ones take thirty times as long."""
HIDDEN = float("-inf")


@dataclass(frozen=True, slots=True)
class Together:
    """One-token rows `first` to `last`, exclusive, that are gathered."""

    first: int
    last: int
    length: int
    lines: Tensor
    """[rows * kv_heads * length]: places in a cache of [slots * kv_heads, head_dim]."""
    mask: Tensor | None
    """[rows * kv_heads, 1, length], added to scores."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens at flat places `first` to `last`, exclusive, that see up to `length` positions of their row's."""

    first: int
    last: int
    skipped: int
    """Positions at the beginning of what the row reads that none of them sees."""
    length: int
    hidden: Tensor | None
    """[tokens, positions]: of the last positions those that a token doesn't see; all where there is a window."""


@dataclass(frozen=True, slots=True)
class Alone:
    """One row."""

    slots: slice | None
    """Where what it reads lies, if it lies in one piece."""
    blocks: Tensor
    length: int
    """Positions, from the first block's first on."""
    pieces: tuple[Piece, ...]
    is_token: bool


class SteadyRooms:
    """Where keys and values are gathered, kept over layers and steps, and how many positions a tile of them has."""

    def __init__(self, tile: int) -> None:
        self.tile = tile
        self._rooms = [torch.empty(0), torch.empty(0)]

    def gather(self, cache: KeyValue, index: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Of keys and values the lines at `index`, of `width` numbers each; valid until the next call."""
        size, gathered = len(index) * width, []
        for place, part in enumerate(cache):
            if self._rooms[place].numel() < size:
                self._rooms[place] = torch.empty(size, dtype=part.dtype)
            room = self._rooms[place][:size].view(len(index), width)
            gathered.append(torch.index_select(part.view(-1, width), 0, index, out=room))
        return gathered[0], gathered[1]


class SteadyAttention:
    """Attention of one step, in all layers. Blocks hold at least `LEAST` tokens."""

    def __init__(self, layout: StepLayout, rooms: SteadyRooms, *, block_tokens: int) -> None:
        self._layout = layout
        self._rooms = rooms
        self._tile = rooms.tile
        self._size = block_tokens
        self._tables = layout.block_tables.numpy()
        self._plans: dict[int | None, list[Together | Alone]] = {}

    def attend(self, query: Tensor, fresh: KeyValue, cache: KeyValue, scores: Scores) -> Tensor:
        """As `StepAttention.attend`, of float32 alone."""
        _, heads, tokens, dim = query.shape
        kv_heads = cache.key.shape[2]
        scaling = dim**-0.5 if scores.scaling is None else scores.scaling
        asked = (query[0].transpose(0, 1) * scaling).reshape(tokens, kv_heads, -1, dim)
        plan = self._plans.get(scores.window)
        if plan is None:
            plan = self._plans[scores.window] = list(self._plan(scores.window, kv_heads, dim))
        out = asked.new_empty(asked.shape)
        single = self._layout.decode_rows
        enough = _enough(asked[:single], 2)
        singles = enough.new_empty(enough.shape)
        for part in plan:
            if isinstance(part, Together):
                self._attend_together(part, enough, singles, cache, scores)
            elif part.is_token:
                self._attend_token(part, enough, singles, cache, scores)
            else:
                self._attend_chunk(part, asked, out, cache, scores)
        out[:single] = singles[:, :, : asked.shape[2]]
        return out.view(1, tokens, heads, dim)

    def _attend_together(
        self, part: Together, asked: Tensor, out: Tensor, cache: KeyValue, scores: Scores
    ) -> None:
        _, kv_heads, count, dim = asked.shape
        keys, values = (
            one.view(-1, part.length, dim) for one in self._rooms.gather(cache, part.lines, dim)
        )
        rows = slice(part.first, part.last)
        queries = asked[rows].reshape(-1, count, dim)
        products = _products(queries, keys.transpose(1, 2), scores.softcap)
        if part.mask is not None:
            products += part.mask
        sinks = _sinks(scores.sinks, kv_heads, count, part.last - part.first)
        weights = _weights(products, sinks)
        _sum_up(weights, values, out[rows].view(-1, count, dim), self._tile)

    def _attend_token(
        self, part: Alone, asked: Tensor, out: Tensor, cache: KeyValue, scores: Scores
    ) -> None:
        keys, values = self._read(part, cache)
        (piece,) = part.pieces
        products = _products(asked[piece.first], keys.permute(1, 2, 0), scores.softcap)
        if piece.hidden is not None:
            products[..., -piece.hidden.shape[1] :].masked_fill_(piece.hidden, HIDDEN)
        sinks = _sinks(scores.sinks, asked.shape[1], asked.shape[2])
        weights = _weights(products, sinks)
        _sum_up(weights, values.transpose(0, 1), out[piece.first], self._tile)

    def _attend_chunk(
        self, part: Alone, asked: Tensor, out: Tensor, cache: KeyValue, scores: Scores
    ) -> None:
        _, kv_heads, group, dim = asked.shape
        keys, values = (one.transpose(0, 1) for one in self._read(part, cache))
        for piece in part.pieces:
            places, tokens = slice(piece.first, piece.last), piece.last - piece.first
            seen = slice(piece.skipped, piece.skipped + piece.length)
            queries = asked[places].permute(1, 0, 2, 3).reshape(kv_heads, tokens * group, dim)
            queries = _enough(queries, 1)
            products = _products(queries, keys[:, seen].transpose(1, 2), scores.softcap)
            if piece.hidden is not None:
                by_token = products[:, : tokens * group].view(kv_heads, tokens, group, -1)
                last = by_token[..., piece.length - piece.hidden.shape[1] :]
                last.masked_fill_(piece.hidden[:, None], HIDDEN)
            sinks = _sinks(scores.sinks, kv_heads, queries.shape[1])
            weights = _weights(products, sinks)
            room = queries.new_empty(queries.shape)
            summed = _sum_up(weights, values[:, seen], room, self._tile)
            by_token = summed[:, : tokens * group].view(kv_heads, tokens, group, dim)
            out[places] = by_token.transpose(0, 1)

    def _read(self, part: Alone, cache: KeyValue) -> tuple[Tensor, Tensor]:
        """Keys and values of what the row sees, each [positions, kv_heads, head_dim]."""
        shape = cache.key.shape[2:]
        if part.slots is not None:
            key, value = (one.view(-1, *shape)[part.slots] for one in cache)
            return key, value
        width = cache.key[0].numel()
        key, value = self._rooms.gather(cache, part.blocks, width)
        key, value = (one.view(-1, *shape)[: part.length] for one in (key, value))
        return key, value

    def _plan(self, window: int | None, kv_heads: int, dim: int) -> Iterator[Together | Alone]:
        layout = self._layout
        # With a window a row reads up to a tile more than it sees.
        most = [end if window is None else min(end, window + self._tile) for end in layout.ends]
        short = WORTHWHILE_ELEMENTS // (kv_heads * dim)
        together = bisect_right(most, short, hi=layout.decode_rows)
        if together > 1:
            counts = [-(-one // self._size) for one in most[:together]]
            for first, last in split_by_length(counts):
                yield self._together(first, last, window, kv_heads)
        else:
            together = 0
        for row in range(together, len(layout.starts)):
            yield self._alone(row, window)

    def _together(self, first: int, last: int, window: int | None, kv_heads: int) -> Together:
        layout, size = self._layout, self._size
        starts, ends = np.array(layout.starts[first:last]), np.array(layout.ends[first:last])
        reads = np.array([_first_read(start, window, self._tile) for start in starts.tolist()])
        length = _read_length(int((ends - reads).max()), self._tile)
        at = reads[:, None] + np.arange(length)
        tables = self._tables[first:last]
        blocks = np.take_along_axis(tables, np.minimum(at // size, tables.shape[1] - 1), 1)
        slots = blocks * size + at % size
        lines = slots[:, None] * kv_heads + np.arange(kv_heads)[:, None]
        hidden = at >= ends[:, None]
        if window is not None:
            hidden |= at < (ends - window)[:, None]
        mask = None
        if hidden.any():
            added = np.where(hidden, np.float32(HIDDEN), np.float32(0))
            mask = torch.from_numpy(added.repeat(kv_heads, 0)[:, None])
        return Together(first, last, length, torch.from_numpy(lines.reshape(-1)), mask)

    def _alone(self, row: int, window: int | None) -> Alone:
        layout, size = self._layout, self._size
        start, end, place = layout.starts[row], layout.ends[row], layout.offsets[row]
        begin = _first_read(start, window, self._tile)
        stop = begin + _read_length(end - begin, self._tile)
        table = self._tables[row, begin // size : -(-stop // size)]
        slots = None
        if int(table[-1]) - int(table[0]) == len(table) - 1 and (np.diff(table) == 1).all():
            first = int(table[0]) * size
            slots = slice(first, first + stop - begin)
        pieces = tuple(
            _piece(place + at - start, at, min(at + AT_ONCE, end), begin, window, self._tile)
            for at in range(start, end, AT_ONCE)
        )
        return Alone(slots, torch.from_numpy(table), stop - begin, pieces, end - start == 1)


def tile_for(shape: KvShape) -> int | None:
    """Of how many positions tiles are with which rows over a cache of that form are steady; None for none."""
    if shape.dtype is not torch.float32 or min(shape.block_tokens, shape.head_dim) < LEAST:
        return None
    return next((tile for tile in TILES if adds_in_order(shape.head_dim, tile)), None)


@cache
def adds_in_order(dim: int, tile: int) -> bool:
    """Whether products with heads of `dim` numbers don't depend on how many queries there are, or keys of a tile."""
    numbers = torch.Generator().manual_seed(1)
    shape, kind = (2, AT_ONCE + 2 * tile, dim), torch.float32
    some = torch.rand(shape, generator=numbers, dtype=kind, device="cpu") - 0.5
    queries, keys, values = torch.split(some, [AT_ONCE, tile, tile], 1)
    weights = torch.bmm(queries, keys.transpose(1, 2))
    for length in _tried_lengths(tile):
        seen = weights.clone()
        seen[..., length:] = 0.0
        summed = torch.bmm(seen, values)
        for count in (_least_queries(dim), _least_queries(dim) + 1, AT_ONCE):
            fewer = torch.bmm(queries[:, :count], keys[:, :length].transpose(1, 2))
            if not torch.equal(fewer, weights[:, :count, :length]):
                return False
            if not torch.equal(torch.bmm(fewer, values[:, :length]), summed[:, :count]):
                return False
    return True


def _tried_lengths(tile: int) -> list[int]:
    """Of all sizes, and some that are no multiple of anything."""
    return [*range(LEAST, tile, 37), LEAST + 1, tile - 1, tile]


def _least_queries(dim: int) -> int:
    return max(-(-dim // DIM_PER_QUERY), LEAST_QUERIES)


def _first_read(position: int, window: int | None, tile: int) -> int:
    """The first position that is read for what a token at `position` or later sees: a tile's first."""
    return 0 if window is None else max(position + 1 - window, 0) // tile * tile


def _read_length(seen: int, tile: int) -> int:
    """So many positions are read where `seen` count: tiles have `LEAST` at least."""
    return seen + max(LEAST - seen % tile, 0) if seen % tile else seen


def _piece(place: int, start: int, end: int, begin: int, window: int | None, tile: int) -> Piece:
    """Tokens at positions `start` to `end`, exclusive, the first at a flat `place`, of a row that is read from position
    `begin` on."""
    first = _first_read(start, window, tile)
    length = _read_length(end - first, tile)
    behind = (
        start - first if window is None else 0
    )  # all of them see what is before the first of them
    at = np.arange(first + behind, first + length)
    tokens = np.arange(start, end)[:, None]
    hidden = at > tokens
    if window is not None:
        hidden |= at <= tokens - window
    return Piece(
        place,
        place + end - start,
        first - begin,
        length,
        torch.from_numpy(hidden) if hidden.any() else None,
    )


def _enough(queries: Tensor, dim: int) -> Tensor:
    """`queries` [..., head_dim], repeated in `dim` if they are fewer than torch's usual product needs."""
    times = -(-_least_queries(queries.shape[-1]) // queries.shape[dim])
    return queries if times == 1 else torch.cat([queries] * times, dim)


def _products(queries: Tensor, keys: Tensor, softcap: float | None) -> Tensor:
    products = torch.bmm(queries, keys)
    return products if softcap is None else products.div_(softcap).tanh_().mul_(softcap)


def _weights(products: Tensor, sinks: Tensor | None) -> Tensor:
    """Sinks come first: at the end, their place among the sums would change with the length."""
    if sinks is None:
        weights = products.softmax(-1)
    else:
        weights = torch.cat([sinks, products], -1).softmax(-1)[..., 1:].contiguous()
    return torch.threshold_(weights, LEAST_WEIGHT, 0.0)


def _sinks(sinks: Tensor | None, kv_heads: int, queries: int, rows: int = 1) -> Tensor | None:
    """The sinks [heads] as scores [rows * kv_heads, queries, 1]; a key head's queries are its heads, over and over."""
    if sinks is None:
        return None
    each = sinks.view(kv_heads, -1)
    return each.repeat(rows, -(-queries // each.shape[1]))[:, :queries, None]


def _sum_up(weights: Tensor, values: Tensor, out: Tensor, tile: int) -> Tensor:
    """Write [any, n, dim] of `weights` [any, n, positions] and `values` [any, positions, dim] to `out`."""
    torch.bmm(weights[..., :tile], values[:, :tile], out=out)
    for first in range(tile, weights.shape[2], tile):
        last = first + tile
        out.baddbmm_(weights[..., first:last], values[:, first:last])
    return out
