"""Attention over block tables by Triton kernels: what `backend_torch` does, in one or two launches a layer.

One-token rows, which the layout has first, go to the decode kernel, all others to the prefill kernel. The numbers that
both read go to the device once per step, together.
"""

from contextlib import nullcontext
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


class TritonAttention:
    """Attention of one step, in all layers."""

    def __init__(self, layout: StepLayout, room: DecodeRoom) -> None:
        self._layout = layout
        self._room = room
        decoding, rows = layout.decode_rows, len(layout.starts)
        self._decode_tables = layout.block_tables[:decoding]
        self._prefill_tables = layout.block_tables[decoding:]
        chunks = range(decoding, rows)
        self._longest = max((layout.ends[row] - layout.starts[row] for row in chunks), default=0)
        self._ends, self._starts, self._offsets = _on_device(
            layout.ends[:decoding],
            layout.starts[decoding:],
            [offset - decoding for offset in layout.offsets[decoding:]],
            device=layout.block_tables.device,
        )

    def attend(self, query: Tensor, fresh: KeyValue, cache: KeyValue, scores: Scores) -> Tensor:
        """As `StepAttention.attend`: `query` [1, heads, T, head_dim] gives [1, T, heads, head_dim].

        The cache must have this step's keys and values; `fresh` is not read.
        """
        return self.attend_flat(query[0].transpose(0, 1), cache, scores)[None]

    def attend_flat(self, query: Tensor, cache: KeyValue, scores: Scores) -> Tensor:
        """`query` [T, heads, head_dim], of any strides, gives as much, contiguous."""
        if query.stride(2) != 1:
            query = query.contiguous()
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        decoding = self._layout.decode_rows
        asked: dict[str, Any] = {
            "scaling": query.shape[2] ** -0.5 if scores.scaling is None else scores.scaling,
            "window": scores.window,
            "softcap": scores.softcap,
            "sinks": scores.sinks,
        }
        with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
            if decoding:
                decode_attention(
                    query[:decoding],
                    *cache,
                    self._decode_tables,
                    self._ends,
                    out[:decoding],
                    room=self._room,
                    **asked,
                )
            if self._longest:
                prefill_attention(
                    query[decoding:],
                    *cache,
                    self._prefill_tables,
                    self._starts,
                    self._offsets,
                    out[decoding:],
                    longest=self._longest,
                    **asked,
                )
        return out


def _on_device(*lists: list[int], device: torch.device) -> tuple[Tensor, ...]:
    """int32 tensors of the numbers in each of `lists`, by one copy."""
    is_gpu = device.type == "cuda"
    numbers = torch.tensor([*chain.from_iterable(lists)], dtype=torch.int32, pin_memory=is_gpu)
    return torch.split(numbers.to(device, non_blocking=True), [len(one) for one in lists])
