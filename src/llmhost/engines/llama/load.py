"""Loading a GGUF model: what llama.cpp is told, and what it can't run for us."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import RunnerFacts
from llmhost.engines.llama.context import MOST_SEQUENCES, ContextShape, KvLayout, fitted
from llmhost.engines.llama.dry_load import Allocations
from llmhost.engines.llama.library import listening, llama
from llmhost.engines.llama.pooling import LlamaPoolingRunner
from llmhost.engines.llama.runner import LlamaRunner

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
RESIDENTS_PER_ROW, MORE_RESIDENTS = 4, 16
"""Sequences for each that may run: the others keep what was computed for prompts to come."""

CHUNK_TOKENS, GATHER_S = 64, 0.002
"""On a CPU a token costs a fifth more in a step of 16 than in one of 64, so prompts go on by more at a time
and those that come together run together."""


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


def load_runner(path: Path, settings: LoadSettings, predicted: RunnerFacts) -> LlamaRunner:
    """Load the model whose only or first file is `path`. Blocks. Raises ModelUnavailable."""
    _check(settings)
    with _loaded(path, settings, predicted) as (library, model, facts):
        facts = replace(facts, checks_drafts=True, can_be_interrupted=True)
        if not settings.gpu_layers:
            facts = replace(facts, least_chunk_tokens=CHUNK_TOKENS, gather_s=GATHER_S)
        shape = fitted(library, model, shape_of(library, settings))
        _check_window(library, model, shape, settings, facts)
        return LlamaRunner(library, model, path, shape, facts)


def load_pooling(path: Path, settings: LoadSettings, predicted: RunnerFacts) -> LlamaPoolingRunner:
    """The same for a model that embeds or scores texts."""
    with _loaded(path, settings, predicted) as (library, model, facts):
        scores = facts.task == "classify"
        size = (
            library.llama_model_n_cls_out(model)
            if scores
            else library.llama_model_n_embd_out(model)
        )
        if scores and size != len(facts.labels):
            raise ModelUnavailable(
                f"{path} has {size} scores by llama.cpp, and {len(facts.labels)} by its tensors."
            )
        facts = replace(facts, pooled_size=size)
        return LlamaPoolingRunner(library, model, shape_of(library, settings), facts)


@contextmanager
def _loaded(
    path: Path, settings: LoadSettings, predicted: RunnerFacts
) -> Iterator[tuple[Any, Any, RunnerFacts]]:
    """The library, the model and its facts; the model is freed again if what is made of it fails."""
    library, found = llama(), Allocations()
    params = library.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    params.load_mode = _load_mode(library, settings)
    with listening(found.hear):
        model = library.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelUnavailable(
            f"llama.cpp could not load {path}. It knows no such architecture, or the file is damaged."
        )
    try:
        _refuse(library, model, path)
        measured = found.bytes_of("model", on_gpu=settings.gpu_layers > 0)
        yield library, model, _facts(library, model, predicted, measured)
    except Exception:
        library.llama_model_free(model)
        raise


def _load_mode(library: Any, settings: LoadSettings) -> int:
    modes = {
        (True, False): library.LLAMA_LOAD_MODE_MMAP,
        (True, True): library.LLAMA_LOAD_MODE_MMAP_MLOCK,
        (False, True): library.LLAMA_LOAD_MODE_MLOCK,
        (False, False): library.LLAMA_LOAD_MODE_NONE,
    }
    return int(modes[settings.mmap, settings.mlock])


def _refuse(library: Any, model: Any, path: Path) -> None:
    """Models that can't begin in the middle of what was computed before, as the scheduler has them do."""
    kinds = {
        "a recurrent model": library.llama_model_is_recurrent(model),
        "a hybrid of attention and recurrence": library.llama_model_is_hybrid(model),
        "a diffusion model": library.llama_model_is_diffusion(model),
        "an encoder with a decoder": library.llama_model_has_encoder(model),
    }
    for what, is_so in kinds.items():
        if is_so:
            raise ModelUnavailable(
                f"{path} is {what}, which engine 'llama' can't run yet. Its transformers checkpoint may run with"
                " engine 'torch'."
            )


def _check(settings: LoadSettings) -> None:
    if settings.flash_attention == "off" and settings.kv_type.startswith("q"):
        raise ModelUnavailable(
            f"A KV cache of {settings.kv_type} takes flash attention, and options.flash_attention is 'off'."
        )


def _check_window(
    library: Any, model: Any, shape: ContextShape, settings: LoadSettings, facts: RunnerFacts
) -> None:
    if not shape.has_window:
        return
    if settings.kv_layout == "partitioned":
        raise ModelUnavailable(
            "options.kv_layout is 'partitioned', and a model with sliding windows of attention keeps all in one buffer:"
            " choose 'auto' or 'unified'."
        )
    if (window := library.llama_model_n_swa(model)) < facts.block_tokens:
        raise ModelUnavailable(
            f"The model's window of attention is {window} tokens, and block_tokens is {facts.block_tokens}:"
            " a block must fit into the window."
        )
    if settings.rows >= shape.sequences:
        raise ModelUnavailable(
            f"llama.cpp runs at most {shape.sequences - 1} sequences of a model with sliding windows at once:"
            f" set max_batch_size to that or less, not {settings.rows}."
        )


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


def _facts(library: Any, model: Any, predicted: RunnerFacts, measured_bytes: int) -> RunnerFacts:
    return replace(
        predicted,
        vocab_size=library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)),
        weights_bytes=library.llama_model_size(model),
        measured_bytes=measured_bytes,
    )
