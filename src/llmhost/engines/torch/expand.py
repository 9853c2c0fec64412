"""Weights that transformers reads only as they are quantised, made plain once they are there.

Loaded so, a model would compute with the library's own layers, which quantise what goes into them too or take another
routine for each number of rows: answers would depend on the last bit of it, and on the company.
"""

from typing import Any

import torch
from torch import nn

_BESIDE = ("weight_", "input_", "output_")
_USED_UP = ("_g_idx", "_global_scale", "_scale", "_shape", "_zero_point")
"""Of compressed-tensors, beside a weight that is plain."""


def expand(model: Any, dtype: torch.dtype) -> Any:
    """`model` with plain weights of `dtype` alone. Raises ValueError where some can't be had so."""
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = model.dequantize()  # bitsandbytes has layers of its own
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if type(weight) is not nn.Parameter:  # torchao's are tensors of their own kind
                plain = weight.dequantize().to(dtype)
                setattr(module, name, nn.Parameter(plain, requires_grad=False))
    odd = [name for name, weight in model.named_parameters() if not _is_plain(weight)]
    if odd:
        raise ValueError(f"{len(odd)} of its quantised weights have no plain form, {odd[0]} first")
    return model.to(dtype)


def drop_used_up(model: nn.Module) -> None:
    """Scales and their like that some versions of transformers leave beside weights that they have made plain."""
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        for name in [*module._parameters, *module._buffers]:
            if name.startswith(_BESIDE) and name.endswith(_USED_UP):
                delattr(module, name)


def _is_plain(weight: nn.Parameter) -> bool:
    return type(weight.data) is torch.Tensor and weight.dtype in (
        *(torch.float32, torch.bfloat16, torch.float16),
    )
