"""Attention of a prompt's short chunk over a long past, on CPUs without 16-bit arithmetic.

torch gathers the past, writes it once more and computes in 16 bits, which costs as much for 2 tokens as for 16. Here a
tile of positions at a time is widened where the cache holds it, and scores, weights and sums follow while it is there:
the weights are kept relative to the largest score so far (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018). Where the process computes with several threads tiles are so large that one is often all: torch shares
few large computations among them, and nobody waits for Python's lock between many small ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmhost.engines.torch.decode_rows import Past, Piece
from llmhost.engines.torch.kv import KeyValue

TILE_POSITIONS = 512
"""Their keys in float32 fit a usual second-level cache, for 8 heads of 64."""
LARGE_TILE = 8192
"""The same for several threads: what is widened takes 32 MiB then, for 8 heads of 128."""
MOST_TOKENS = 32
"""Of a chunk: with more of them computing outweighs reading, and torch's own way is as good."""
MOST_AT_ONCE = 16
"""The same where several threads compute: torch's own way is shared by them too."""
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
    """The room that tiles are widened in."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.float32)

    def attend(
        self,
        query: Tensor,
        cache: KeyValue,
        chunk: Chunk,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attend with `query` [heads, tokens, head_dim], the last tokens of what `chunk` sees, over `cache`
        [blocks, block_tokens, kv_heads, head_dim].

        Returns [heads, tokens, head_dim], in the query's type.
        """
        heads, tokens, dim = query.shape
        keys, values = (part.view(-1, *part.shape[2:]) for part in cache)
        kv_heads = keys.shape[1]
        asked = (query.float() * scaling).reshape(kv_heads, -1, dim)
        sunk = None
        if sinks is not None:  # a place that is seen before all others, and gives nothing
            sunk = sinks.float().view(kv_heads, -1, 1, 1).repeat(1, 1, tokens, 1)
            sunk = sunk.view(kv_heads, -1, 1)
        sum_up = self._at_once if len(chunk.tiles) == 1 else self._by_tiles
        out = sum_up(asked, keys, values, chunk, tokens, softcap, sunk)
        return out.view(heads, tokens, dim).to(query.dtype)

    def _at_once(
        self,
        asked: Tensor,
        keys: Tensor,
        values: Tensor,
        chunk: Chunk,
        tokens: int,
        softcap: float | None,
        sunk: Tensor | None,
    ) -> Tensor:
        (tile,) = chunk.tiles
        scores = torch.bmm(asked, self._widened(keys, tile).permute(1, 2, 0))
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        _hide_later(scores[..., chunk.length - tokens :], 0, tokens)
        if sunk is not None:
            scores = torch.cat([scores, sunk], -1)
        weights = scores.softmax(-1)[..., : chunk.length]
        return torch.bmm(weights, self._widened(values, tile).transpose(0, 1))

    def _by_tiles(
        self,
        asked: Tensor,
        keys: Tensor,
        values: Tensor,
        chunk: Chunk,
        tokens: int,
        softcap: float | None,
        sunk: Tensor | None,
    ) -> Tensor:
        """What the values [slots, kv_heads, head_dim] weigh for what is `asked` [kv_heads, rows, head_dim]; `sunk`
        [kv_heads, rows, 1] are scores of their own."""
        out = torch.zeros_like(asked)
        top = asked.new_full((*asked.shape[:2], 1), float("-inf")) if sunk is None else sunk
        total = torch.zeros_like(top) if sunk is None else torch.ones_like(top)
        start = chunk.length - tokens
        for at, tile in enumerate(chunk.tiles):
            weights = torch.bmm(asked, self._widened(keys, tile).permute(1, 2, 0))
            if softcap is not None:
                weights = weights.div_(softcap).tanh_().mul_(softcap)
            if (at + 1) * chunk.size > start:
                _hide_later(weights, at * chunk.size - start, tokens)
            higher = torch.maximum(top, weights.amax(-1, keepdim=True))
            weights = weights.sub_(higher).exp_()
            shrinks = top.sub(higher).exp_()
            total.mul_(shrinks).add_(weights.sum(-1, keepdim=True))
            out.mul_(shrinks).baddbmm_(weights, self._widened(values, tile).transpose(0, 1))
            top = higher
        return out.div_(total)

    def _widened(self, flat: Tensor, tile: Tile) -> Tensor:
        """[positions, kv_heads, head_dim] in float32 of `flat` [slots, kv_heads, head_dim], until the next call."""
        count = tile[-1].at + tile[-1].last - tile[-1].first
        elements = count * flat.shape[1] * flat.shape[2]
        if self._room.numel() < elements:
            self._room = torch.empty(elements, dtype=torch.float32)
        room = self._room[:elements].view(count, *flat.shape[1:])
        for first, last, at in tile:
            room[at : at + last - first].copy_(flat[first:last])
        return room


def _hide_later(scores: Tensor, first: int, tokens: int) -> None:
    """Of `scores` [kv_heads, heads of each * tokens, positions], those of positions after the token's own; `first` is
    the first position, counted from the first token."""
    at = torch.arange(first, first + scores.shape[2])
    hidden = at > torch.arange(tokens)[:, None]
    scores.view(len(scores), -1, *hidden.shape).masked_fill_(hidden, float("-inf"))
