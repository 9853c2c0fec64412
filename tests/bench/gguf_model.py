"""The model that the GGUF engine is measured with: random weights, 28 layers of 1,024 numbers, 32,000 tokens."""

import ctypes
import os
from pathlib import Path

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY = 28, 1024, 16, 8, 3072, 32_000
HEAD = 64


def bench_model(folder: Path, kind: str) -> Path:
    """The file of one type (`Q4_K_M`, `Q8_0`), made once: the F16 one takes 800 MB and a minute."""
    path = folder / f"random-28x1024-{kind}.gguf"
    if not path.exists():
        _quantise(_write_f16(folder), path, kind)
    return path


def _write_f16(folder: Path) -> Path:
    path = folder / "random-28x1024-F16.gguf"
    if path.exists():
        return path
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "llama")
    writer.add_name("random")
    writer.add_block_count(LAYERS)
    writer.add_context_length(32_768)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_words(writer)
    for name, shape in _matrices():
        scale = 1.0 if name.startswith("token_embd") else shape[1] ** -0.5
        writer.add_tensor(
            name, (random.standard_normal(shape, np.float32) * scale).astype(np.float16)
        )
    for norm in [
        "output_norm",
        *(f"blk.{n}.{one}" for n in range(LAYERS) for one in ("attn_norm", "ffn_norm")),
    ]:
        writer.add_tensor(f"{norm}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path


def _matrices() -> list[tuple[str, tuple[int, int]]]:
    queries, keys = HEADS * HEAD, KV_HEADS * HEAD
    found = [("token_embd.weight", (VOCABULARY, WIDTH)), ("output.weight", (VOCABULARY, WIDTH))]
    for layer in range(LAYERS):
        found += [
            (f"blk.{layer}.attn_q.weight", (queries, WIDTH)),
            (f"blk.{layer}.attn_k.weight", (keys, WIDTH)),
            (f"blk.{layer}.attn_v.weight", (keys, WIDTH)),
            (f"blk.{layer}.attn_output.weight", (WIDTH, queries)),
            (f"blk.{layer}.ffn_gate.weight", (FEED_FORWARD, WIDTH)),
            (f"blk.{layer}.ffn_up.weight", (FEED_FORWARD, WIDTH)),
            (f"blk.{layer}.ffn_down.weight", (WIDTH, FEED_FORWARD)),
        ]
    return found


def _add_words(writer: gguf.GGUFWriter) -> None:
    """Byte-level BPE whose only merges are those of two letters of the alphabet: a prompt has about a token for two."""
    letters = sorted(ByteLevel.alphabet())
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    merges = [f"{one} {two}" for one in ["\u0120", *alphabet] for two in alphabet]
    words = [*letters, *(merge.replace(" ", "") for merge in merges)]
    words += [f"\u0120word{n}" for n in range(VOCABULARY - len(words) - 1)] + ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([*[gguf.TokenType.NORMAL] * (VOCABULARY - 1), gguf.TokenType.CONTROL])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_bos_token_id(VOCABULARY - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}\n{% endfor %}")


def _quantise(source: Path, target: Path, kind: str) -> None:
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = len(os.sched_getaffinity(0))
    part = target.with_suffix(".part")
    code = llama_cpp.llama_model_quantize(
        os.fsencode(source), os.fsencode(part), ctypes.byref(params)
    )
    assert code == 0, f"llama.cpp could not quantise {source}"
    part.rename(target)
