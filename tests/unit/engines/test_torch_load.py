import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.unit.engines.runner_contract import ask
from tests.unit.engines.toy_scheduler import GREEDY, ToyScheduler

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import DoesNotFit, ModelUnavailable
from llmhost.core.step import Row
from llmhost.engines.torch.load import load_runner, pick_device
from llmhost.engines.torch.runner import TorchRunner

Checkpoint = Callable[[str], Path]


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be spoiled."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "copy"))


def load(folder: Path, **options: Any) -> TorchRunner:
    return load_runner(folder, block_tokens=16, options=TorchOptions(**options))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_it_computes_in_the_type_that_was_asked_for(folder: Path, dtype: str) -> None:
    runner = load(folder, dtype=dtype, device="cpu")
    item = 4 if dtype in ("auto", "float32") else 2
    assert runner.facts.kv_block_bytes == 2 * 3 * 2 * 16 * 16 * item
    assert runner.facts.device == "cpu:0"
    runner.set_kv_blocks(2)
    assert runner.run([Row(0, [1, 2, 3], 0, [1], GREEDY, 0, True)])[0] is not None


def test_the_number_of_threads_is_set(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        load(folder, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_sharded_checkpoint_is_the_same_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    answers = [
        ToyScheduler(load(where)).answer(*ask()) for where in (tmp_path, checkpoint("llama"))
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("option", ["tpu", "meta", "cuda:9", "nonsense"])
def test_a_device_that_is_not_there_is_refused(option: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"options\.device is"):
        pick_device(option)


def test_an_unknown_model_type_is_refused(folder: Path) -> None:
    change_config(folder, model_type="brandnew", architectures=["BrandNewForCausalLM"])
    with pytest.raises(ModelUnavailable, match="brandnew"):
        load(folder)


def test_a_type_without_a_language_model_is_refused(folder: Path) -> None:
    change_config(folder, model_type="clip")
    with pytest.raises(ModelUnavailable, match="no language model for the model type 'clip'"):
        load(folder)


def test_an_architecture_with_attention_of_its_own_is_refused(folder: Path) -> None:
    change_config(folder, model_type="gptj", architectures=["GPTJForCausalLM"])
    with pytest.raises(ModelUnavailable, match="GPTJForCausalLM computes attention in its own"):
        load(folder)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"lack 1 tensors .* model\.layers\.1\.mlp\.up_proj"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change_config(folder, intermediate_size=96)
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        load(folder)


def test_a_config_that_lies_about_the_cache_is_refused(folder: Path) -> None:
    """Keys of another size than the lease was computed for."""
    change_config(folder, head_dim=None, num_key_value_heads=2, num_attention_heads=4)
    load(folder)  # the default, spelled out otherwise
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            tensors[name] = torch.cat([tensor, tensor])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        load(folder)


def test_attention_that_ours_does_not_have_is_found_by_the_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    eager = modeling_llama.eager_attention_forward

    def sharper(module: Any, query: Any, *rest: Any, **kwargs: Any) -> Any:
        return eager(module, query * 1.5, *rest, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sharper)
    with pytest.raises(ModelUnavailable, match="gives other logits"):
        load(folder)


def test_weights_that_the_device_can_not_hold_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(DoesNotFit, match=r"need 56\d\.\d KiB on cpu"):
        load(folder, device="cpu")
