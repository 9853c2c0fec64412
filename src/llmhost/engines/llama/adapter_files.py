"""LoRA adapters for GGUF models: a GGUF file of one, or a folder as PEFT saves it, as matrices by llama.cpp's names.

llama.cpp ends the process over some files, and over others runs something else than was trained. So it is never shown
one as it is: what it is given is written anew from matrices that were checked here against the model's own tensors.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.architectures import KNOWN, Architecture
from llmhost.engines.llama.header import Header, TensorInfo, read_header
from llmhost.engines.torch.lora_files import CONFIG, read_adapter
from llmhost.engines.torch.weight_files import StoredTensor, read_file_header

Matrix = NDArray[np.float32]

NUMBER_BYTES = 4
_ADAPTED = re.compile(
    r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.weight|output\.weight"
)
"""Layers to which llama.cpp adds adapters in every architecture."""
_LATENT = "attn_kv_a"
"""In the names of models whose attention takes no adapters."""
_WRITTEN = ("F32", "F16", "BF16", "Q8_0")
"""Types of the matrices that llama.cpp's converter writes."""
_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_ACTIVATED = "adapter.alora.invocation_tokens"


@dataclass(frozen=True, slots=True)
class Pair:
    """What an adapter adds to one matrix product of the model: x @ a.T @ b.T."""

    tensor: str
    """The model's, in llama.cpp's words."""
    a: Matrix
    """[rank, inputs]"""
    b: Matrix
    """[outputs, rank], the scale multiplied in."""


def adapter_bytes(place: Path) -> int:
    """What an adapter will take, from its headers. Raises ModelUnavailable."""
    if (path := _gguf_of(place)) is None:
        return NUMBER_BYTES * read_adapter(place).parameters
    pairs = _pairs(read_header(path))
    return NUMBER_BYTES * sum(math.prod(one.shape) for pair in pairs.values() for one in pair)


def read_pairs(place: Path, model: Header) -> list[Pair]:
    """An adapter of `model`. Raises ModelUnavailable when it is not one, or can't be run as it was trained."""
    path = _gguf_of(place)
    found = _from_peft(place, model) if path is None else _from_gguf(path, model)
    pairs = []
    for pair in found:
        _check(place, pair, model)
        pairs.append(pair)
    return pairs


