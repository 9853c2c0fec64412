"""Checkpoints quantised on the spot, as their methods store them."""

import json
import shutil
from collections.abc import Callable
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


def save_gptq(
    folder: Path,
    *,
    bits: int = 4,
    group: int = GROUP,
    is_symmetric: bool = True,
    is_in_order: bool = True,
    form: str = "gptq",
    **changes: Any,
) -> Path:
    """A model as GPTQ keeps it, beside itself with plain weights (`plain_beside`)."""

    def pack(layer: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        order = torch.arange(columns) // group
        if not is_in_order:
            order = order[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        numbers, zeros, scales = _numbers(weight, order, bits, is_symmetric=is_symmetric)
        stored = zeros - 1 if form == "gptq" else zeros
        parts = {
            "qweight": _words(numbers, bits),
            "qzeros": _words(stored.t(), bits).t().contiguous(),
            "scales": scales.half(),
            "g_idx": order.int(),
        }
        plain = ((numbers - zeros[order]) * scales.half().float()[order]).t().contiguous()
        return {f"{layer}.{name}": part for name, part in parts.items()}, plain

    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "checkpoint_format": form,
    }
    return _save_words(folder, pack, settings, **changes)


def save_awq(folder: Path, *, group: int = GROUP, **changes: Any) -> Path:
    """The same as AWQ keeps it."""
    places = [
        0,
        2,
        4,
        6,
        1,
        3,
        5,
        7,
    ]  # which of eight numbers is in each 4 bits of a word, from the lowest on

    def interleaved(numbers: Tensor) -> Tensor:
        eights = numbers.view(len(numbers), -1, 8)[:, :, places]
        return _words(eights.reshape(len(numbers), -1).t(), 4).t().contiguous()

    def pack(layer: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        order = torch.arange(weight.shape[1]) // group
        numbers, zeros, scales = _numbers(weight, order, 4, is_symmetric=False)
        parts = {
            "qweight": interleaved(numbers),
            "qzeros": interleaved(zeros),
            "scales": scales.half(),
        }
        plain = ((numbers - zeros[order]) * scales.half().float()[order]).t().contiguous()
        return {f"{layer}.{name}": part for name, part in parts.items()}, plain

    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    return _save_words(folder, pack, settings, **changes)


def _numbers(
    weight: Tensor, order: Tensor, bits: int, *, is_symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers [K, N] of a `weight` [N, K], zero points and scales [groups, N]; `order` has columns' groups."""
    top, rows = 2**bits - 1, weight.t()
    groups = int(order.max()) + 1
    lows = torch.stack([rows[order == at].amin(0).clamp(max=0) for at in range(groups)])
    highs = torch.stack([rows[order == at].amax(0).clamp(min=0) for at in range(groups)])
    if is_symmetric:
        highs = torch.maximum(highs, -lows)
        lows = -highs
    scales = ((highs - lows) / top).clamp(min=1e-5).half().float()
    half = torch.full_like(scales, 2 ** (bits - 1))
    zeros = half if is_symmetric else (-lows / scales).round().clamp(1, top)
    numbers = (rows / scales[order] + zeros[order]).round().clamp(0, top)
    return numbers.int(), zeros.int(), scales


def _words(numbers: Tensor, bits: int) -> Tensor:
    """[R, N] packed along R, bit by bit, into int32."""
    columns = []
    for column in numbers.t().tolist():
        whole = sum(number << bits * at for at, number in enumerate(column))
        words = range(len(column) * bits // 32)
        columns.append([whole >> 32 * at & 0xFFFFFFFF for at in words])
    return torch.tensor(columns).t().to(torch.uint32).contiguous().view(torch.int32)


def _save_words(
    folder: Path,
    pack: Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]],
    settings: dict[str, Any],
    *,
    family: str = "llama",
    **changes: Any,
) -> Path:
    save_checkpoint(folder, family, **changes)
    shutil.copytree(folder, plain_beside(folder))
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("proj.weight"):
            turned = (lambda one: one.t().contiguous()) if family == "gpt2" else (lambda one: one)
            parts, matrix = pack(name.removesuffix(".weight"), turned(weight))
            plain[name] = turned(matrix)
            tensors |= parts
        else:
            tensors[name] = plain[name] = weight
    save_file(plain, plain_beside(folder) / "model.safetensors", metadata={"format": "pt"})
    return _save(folder, tensors, **settings)


def plain_beside(folder: Path) -> Path:
    """Where the same checkpoint is with plain weights."""
    return folder / "plain"


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
