"""A model of the right form without weights: parameters on the meta device, buffers with what they must hold.

transformers computes buffers that no file has, such as rotary frequencies, in `_init_weights`. Whether it did is
checked here: a buffer that nobody filled makes the whole model unusable this way.
"""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

_UNFILLED_INT = -(2**7)
"""In a buffer of whole numbers: no index, count or position is negative."""


class CantBeBlank(Exception):
    """Why a model of this architecture can't be made without its files' help."""


def blank_model(config: Any, *, dtype: torch.dtype, attention: str) -> Any:
    """The language model that `config` describes, ready for eval but for its parameters, which are all on `meta`.

    Buffers that are not in its state dict are on the CPU. `dtype` is that of the parameters. Raises CantBeBlank.
    """
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    _fill_buffers(model)
    return model.eval().requires_grad_(False)


def _fill_buffers(model: Any) -> None:
    with torch.no_grad():
        for owner, names, initialise in _with_own_buffers(model):
            for name in names:
                setattr(owner, name, _unfilled(getattr(owner, name)))
            initialise(owner)
            for name in names:
                if not _is_filled(getattr(owner, name)):
                    raise CantBeBlank(
                        f"{type(owner).__name__} leaves its buffer {name} to its constructor"
                    )


def _with_own_buffers(model: Any) -> Iterator[tuple[nn.Module, list[str], Any]]:
    """Modules that hold buffers outside the state dict, with those and what initialises the module."""
    saved = set(model.state_dict())
    parts = {name: one for name, one in model.named_modules() if hasattr(one, "_init_weights")}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = dict(module.named_buffers(recurse=False))
        names = [name for name in own if prefix + name not in saved]
        if names:
            owner = max((name for name in parts if _is_within(path, name)), key=len)
            yield module, names, parts[owner]._init_weights


def _is_within(path: str, part: str) -> bool:
    return not part or path == part or path.startswith(f"{part}.")


def _unfilled(meta: Tensor) -> Tensor:
    if meta.dtype in (torch.bool, torch.uint8):
        raise CantBeBlank("it has a buffer in which no value can stand for none")
    mark = float("nan") if meta.is_floating_point() else _UNFILLED_INT
    return torch.full(meta.shape, mark, dtype=meta.dtype, device="cpu")


def _is_filled(buffer: Tensor) -> bool:
    empty = buffer.isnan() if buffer.is_floating_point() else buffer == _UNFILLED_INT
    return not bool(empty.any())