def _gguf_of(place: Path) -> Path | None:
    """The GGUF file of an adapter; None where PEFT saved it."""
    if place.is_file():
        return place
    if (place / CONFIG).is_file():
        return None
    files = sorted(place.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    what = (
        "several GGUF files, and a source names one" if files else f"no {CONFIG} and no GGUF file"
    )
    raise ModelUnavailable(
        f"{place} has {what}. An adapter is a GGUF file, or a folder as PEFT saves it."
    )


def _check(place: Path, pair: Pair, model: Header) -> None:
    target, name = model.tensor(pair.tensor), pair.tensor
    if _ADAPTED.fullmatch(name) is None or any(_LATENT in one.name for one in model.tensors):
        raise _refused(place, f"llama.cpp adds nothing to {name} of this model")
    if target is None or len(target.shape) != 2:
        raise _refused(place, f"it is for another model: this one has no matrix {name}")
    (rank, inputs), (outputs, columns) = pair.a.shape, pair.b.shape
    if (inputs, outputs) != target.shape or rank != columns:
        raise _refused(
            place,
            f"it is for another model: for {name} it goes from {inputs} to {outputs} numbers, and the model's goes"
            f" from {target.shape[0]} to {target.shape[1]}",
        )
    if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
        raise _refused(place, f"{name} has numbers in it that are not finite")


# ---------------------------------------------------------------- GGUF


def _pairs(header: Header) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """The two matrices of each adapted tensor."""
    path, metadata = header.path, header.metadata
    kind, form = (_text(metadata, key) for key in ("general.type", "adapter.type"))
    if (kind, form) != ("adapter", "lora"):
        raise _refused(
            path,
            f"its general.type is {kind!r} and its adapter.type {form!r}, and only LoRA is run",
        )
    if _ACTIVATED in metadata:
        raise _refused(path, "it is one that certain tokens activate")
    if len(header.files) > 1:
        raise _refused(path, "it is split into several files")
    halves: dict[str, dict[str, TensorInfo]] = {}
    for tensor in header.tensors:
        name, _, half = tensor.name.rpartition(".lora_")
        if half not in ("a", "b") or len(tensor.shape) != 2 or not all(tensor.shape):
            raise _refused(path, f"it holds the tensor {tensor.name!r}, which is not a LoRA matrix")
        halves.setdefault(name, {})[half] = tensor
    if not halves:
        raise _refused(path, "it has no LoRA matrices")
    for name, found in halves.items():
        if len(found) != 2:
            raise _refused(path, f"it has one matrix for {name} where there should be two")
    return {name: (found["a"], found["b"]) for name, found in halves.items()}


def _from_gguf(path: Path, model: Header) -> Iterator[Pair]:
    header = read_header(path)
    pairs = _pairs(header)
    ours, theirs = (_text(each.metadata, "general.architecture") for each in (model, header))
    if ours != theirs:
        raise _refused(path, f"it is for models of {theirs!r}, and this one is of {ours!r}")
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    if type(alpha) is not float or not math.isfinite(alpha):
        raise _refused(path, f"its adapter.lora.alpha is {alpha!r}")
    for name, (a, b) in pairs.items():
        scale = alpha / b.shape[0] if alpha else 1.0
        yield Pair(name, _numbers(path, a), _numbers(path, b) * np.float32(scale))


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _numbers(path: Path, tensor: TensorInfo) -> Matrix:
    """A tensor of a GGUF file in float32."""
    import gguf

    if tensor.kind not in _WRITTEN:
        raise _refused(path, f"its {tensor.name} is of type {tensor.kind}")
    rows = tensor.shape[1]
    raw = np.memmap(path, np.uint8, "r", offset=tensor.offset, shape=(tensor.size_bytes,))
    kind = gguf.GGMLQuantizationType[tensor.kind]
    found: Any = gguf.dequantize(np.array(raw).reshape(rows, -1), kind)
    return np.ascontiguousarray(found.reshape(rows, tensor.shape[0]), np.float32)


# ---------------------------------------------------------------- PEFT


def _from_peft(folder: Path, model: Header) -> Iterator[Pair]:
    files, architecture = read_adapter(folder), _architecture(folder, model)
    stored = dict(read_file_header(files.weights))
    for module in files.modules:
        name = _renamed(folder, architecture, module.name)
        a, b = (_stored(folder, stored[files.tensors[module.name, half]]) for half in "AB")
        target = model.tensor(name)
        if target is not None and target.shape[1:] == (len(b),):
            b = architecture.turned(name, b)
        yield Pair(name, a, b * np.float32(module.scale))


def _renamed(folder: Path, architecture: Architecture, module: str) -> str:
    try:
        name = architecture.renamed(f"{module}.weight")
    except ModelUnavailable:
        name = None
    if name is None:  # an unknown one, or the head of a model whose embedding it is as well
        raise _refused(folder, f"it is for another model: it adapts {module}, which this one lacks")
    return name


def _architecture(folder: Path, model: Header) -> Architecture:
    """As much of the checkpoint's config as the names and the order of a GGUF file's tensors hang on."""
    name = str(model.metadata.get("general.architecture"))
    if name not in KNOWN.values():
        raise _refused(
            folder,
            f"models of {name!r} name their layers in ways that PEFT's folders aren't read for; convert it to a GGUF"
            " file by llama.cpp's convert_lora_to_gguf.py",
        )
    heads = model.metadata.get(f"{name}.attention.head_count")
    kv_heads = model.metadata.get(f"{name}.attention.head_count_kv", heads)
    if type(heads) is not int or type(kv_heads) is not int:
        raise _refused(folder, "the model has layers of different numbers of heads")
    config = {
        "architectures": [name],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": model.tensor("output.weight") is None,
    }
    return Architecture(name, config)


def _stored(folder: Path, tensor: StoredTensor) -> Matrix:
    if (kind := _STORED.get(tensor.kind)) is None:
        raise _refused(folder, f"it has matrices of type {tensor.kind}")
    if tensor.stored_bytes != tensor.elements * kind.itemsize or len(tensor.shape) != 2:
        raise _refused(folder, "its file gives matrices a size that they don't have")
    raw = np.array(np.memmap(tensor.path, kind, "r", offset=tensor.offset, shape=tensor.shape))
    if tensor.kind == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def _refused(place: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(f"The adapter in {place} can't be served: {why}.")
