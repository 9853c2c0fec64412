"""The paged KV cache: for every layer, keys and values in blocks of a fixed number of tokens.

It knows no sequences: who owns which block is the scheduler's business, and how much memory it may take is
decided by whoever calls `resize`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmhost.core.step import KvMove

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
        self._host: list[KeyValue] = []

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
        """Have room for `count` blocks in host memory, page-locked where the device is a GPU. What was there goes."""
        shape = self.shape
        is_gpu = self.layers[0].key.device.type == "cuda"
        size = (count, shape.block_tokens, shape.kv_heads, shape.head_dim)
        self._host = [
            KeyValue(*(torch.empty(size, dtype=shape.dtype, pin_memory=is_gpu) for _ in range(2)))
            for _ in range(shape.layers if count else 0)
        ]

    def move(self, moves: Iterable[KvMove]) -> None:
        """Copy blocks to the host and back, in order."""
        for is_to_host, run in groupby(moves, key=lambda move: move.is_to_host):
            same = list({move.slot: move for move in run}.values())  # a slot's last text counts
            device = self.layers[0].key.device
            blocks = torch.tensor([move.block for move in same], device=device)
            slots = torch.tensor([move.slot for move in same])
            for on_device, on_host in zip(self.layers, self._host, strict=True):
                for tensors in zip(on_device, on_host, strict=True):
                    cache, kept = map(bits, tensors)
                    if is_to_host:
                        kept.index_copy_(0, slots, cache.index_select(0, blocks).cpu())
                    else:
                        cache.index_copy_(0, blocks, kept.index_select(0, slots).to(device))

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
