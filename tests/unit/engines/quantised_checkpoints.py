"""Checkpoints quantised on the spot, as their methods store them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
    preset_name_to_scheme,
)
from safetensors.torch import load_file, save_file
from tests.unit.engines.checkpoints import save_checkpoint
from torch import Tensor

GROUP = 32
FP8_MAX = 448.0


def save_compressed(folder: Path, preset: str) -> Path:
    """A Llama in one of the presets of compressed-tensors, such as W4A16, each group scaled by its largest number."""
    save_checkpoint(folder, "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if scheme.weights.group_size is not None:
        scheme.weights.group_size = GROUP
    settings = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        quantization_status=QuantizationStatus.FROZEN,
    )
    apply_quantization_config(model, settings)
    top = FP8_MAX if scheme.weights.type == "float" else 2 ** (scheme.weights.num_bits - 1) - 1
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            weight, scale = module.weight.data, module.weight_scale.data
            groups = weight.view(len(weight), scale.shape[-1], -1)
            scale.copy_((groups.abs().amax(-1) / top).view_as(scale))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def save_fp8(folder: Path) -> Path:
    """A Llama with weights in eight-bit floats and a scale for each square block."""
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(save_checkpoint(folder, "llama") / "model.safetensors").items():
        tensors[name] = weight
        if name.endswith("proj.weight"):
            rows, columns = weight.shape
            blocks = weight.view(rows // GROUP, GROUP, columns // GROUP, GROUP)
            scale = blocks.abs().amax((1, 3), keepdim=True) / FP8_MAX
            tensors[name] = (blocks / scale).view(rows, columns).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.squeeze((1, 3)).contiguous()
    settings = {"activation_scheme": "dynamic", "weight_block_size": [GROUP, GROUP]}
    return _save(folder, tensors, quant_method="fp8", **settings)


def save_mxfp4(folder: Path) -> Path:
    """A gpt-oss with random experts in four-bit floats, two in a byte, and an exponent for each 32 of them."""
    numbers = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(save_checkpoint(folder, "gpt_oss") / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = weight
            continue
        experts, inner, outer = weight.shape
        shape = (experts, outer, inner // GROUP)
        blocks = torch.randint(0, 256, (*shape, GROUP // 2), generator=numbers)
        exponents = torch.randint(122, 126, shape, generator=numbers)
        tensors[f"{name}_blocks"] = blocks.to(torch.uint8)
        tensors[f"{name}_scales"] = exponents.to(torch.uint8)
    return _save(folder, tensors, quant_method="mxfp4", modules_to_not_convert=["lm_head"])


def _save(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": settings}
    path.write_text(json.dumps(config))
    return folder


def save_bitsandbytes(folder: Path, **settings: Any) -> Path:
    """A Llama in 4 bits or 8, as bitsandbytes has it. Skips where that is not installed, as below."""
    pytest.importorskip("bitsandbytes")
    return _save_as(folder, transformers.BitsAndBytesConfig(**settings))


def save_torchao(folder: Path) -> Path:
    """A Llama with weights in eight bits and a scale for each row."""
    torchao = pytest.importorskip("torchao.quantization")
    return _save_as(folder, transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig()))


def _save_as(folder: Path, settings: Any) -> Path:
    save_checkpoint(folder, "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32
    )
    model.save_pretrained(folder)
    return folder


def by_hand(folder: Path) -> Any:
    """The model that such a checkpoint is, with weights that were computed from what is stored."""
    stored = load_file(folder / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    weights = {name: _weight(stored, name, one.shape) for name, one in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval()


def _weight(stored: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    module = name.removesuffix(".weight")
    if (rows := stored.get(f"{module}.SCB")) is not None:
        return stored[name] * rows[:, None] / 127
    if (numbers := stored.get(f"{module}._weight_qdata")) is not None:
        return numbers * stored[f"{module}._weight_scale"]
    if (known := stored.get(f"{name}.quant_map")) is not None:
        packed = stored[name].flatten()
        numbers = known[torch.stack([packed >> 4, packed & 15], 1).flatten().long()]
        largest = stored[f"{name}.absmax"][:, None]
        return (numbers.view(len(largest), -1) * largest).view(shape)
    return stored[name]
