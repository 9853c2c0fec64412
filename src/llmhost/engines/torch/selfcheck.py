"""A freshly loaded model is compared with transformers' own attention before it may answer anybody.

Cheap (a few dozen tokens) and blunt: it does not measure precision, it finds architectures whose attention does
something that ours does not, whatever they call it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmhost.core.errors import ModelUnavailable
from llmhost.core.request import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch import attention
from llmhost.engines.torch.layout import lay_out
from llmhost.engines.torch.runner import TorchRunner

_TOKENS = 24
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Relative difference of logits; the wrong attention is off by about 1."""


def check_against_eager(runner: TorchRunner, model: Any, folder: Path) -> None:
    """Raises ModelUnavailable when `runner` does not compute what `model` does with eager attention."""
    size = runner.facts.block_tokens
    vocabulary = runner.facts.vocab_size
    tokens = [(7919 * (place + 1)) % vocabulary for place in range(_TOKENS)]
    windows: dict[int, int | None] = {}
    runner.set_kv_blocks(-(-_TOKENS // size) + 1)
    try:
        with torch.inference_mode():
            ours = _in_chunks(runner, tokens, windows)
            theirs = _eager(model, tokens)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelUnavailable(
            f"{type(model).__name__} in {folder} can't be run by the torch engine: {reason}"
        ) from error
    finally:
        runner.set_kv_blocks(0)
    _refuse_hidden_windows(model, windows, runner.facts.max_sequence_length)
    distance = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    off = float(distance.median())
    # Written so that NaN is refused too.
    if not off <= _TOLERANCE[model.dtype]:
        raise ModelUnavailable(
            f"{type(model).__name__} in {folder} gives other logits over the paged KV cache than transformers does"
            f" (relative difference {off:.2g}): its attention has a feature that the torch engine lacks."
        )


def _in_chunks(runner: TorchRunner, tokens: list[int], windows: dict[int, int | None]) -> Tensor:
    """Logits after every token but the first chunk's early ones, from a long chunk and one-token steps."""
    size = runner.facts.block_tokens
    blocks = list(range(-(-len(tokens) // size), 0, -1))
    half = len(tokens) // 2
    rows = [(0, tokens[:half])] + [(at, tokens[at : at + 1]) for at in range(half, len(tokens))]
    logits: list[Tensor | None] = []
    for start, fed in rows:
        row = Row(0, fed, start, blocks, Sampling(temperature=0.0), 0, wants_token=True)
        layout = lay_out([row], block_tokens=size, device=runner.device)
        logits.append(runner.forward(layout, windows))
    return torch.cat([out.float() for out in logits if out is not None])


def _eager(model: Any, tokens: list[int]) -> Tensor:
    """transformers' own logits at the same places."""
    model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([tokens], device=model.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        model.set_attn_implementation(attention.NAME)
    return logits[len(tokens) // 2 - 1 :]


def _refuse_hidden_windows(
    model: Any, windows: Mapping[int, int | None], max_sequence_length: int
) -> None:
    """A layer whose window exists only in a mask would silently attend to everything here."""
    config = model.config
    width = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    is_windowed = width is not None and width < max_sequence_length
    for layer, window in sorted(windows.items()):
        if window is None and (types[layer] == "sliding_attention" if types else is_windowed):
            raise ModelUnavailable(
                f"{type(model).__name__} does not tell its attention the sliding window of layer {layer},"
                " so the torch engine can't keep to it."
            )
