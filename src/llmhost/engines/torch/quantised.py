"""Quantised checkpoints: which methods are served, what they need installed, and how large they are once loaded.

Weights of the methods here are plain numbers of the computation type once they are loaded, and so is what goes into
layers: such a checkpoint is smaller to store and to move, not to run. No torch is imported.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Method:
    """A method of quantisation, by the name that config.json has for it."""

    module: str
    """What must be importable."""
    package: str
    """What to install for that."""
    is_expanded_later: bool = False
    """transformers reads such weights as they are stored alone; they are made plain after that (`expand`)."""


METHODS = {
    "compressed-tensors": Method("compressed_tensors", "compressed-tensors"),
    "fp8": Method("accelerate", "accelerate"),
    "mxfp4": Method("accelerate", "accelerate"),
    "torchao": Method("torchao", "torchao", is_expanded_later=True),
    "bitsandbytes": Method("bitsandbytes", "bitsandbytes accelerate", is_expanded_later=True),
}
_FOUR_BITS = 4
_DROPPED = (
    "_g_idx", "_scale", "_scale_inv", "_scales", "_shape", "_zero_point", ".SCB", ".weight_format"
)  # fmt: skip
"""Ends of the names of tensors that are used up when weights are expanded."""
_BESIDE_WEIGHTS = ".weight."
"""Within the names of what bitsandbytes keeps beside 4-bit weights."""


def method_of(config: Mapping[str, Any]) -> str | None:
    """The name of the checkpoint's method; None if it is not quantised."""
    found = config.get("quantization_config")
    return str(found.get("quant_method", "not named")) if isinstance(found, Mapping) else None


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint can't be served as it is quantised; None if it can."""
    name = method_of(config)
    if name is None:
        return None
    method = METHODS.get(name)
    if method is None:
        return (
            f"is quantised by a method ({name}) that the torch engine does not serve; it serves"
            f" {', '.join(METHODS)}"
        )
    settings = config["quantization_config"]
    if settings.get("kv_cache_scheme"):
        return "has scales for a quantised KV cache, which the torch engine does not read"
    storage = settings.get("bnb_4bit_quant_storage") or "uint8"
    if name == "bitsandbytes" and settings.get("load_in_4bit") and storage != "uint8":
        return f"keeps 4-bit weights as {storage}, which the torch engine does not read; uint8 is served"
    if importlib.util.find_spec(method.module) is None:
        return f"is quantised ({name}) and needs a library that is not installed: pip install {method.package}"
    return None


def is_expanded_later(config: Mapping[str, Any]) -> bool:
    """The checkpoint's weights are as they are stored when transformers has loaded it."""
    method = METHODS.get(method_of(config) or "")
    return method is not None and method.is_expanded_later


def weight_elements(name: str, kind: str, elements: int, config: Mapping[str, Any]) -> int | None:
    """Elements that a stored tensor of type `kind` has once it is loaded; None for one that stays as it is stored."""
    method = method_of(config)
    if method is None:
        return None
    if name.endswith(_DROPPED) or (method == "bitsandbytes" and _BESIDE_WEIGHTS in name):
        return 0
    if name.endswith("_packed"):
        bits = 32 if kind in ("I32", "U32") else 8
        return elements * bits // _weight_bits(config["quantization_config"])
    if name.endswith("_blocks") or kind == "U8":  # two of them in a byte
        return elements * 2
    if kind == "I8" or kind.startswith("F8"):
        return elements
    return None


def _weight_bits(settings: Mapping[str, Any]) -> int:
    """Bits of a packed weight; of several groups the fewest, which gives the largest model."""
    found = [(group.get("weights") or {}).get("num_bits") for group in _groups(settings)]
    return min((bits for bits in found if isinstance(bits, int) and bits > 0), default=_FOUR_BITS)


def _groups(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping):
            yield group
