"""Rows with keys and values in a paged cache, and what attention should give for them, in float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from llmhost.engines.torch.kernels.attention import (
    DecodeRoom,
    decode_attention,
    prefill_attention,
)

FP8 = torch.float8_e4m3fn
NAN_FP8 = 0x7F
"""With either sign."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    block_tokens: int
    dtype: torch.dtype = torch.float32
    stored: torch.dtype | None = None
    """Of keys and values; the query's where None."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """R rows with `counts[r]` tokens that end before position `ends[r]`. Tensors are as the kernels take them."""

    counts: Sequence[int]
    ends: Sequence[int]
    query: Tensor
    """[T, heads, dim], a view of [heads, T, dim]"""
    keys: Tensor
    values: Tensor
    tables: Tensor
    out: Tensor
    """Full of NaN."""

    def numbers(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.query.device)

    @property
    def offsets(self) -> list[int]:
        return [0, *accumulate(self.counts)]


def make_step(
    shape: Shape,
    counts: Sequence[int],
    ends: Sequence[int],
    *,
    seed: int,
    device: str = "cpu",
) -> Step:
    """Random rows. What no row owns is NaN: other blocks, and positions behind a row's end in its last block."""
    numbers = torch.Generator(device).manual_seed(seed)
    size, stored = shape.block_tokens, shape.stored or shape.dtype
    used = [-(-end // size) for end in ends]
    order = torch.randperm(sum(used) + 2, generator=numbers, device=device).int()
    tables = torch.full((len(ends), max(used) + 1), 2**30, dtype=torch.int32, device=device)
    cache_shape = (len(order), size, shape.kv_heads, shape.dim)
    caches = [torch.full(cache_shape, float("nan"), device=device).to(stored) for _ in "kv"]
    taken = 0
    for row, (count, end) in enumerate(zip(used, ends, strict=True)):
        blocks = order[taken : taken + count]
        tables[row, :count] = blocks
        taken += count
        for cache in caches:
            fresh = torch.full(
                (count * size, shape.kv_heads, shape.dim), float("nan"), device=device
            )
            fresh[:end] = torch.randn(
                (end, shape.kv_heads, shape.dim), generator=numbers, device=device
            )
            _bits(cache)[blocks.long()] = _bits(fresh.to(stored)).view(count, *cache.shape[1:])
    total = sum(counts)
    query = torch.randn(
        (shape.heads, total, shape.dim), generator=numbers, device=device, dtype=torch.float32
    ).to(shape.dtype)
    return Step(
        counts=counts,
        ends=ends,
        query=query.transpose(0, 1),
        keys=caches[0],
        values=caches[1],
        tables=tables,
        out=torch.full_like(
            query.transpose(0, 1), float("nan"), memory_format=torch.contiguous_format
        ),
    )


def scatter_bytes(step: Step, seed: int) -> None:
    """Replace what rows own of a cache in float8 by random bytes, whatever numbers they are."""
    numbers = torch.Generator(step.out.device).manual_seed(seed)
    for cache in (step.keys, step.values):
        bits = _bits(cache)
        fresh = torch.randint(
            0, 254, bits.shape, generator=numbers, device=bits.device, dtype=torch.uint8
        )
        fresh += fresh // NAN_FP8  # 127 and 255 are no numbers
        bits.copy_(torch.where(bits & NAN_FP8 == NAN_FP8, bits, fresh))


def _bits(tensor: Tensor) -> Tensor:
    """The same memory in a type that torch can index everywhere."""
    return tensor.view(torch.uint8) if tensor.dtype is FP8 else tensor


def expected(
    step: Step,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> Tensor:
    """[T, heads, dim] in float64; zeros for rows that end at 0."""
    heads, dim = step.query.shape[1:]
    outs = []
    for row, (count, end) in enumerate(zip(step.counts, step.ends, strict=True)):
        if end == 0:
            outs.append(torch.zeros(count, heads, dim, dtype=torch.float64, device=step.out.device))
            continue
        size = step.keys.shape[1]
        blocks = step.tables[row, : -(-end // size)].long()
        keys, values = (
            _bits(cache)[blocks].view(cache.dtype).double().flatten(0, 1)[:end].repeat_interleave(
                heads // cache.shape[2], dim=1
            )
            for cache in (step.keys, step.values)
        )  # fmt: skip
        query = step.query[step.offsets[row] : step.offsets[row + 1]].double()
        scores = torch.einsum("thd,phd->htp", query, keys) * (scaling * key_scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        own = torch.arange(end - count, end, device=scores.device)[:, None]
        at = torch.arange(end, device=scores.device)
        hidden = at > own
        if window is not None:
            hidden |= at <= own - window
        scores.masked_fill_(hidden, float("-inf"))
        if sinks is not None:
            sink = sinks.double().view(-1, 1, 1).expand(-1, count, 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(-1)[..., :end]
        outs.append(torch.einsum("htp,phd->thd", weights, values * value_scale))
    return torch.cat(outs)


def asked(way: dict[str, Any], shape: Shape, device: str = "cpu") -> dict[str, Any]:
    """Arguments of the kernels and of `expected`. The `sinks` of a `way` are the middle of a range."""
    sinks = way.get("sinks")
    spread = torch.linspace(-1, 1, shape.heads, device=device)
    return {"scaling": 0.3, **way, "sinks": None if sinks is None else spread + sinks}


def decoded(step: Step, ask: dict[str, Any], **more: Any) -> Tensor:
    rows, heads, dim = step.query.shape
    few = 4 if step.query.device.type == "cpu" else None
    room = DecodeRoom(rows, heads, step.keys.shape[2], dim, step.query.device, multiprocessors=few)
    decode_attention(
        step.query,
        step.keys,
        step.values,
        step.tables,
        step.numbers(step.ends),
        step.out,
        room=room,
        **ask,
        **more,
    )
    return step.out


def prefilled(step: Step, ask: dict[str, Any], **more: Any) -> Tensor:
    starts = [end - count for end, count in zip(step.ends, step.counts, strict=True)]
    prefill_attention(
        step.query,
        step.keys,
        step.values,
        step.tables,
        step.numbers(starts),
        step.numbers(step.offsets),
        step.out,
        longest=max(step.counts),
        **ask,
        **more,
    )
    return step.out
