"""Tiny random checkpoints on disk, shaped like real families, for tests of the torch engine."""

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 256
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Far from flat logits, so that greedy answers don't hang on rounding.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "mistral_window": ("MistralConfig", {"sliding_window": 20, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": 20,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "num_hidden_layers": 2,
            "tie_word_embeddings": False,
        },
    ),
    # Attention sinks and experts: what is refused, and where rows meet in one matrix.
    "gpt_oss": ("GptOssConfig", {"head_dim": 16, "num_local_experts": 2, "num_hidden_layers": 2}),
    "phimoe": (
        "PhimoeConfig",
        {"sliding_window": 20, "num_hidden_layers": 2, "num_local_experts": 2},
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 128},
    ),
}


def config_of(family: str, **changes: Any) -> Any:
    kind, own = _FAMILIES[family]
    shape = {**_SHAPE, **own, **changes}
    if family == "gpt2":
        shape = {name: value for name, value in shape.items() if not name.startswith("num_")}
        for name in ("hidden_size", "max_position_embeddings", "intermediate_size"):
            shape.pop(name)
    return getattr(transformers, kind)(**shape)


def save_checkpoint(folder: Path, family: str, *, seed: int = 1, **changes: Any) -> Path:
    """A seeded random model of a family, saved as its users would get it."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family, **changes))
    model.save_pretrained(folder)
    return folder
