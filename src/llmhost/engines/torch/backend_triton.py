"""Attention over block tables by Triton kernels: what `backend_torch` does, in one or two launches a layer.

One-token rows, which the layout has first, go to the decode kernel, all others to the prefill kernel, or to a library
in its place. The numbers that they read go to the device once per step, together.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kernels.attention import (
    DecodeRoom,
    decode_attention,
    prefill_attention,
)
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.prefill import OWN, ByLibrary, PrefillRows, RowsThere, scaling_of

ACCEPTABLE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""The largest error in `self_test` of a backend that may serve, by the type of queries."""
SHORT_TOKENS = 8
"""Rows of so few tokens, such as those with guesses, may be read token by token."""


class TritonAttention:
    """Attention of one step, in all layers."""

    def __init__(
        self, layout: StepLayout, room: DecodeRoom, prefill: ByLibrary | None = None
    ) -> None:
        """`prefill` is who attends to long rows in some layers; our kernel does in all others."""
        self._room = room
        self._prefill = prefill
        rows = range(layout.decode_rows, len(layout.starts))
        self._longest = max((layout.ends[row] - layout.starts[row] for row in rows), default=0)
        if 1 < self._longest <= SHORT_TOKENS and 2 * len(rows) * room.kv_heads <= room.programs:
            self._take_every_token_for_a_row(layout)
            return
        self._decoding = decoding = layout.decode_rows
        self._decode_tables = layout.block_tables[:decoding]
        starts, ends = layout.starts[decoding:], layout.ends[decoding:]
        offsets = [offset - decoding for offset in layout.offsets[decoding:]]
        self._ends, *there = _on_device(
            layout.ends[:decoding], starts, ends, offsets, device=layout.block_tables.device
        )
        self._rows = PrefillRows(
            layout.block_tables[decoding:], starts, ends, offsets, RowsThere(*there), self._longest
        )
        if self._longest <= SHORT_TOKENS:  # bound by memory, and not worth a plan
            self._prefill = None

    def _take_every_token_for_a_row(self, layout: StepLayout) -> None:
        """A few short rows would keep a few multiprocessors busy for long: the kernel for one token splits them.

        It reads their keys once for each token, but most of that comes from the device's cache.
        """
        tokens = [
            (row, position + 1)
            for row, (start, end) in enumerate(zip(layout.starts, layout.ends, strict=True))
            for position in range(start, end)
        ]
        owners, self._ends = _on_device(
            [row for row, _ in tokens],
            [end for _, end in tokens],
            device=layout.block_tables.device,
        )
        self._decoding = len(tokens)
        self._decode_tables = layout.block_tables.index_select(0, owners)
        self._longest = 0

    def attend(self, query: Tensor, fresh: KeyValue, cache: KeyValue, scores: Scores) -> Tensor:
        """As `StepAttention.attend`: `query` [1, heads, T, head_dim] gives [1, T, heads, head_dim].

        The cache must have this step's keys and values; `fresh` is not read.
        """
        return self.attend_flat(query[0].transpose(0, 1), cache, scores)[None]

    def attend_flat(
        self, query: Tensor, cache: KeyValue, scores: Scores, out: Tensor | None = None
    ) -> Tensor:
        """`query` [T, heads, head_dim], of any strides, gives as much, contiguous, in `out` if there is one."""
        if query.stride(2) != 1:
            query = query.contiguous()
        if out is None:
            out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        decoding = self._decoding
        with _current(query.device):
            if decoding:
                decode_attention(
                    query[:decoding],
                    *cache,
                    self._decode_tables,
                    self._ends,
                    out[:decoding],
                    room=self._room,
                    scaling=scaling_of(scores, query),
                    window=scores.window,
                    softcap=scores.softcap,
                    sinks=scores.sinks,
                )
            if self._longest:
                way = OWN if self._prefill is None else self._prefill.for_layer(scores)
                way.attend(self._rows, query[decoding:], cache, scores, out[decoding:])
        return out


