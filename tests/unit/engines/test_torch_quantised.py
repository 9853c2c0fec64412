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
from tests.unit.engines.quantised_checkpoints import save_compressed, save_fp8, save_mxfp4

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
}


def expanded(folder: Path) -> Any:
    """The model as transformers gives it with plain weights."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.mark.parametrize("kind", ["W4A16", "fp8"])  # the others in `make bars`
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
