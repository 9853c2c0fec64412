"""From a folder to a runner that pools and has proved itself.

A loaded model must give the same for a text whether or not longer ones are padded beside it, and what transformers
gives for it alone: an architecture that ignores its mask or counts positions from the padding on is refused here.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import DoesNotFit, ModelUnavailable
from llmhost.core.units import show_bytes
from llmhost.engines.torch.load import _LOADING_ERRORS, allocated_bytes, pick_device
from llmhost.engines.torch.pooling import (
    ACTIVATIONS,
    Classifier,
    Embedder,
    PoolingRunner,
    Squash,
    pad,
)
from llmhost.engines.torch.pooling_files import Dense, PoolingFiles, facts_of, read_pooling
from llmhost.engines.torch.threads import threads_for

_UNUSED = "pooler."
"""Weights that embedding does not need: the head of BERT's next-sentence task."""
_LENGTHS = (5, 17, 9)
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Relative difference of what is pooled; a wrong mask is off by about 1."""


def load_pooling(
    folder: Path, *, task: str, block_tokens: int, options: TorchOptions
) -> PoolingRunner:
    """Load the checkpoint in `folder` to embed or classify. Raises ModelUnavailable with the reason why it can't."""
    device = pick_device(options.device)
    files = read_pooling(folder, task=task, options=options, on_gpu=device.type == "cuda")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = _read_model(folder, files, options)
    layers = [_read_dense(dense) for dense in files.dense]
    before = allocated_bytes(device)
    try:
        model.to(device).eval().requires_grad_(False)
        for linear, _ in layers:
            linear.to(device).requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            f"The weights in {folder} need {show_bytes(files.weights_bytes)} on {device}, which is more"
            " than is free there. Unload another model, or use a smaller dtype."
        ) from error
    facts = facts_of(files, f"{device.type}:{device.index or 0}", block_tokens)
    if device.type == "cuda":
        facts = replace(facts, measured_bytes=allocated_bytes(device) - before)
    pool = _pool(model, files, layers)
    with threads_for(files.weights_bytes, device):
        _check(pool, model, folder, files)
    return PoolingRunner(pool, facts)


def _read_model(folder: Path, files: PoolingFiles, options: TorchOptions) -> Any:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    kind = (
        transformers.AutoModel
        if files.task == "embed"
        else transformers.AutoModelForSequenceClassification
    )
    try:
        model, report = kind.from_pretrained(
            folder,
            dtype=getattr(torch, files.dtype),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
        )
    except _LOADING_ERRORS as error:
        reason = str(error).strip().split("\n")[0] or repr(error)
        raise ModelUnavailable(f"The model in {folder} could not be loaded: {reason}") from error
    is_embedder = files.task == "embed"
    needed = [n for n in report["missing_keys"] if not (is_embedder and n.startswith(_UNUSED))]
    if missing := sorted(needed):
        # transformers fills these with random numbers and goes on.
        raise ModelUnavailable(
            f"The weights in {folder} lack {len(missing)} tensors that a {type(model).__name__} needs,"
            f" {missing[0]} first. The checkpoint is incomplete or belongs to another config.json."
        )
    model.config.use_cache = False  # decoders would keep keys and values of texts that never go on
    return model


def _read_dense(dense: Dense) -> tuple[nn.Linear, Squash]:
    weights = load_file(dense.folder / "model.safetensors")
    try:
        weight, bias = weights["linear.weight"].float(), weights.get("linear.bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict(
            {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        )
    except (KeyError, RuntimeError) as error:
        raise ModelUnavailable(
            f"The linear layer in {dense.folder} can't be read: {error}"
        ) from error
    if weight.shape[0] != dense.size:
        raise ModelUnavailable(
            f"The linear layer in {dense.folder} gives {weight.shape[0]} numbers; its config.json says {dense.size}."
        )
    return linear, ACTIVATIONS[dense.activation]


def _pool(
    model: Any, files: PoolingFiles, layers: Sequence[tuple[nn.Linear, Squash]]
) -> Embedder | Classifier:
    parameters = inspect.signature(model.forward).parameters
    config = model.config
    takes_types = (
        "token_type_ids" in parameters and (getattr(config, "type_vocab_size", 0) or 0) > 1
    )
    pad_id = getattr(config, "pad_token_id", None)
    shared: dict[str, Any] = {
        "pad_id": pad_id if pad_id is not None and 0 <= pad_id < files.vocab_size else 0,
        "takes_types": takes_types,
    }
    if files.task == "classify":
        # Decoders have a bare `score` over their last token; encoders a head that pools in its own way.
        is_decoder = isinstance(getattr(model, "score", None), nn.Linear)
        return Classifier(model, activation=files.activation, is_decoder=is_decoder, **shared)
    return Embedder(
        model,
        pooling=files.pooling,
        layers=layers,
        is_normalised=files.is_normalised,
        **shared,
    )


def _check(pool: Embedder | Classifier, model: Any, folder: Path, files: PoolingFiles) -> None:
    """Raises ModelUnavailable when texts beside each other don't give what each gives alone."""
    texts = [
        [(7919 * (place + length)) % files.vocab_size for place in range(length)]
        for length in _LENGTHS
        if length <= files.max_sequence_length
    ]
    try:
        with torch.inference_mode():
            together = _run(pool, texts)
            alone = torch.cat([_alone(pool, text) for text in texts])
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelUnavailable(
            f"{type(model).__name__} in {folder} can't be run by the torch engine: {reason}"
        ) from error
    if together.shape[1] != files.pooled_size:
        raise ModelUnavailable(
            f"{type(model).__name__} in {folder} gives {together.shape[1]} numbers for a text, and its files"
            f" say {files.pooled_size}."
        )
    off = float(((together - alone).norm(dim=-1) / alone.norm(dim=-1)).max())
    # Written so that NaN is refused too.
    if not off <= _TOLERANCE[model.dtype]:
        raise ModelUnavailable(
            f"{type(model).__name__} in {folder} gives another result for a text when a longer one is beside it"
            f" (relative difference {off:.2g}), so the torch engine can't batch it."
        )


def _run(pool: Embedder | Classifier, texts: list[list[int]]) -> Tensor:
    batch = pad(texts, [None] * len(texts), pad_id=pool.pad_id, device=pool.device)
    return pool(batch, torch.ones(len(texts), dtype=torch.bool, device=pool.device)).float().cpu()


def _alone(pool: Embedder | Classifier, text: list[int]) -> Tensor:
    return _run(pool, [text])
