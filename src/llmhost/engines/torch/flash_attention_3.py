"""FlashAttention-3 over block tables, where it is installed (Shah et al., 2024; github.com/Dao-AILab/flash-attention).

Its operator is called as it is registered with torch: the library's own Python function makes a tensor for each result,
which would have to be copied to where it belongs.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from llmhost.engines.attention_libraries import FLASH_ATTENTION_3
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.prefill import Form, Kind, PrefillRows, scaling_of

MOST_DIM = 256
DIMS_AT_ONCE = 8
"""Heads have a multiple of so many numbers."""
ODD_BLOCKS, ODD_DIM = 64, 192
"""With larger heads and a window it reads blocks of so many tokens whole, and what is behind a row's end with them."""
AS_IT_SEES_FIT = 0
"""How often it splits the keys of a row."""


class FlashAttention3:
    """For one loaded model. Raises what importing the library raises."""

    name = FLASH_ATTENTION_3.option

    def __init__(self, form: Form) -> None:
        self._form = form
        import_module(FLASH_ATTENTION_3.module)
        self._attend: Any = torch.ops.flash_attn_3.fwd

    def refusal(self, kind: Kind) -> str | None:
        form = self._form
        if form.dtype not in (torch.bfloat16, torch.float16):
            return "it computes in bfloat16 and float16"
        if form.stored is not form.dtype:
            return "it needs a KV cache of the computation type"
        if form.dim > MOST_DIM or form.dim % DIMS_AT_ONCE:
            return f"it has no heads of {form.dim} numbers"
        if kind.has_sinks:
            return "it has no attention sinks"
        if kind.window is not None and form.block_tokens >= ODD_BLOCKS and form.dim > ODD_DIM:
            return f"it reads past a row's end in blocks of {form.block_tokens} tokens"
        return None

    def is_built(self, kind: Kind) -> bool:
        return True

    def attend(
        self, rows: PrefillRows, query: Tensor, cache: KeyValue, scores: Scores, out: Tensor
    ) -> None:
        self._attend(
            query,
            *cache,
            out=out,
            cu_seqlens_q=rows.there.offsets,
            seqused_k=rows.there.ends,
            max_seqlen_q=rows.longest,
            page_table=rows.once(self.name, rows.block_tables.int),
            softmax_scale=scaling_of(scores, query),
            is_causal=True,
            window_size_left=-1 if scores.window is None else scores.window - 1,
            window_size_right=0,
            softcap=scores.softcap or 0.0,
            num_splits=AS_IT_SEES_FIT,
        )