def warm_up(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    block_tokens: int,
    kinds: Iterable[Scores],
    *,
    stored: torch.dtype | None = None,
) -> None:
    """Have the prefill kernel compiled in each form that layers of these `kinds` may call for, so that no step waits.

    The decode kernel has two forms for each kind, few rows and many; whoever captures graphs has called both.
    """
    cache = KeyValue(
        *(
            torch.zeros(1, block_tokens, kv_heads, dim, device=device).to(stored or dtype)
            for _ in "kv"
        )
    )
    query = torch.zeros(1, heads, dim, dtype=dtype, device=device)
    tables = torch.zeros(1, 1, dtype=torch.int64, device=device)
    starts, offsets = _on_device([0], [0, 1], device=device)
    some = max(64 * kv_heads // heads, 2)
    with _current(device):
        for scores in kinds:
            for longest in (1, some, 32_768):  # each calls for tiles of another size
                prefill_attention(
                    query,
                    *cache,
                    tables,
                    starts,
                    offsets,
                    torch.empty_like(query),
                    longest=longest,
                    scaling=dim**-0.5,
                    window=scores.window,
                    softcap=scores.softcap,
                    sinks=scores.sinks,
                )


def self_test(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    block_tokens: int,
    *,
    stored: torch.dtype | None = None,
) -> float:
    """The relative error of both kernels on a few random rows, against plain torch in float64.

    Keys and values are `stored` in the cache, else in `dtype`. NaN where a number was not written, or must not have
    been read. Raises what Triton raises for kernels that can't be compiled or launched; `ACCEPTABLE` says what is good.
    """
    starts, ends = [0, 70, 299, 0, 45], [1, 71, 300, 20, 48]
    counts = [end - start for start, end in zip(starts, ends, strict=True)]
    numbers = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers, device=device).to(dtype)

    width = -(-max(ends) // block_tokens)
    strewn = torch.randperm(len(ends) * width, generator=numbers, device=device)
    tables = strewn.view(len(ends), width)
    cache = KeyValue(
        *(random(len(strewn), block_tokens, kv_heads, dim).to(stored or dtype) for _ in "kv")
    )
    query = random(sum(counts), heads, dim)
    out = torch.full_like(query, float("nan"))
    room = DecodeRoom(3, heads, kv_heads, dim, device)
    decode_ends, prefill_starts, offsets = _on_device(
        ends[:3], starts[3:], [0, counts[3], counts[3] + counts[4]], device=device
    )
    asked: dict[str, Any] = {"scaling": dim**-0.5}
    with _current(device):
        decode_attention(query[:3], *cache, tables[:3], decode_ends, out[:3], room=room, **asked)
        prefill_attention(
            query[3:], *cache, tables[3:], prefill_starts, offsets, out[3:], longest=20, **asked
        )
    reference = torch.cat(
        [
            _plain(rows, KeyValue(*(part[table] for part in cache)), start)
            for rows, table, start in zip(torch.split(query, counts), tables, starts, strict=True)
        ]
    )
    return float((out.double() - reference).norm() / reference.norm())


def _plain(query: Tensor, blocks: KeyValue, start: int) -> Tensor:
    """Attention in float64 of one row's `query` [tokens, heads, dim] over its own blocks, in order."""
    tokens, heads, dim = query.shape
    keys, values = (part.double().flatten(0, 1)[: start + tokens] for part in blocks)
    group = heads // keys.shape[1]
    scores = torch.einsum("thd,phd->htp", query.double(), keys.repeat_interleave(group, 1))
    hidden = torch.ones(tokens, start + tokens, dtype=torch.bool, device=query.device)
    scores.masked_fill_(hidden.triu(start + 1), float("-inf")).mul_(dim**-0.5)
    return torch.einsum("htp,phd->thd", scores.softmax(-1), values.repeat_interleave(group, 1))


def _current(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, whatever its tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _on_device(*lists: list[int], device: torch.device) -> tuple[Tensor, ...]:
    """int32 tensors of the numbers in each of `lists`, by one copy."""
    is_gpu = device.type == "cuda"
    numbers = torch.tensor([*chain.from_iterable(lists)], dtype=torch.int32, pin_memory=is_gpu)
    return torch.split(numbers.to(device, non_blocking=True), [len(one) for one in lists])
