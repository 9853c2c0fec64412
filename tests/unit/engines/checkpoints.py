"""Tiny random checkpoints on disk, shaped like real families, for tests of the torch engine.

A family is a model type of transformers, or one of VARIANTS: a model type with what its users would set.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 256
WINDOW = 20
_NONE_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    # Far from flat logits, so that greedy answers don't hang on rounding.
    "initializer_range": 0.3,
    # With tied weights a random model says one word for ever.
    "tie_word_embeddings": False,
    "is_decoder": True,
    **_NONE_ENDS,
    # Experts.
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_topk": 2,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "shared_expert_intermediate_size": 32,
    "topk_group": 1,
    # Whatever begins to matter at some length begins early.
    "attention_chunk_size": 16,
    "floor_scale": 16,
    "index_topk": 8,
    "index_topk_blocks": 1,
    "index_block_size": 8,
    "keep_window_size": 16,
    "log_scaling_n_floor": 16,
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    # Latent attention, recurrences, and shapes under other names.
    "index_head_dim": 16,
    "index_n_heads": 2,
    "kv_lora_rank": 16,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "mamba_d_head": 16,
    "mamba_d_ssm": 128,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "d_model": 64,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "decoder_layers": 3,
    "dff": 64,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "encoder_layers": 1,
    "n_head": 4,
    "n_heads": 4,
    "n_layer": 3,
    "n_layers": 3,
    "swa_head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
}
"""Applied where a config has that setting."""
_OPTIONAL = ("index_topk", "kv_lora_rank", "q_lora_rank", "sliding_window")
"""Left unset where a config leaves them unset: setting them would make another model of it."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere2": ("cohere2", {"num_hidden_layers": 4}),
    "cwm": ("cwm", {"bos_token_id": 1, "eos_token_id": 255, "pad_token_id": 0}),
    "dbrx": (
        "dbrx",
        {
            "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "exaone4": ("exaone4", {"num_hidden_layers": 4}),
    "falcon": ("falcon", {"alibi": False, "multi_query": True}),
    "falcon_alibi": ("falcon", {"alibi": True}),
    "falcon_new": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_old": ("falcon", {"alibi": False, "multi_query": False, "num_kv_heads": 4}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}),
    "gemma3_text": ("gemma3_text", {"num_hidden_layers": 6, "query_pre_attn_scalar": 16}),
    "gemma3n_text": ("gemma3n_text", {"num_hidden_layers": 5, "num_kv_shared_layers": 0}),
    "granitemoehybrid_attention": ("granitemoehybrid", {"layer_types": ["attention"] * 3}),
    "gpt_oss": ("gpt_oss", {"num_hidden_layers": 4}),
    "lfm2_moe": ("lfm2_moe", {"layer_types": ["conv", "full_attention", "conv"]}),
    "lfm2_conv": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "mistral_full": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": WINDOW}),
    "modernbert-decoder": (
        "modernbert-decoder",
        {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2},
    ),
    "olmo3": ("olmo3", {"num_hidden_layers": 4}),
    "phimoe": ("phimoe", {"sliding_window": WINDOW}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_tied": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "stablelm_norm": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    "zaya": ("zaya", {"num_experts_per_tok": 1}),
}  # fmt: skip


def config_of(family: str, **changes: Any) -> Any:
    kind, own = VARIANTS.get(family, (family, {}))
    config_class = CONFIG_MAPPING[kind]
    return config_class(**{**_shape(config_class), **own, **changes})


def _shape(config_class: Any) -> dict[str, Any]:
    """What makes a config small, those that it is made of too."""
    usual = config_class()
    names = {*usual.to_dict(), *config_class.attribute_map}
    names -= {name for name in _OPTIONAL if getattr(usual, name, None) is None}
    names -= {"is_decoder"} if usual.is_encoder_decoder else set()
    shape = {name: value for name, value in _SMALL.items() if name in names}
    for name, part in config_class.sub_configs.items():
        if getattr(usual, name, None) is not None:
            kind = type(getattr(usual, name)) if part is AutoConfig else part
            shape[name] = {**_shape(kind), "model_type": kind.model_type}
    return shape


def save_checkpoint(folder: Path, family: str, *, seed: int = 1, **changes: Any) -> Path:
    """A seeded random model of a family, saved as its users would get it."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family, **changes))
    model.save_pretrained(folder)
    return folder
