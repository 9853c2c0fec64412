"""What a model in a GGUF file will take, from its header alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.header import BLOCKS, Header

KV_TYPE: Literal["f16"] = "f16"
"""What the KV cache keeps where nobody says otherwise."""
MOST_LAYERS, MOST_EXPERTS = 512, 1024
"""More end the process: llama.cpp asserts where it could refuse."""
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

ONE_SIZE = frozenset(
    {"llama", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe"}
)
"""Architectures for which llama.cpp asserts that keys, values and what is rotated of them are of one size, and
there in every layer."""

_NO_FACTORS = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
"""Types of matrices that llama.cpp multiplies with nothing, and doesn't ask."""
_INDICES = "tid2eid"
"""In the names of tables, whatever else they are called."""

_BYTES = {name: (block, size) for name, block, size in BLOCKS.values()}
_RECURRENT = ("ssm.conv_kernel", "wkv.head_size", "shortconv.l_cache")
RANK = "rank"
"""A trained head's scores instead of a vector."""
_POOLINGS = {"1": "mean", "2": "cls", "3": "last", "4": RANK}
_NOT_FOR_TEXT = {"clip": "only sees", "t5": "has an encoder", "t5encoder": "only encodes"}


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps of a token: numbers in its keys, and in its values."""

    keys: int
    values: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's measures."""

    architecture: str
    vocab_size: int
    context_length: int
    layers: tuple[Layer, ...]
    weights_bytes: int
    width: int = 0
    """Numbers in the vector of a token."""
    pooling: str | None = None
    """How the model pools a text, if it was made for that."""
    labels: tuple[str, ...] = ()
    """What each score of `rank` is for."""

    def kv_token_bytes(self, kv_type: str) -> int:
        """Of one token's keys and values over all layers. Raises ModelUnavailable for a type that does not fit."""
        return sum(
            _row_bytes(layer.keys, kv_type) + _row_bytes(layer.values, kv_type)
            for layer in self.layers
        )


def read_sizes(header: Header) -> Sizes:
    """Raises ModelUnavailable for a file that is no language model, or none that can be served."""
    metadata = header.metadata
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or not name:
        raise ModelUnavailable(f"{header.path} does not say what architecture it has.")
    if (what := _unservable(name, metadata)) is not None:
        raise ModelUnavailable(
            f"{header.path} holds a model ({name}) that {what}; the engine llama serves models that generate text"
            " from text, embed it or score it."
        )
    _check_types(header)
    count = _number(header, f"{name}.block_count", most=MOST_LAYERS)
    _check_asserted(header, name, count)
    embedding = _number(header, f"{name}.embedding_length")
    heads = _each(header, f"{name}.attention.head_count", count)
    kv_heads = _each(header, f"{name}.attention.head_count_kv", count, usual=heads)
    size = embedding // max(max(heads, default=1), 1)
    keys = _number(header, f"{name}.attention.key_length", usual=size)
    values = _number(header, f"{name}.attention.value_length", usual=size)
    _check_heads(header, name, kv_heads, keys=keys, values=values)
    rows = header.tensor("token_embd.weight")
    if rows is None or len(rows.shape) != 2:
        raise ModelUnavailable(
            f"{header.path} has no embeddings of tokens, so it is no language model."
        )
    pooling = _POOLINGS.get(str(metadata.get(f"{name}.pooling_type")))
    return Sizes(
        architecture=name,
        vocab_size=rows.shape[1],
        context_length=_number(header, f"{name}.context_length"),
        layers=tuple(Layer(each * keys, each * values) for each in kv_heads),
        weights_bytes=header.weights_bytes,
        width=rows.shape[0],
        pooling=pooling,
        labels=_labels(header, name) if pooling == RANK else (),
    )


def _unservable(name: str, metadata: Mapping[str, Any]) -> str | None:
    if name in _NOT_FOR_TEXT:
        return _NOT_FOR_TEXT[name]
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in ("adapter", "mmproj", "imatrix"):
        return f"is of type {kind!r}"
    if any(f"{name}.{key}" in metadata for key in _RECURRENT):
        return "keeps a running state instead of keys and values"
    is_encoder = metadata.get(f"{name}.attention.causal") is False
    pooling = _POOLINGS.get(str(metadata.get(f"{name}.pooling_type")))
    if is_encoder and pooling is None:
        return "reads in both directions, and doesn't say how it pools a text"
    if pooling == RANK and not is_encoder:
        return "scores texts by a prompt of its own"
    return None


