"""Random GGUF models, written by the `gguf` package as a converter would."""

from pathlib import Path

import gguf
import numpy as np


def write_random_llama(
    path: Path,
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 96,
    vocabulary: int = 160,
    context: int = 4096,
    seed: int = 0,
    pooling: int | None = None,
    sections: list[int] | None = None,
    architecture: str = "llama",
    rotated: int | None = None,
) -> Path:
    """A Llama in float32 without a tokenizer. Its answers vary: the output layer is far from flat.

    With `sections` a model of texts and images, whose positions have several parts. `rotated` numbers of a head turn,
    all of them where it isn't said.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture if sections is None else "qwen2vl")
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(rotated or width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    if sections is not None:
        writer.add_rope_dimension_sections(sections)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    def add(name: str, *shape: int, scale: float) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * scale).astype(np.float32))

    kv_width = width // heads * kv_heads
    add("token_embd.weight", vocabulary, width, scale=1.0)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    add("output.weight", vocabulary, width, scale=4 * width**-0.5)
    for layer in range(layers):
        name = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{name}.{norm}.weight", np.ones(width, np.float32))
        for part, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", kv_width, width),
            ("attn_v", kv_width, width),
            ("attn_output", width, width),
            ("ffn_gate", feed_forward, width),
            ("ffn_up", feed_forward, width),
            ("ffn_down", width, feed_forward),
        ):
            add(f"{name}.{part}.weight", rows, columns, scale=1.5 * columns**-0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
