"""Checkpoints written as GGUF files: what is in them, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.sources import BUILT_IN_MODELS
from llmhost.engines.llama import export as module
from llmhost.engines.llama.architectures import architecture_of
from llmhost.engines.llama.builtin import find_built_in, make_built_in
from llmhost.engines.llama.export import export
from llmhost.engines.llama.header import Header, TensorInfo, read_header

pytest.importorskip("gguf")
TINY = BUILT_IN_MODELS / "tiny"
CONFIG: dict[str, Any] = json.loads((TINY / "config.json").read_text())


def silent(what: str, done: int, total: int) -> None:
    pass


def content(header: Header, name: str) -> np.ndarray:
    tensor = header.tensor(name)
    assert isinstance(tensor, TensorInfo)
    types = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    raw = np.fromfile(
        header.path, types[tensor.kind], count=int(np.prod(tensor.shape)), offset=tensor.offset
    )
    return raw.reshape(tensor.shape[::-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny model's folder, to be changed."""
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def config(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def refusal(folder: Path, out: Path, kind: str = "f32") -> str:
    with pytest.raises(ModelUnavailable) as refused:
        export(folder, out, kind, silent)
    assert not list(out.parent.glob("*.gguf")) and not list(out.parent.glob("*.part"))
    return refused.value.message


def test_every_number_is_in_the_file(tmp_path: Path) -> None:
    done = export(TINY, tmp_path / "out.gguf", "f32", silent)
    header, stored = read_header(done.path), load_file(TINY / "model.safetensors")

    assert done.size_bytes == done.path.stat().st_size
    assert done.tensors == len(header.tensors) == len(stored)
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    }.items():
        assert np.array_equal(content(header, theirs), stored[ours].float().numpy())


def test_queries_and_keys_pair_neighbours(tmp_path: Path) -> None:
    header = read_header(export(TINY, tmp_path / "out.gguf", "f32", silent).path)
    stored = load_file(TINY / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]

    written = content(header, "blk.0.attn_k.weight").reshape(2, 64, 256)
    halves = stored.float().numpy().reshape(2, 2, 32, 256)
    assert np.array_equal(written[:, 0::2], halves[:, 0])
    assert np.array_equal(written[:, 1::2], halves[:, 1])


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_sixteen_bits_are_for_matrices_and_vectors_stay_exact(tmp_path: Path, kind: str) -> None:
    header = read_header(export(TINY, tmp_path / "out.gguf", kind, silent).path)
    stored = load_file(TINY / "model.safetensors")["model.embed_tokens.weight"]

    assert {t.kind for t in header.tensors if len(t.shape) == 1} == {"F32"}
    assert {t.kind for t in header.tensors if len(t.shape) == 2} == {kind.upper()}
    written = content(header, "token_embd.weight")
    wanted = stored.view(torch.uint16) if kind == "bf16" else stored.half()
    assert np.array_equal(written, wanted.numpy())


def test_float32_is_rounded_to_the_nearest_bfloat16(tmp_path: Path) -> None:
    exact = torch.randn(1000).mul(torch.logspace(-20, 20, 1000))

    rounded = module._converted(exact.numpy(), "F32", "BF16")

    assert np.array_equal(rounded, exact.bfloat16().view(torch.uint16).numpy())


def test_progress_counts_up_to_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export(TINY, tmp_path / "out.gguf", "bf16", lambda *step: seen.append(step))

    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1][0] == "writing" and seen[-1][1] == seen[-1][2]


def test_the_built_in_model_is_made_once_and_older_ones_are_forgotten(tmp_path: Path) -> None:
    assert find_built_in(TINY, tmp_path) is None
    (tmp_path / "built-in").mkdir()
    old = tmp_path / "built-in/tiny-0123456789ab.gguf"
    other = tmp_path / "built-in/tiny-draft-0123456789ab.gguf"
    old.write_bytes(b"")
    other.write_bytes(b"")

    path = make_built_in(TINY, tmp_path)

    assert find_built_in(TINY, tmp_path) == path
    assert not old.exists() and other.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GPTJForCausalLM"]}, "Checkpoints of GPTJForCausalLM can't be written"),
        ({"quantization_config": {"quant_method": "awq"}}, "is quantised (awq)"),
        ({"hidden_act": "gelu"}, "MLP has 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rotary embedding by 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "KeyError('factor')"),
        ({"num_hidden_layers": 5}, "lacks 9 tensors of its model, blk.4.attn_norm.weight first"),
        ({"tie_word_embeddings": False}, "output.weight first"),
        ({"vocab_size": 2000}, "has 2048 tokens, and its model 2000 ids"),
    ],
)
def test_a_checkpoint_that_can_not_be_written_is_refused_by_name(
    folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refusal(config(folder, **changes), tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda at: (at / "config.json").unlink(), "has no config.json"),
        (lambda at: (at / "config.json").write_text("["), "is not a JSON object"),
        (lambda at: (at / "model.safetensors").unlink(), "has no weights"),
        (lambda at: (at / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (
            lambda at: save_file({"model.odd": torch.zeros(2)}, at / "model.safetensors"),
            "a tensor 'model.odd'",
        ),
        (
            lambda at: save_file(
                {"model.norm.weight": torch.zeros(2, dtype=torch.int8)}, at / "model.safetensors"
            ),
            "of type I8",
        ),
    ],
)
def test_a_broken_folder_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, broken: Callable[[Path], object], said: str
) -> None:
    broken(folder)

    assert said in refusal(folder, tmp_path / "out.gguf")


def test_weights_beyond_half_precision_are_not_made_infinite(folder: Path, tmp_path: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    stored["model.embed_tokens.weight"][0, 0] = 1e6
    save_file(stored, folder / "model.safetensors")

    assert "choose bf16 or f32" in refusal(folder, tmp_path / "out.gguf", "f16")


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "Free some, or choose another place" in refusal(TINY, tmp_path / "out.gguf")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(module, "_write", full)
    assert "The disk is full" in refusal(TINY, tmp_path / "out.gguf")


def test_a_window_beyond_which_llama_cpp_sees_too_much_is_the_context() -> None:
    mistral = {**CONFIG, "architectures": ["MistralForCausalLM"], "sliding_window": 512}
    assert architecture_of(mistral).context_length == 512

    qwen = {**CONFIG, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 512}
    assert architecture_of(qwen | {"use_sliding_window": False}).context_length == 2048
