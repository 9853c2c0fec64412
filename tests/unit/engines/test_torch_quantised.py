"""Quantised checkpoints are served as transformers computes them, at the size that was predicted, or refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.parity import in_mixed_steps, reference_of
from tests.unit.engines.quantised_checkpoints import (
    by_hand,
    save_bitsandbytes,
    save_compressed,
    save_fp8,
    save_mxfp4,
    save_torchao,
)

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch import quantised
from llmhost.engines.torch.footprint import read_footprint
from llmhost.engines.torch.load import load_runner

KINDS: dict[str, Callable[..., Path]] = {
    "W4A16": partial(save_compressed, preset="W4A16"),
    "FP8_DYNAMIC": partial(save_compressed, preset="FP8_DYNAMIC"),
    "fp8": save_fp8,
    "mxfp4": save_mxfp4,
    "bitsandbytes NF4": partial(save_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes int8": partial(save_bitsandbytes, load_in_8bit=True),
    "torchao int8": save_torchao,
}
"""Those of libraries that are not installed are skipped."""


def expanded(folder: Path) -> Any:
    """The model as transformers gives it with plain weights, or as it is by definition where it gives none."""
    if quantised.is_expanded_later(json.loads((folder / "config.json").read_text())):
        return by_hand(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.mark.parametrize(  # the others in `make bars`
    "kind", ["W4A16", "fp8", "bitsandbytes NF4", "bitsandbytes int8", "torchao int8"]
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
        ({"quant_method": "awq"}, r"method \(awq\) .* serves compressed-tensors, fp8, mxfp4"),
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
