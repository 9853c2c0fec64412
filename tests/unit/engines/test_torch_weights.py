"""Checkpoints that are read straight to their device, on the CPU here: they are what transformers makes of them."""

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
from tests.unit.engines.toy_scheduler import ToyScheduler

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch import load as loading
from llmhost.engines.torch.blank import CantBeBlank, blank_model
from llmhost.engines.torch.merged import merge
from llmhost.engines.torch.weights import NotOneToOne, read_model

Checkpoint = Callable[[str], Path]
CPU = torch.device("cpu")
FAMILIES = ["llama", "qwen3_tied", "gemma2", "gemma3_text", "falcon_new", "phi3", "gpt2", "qwen2"]


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    return read_model(folder, config, dtype=dtype, attention="eager", device=CPU)


def by_transformers(folder: Path, dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_and_buffer_is_what_transformers_has(
    family: str, dtype: torch.dtype, checkpoint: Checkpoint
):
    ours, theirs = read(checkpoint(family), dtype), by_transformers(checkpoint(family), dtype)
    for kind in ("named_parameters", "named_buffers"):
        mine, right = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert mine.keys() == right.keys()
        assert all(mine[name].equal(right[name]) for name in right)
        assert all(mine[name].dtype == right[name].dtype for name in right)
    ids = torch.tensor([[1, 9, 200]])
    assert ours(input_ids=ids).logits.equal(theirs(input_ids=ids).logits)


def test_tied_embeddings_are_one_tensor(checkpoint: Checkpoint):
    model = read(checkpoint("qwen3_tied"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_several_files_are_read_as_one(checkpoint: Checkpoint, tmp_path: Path):
    whole = by_transformers(checkpoint("llama"), torch.float32)
    whole.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    model = read(tmp_path)

    right = whole.state_dict()
    assert all(weight.equal(right[name]) for name, weight in model.state_dict().items())


def test_layers_that_are_fed_the_same_lie_side_by_side(checkpoint: Checkpoint):
    layer = read(checkpoint("llama")).model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    for parts in (
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [mlp.gate_proj, mlp.up_proj],
    ):
        place = parts[0].weight.data_ptr()
        whole, _ = merge(parts)
        assert whole.data_ptr() == place
        assert whole.equal(torch.cat([part.weight for part in parts]))


def test_experts_that_are_stacked_while_they_are_read_are_left_to_transformers(
    checkpoint: Checkpoint,
):
    with pytest.raises(NotOneToOne, match="rearranged"):
        read(checkpoint("qwen3_moe"))


def test_modules_that_stay_in_float32_are_left_to_transformers(checkpoint: Checkpoint):
    read(checkpoint("gpt_oss"), torch.float32)
    with pytest.raises(NotOneToOne, match="stay in float32"):
        read(checkpoint("gpt_oss"), torch.bfloat16)


def test_quantised_weights_are_left_to_transformers(checkpoint: Checkpoint, tmp_path: Path):
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotOneToOne, match="quantised"):
        read(folder)


def spoiled(
    checkpoint: Checkpoint, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> Path:
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.pop(NORM), f"0 tensors for {NORM}"),
        (lambda tensors: tensors.update({NORM: torch.ones(65)}), r"stored as F32 \[65\]"),
        (lambda tensors: tensors.update({NORM: torch.ones(64).int()}), "stored as I32"),
    ],
)
def test_a_checkpoint_that_does_not_match_is_left_to_transformers(
    change: Callable[[dict[str, Any]], None], why: str, checkpoint: Checkpoint, tmp_path: Path
):
    with pytest.raises(NotOneToOne, match=why):
        read(spoiled(checkpoint, tmp_path, change))


def test_tensors_that_the_model_has_no_use_for_are_not_read(checkpoint: Checkpoint, tmp_path: Path):
    extra = {"model.rotary_emb.inv_freq": torch.zeros(8), "a_vision_tower.weight": torch.ones(9)}
    folder = spoiled(checkpoint, tmp_path, lambda tensors: tensors.update(extra))
    right = by_transformers(checkpoint("llama"), torch.float32)
    assert read(folder).model.rotary_emb.inv_freq.equal(right.model.rotary_emb.inv_freq)


def test_a_buffer_that_nobody_fills_is_noticed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    config = transformers.AutoConfig.from_pretrained(checkpoint("llama"))
    monkeypatch.setattr(transformers.PreTrainedModel, "_init_weights", lambda self, module: None)
    with pytest.raises(CantBeBlank, match="inv_freq to its constructor"):
        blank_model(config, dtype=torch.float32, attention="eager")


class TestWhereItIsUsed:
    """`load_runner`, as on a device that weights are read to directly."""

    @pytest.fixture(autouse=True)
    def direct(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loading, "DIRECT_DEVICES", ("cpu",))

    @pytest.mark.parametrize("family", ["llama", "falcon_new", "qwen3_moe"])
    def test_a_model_answers_as_one_that_transformers_read(
        self, family: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ):
        options = TorchOptions(device="cpu")
        folder = checkpoint(family)
        runner = loading.load_runner(folder, block_tokens=16, options=options)
        monkeypatch.setattr(loading, "DIRECT_DEVICES", ())
        other = loading.load_runner(folder, block_tokens=16, options=options)
        assert ToyScheduler(runner).answer(*ask()) == ToyScheduler(other).answer(*ask())
        assert runner.facts.weights_bytes == other.facts.weights_bytes

    def test_a_checkpoint_that_lacks_a_tensor_is_refused_as_ever(
        self, checkpoint: Checkpoint, tmp_path: Path
    ):
        folder = spoiled(checkpoint, tmp_path, lambda tensors: tensors.pop(NORM))
        with pytest.raises(ModelUnavailable, match=f"lack 1 tensors .* {NORM} first"):
            loading.load_runner(folder, block_tokens=16, options=TorchOptions(device="cpu"))

    @pytest.mark.parametrize("has_room", [True, False])
    def test_narrow_weights_are_the_same_whichever_way_the_whole_ones_came(
        self, has_room: bool, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ):
        ways: list[str] = []

        def noted(name: str) -> Any:
            real = getattr(loading, name)

            def call(*args: Any) -> Any:
                ways.append(name)
                return real(*args)

            return call

        for name in ("_read_directly", "_read_by_transformers"):
            monkeypatch.setattr(loading, name, noted(name))
        monkeypatch.setattr(loading, "_has_room_for_both", lambda *_: has_room)
        options = TorchOptions(device="cpu", weights="fp8")
        runner = loading.load_runner(checkpoint("llama"), block_tokens=16, options=options)

        assert ways == ["_read_directly" if has_room else "_read_by_transformers"]
        layer = runner._model.model.layers[0].self_attn
        exact = load_file(checkpoint("llama") / "model.safetensors")
        right = exact["model.layers.0.self_attn.q_proj.weight"]
        x = torch.ones(1, right.shape[1])
        off = (layer.q_proj(x) - x @ right.t()).norm() / (x @ right.t()).norm()
        assert off < 0.1
