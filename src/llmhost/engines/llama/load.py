"""Loading a GGUF model: what llama.cpp is told, and what it can't run for us."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import RunnerFacts
from llmhost.engines.llama.context import ContextShape, fitted
from llmhost.engines.llama.dry_load import Allocations
from llmhost.engines.llama.library import llama
from llmhost.engines.llama.opening import open_model, refuse_unservable
from llmhost.engines.llama.pooling import LlamaPoolingRunner
from llmhost.engines.llama.runner import LlamaRunner
from llmhost.engines.llama.settings import LoadSettings, shape_of

CHUNK_TOKENS, GATHER_S = 64, 0.002
"""On a CPU a token costs a fifth more in a step of 16 than in one of 64, so prompts go on by more at a time
and those that come together run together."""


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
    model = open_model(library, path, params, found.hear)
    try:
        refuse_unservable(library, model, path)
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


def _facts(library: Any, model: Any, predicted: RunnerFacts, measured_bytes: int) -> RunnerFacts:
    return replace(
        predicted,
        vocab_size=library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)),
        weights_bytes=library.llama_model_size(model),
        measured_bytes=measured_bytes,
    )
