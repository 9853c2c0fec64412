"""Attention of a prompt's short chunk over a long past, on CPUs without 16-bit arithmetic.

torch gathers the past, writes it once more and computes in 16 bits, which costs as much for 2 tokens as for 16. Here a
tile of positions at a time is widened where the cache holds it, and scores, weights and sums follow while it is there:
the weights are kept relative to the largest score so far (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018). Where the process computes with several threads, each takes some of the heads.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmhost.engines.torch.decode_rows import Past, Piece
from llmhost.engines.torch.kv import KeyValue

TILE_POSITIONS = 512
"""Their keys in float32 fit a usual second-level cache, for 8 heads of 64."""
MOST_TOKENS = 32
"""Of a chunk: with more of them computing outweighs reading, and torch's own way is as good."""
LEAST_POSITIONS = 1500
"""Of what it sees: less of it stays in the cache between torch's two passes."""

Tile = tuple[Piece, ...]
"""Positions that follow one another, and where each piece of them goes within the tile."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that see all before them, themselves included, `length` positions in all."""

    tiles: tuple[Tile, ...]
    length: int
    size: int
    """Positions of each tile but the last."""


def tiled(past: Past, size: int) -> Chunk:
    """What is seen, cut into tiles."""
    tiles: list[list[Piece]] = [[] for _ in range(0, past.length, size)]
    for first, last, at in past.pieces:
        while first < last:
            tile, within = divmod(at, size)
            count = min(last - first, size - within)
            tiles[tile].append(Piece(first, first + count, within))
            first, at = first + count, at + count
    return Chunk(tuple(map(tuple, tiles)), past.length, size)


class ChunkAttention:
    """The rooms that tiles are widened in."""

    def __init__(self) -> None:
        self._rooms = _Rooms()

    def attend(
        self,
        query: Tensor,
        cache: KeyValue,
        chunk: Chunk,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
        run: Callable[[Sequence[Callable[[], None]]], None],
    ) -> Tensor:
        """Attend with `query` [heads, tokens, head_dim], the last tokens of what `chunk` sees, over `cache`
        [blocks, block_tokens, kv_heads, head_dim]. `run` runs jobs, at once where there are threads for it.

        Returns [heads, tokens, head_dim], in the query's type.
        """
        heads, tokens, dim = query.shape
        keys, values = (part.view(-1, *part.shape[2:]) for part in cache)
        kv_heads = keys.shape[1]
        asked = (query.float() * scaling).reshape(kv_heads, -1, dim)
        out = torch.zeros_like(asked)
        top = asked.new_full((kv_heads, asked.shape[1], 1), float("-inf"))
        total = torch.zeros_like(top)
        if sinks is not None:  # a place that was seen before all others, and gives nothing
            top = sinks.float().view(kv_heads, -1, 1, 1).repeat(1, 1, tokens, 1).view_as(top)
            total = torch.ones_like(top)

        def some_heads(first: int, last: int) -> None:
            self._sum(
                asked[first:last],
                (keys[:, first:last], values[:, first:last]),
                chunk,
                tokens,
                softcap,
                (out[first:last], top[first:last], total[first:last]),
            )

        run([partial(some_heads, *one) for one in _shares(kv_heads, torch.get_num_threads())])
        return out.view(heads, tokens, dim).to(query.dtype)

    def _sum(
        self,
        asked: Tensor,
        cached: tuple[Tensor, Tensor],
        chunk: Chunk,
        tokens: int,
        softcap: float | None,
        state: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Fill `out` [kv_heads, rows, head_dim] with what the values weigh, starting from the top score and the total
        weight that `state` has beside it."""
        out, top, total = state
        keys, values = cached
        start = chunk.length - tokens
        for at, tile in enumerate(chunk.tiles):
            key = self._rooms.widened(keys, tile)
            weights = torch.bmm(asked, key.transpose(1, 2))
            if softcap is not None:
                weights = weights.div_(softcap).tanh_().mul_(softcap)
            if (at + 1) * chunk.size > start:
                _hide_later(weights, at * chunk.size - start, tokens)
            higher = torch.maximum(top, weights.amax(-1, keepdim=True))
            weights = weights.sub_(higher).exp_()
            shrinks = top.sub(higher).exp_()
            total.mul_(shrinks).add_(weights.sum(-1, keepdim=True))
            out.mul_(shrinks).baddbmm_(weights, self._rooms.widened(values, tile))
            top = higher
        out.div_(total)


def _hide_later(scores: Tensor, first: int, tokens: int) -> None:
    """Of `scores` [kv_heads, heads of each * tokens, positions], those of positions after the token's own; `first` is
    the first position, counted from the first token."""
    at = torch.arange(first, first + scores.shape[2])
    hidden = at > torch.arange(tokens)[:, None]
    scores.view(len(scores), -1, *hidden.shape).masked_fill_(hidden, float("-inf"))


def _shares(count: int, threads: int) -> Sequence[tuple[int, int]]:
    """`count` heads in nearly equal shares, one for each thread where there are enough: (first, last), exclusive."""
    parts = min(count, threads)
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


class _Rooms(threading.local):
    """Each thread has one."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.float32)

    def widened(self, flat: Tensor, tile: Tile) -> Tensor:
        """[kv_heads, positions, head_dim] in float32 of `flat` [slots, kv_heads, head_dim], until the next call."""
        count = tile[-1].at + tile[-1].last - tile[-1].first
        elements = count * flat.shape[1] * flat.shape[2]
        if self._room.numel() < elements:
            self._room = torch.empty(elements, dtype=torch.float32)
        room = self._room[:elements].view(count, *flat.shape[1:])
        for first, last, at in tile:
            room[at : at + last - first].copy_(flat[first:last])
        return room.transpose(0, 1)
