"""Random XLM-RoBERTas as GGUF files, with a small vocabulary of SentencePiece's unigrams."""

from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import gguf
import numpy as np
from transformers import AutoModel, AutoModelForSequenceClassification

WORDS = ("▁", "▁one", "▁two", "▁small", "▁tree", "s", "es", "ing", "▁grow", "▁rank", "ed", "▁t")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
FIRST_POSITION = 2
"""Positions begin after the padding's."""
_INSIDE = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
}


def vocabulary(size: int) -> list[str]:
    known = list(dict.fromkeys((*SPECIAL, *WORDS, *ascii_lowercase)))
    return [*known, *(f"▁w{n}" for n in range(size - len(known)))]


def write_encoder(
    path: Path, folder: Path, *, pooling: str, labels: list[str] | None = None, types: int = 1
) -> Path:
    """The checkpoint in `folder`, whose pooling is `mean`, `cls` or `rank`, in float32."""
    kind: Any = AutoModelForSequenceClassification if pooling == "rank" else AutoModel
    model = kind.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings - FIRST_POSITION)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    writer.add_token_type_count(types)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if labels is not None:
        writer.add_classifier_output_labels(labels)
    _add_vocabulary(writer, config.vocab_size)
    for name, tensor in _tensors(model):
        rows = tensor.repeat(types, axis=0) if name == "token_types.weight" else tensor
        writer.add_tensor(name, np.ascontiguousarray(rows, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: Any, size: int) -> None:
    texts = vocabulary(size)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0 if text in SPECIAL else -len(texts[0]) - 1.0 for text in texts])
    kinds = {"<unk>": gguf.TokenType.UNKNOWN}
    writer.add_token_types(
        [
            kinds.get(text, gguf.TokenType.CONTROL if text in SPECIAL else gguf.TokenType.NORMAL)
            for text in texts
        ]
    )
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_sep_token_id(2)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(True)


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    for full, tensor in model.state_dict().items():
        stem, _, part = full.removeprefix("roberta.").rpartition(".")
        numbers = tensor.numpy()
        if stem.startswith("encoder.layer."):
            _, _, layer, inside = stem.split(".", 3)
            yield f"blk.{layer}.{_INSIDE[inside]}.{part}", numbers
        elif stem in _OUTSIDE:
            is_position = stem.endswith("position_embeddings")
            yield f"{_OUTSIDE[stem]}.{part}", numbers[FIRST_POSITION:] if is_position else numbers
