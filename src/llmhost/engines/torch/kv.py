"""The paged KV cache: for every layer, keys and values in blocks of a fixed number of tokens.

It knows no sequences: who owns which block is the scheduler's business, and how much memory it may take is
decided by whoever calls `resize`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmhost.core.step import KvMove
from llmhost.engines.torch.asked import to_device

SLAB_BYTES = 2**30
"""Of host memory that is taken at once."""
MOVED_AT_ONCE = 16
"""Blocks that lie on the device twice while they move."""
FP8_MOST = 448.0
"""The largest number that float8_e4m3fn has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """The form of a model's KV cache."""

    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: torch.dtype
    """Of what is stored; float8_e4m3fn is widened where attention reads it."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        token = self.kv_heads * self.head_dim * self.dtype.itemsize
        return 2 * self.layers * self.block_tokens * token


class KeyValue(NamedTuple):
    """Keys and values of one layer: of a step's tokens or of the whole cache."""

    key: Tensor
    value: Tensor


class PagedKv:
    """For every layer two tensors [blocks, block_tokens, kv_heads, head_dim]."""

    def __init__(self, shape: KvShape, device: torch.device) -> None:
        self.shape = shape
        self.layers = [
            KeyValue(self._zeros(0, device), self._zeros(0, device)) for _ in range(shape.layers)
        ]
        self._host: list[Tensor] = []
        """Slabs of blocks, each [slots, layers, 2, block_tokens, kv_heads, head_dim]."""

    @property
    def block_count(self) -> int:
        return self.layers[0].key.shape[0]

    def resize(self, count: int) -> None:
        """Have `count` blocks; what is in blocks below both counts stays. One layer is copied at a time."""
        for layer, (key, value) in enumerate(self.layers):
            self.layers[layer] = KeyValue(self._resized(key, count), self._resized(value, count))

    def write(self, layer: int, fresh: KeyValue, slots: Tensor, entered: Tensor | None) -> None:
        """Put `fresh` keys and values [1, kv_heads, T, head_dim] at `slots`.

        Blocks in `entered` are wiped first: whatever an earlier owner left there, NaN included, must not
        reach the sequence that has them now.
        """
        for cache, tokens in zip(self.layers[layer], fresh, strict=True):
            stored = bits(cache)
            if entered is not None:
                stored.index_fill_(0, entered, 0)
            new = bits(narrowed(tokens[0].transpose(0, 1), cache.dtype))
            stored.view(-1, *cache.shape[2:]).index_copy_(0, slots, new)

    def resize_host(self, count: int) -> None:
        """Have room for `count` blocks in host memory, page-locked where the device is a GPU. What was there goes.

        In slabs, because torch takes page-locked memory in powers of two.
        """
        is_gpu = self._device.type == "cuda"
        self._host = [
            torch.empty((slots, *self._slot_size), dtype=self._stored, pin_memory=is_gpu)
            for slots in self._slabs(count)
        ]

    def move(self, moves: Iterable[KvMove]) -> None:
        """Copy blocks to the host and back, in order. On a GPU all of it is done behind what has been launched, and
        nobody waits."""
        for is_to_host, run in groupby(moves, key=lambda move: move.is_to_host):
            # Of several for one place the last one counts.
            last = {(move.slot if is_to_host else move.block): move for move in run}
            whole = [*last.values()]
            for first in range(0, len(whole), MOVED_AT_ONCE):
                part = whole[first : first + MOVED_AT_ONCE]
                if is_to_host:
                    self._keep(part)
                else:
                    self._fetch(part)

    def _keep(self, moves: Sequence[KvMove]) -> None:
        blocks, staged = self._places(moves), self._stage(len(moves))
        for layer, tensors in enumerate(self.layers):
            for part, cache in enumerate(tensors):
                torch.index_select(bits(cache), 0, blocks, out=staged[layer, part])
        for at, move in enumerate(moves):
            self._slot(move.slot).copy_(staged[:, :, at], non_blocking=True)

    def _fetch(self, moves: Sequence[KvMove]) -> None:
        blocks, staged = self._places(moves), self._stage(len(moves))
        for at, move in enumerate(moves):
            staged[:, :, at].copy_(self._slot(move.slot), non_blocking=True)
        for layer, tensors in enumerate(self.layers):
            for part, cache in enumerate(tensors):
                bits(cache).index_copy_(0, blocks, staged[layer, part])

    def _places(self, moves: Sequence[KvMove]) -> Tensor:
        return to_device(torch.tensor([move.block for move in moves]), self._device)

    def _stage(self, count: int) -> Tensor:
        """Room on the device for so many blocks, [layers, 2, blocks, ...]."""
        layers, parts, *block = self._slot_size
        return torch.empty((layers, parts, count, *block), dtype=self._stored, device=self._device)

    def _slot(self, slot: int) -> Tensor:
        slab, at = divmod(slot, self._slab_slots)
        return self._host[slab][at]

    def _slabs(self, count: int) -> Iterator[int]:
        """How many blocks each slab has."""
        for first in range(0, count, self._slab_slots):
            yield min(self._slab_slots, count - first)

    @property
    def _slab_slots(self) -> int:
        return max(SLAB_BYTES // self.shape.block_bytes, 1)

    @property
    def _slot_size(self) -> tuple[int, ...]:
        shape = self.shape
        return (shape.layers, 2, shape.block_tokens, shape.kv_heads, shape.head_dim)

    @property
    def _stored(self) -> torch.dtype:
        """As `bits` has it."""
        dtype = self.shape.dtype
        return torch.uint8 if dtype is torch.float8_e4m3fn else dtype

    @property
    def _device(self) -> torch.device:
        return self.layers[0].key.device

    def _resized(self, old: Tensor, count: int) -> Tensor:
        new = self._zeros(count, old.device)
        kept = min(count, old.shape[0])
        bits(new)[:kept] = bits(old)[:kept]
        return new

    def _zeros(self, count: int, device: torch.device) -> Tensor:
        # Not `empty`: what a masked place holds is multiplied by 0, which NaN survives.
        shape = self.shape
        size = (count, shape.block_tokens, shape.kv_heads, shape.head_dim)
        if device.type == "cpu" and count:
            # The system's own zero pages: a block costs memory when it is first used, not when it is leased.
            pages = np.zeros(math.prod(size) * shape.dtype.itemsize, dtype=np.uint8)
            return torch.from_numpy(pages).view(shape.dtype).view(size)
        return torch.zeros(size, dtype=shape.dtype, device=device)


def bits(tensor: Tensor) -> Tensor:
    """The same memory in a type that torch can index and copy; it can do neither with float8 everywhere."""
    return tensor.view(torch.uint8) if tensor.dtype is torch.float8_e4m3fn else tensor


def as_kept(fresh: KeyValue, kind: torch.dtype) -> KeyValue:
    """`fresh` keys and values as they are read back from a cache of that type: an answer must not depend on where they
    were read."""
    if fresh.key.dtype is kind:
        return fresh
    return KeyValue(*(narrowed(tokens, kind).to(tokens.dtype) for tokens in fresh))


def narrowed(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """`tensor` in the type of a cache. What is too large for float8 becomes its largest number, which is not NaN."""
    if kind is torch.float8_e4m3fn and tensor.dtype is not kind:
        return tensor.clamp(-FP8_MOST, FP8_MOST).to(kind)
    return tensor
