import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch.footprint import UNWRITTEN, Footprint, read_footprint
from llmhost.engines.torch.runner import TorchRunner

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}
TENSORS: dict[str, tuple[str, list[int]]] = {"w": ("BF16", [10, 20]), "ids": ("I64", [5])}


def write_weights(path: Path, tensors: dict[str, tuple[str, list[int]]] = TENSORS) -> None:
    """A safetensors file by hand: header length, header, zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape) in tensors.items():
        count = {"BF16": 2, "F32": 4, "I64": 8}[kind]
        for size in shape:
            count *= size
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path)
    write_weights(tmp_path / "model.safetensors")
    return tmp_path


def write_config(folder: Path, **changes: Any) -> None:
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def test_bytes_are_those_of_the_computation_type(folder: Path) -> None:
    on_cpu = read_footprint(folder, block_tokens=16)
    assert (on_cpu.dtype, on_cpu.weights_bytes) == ("float32", 200 * 4 + 40)
    assert on_cpu.kv_block_bytes == 2 * 3 * 2 * 16 * 16 * 4
    on_gpu = read_footprint(folder, block_tokens=16, on_gpu=True)
    assert (on_gpu.dtype, on_gpu.weights_bytes) == ("bfloat16", 200 * 2 + 40)
    assert on_gpu.kv_block_bytes * 2 == on_cpu.kv_block_bytes
    asked = read_footprint(folder, block_tokens=8, dtype="float16")
    assert (asked.dtype, asked.weights_bytes) == ("float16", 200 * 2 + 40)


def test_a_checkpoint_that_names_no_type_has_the_one_of_its_tensors(folder: Path) -> None:
    write_config(folder, torch_dtype=None)
    assert read_footprint(folder, block_tokens=16, on_gpu=True).dtype == "bfloat16"


def test_what_it_can_do_is_read_from_the_config(folder: Path) -> None:
    footprint = read_footprint(folder, block_tokens=16)
    assert footprint.architecture == "LlamaForCausalLM"
    assert footprint.max_sequence_length == 512
    assert footprint.vocab_size == 100
    assert footprint.parameters == 205


def test_narrow_weights_and_blocks_are_counted_as_such(folder: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": ("BF16", [32, 256]),
        "model.layers.0.self_attn.q_proj.bias": ("BF16", [32]),
        "model.embed_tokens.weight": ("BF16", [100, 64]),
    }
    write_weights(folder / "model.safetensors", tensors)

    def read(**options: str) -> Footprint:
        return read_footprint(folder, block_tokens=16, on_gpu=True, **options)

    rest = 2 * 32 + 2 * 100 * 64
    assert read().weights_bytes == rest + 2 * 32 * 256
    assert read(weights="fp8").weights_bytes == rest + 32 * 256 + 4 * 32
    assert read(weights="int4").weights_bytes == rest + 32 * 128 + 2 * 32 * 2
    assert read(kv_dtype="fp8").kv_block_bytes * 2 == read().kv_block_bytes


def test_shards_are_added_up(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_weights(folder / "a.safetensors", {"x": ("F32", [7])})
    write_weights(folder / "b.safetensors", {"y": ("F32", [9])})
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_footprint(folder, block_tokens=16).weights_bytes == 16 * 4


def test_a_tied_output_layer_is_counted_once(folder: Path) -> None:
    write_config(folder, tie_word_embeddings=True)
    write_weights(
        folder / "model.safetensors",
        {"model.embed_tokens.weight": ("F32", [10]), "lm_head.weight": ("F32", [10])},
    )
    assert read_footprint(folder, block_tokens=16).parameters == 10


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_scaling_that_looks_at_the_whole_batch_is_kept_inside_its_first_window(
    folder: Path, kind: str
) -> None:
    rope = {"rope_type": kind, "original_max_position_embeddings": 128}
    write_config(folder, rope_parameters=rope)
    assert read_footprint(folder, block_tokens=16).max_sequence_length == 128


def test_such_scaling_in_some_layers_is_enough(folder: Path) -> None:
    scaled = {"rope_type": "dynamic", "original_max_position_embeddings": 128}
    usual = {"rope_type": "default"}
    rope = {"full_attention": scaled, "sliding_attention": usual}
    write_config(folder, rope_parameters=rope)
    assert read_footprint(folder, block_tokens=16).max_sequence_length == 128


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "gemma3", "falcon_new"])
def test_a_loaded_model_is_as_large_as_was_said(
    family: str, checkpoint: Callable[[str], Path], load: Callable[..., TorchRunner]
) -> None:
    footprint = read_footprint(checkpoint(family), block_tokens=16)
    facts = load(family).facts
    assert footprint.kv_block_bytes == facts.kv_block_bytes
    assert footprint.vocab_size == facts.vocab_size
    assert footprint.max_sequence_length == facts.max_sequence_length
    assert 0 <= facts.weights_bytes - footprint.weights_bytes < 0.01 * facts.weights_bytes


def test_a_model_that_sees_is_sized_by_its_part_for_text(folder: Path) -> None:
    part = {"model_type": "gemma3_text", "hidden_size": 32, "num_hidden_layers": 5}
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": part})
    )
    footprint = read_footprint(folder, block_tokens=16)
    assert footprint.architecture == "Gemma3ForConditionalGeneration"
    assert (footprint.layers, footprint.kv_heads, footprint.head_dim) == (5, 4, 256)
    assert footprint.vocab_size == 262208


def test_settings_that_checkpoints_leave_out_are_those_of_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for kind, settings in UNWRITTEN.items():
        usual = CONFIG_MAPPING[kind]()
        assert {name: getattr(usual, name) for name in settings} == settings


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; import llmhost.engines.torch.footprint;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no config\.json"):
        read_footprint(tmp_path, block_tokens=16)
    with pytest.raises(ModelUnavailable, match="no such folder"):
        read_footprint(tmp_path / "nowhere", block_tokens=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "names no architecture"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, which does not generate text"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "from text alone"),
        ({"alibi": True}, "ALiBi"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "type linear_attention"),
        ({"max_position_embeddings": None}, "no positive 'max_position_embeddings'"),
        ({"num_attention_heads": 0}, "no positive 'num_attention_heads'"),
    ],
)
def test_what_the_config_rules_out_is_refused_by_name(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    write_config(folder, **changes)
    with pytest.raises(ModelUnavailable, match=message):
        read_footprint(folder, block_tokens=16)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        read_footprint(folder, block_tokens=16)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="has no weights"):
        read_footprint(folder, block_tokens=16)


def test_pickle_weights_are_refused_with_the_reason(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="can run any code"):
        read_footprint(folder, block_tokens=16)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match=r"lacks 1 of 2 weight files .* b\.safetensors"):
        read_footprint(folder, block_tokens=16)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_index_is_refused(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelUnavailable, match="not a weights index"):
        read_footprint(folder, block_tokens=16)


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_file_that_was_cut_off_is_refused(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelUnavailable, match="not a whole safetensors file"):
        read_footprint(folder, block_tokens=16)


@pytest.mark.parametrize(
    "header", [b"[]      ", b"{nonsense", b'{"w": {"dtype": "F32"}}', b'{"w": 3}']
)
def test_a_header_that_is_none_is_refused(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelUnavailable, match="not a whole safetensors file"):
        read_footprint(folder, block_tokens=16)


def test_a_file_with_no_tensors_is_refused(folder: Path) -> None:
    write_weights(folder / "model.safetensors", {})
    with pytest.raises(ModelUnavailable, match="no tensors"):
        read_footprint(folder, block_tokens=16)


def test_a_step_is_predicted_for_its_tokens_and_its_rows(folder: Path) -> None:
    small = read_footprint(folder, block_tokens=16, dtype="bfloat16")
    large = read_footprint(folder, block_tokens=16, dtype="float32")
    assert large.step_token_bytes == 2 * small.step_token_bytes > 0
    assert small.step_row_bytes == small.vocab_size * (2 + 12)
