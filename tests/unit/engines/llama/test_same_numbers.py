"""What is written computes in llama.cpp what the checkpoint computes, and its text has llama.cpp's ids."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.deploy.sources import BUILT_IN_MODELS

pytest.importorskip("llama_cpp")
from tests.unit.engines.llama.gguf_files import write
from tests.unit.engines.llama.library_calls import ends_of, ids_of, logits_of, opened
from tests.unit.engines.llama.test_tokenizer import SP

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.export import export
from llmhost.engines.llama.header import read_header
from llmhost.engines.llama.pre_tokenizers import RULES, SAMPLE
from llmhost.engines.llama.tokenizer import load_gguf_tokenizer
from llmhost.engines.llama.vocabulary_out import vocabulary

TINY = BUILT_IN_MODELS / "tiny"
SMALL: dict[str, Any] = {
    "vocab_size": 2060,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 2041,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases and wide heads": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2, yarn, attention factor": (
        "qwen2",
        {"rope_parameters": {**YARN, "attention_factor": 0.9}},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


OFTEN = ("llama with biases and wide heads", "llama 3.1", "mistral", "qwen2, yarn", "qwen3")
"""Forms that every run of the tests compares; the bars compare all."""


def checkpoint(folder: Path, kind: str, changes: dict[str, Any]) -> Any:
    """A random model with the tiny model's tokenizer."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    return model


@pytest.mark.parametrize("form", OFTEN)
def test_logits_are_those_of_the_checkpoint(tmp_path: Path, form: str) -> None:
    compare(tmp_path, form)


def compare(tmp_path: Path, form: str) -> float:
    """The largest difference of a logit, in the size of the largest logit."""
    model = checkpoint(tmp_path / "model", *FORMS[form])
    out = export(tmp_path / "model", tmp_path / "m.gguf", "f32", lambda *step: None)
    tokens = np.random.default_rng(1).integers(0, 2048, 100).tolist()

    found = logits_of(out.path, tokens)

    with torch.inference_mode():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    difference = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert difference < 1e-5
    return float(difference)


def test_fewer_bits_are_llama_cpps_own(tmp_path: Path) -> None:
    kind = "q4_k_m"
    seen: list[tuple[str, int, int]] = []

    done = export(TINY, tmp_path / "m.gguf", kind, lambda *step: seen.append(step))

    header = read_header(done.path)
    assert {tensor.kind for tensor in header.tensors} >= {"F32", kind.upper()[:4]}
    assert ("quantising", done.tensors, done.tensors) in seen
    assert list(tmp_path.iterdir()) == [done.path]
    text = load_gguf_tokenizer(header).encode("What is llmhost? " * 8)
    exact = export(TINY, tmp_path / "exact.gguf", "f32", lambda *step: None)
    same = logits_of(done.path, text).argmax(1) == logits_of(exact.path, text).argmax(1)
    assert same.mean() >= 0.6


def byte_vocabulary(pre: str) -> dict[str, Any]:
    """The tiny model's merges under another way of cutting."""
    return {**dict(vocabulary(TINY, 2048)), "tokenizer.ggml.pre": pre}


@pytest.mark.parametrize("name", [rule.names[0] for rule in RULES])
def test_every_way_of_cutting_gives_llama_cpps_ids(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "v.gguf", {"general.architecture": "llama"} | byte_vocabulary(name))
    made = load_gguf_tokenizer(read_header(path))

    with opened(path, vocab_only=True) as (library, model):
        for text in (SAMPLE, "<|im_start|>user\nhi <|im_end|>", "a  b\n\n c\t", ""):
            assert made.encode(text) == ids_of(library, model, text)
        assert made.eos_ids == ends_of(library, model)


@pytest.mark.parametrize("name", ["kimi-k2", "superbpe", "afmoe", "youtu"])
def test_a_way_of_cutting_that_is_not_known_here_is_left_to_llama_cpp(
    tmp_path: Path, name: str
) -> None:
    path = write(
        tmp_path / "v.gguf",
        {
            **{"general.architecture": "llama", **byte_vocabulary(name)},
            "tokenizer.ggml.bos_token_id": 2040,
            "tokenizer.ggml.add_bos_token": True,
        },
    )
    made = load_gguf_tokenizer(read_header(path))
    text = "<|im_start|>12345 日本語 it's\n\n <tool_call>"

    with opened(path, vocab_only=True) as (library, model):
        assert made.encode(text) == ids_of(library, model, text)
        assert made.encode(text, add_special_tokens=False) == made.encode(text)[1:]
    assert made.decode(made.encode(text), skip_special_tokens=False).endswith(text)
    assert made.encode_whole("hello there", most_tokens=3)[0] == made.encode("hello there")[:3]
    assert len(made.encode_whole("hello there", "again", most_tokens=6)[0]) == 6
    watch = made.watch()
    said = "".join(watch.push(token) for token in made.encode("é 日"))
    assert said + watch.flush() == "é 日"


def test_what_llama_cpp_does_not_know_either_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v.gguf", {"general.architecture": "llama", **byte_vocabulary("new")})

    with pytest.raises(ModelUnavailable, match="unknown pre-tokenizer type: 'new'"):
        load_gguf_tokenizer(read_header(path))


def test_any_text_has_llama_cpps_ids(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    bytes_path = write(
        folder / "v.gguf", {"general.architecture": "llama"} | byte_vocabulary("qwen2")
    )
    pieces = {f"tokenizer.ggml.{key}": value for key, value in SP.items()}
    sp_path = write(folder / "s.gguf", {"general.architecture": "llama"} | pieces)
    made = [load_gguf_tokenizer(read_header(path)) for path in (bytes_path, sp_path)]

    with (
        opened(bytes_path, vocab_only=True) as (library, by_bytes),
        opened(sp_path, vocab_only=True) as (_, by_pieces),
    ):

        @settings(max_examples=60)
        @given(st.text(max_size=30))
        def same(text: str) -> None:
            assert made[0].encode(text) == ids_of(library, by_bytes, text)

        @settings(max_examples=60)
        @given(st.text("abc é", max_size=12))
        def same_pieces(text: str) -> None:
            assert made[1].encode(text) == ids_of(library, by_pieces, text)

        same()
        same_pieces()


def test_the_template_and_its_name_are_in_the_file(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", "qwen3", {"head_dim": 32})
    out = export(tmp_path / "model", tmp_path / "m.gguf", "bf16", lambda *step: None)
    header = read_header(out.path)

    assert header.metadata["tokenizer.chat_template"] == (TINY / "chat_template.jinja").read_text()
    assert header.metadata["general.name"] == "model"