def _labels(header: Header, name: str) -> tuple[str, ...]:
    """Raises ModelUnavailable for a head that llama.cpp does not compute as it was trained."""
    out, dense = header.tensor("cls.output.weight"), header.tensor("cls.weight")
    types = header.tensor("token_types.weight")
    if out is None or dense is None or len(out.shape) != 2:
        raise ModelUnavailable(
            f"{header.path} holds a model that scores texts, and lacks a layer of its head (cls.weight or"
            " cls.output.weight). Its transformers checkpoint may run with engine 'torch'."
        )
    if types is not None and len(types.shape) == 2 and types.shape[1] > 1:
        raise ModelUnavailable(
            f"{header.path} holds a model that tells the texts of a pair apart, which llama.cpp doesn't. Its"
            " transformers checkpoint may run with engine 'torch'."
        )
    if header.metadata.get("tokenizer.ggml.model") not in ("bert", "t5"):
        raise ModelUnavailable(
            f"{header.path} holds a model that scores texts, with a vocabulary that doesn't say how pairs are put"
            " together. Its transformers checkpoint may run with engine 'torch'."
        )
    count, told = out.shape[1], header.metadata.get(f"{name}.classifier.output_labels")
    if isinstance(told, list) and len(told) == count and all(isinstance(one, str) for one in told):
        return tuple(told)
    if told is not None:
        raise ModelUnavailable(f"{header.path} has {count} scores, and labels for other ones.")
    return tuple(f"LABEL_{at}" for at in range(count))


def _check_asserted(header: Header, name: str, layers: int) -> None:
    """Refuse what llama.cpp would end the process for, and every other model with it."""
    metadata = header.metadata
    experts = metadata.get(f"{name}.expert_count", 0)
    used = metadata.get(f"{name}.expert_used_count", 0)
    most_used = int(max(used, default=0)) if isinstance(used, np.ndarray) else used
    groups = metadata.get(f"{name}.expert_group_count", 0)
    groups_used = metadata.get(f"{name}.expert_group_used_count", 0)
    further = metadata.get(f"{name}.nextn_predict_layers", 0)
    numbers = (experts, most_used, groups, groups_used, further)
    if any(type(each) is not int or each < 0 for each in numbers):
        sound = False
    elif experts:
        sound = 0 < most_used <= experts <= MOST_EXPERTS and groups < experts
        sound = sound and (groups < 2 or (experts % groups == 0 and 0 < groups_used < groups))
    else:
        sound = not most_used and not groups
    if not sound or further > layers:
        raise ModelUnavailable(
            f"{header.path} has numbers of experts or layers that contradict each other, so it is not loaded."
        )
    for key, value in metadata.items():
        is_smallest = key.endswith(("norm_epsilon", "norm_rms_epsilon"))
        if is_smallest and (type(value) is not float or not 0 <= value < math.inf):
            raise ModelUnavailable(f"{header.path} has {value!r} for {key!r}.")
    scaling = metadata.get(f"{name}.rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in ROPE_SCALINGS:
        raise ModelUnavailable(
            f"{header.path} scales its rotary embedding by {scaling!r}; there is: {', '.join(ROPE_SCALINGS)}."
        )


def _check_types(header: Header) -> None:
    """The same for how tensors are stored. Vectors are in float32, as every converter has them."""
    for tensor in header.tensors:
        part = tensor.name.rpartition(".")[2]
        is_added = part == "bias" or (part == "weight" and len(tensor.shape) == 1)
        is_factor = part == "weight" and _INDICES not in tensor.name
        if (is_added and tensor.kind != "F32") or (is_factor and tensor.kind in _NO_FACTORS):
            raise ModelUnavailable(
                f"{header.path} stores {tensor.name[:80]!r} as {tensor.kind}, which llama.cpp can't compute with."
            )


def _check_heads(
    header: Header, name: str, kv_heads: Sequence[int], *, keys: int, values: int
) -> None:
    """The same for attention."""
    is_sound = True
    if name in ONE_SIZE:
        turned = header.metadata.get(f"{name}.rope.dimension_count", keys)
        is_sound = type(turned) is int and keys == values == turned and all(kv_heads)
    sections = header.metadata.get(f"{name}.rope.dimension_sections")
    if isinstance(sections, np.ndarray):
        numbers = sections.tolist()
        is_sound = is_sound and all(type(each) is int and each >= 0 for each in numbers)
        is_sound = is_sound and any(numbers[:3]) and sum(numbers) <= keys
    if not is_sound:
        raise ModelUnavailable(
            f"{header.path} has attention heads whose numbers or sizes contradict each other, so it is not loaded."
        )


def _number(header: Header, key: str, *, usual: int | None = None, most: int = 2**31) -> int:
    value = header.metadata.get(key, usual)
    if type(value) is not int or not 0 < value <= most:
        what = "lacks" if value is None else f"has {value!r} for"
        raise ModelUnavailable(f"{header.path} {what} {key!r}, so its size can't be known.")
    return value


def _each(header: Header, key: str, count: int, *, usual: list[int] | None = None) -> list[int]:
    """A number for each layer: some files have one for all."""
    value = header.metadata.get(key)
    if value is None and usual is not None:
        return usual
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer):
        found = [int(each) for each in value[:count]]
        if len(found) == count and all(0 <= each < 2**31 for each in found):
            return found
    elif type(value) is int and 0 < value < 2**31:
        return [value] * count
    raise ModelUnavailable(f"{header.path} has no sensible {key!r}, so its size can't be known.")


def _row_bytes(numbers: int, kv_type: str) -> int:
    block, size = _BYTES[kv_type.upper()]
    if numbers % block:
        raise ModelUnavailable(
            f"The KV type {kv_type!r} keeps numbers in blocks of {block}, and this model has {numbers} of them in a"
            " layer; choose f16 as options.kv_dtype."
        )
    return numbers // block * size
