"""A checkpoint of a real shape with random weights: as fast and as large as a real one, and nothing to say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

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
    config: Any = getattr(transformers, FAMILIES[shape.family])(
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
