"""Tiny random checkpoints of models that pool, with the files that sentence-transformers puts beside them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

VOCAB = 200
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_DISTIL = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {"pad_token_id": 0}),
    "roberta": ("RobertaConfig", {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaConfig", {"type_vocab_size": 1}),
    "distilbert": ("DistilBertConfig", {**_DISTIL, "pad_token_id": 0}),
    "mpnet": ("MPNetConfig", {}),
    "electra": ("ElectraConfig", {"embedding_size": 16, "pad_token_id": 0}),
    "modernbert": (
        "ModernBertConfig",
        {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 16, "num_hidden_layers": 4},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 8, "num_key_value_heads": 2, "pad_token_id": None}),
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "num_key_value_heads": 2,
            "sliding_window": 16,
            "query_pre_attn_scalar": 8,
            "use_bidirectional_attention": True,
        },
    ),
}
DECODERS = ("qwen3",)


def save_embedder(folder: Path, family: str, *, seed: int = 1, **changes: Any) -> Path:
    """A bare model; decoders as the language models that they are published as."""
    kind = transformers.AutoModelForCausalLM if family in DECODERS else transformers.AutoModel
    return _save(folder, kind, family, seed, changes)


def save_classifier(
    folder: Path, family: str, labels: int, *, seed: int = 1, **changes: Any
) -> Path:
    kind = transformers.AutoModelForSequenceClassification
    return _save(folder, kind, family, seed, {"num_labels": labels, **changes})


def add_sentence_files(
    folder: Path,
    *,
    mode: str = "mean_tokens",
    dense: int | None = None,
    normalize: bool = False,
    longest: int | None = None,
) -> Path:
    """What sentence-transformers writes beside a transformer."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Dense", "2_Dense")] if dense else []
    modules += [("Normalize", f"{len(modules)}_Normalize")] if normalize else []
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    hidden = 32
    _write(folder / "modules.json", listed)
    _write(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": hidden,
        **{f"pooling_mode_{m}": m == mode for m in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")},
    })  # fmt: skip
    if longest is not None:
        _write(folder / "sentence_bert_config.json", {"max_seq_length": longest})
    if dense:
        _write(folder / "2_Dense" / "config.json", {
            "in_features": hidden,
            "out_features": dense,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        })  # fmt: skip
        torch.manual_seed(7)
        layer = {"linear.weight": torch.randn(dense, hidden), "linear.bias": torch.randn(dense)}
        save_file(layer, folder / "2_Dense" / "model.safetensors")
    return folder


def _save(folder: Path, kind: Any, family: str, seed: int, changes: dict[str, Any]) -> Path:
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**{**_SHAPE, **own, **changes})
    kind.from_config(config).save_pretrained(folder)
    return folder


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
