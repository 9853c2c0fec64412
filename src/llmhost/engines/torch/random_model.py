"""A model of a real shape with random weights: as fast and as large as a real one, and nothing to say.

It is written as a checkpoint, or made where it runs without any file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from llmhost.engines.torch import attention
from llmhost.engines.torch.blank import blank_model
from llmhost.engines.torch.compile_ahead import CompileAhead, launches_of
from llmhost.engines.torch.kernel_path import has_kernels
from llmhost.engines.torch.kv import KvShape
from llmhost.engines.torch.load import allocated_bytes, proved_runner
from llmhost.engines.torch.narrow import narrow_weights
from llmhost.engines.torch.runner import TorchRunner

FAMILIES = {"llama": "LlamaConfig", "qwen3": "Qwen3Config"}
_SPREAD = 0.02
"""Standard deviation of the weights, as most models start training with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomShape:
    """The form of a dense decoder. Head size is `hidden` / `heads`."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    family: str = "llama"
    positions: int = 32_768
    dtype: str = "bfloat16"
    """Of the stored weights."""


def write_random(folder: Path, shape: RandomShape, seed: int = 0) -> None:
    """Write config.json and model.safetensors for the torch engine."""
    config = _config(shape)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    kind = getattr(torch, shape.dtype)
    rng = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones(tensor.shape, dtype=kind)
        if tensor.dim() == 1
        else torch.empty(tensor.shape, dtype=kind).normal_(0, _SPREAD, generator=rng)
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    content = {**config.to_dict(), "architectures": [type(model).__name__], "dtype": shape.dtype}
    (folder / "config.json").write_text(json.dumps(content))


def random_runner(
    shape: RandomShape,
    *,
    device: torch.device,
    block_tokens: int = 16,
    seed: int = 0,
    weights: str = "auto",
    kv_dtype: str = "auto",
    attention_by: str = "auto",
) -> TorchRunner:
    """A runner of that shape, its weights drawn on `device`: no file is written, and an 8B model takes seconds.

    It has no KV blocks yet, and has passed the check that every loaded model passes. `weights` and `kv_dtype` are the
    options of those names, and `attention_by` is `attention`.
    """
    before = allocated_bytes(device)
    config, dtype = _config(shape), getattr(torch, shape.dtype)
    launches = []
    if has_kernels(device):
        launches = launches_of(
            config,
            kv_heads=shape.kv_heads,
            head_dim=shape.hidden // shape.heads,
            block_tokens=block_tokens,
            dtype=dtype,
            device=device,
            weights=weights,
            kv_dtype=kv_dtype,
        )
    ahead = CompileAhead(launches, device)
    model = blank_model(config, dtype=dtype, attention=attention.NAME)
    _draw_weights(model, torch.Generator(device).manual_seed(seed), device)
    if weights != "auto":
        narrow_weights(model, weights, device)
    kv = KvShape(
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        block_tokens=block_tokens,
        dtype=dtype,
    )
    ahead.wait()
    return proved_runner(
        model.to(device),
        kv,
        vocab_size=shape.vocab,
        max_sequence_length=shape.positions,
        folder=Path("(random weights)"),
        before_bytes=before,
        kv_dtype=kv_dtype,
        attention=attention_by,
    )


def _draw_weights(model: nn.Module, rng: torch.Generator, device: torch.device) -> None:
    for module in model.modules():
        for name, blank in list(module.named_parameters(recurse=False)):
            drawn = _drawn(torch.empty_like(blank, device=device), rng)
            setattr(module, name, nn.Parameter(drawn, requires_grad=False))


def _drawn(weight: Tensor, rng: torch.Generator) -> Tensor:
    return weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0, _SPREAD, generator=rng)


def _config(shape: RandomShape) -> Any:
    return getattr(transformers, FAMILIES[shape.family])(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
