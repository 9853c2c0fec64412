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
    is_unpacked_here: bool = False
    """transformers is given plain weights, made of what is stored (`words`)."""


METHODS = {
    "gptq": Method("safetensors", "safetensors", is_unpacked_here=True),
    "awq": Method("safetensors", "safetensors", is_unpacked_here=True),
    "compressed-tensors": Method("compressed_tensors", "compressed-tensors"),
    "fp8": Method("accelerate", "accelerate"),
    "mxfp4": Method("accelerate", "accelerate"),
    "torchao": Method("torchao", "torchao", is_expanded_later=True),
    "bitsandbytes": Method("bitsandbytes", "bitsandbytes accelerate", is_expanded_later=True),
}
PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""What GPTQ and AWQ keep of a layer's matrix."""
ZERO_POINTS = ".qzeros"
GPTQ_BITS = (2, 3, 4, 8)
FORMS: Mapping[str, tuple[str, ...]] = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
"""Those that are read. GPTQ's first one has zero points less one."""
_WORD_BITS = 32
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
    if method.is_unpacked_here and (reason := _unknown_words(name, settings)) is not None:
        return reason
    storage = settings.get("bnb_4bit_quant_storage") or "uint8"
    if name == "bitsandbytes" and settings.get("load_in_4bit") and storage != "uint8":
        return f"keeps 4-bit weights as {storage}, which the torch engine does not read; uint8 is served"
    if importlib.util.find_spec(method.module) is None:
        return f"is quantised ({name}) and needs a library that is not installed: pip install {method.package}"
    return None


def _unknown_words(name: str, settings: Mapping[str, Any]) -> str | None:
    """Why the words of a GPTQ or AWQ checkpoint are not understood; None if they are."""
    known = FORMS[name]
    if (found := form_of(name, settings)) not in known:
        return f"is quantised ({name}) in the form {found}; the torch engine reads {' and '.join(known)}"
    try:
        bits = bits_of(settings)
    except (TypeError, ValueError):
        return f"is quantised ({name}) to {settings.get('bits')!r} bits, which is no number"
    served = GPTQ_BITS if name == "gptq" else (_FOUR_BITS,)
    if bits not in served:
        shown = ", ".join(map(str, served))
        return f"is quantised ({name}) to {bits} bits; the torch engine reads those of {shown}"
    return None


def form_of(name: str, settings: Mapping[str, Any]) -> str:
    """How GPTQ or AWQ, by its name, keeps its words; the first of its forms where that is not said."""
    if name == "gptq" and settings.get("is_marlin_format"):  # as it was said once
        return "marlin"
    kind = "checkpoint_format" if name == "gptq" else "version"
    return str(settings.get(kind) or FORMS[name][0]).lower()


def bits_of(settings: Mapping[str, Any]) -> int:
    """Of GPTQ or AWQ, which has called them otherwise once. Raises TypeError or ValueError where that is no number."""
    return int(settings.get("bits", settings.get("w_bit", _FOUR_BITS)))


def is_unpacked_here(config: Mapping[str, Any]) -> bool:
    """The checkpoint's matrices lie in words, and are read by us."""
    method = METHODS.get(method_of(config) or "")
    return method is not None and method.is_unpacked_here


def groups_beside(name: str) -> str:
    """What beside a stored matrix of GPTQ says which group each of its columns is of."""
    return f"{name.removesuffix('.qweight')}.g_idx"


def plain_matrix(
    name: str, shape: tuple[int, ...], config: Mapping[str, Any], inputs: int | None
) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape [N, K] of the matrix that a stored tensor becomes, where it lies in words. `inputs` is K where
    that is known: GPTQ may have more bits in some layers than its config says."""
    if not (is_unpacked_here(config) and name.endswith(".qweight") and len(shape) == 2):
        return None
    bits = bits_of(config["quantization_config"])
    rows, columns = shape
    if method_of(config) == "awq":
        return f"{name.removesuffix('.qweight')}.weight", (columns * _WORD_BITS // bits, rows)
    return f"{name.removesuffix('.qweight')}.weight", (columns, inputs or rows * _WORD_BITS // bits)


def is_expanded_later(config: Mapping[str, Any]) -> bool:
    """The checkpoint's weights are as they are stored when transformers has loaded it."""
    method = METHODS.get(method_of(config) or "")
    return method is not None and method.is_expanded_later


def weight_elements(name: str, kind: str, elements: int, config: Mapping[str, Any]) -> int | None:
    """Elements that a stored tensor of type `kind` has once it is loaded; None for one that stays as it is stored."""
    method = method_of(config)
    if method is None:
        return None
    if is_unpacked_here(config):
        return 0 if name.rpartition(".")[2] in PARTS else None
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
