"""Quantised checkpoints are served as transformers computes them, at the size that was predicted, or refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.parity import in_mixed_steps, reference_of
from tests.unit.engines.quantised_checkpoints import (
    by_hand,
    plain_beside,
    save_awq,
    save_bitsandbytes,
    save_compressed,
    save_fp8,
    save_gptq,
    save_mxfp4,
    save_torchao,
)

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch import load, narrow, quantised
from llmhost.engines.torch.footprint import read_footprint
from llmhost.engines.torch.int4 import Int4Projection, unpack_matrix
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.words import Unpacked, unpack

KINDS: dict[str, Callable[..., Path]] = {
    "W4A16": partial(save_compressed, preset="W4A16"),
    "FP8_DYNAMIC": partial(save_compressed, preset="FP8_DYNAMIC"),
    "fp8": save_fp8,
    "mxfp4": save_mxfp4,
    "bitsandbytes NF4": partial(save_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes int8": partial(save_bitsandbytes, load_in_8bit=True),
    "torchao int8": save_torchao,
    "gptq": save_gptq,
    "gptq, out of order": partial(save_gptq, is_in_order=False, is_symmetric=False),
    "gptq v2, 8 bits": partial(save_gptq, bits=8, form="gptq_v2"),
    "awq": save_awq,
    "awq, experts": partial(save_awq, family="qwen3_moe"),
    "gptq, gpt2": partial(save_gptq, family="gpt2"),
}
"""Those of libraries that are not installed are skipped."""
LARGE: dict[str, Any] = {
    "group": 128,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
}
"""A Llama whose matrices can be in 4 bits, as GPTQ keeps most."""


def expanded(folder: Path) -> Any:
    """The model as transformers gives it with plain weights, or as it is by definition where it gives none."""
    if (plain := plain_beside(folder)).exists():
        return transformers.AutoModelForCausalLM.from_pretrained(
            plain, dtype=torch.float32, attn_implementation="eager"
        )
    if quantised.is_expanded_later(json.loads((folder / "config.json").read_text())):
        return by_hand(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.mark.parametrize(  # the others in `make bars`
    "kind",
    [
        *("W4A16", "fp8", "bitsandbytes NF4", "bitsandbytes int8", "torchao int8"),
        *("gptq, out of order", "gptq v2, 8 bits", "gptq, gpt2", "awq, experts"),
    ],
)
def test_a_quantised_model_answers_as_generate_does(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path)


def check(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    runner = load_runner(tmp_path, block_tokens=16, options=TorchOptions(device="cpu"))

    score = in_mixed_steps(runner, reference_of(expanded(tmp_path)))
    assert (score.wrong, score.ties) == ([], 0)

    predicted = read_footprint(tmp_path, block_tokens=16).weights_bytes
    assert abs(runner.facts.weights_bytes - predicted) < 0.02 * predicted


def spoiled(folder: Path, **settings: Any) -> Path:
    path = save_checkpoint(folder, "llama") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "quark"}, r"method \(quark\) .* serves gptq, awq, compressed-tensors, fp8"),
        ({"quant_method": "awq", "bits": 4, "version": "GEMV"}, "in the form gemv; .* reads gemm"),
        ({"quant_method": "awq", "bits": 8}, "to 8 bits; .* those of 4"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "form marlin; .* gptq_v2"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "form marlin; .* gptq_v2"),
        ({"quant_method": "gptq", "bits": 5}, "to 5 bits; .* those of 2, 3, 4, 8"),
        ({}, r"method \(not named\)"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
            "4-bit weights as bfloat16",
        ),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, "quantised KV"),
    ],
)  # fmt: skip
def test_what_can_not_be_served_is_refused_by_name(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelUnavailable, match=message):
        read_footprint(spoiled(tmp_path, **settings), block_tokens=16)


def test_a_missing_library_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = quantised.Method("no_such_module", "no-such-package")
    monkeypatch.setitem(quantised.METHODS, "fp8", missing)
    with pytest.raises(ModelUnavailable, match="pip install no-such-package"):
        read_footprint(spoiled(tmp_path, quant_method="fp8"), block_tokens=16)


@pytest.mark.parametrize(
    ("method", "name", "kind", "elements"),
    [
        ("bitsandbytes", "q_proj.weight", "U8", 2000),
        ("bitsandbytes", "q_proj.weight", "I8", 1000),
        ("bitsandbytes", "q_proj.weight", "BF16", None),
        ("bitsandbytes", "q_proj.weight.nested_absmax", "F32", 0),
        ("bitsandbytes", "q_proj.weight.quant_state.bitsandbytes__nf4", "U8", 0),
        ("bitsandbytes", "q_proj.SCB", "F32", 0),
        ("bitsandbytes", "q_proj.weight_format", "U8", 0),
        ("torchao", "q_proj._weight_qdata", "I8", 1000),
        ("torchao", "q_proj._weight_qdata", "F8_E4M3", 1000),
        ("torchao", "q_proj._weight_scale", "F32", 0),
        ("torchao", "q_proj._weight_zero_point", "I8", 0),
    ],
)
def test_the_size_is_known_from_what_is_stored(
    method: str, name: str, kind: str, elements: int | None
) -> None:
    config = {"quantization_config": {"quant_method": method}}
    assert quantised.weight_elements(name, kind, 1000, config) == elements


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_words_hold_the_numbers_that_were_put_into_them(
    bits: int, form: str, tmp_path: Path
) -> None:
    save_gptq(tmp_path, bits=bits, form=form, is_symmetric=False, is_in_order=False)
    check_words(tmp_path)


@pytest.mark.parametrize("form", ["GPTQ", None])
def test_a_form_that_is_not_named_as_usual_is_the_first_one(
    form: str | None, tmp_path: Path
) -> None:
    save_gptq(tmp_path, is_symmetric=False)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["checkpoint_format"] = form
    path.write_text(json.dumps(config))
    check_words(tmp_path)


def test_a_zero_point_below_the_lowest_number_of_the_first_form_is_zero(tmp_path: Path) -> None:
    """It is stored less one, in as many bits as numbers have."""
    words, layer = (
        save_gptq(tmp_path, is_symmetric=False) / "model.safetensors",
        "model.layers.0.mlp.up_proj",
    )
    tensors = load_file(words)
    tensors[f"{layer}.qzeros"] = torch.full_like(tensors[f"{layer}.qzeros"], -1)
    save_file(tensors, words, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    unpacked = unpack(tmp_path, config, dtype=torch.float32, device=torch.device("cpu"))
    scales = tensors[f"{layer}.scales"].float()[tensors[f"{layer}.g_idx"].long()]
    numbers = (unpacked.tensors[f"{layer}.weight"].t() / scales).round()
    assert (int(numbers.min()), int(numbers.max())) == (0, 15)


@pytest.mark.parametrize("save", [save_gptq, save_awq])
def test_words_of_another_size_are_refused(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save(tmp_path) / "model.safetensors"
    tensors = {
        name: one.view(torch.int16) if one.dtype is torch.int32 and "g_idx" not in name else one
        for name, one in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"proj\.q(weight|zeros) has words of int16"):
        load_runner(tmp_path, block_tokens=16, options=TorchOptions(device="cpu"))


@pytest.mark.parametrize("bits", [None, "four"])
def test_bits_that_are_no_number_are_refused(bits: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="bits"):
        read_footprint(spoiled(tmp_path, quant_method="gptq", bits=bits), block_tokens=16)


def test_what_is_known_of_words_is_kept_for_narrow_weights_alone(tmp_path: Path) -> None:
    save_gptq(tmp_path, **LARGE)
    footprint, host = read_footprint(tmp_path, block_tokens=16), torch.device("cpu")
    for weights, is_kept in (("auto", False), ("fp8", False), ("int4", True)):
        options = TorchOptions(device="cpu", weights=weights)  # type: ignore[arg-type]
        model = load._load_model(tmp_path, footprint, options, host)
        assert any(one in narrow._KNOWN for one in model.modules()) is is_kept, weights


def test_words_of_awq_hold_the_numbers_that_were_put_into_them(tmp_path: Path) -> None:
    check_words(save_awq(tmp_path))


def check_words(folder: Path) -> Unpacked:
    config = json.loads((folder / "config.json").read_text())
    unpacked = unpack(folder, config, dtype=torch.float32, device=torch.device("cpu"))
    plain = load_file(plain_beside(folder) / "model.safetensors")
    assert unpacked.tensors.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(unpacked.tensors[name], tensor, rtol=0, atol=0)
    return unpacked


@pytest.mark.parametrize(
    "save",
    [save_gptq, partial(save_gptq, is_symmetric=False), save_awq],
    ids=["gptq", "asym", "awq"],
)
def test_four_bits_stay_the_same_numbers_as_narrow_weights(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    """What a GPU is given with `weights = "int4"`."""
    save(tmp_path, **LARGE)
    known = check_words(tmp_path).int4
    assert all((one.zeros is None) is (save is save_gptq) for one in known.values())
    footprint = read_footprint(tmp_path, block_tokens=16)
    host = torch.device("cpu")
    options = TorchOptions(device="cpu", weights="int4")
    model = load._load_model(tmp_path, footprint, options, host)
    plain = {name: one.clone() for name, one in model.state_dict().items()}
    narrow.narrow_weights(model, "int4", host)

    layers = [one for one in model.named_modules() if isinstance(one[1], narrow.NarrowLinear)]
    assert len(layers) == len(known) == 7
    for name, layer in layers:
        part = layer._part
        assert isinstance(part, Int4Projection)
        found = unpack_matrix(part.weight, part.scales, part.zeros)
        torch.testing.assert_close(found, plain[f"{name}.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{"bits": 8}, {"is_in_order": False}, {"group": 64}])
def test_other_words_are_rounded_anew_as_narrow_weights(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    save_gptq(tmp_path, **(LARGE | changes))
    assert not check_words(tmp_path).int4


def test_the_size_of_words_is_known_with_narrow_weights_too(tmp_path: Path) -> None:
    save_gptq(tmp_path, **LARGE)
    plain = read_footprint(plain_beside(tmp_path), block_tokens=16, weights="int4")
    found = read_footprint(tmp_path, block_tokens=16, weights="int4")
    assert replace(found, weights_bytes=plain.weights_bytes) == plain
    assert 0 < found.weights_bytes - plain.weights_bytes < 0.02 * plain.weights_bytes


def test_the_size_is_known_where_some_layers_have_more_bits_than_others(tmp_path: Path) -> None:
    path = save_gptq(tmp_path, **LARGE, bits=8) / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["bits"] = 4  # as of most layers
    path.write_text(json.dumps(config))
    check_words(tmp_path)
    for weights in ("auto", "fp8"):
        plain = read_footprint(plain_beside(tmp_path), block_tokens=16, weights=weights)
        assert read_footprint(tmp_path, block_tokens=16, weights=weights) == plain


def test_a_part_without_its_numbers_is_refused(tmp_path: Path) -> None:
    path = save_gptq(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.qweight"]
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(ModelUnavailable, match=r"up_proj.* belongs to no quantised layer"):
        load_runner(tmp_path, block_tokens=16, options=TorchOptions(device="cpu"))
