"""How a model is to be loaded and run, and what its contexts are like for it. Free of torch: a trial starts often."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from llmhost.engines.llama.context import MOST_SEQUENCES, ContextShape, KvLayout

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
RESIDENTS_PER_ROW, MORE_RESIDENTS = 4, 16
"""Sequences for each that may run: the others keep what was computed for prompts to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How a model is loaded and run."""

    batch_tokens: int
    rows: int
    """Most sequences in one step."""
    threads: int | None = None
    """One for each core that this process may use when absent."""
    gpu_layers: int = 0
    kv_type: KvType = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    kv_layout: KvLayout = "auto"
    mmap: bool = True
    mlock: bool = False
    pooling: str | None = None


def shape_of(library: Any, settings: LoadSettings) -> ContextShape:
    """What contexts of the model will be like."""
    sequences = min(RESIDENTS_PER_ROW * settings.rows + MORE_RESIDENTS, MOST_SEQUENCES)
    as_it_likes = library.LLAMA_FLASH_ATTN_TYPE_AUTO
    if settings.kv_type == "f32":  # flash attention would round all of it to 16 bits
        as_it_likes = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    flash = {
        "auto": as_it_likes,
        "on": library.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": library.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }
    return ContextShape(
        batch_tokens=max(settings.batch_tokens, settings.rows),
        sequences=sequences,
        rows=settings.rows,
        outputs=sequences,
        threads=settings.threads or len(os.sched_getaffinity(0)),
        kv_type=int(getattr(library, f"GGML_TYPE_{settings.kv_type.upper()}")),
        flash_attention=int(flash[settings.flash_attention]),
        offloads_kv=settings.gpu_layers != 0,
        layout=settings.kv_layout,
        pooling=settings.pooling,
    )
