"""What a checkpoint needs, read from config.json and the headers of its weight files.

No tensor is read and torch is not imported, so that placement can ask before anything is loaded, and whatever can
be seen to be wrong with a checkpoint is said here, by name, before its weights cost minutes.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch import quantised
from llmhost.engines.torch.narrow_sizes import KV_BYTES, narrow_bytes
from llmhost.engines.torch.weight_files import StoredTensor, read_headers

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Element types of a weights file that are converted to the computation type when it is read."""
_EXPANDED = "expanded"
"""Of a quantised weight that is a number of the computation type once it is loaded."""
_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SAMPLER_BYTES = 12
"""Three float32 numbers for each token of the vocabulary: scores, the kept ones, and their exponentials."""
_SERVED_LAYERS = {"attention", "full_attention", "sliding_attention"}
_WINDOW_BOUND_ROPE = ("dynamic", "longrope")
"""Rotary scalings that recompute their frequencies from the longest sequence of a batch."""


UNWRITTEN: dict[str, dict[str, int]] = {
    "falcon": {"max_position_embeddings": 2048},
    "gemma3_text": {
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
    },
}
"""What checkpoints of a model type leave to transformers' defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a checkpoint takes once it is loaded, and what it can do."""

    architecture: str
    dtype: str
    """Computation type: float32, float16 or bfloat16."""
    parameters: int
    weights_bytes: int
    kv_block_bytes: int
    """Keys and values of one block over all layers."""
    max_sequence_length: int
    """Tokens in prompt and answer together, up to which answers don't depend on what else is in the batch."""
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    step_token_bytes: int
    """Of intermediate results, for each token that a step feeds: those of one layer, which are the most at a time."""
    step_row_bytes: int
    """For each sequence that draws: its logits, and what the sampler makes of them."""


def read_footprint(
    folder: Path,
    *,
    block_tokens: int,
    dtype: str = "auto",
    on_gpu: bool = False,
    weights: str = "auto",
    kv_dtype: str = "auto",
) -> Footprint:
    """Size up the checkpoint in `folder`; `dtype`, `weights` and `kv_dtype` are the options of those names.

    Raises ModelUnavailable where the torch engine could not serve it, saying why.
    """
    config = _read_config(folder)
    architecture = _text_architecture(folder, config)
    config = _text_part(config)
    _refuse_unserved(folder, config)
    stored = dict(read_headers(folder))
    tensors = dict(_expanded(name, stored, config) for name in stored)
    if not tensors:
        raise ModelUnavailable(f"The weight files in {folder} hold no tensors.")
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    computed = _computation_dtype(config, tensors, dtype=dtype, on_gpu=on_gpu)
    item = _ITEM_BYTES[computed]

    hidden = _number(folder, config, "hidden_size", "n_embd", "d_model")
    layers = _number(folder, config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _number(folder, config, "num_attention_heads", "n_head", "n_heads")
    kv_heads = _kv_heads(config, heads)
    head_dim = config.get("head_dim") or hidden // heads
    return Footprint(
        architecture=architecture,
        dtype=computed,
        parameters=sum(tensor.elements for tensor in tensors.values()),
        weights_bytes=sum(
            _loaded_bytes(name, tensor, item, weights) for name, tensor in tensors.items()
        ),
        kv_block_bytes=2
        * layers
        * kv_heads
        * head_dim
        * block_tokens
        * KV_BYTES.get(kv_dtype, item),
        max_sequence_length=_max_sequence_length(folder, config),
        vocab_size=_number(folder, config, "vocab_size"),
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        step_token_bytes=item * _layer_width(config, hidden, (heads + 2 * kv_heads) * head_dim),
        step_row_bytes=_number(folder, config, "vocab_size") * (item + _SAMPLER_BYTES),
    )


def _loaded_bytes(name: str, tensor: StoredTensor, item: int, weights: str) -> int:
    if tensor.kind not in _FLOATS and tensor.kind != _EXPANDED:
        return tensor.stored_bytes
    if weights == "int4" and name.endswith(quantised.ZERO_POINTS):
        return 2 * tensor.stored_bytes  # one byte for each, where they are kept
    is_whole = math.prod(tensor.shape) == tensor.elements
    narrow = narrow_bytes(weights, name, tensor.shape, item) if is_whole else None
    return tensor.elements * item if narrow is None else narrow


def _layer_width(config: Mapping[str, Any], hidden: int, projected: int) -> int:
    """Numbers that one token has alive at the widest place of a layer: the residual and its norm, and then either the
    projections with their rotated copies, or gate, up and their product."""
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    if isinstance(inner, list):  # one for each layer
        inner = max(inner)
    experts = config.get("num_experts_per_tok") or 1
    return int(2 * hidden + max(2 * projected, 3 * inner * experts))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        what = "no config.json" if folder.is_dir() else "no such folder"
        raise ModelUnavailable(
            f"{folder} is not a transformers checkpoint: {what}. Give the folder that holds config.json"
            " and the *.safetensors files."
        ) from None
    except (ValueError, OSError) as error:
        raise ModelUnavailable(f"{path} could not be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{path} is not a JSON object.")
    return config


def _text_architecture(folder: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if not names:
        raise ModelUnavailable(
            f"{folder / 'config.json'} names no architecture; it needs an entry such as"
            ' "architectures": ["LlamaForCausalLM"].'
        )
    for name in names:
        if str(name).endswith(("ForCausalLM", "LMHeadModel")):
            return str(name)
    if isinstance(config.get("text_config"), dict):
        return str(names[0])
    raise ModelUnavailable(
        f"{folder} holds a {names[0]}, which does not generate text from text alone. The torch engine"
        " serves decoder-only language models (architectures ending in ForCausalLM)."
    )


def _text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the language model: of one that sees or hears too, those of its part for text."""
    part = config.get("text_config")
    text = {**config, **part} if isinstance(part, dict) else dict(config)
    return {**UNWRITTEN.get(str(text.get("model_type")), {}), **text}


def _refuse_unserved(folder: Path, config: Mapping[str, Any]) -> None:
    """Name what the torch engine can't do, where config.json tells."""
    reason = None
    if config.get("is_encoder_decoder"):
        reason = "is an encoder-decoder model"
    elif config.get("alibi"):
        reason = "lowers the scores of distant positions (ALiBi)"
    elif config.get("kv_lora_rank"):
        reason = "uses multi-head latent attention (kv_lora_rank)"
    else:
        other = set(config.get("layer_types") or ()) - _SERVED_LAYERS
        if other:
            reason = f"has layers of type {', '.join(sorted(other))}"
    if reason:
        raise ModelUnavailable(
            f"The model in {folder} {reason}, which the torch engine does not serve yet."
        )
    if reason := quantised.refusal(config):
        raise ModelUnavailable(f"The model in {folder} {reason}.")


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    nested = (config.get("attn_config") or {}).get("kv_n_heads")
    return int(config.get("num_key_value_heads") or config.get("num_kv_heads") or nested or heads)


def _max_sequence_length(folder: Path, config: Mapping[str, Any]) -> int:
    length = _number(
        folder, config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"
    )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    of_types = [inner for inner in rope.values() if isinstance(inner, Mapping)]
    for one in of_types or [rope]:
        if one.get("rope_type", one.get("type")) in _WINDOW_BOUND_ROPE:
            original = one.get("original_max_position_embeddings")
            original = original or config.get("original_max_position_embeddings")
            length = min(length, original or length)
    return length


def _number(folder: Path, config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ModelUnavailable(f"{folder / 'config.json'} has no positive {names[0]!r}.")


def _computation_dtype(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], *, dtype: str, on_gpu: bool
) -> str:
    if dtype != "auto":
        return dtype
    if not on_gpu:
        return "float32"
    named = config.get("dtype") or config.get("torch_dtype")
    if named in _ITEM_BYTES:
        return str(named)
    kinds = Counter(tensor.kind for tensor in tensors.values() if tensor.kind in _FLOATS)
    return _DTYPES[kinds.most_common(1)[0][0]] if kinds else "float32"


def _expanded(
    name: str, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> tuple[str, StoredTensor]:
    """What becomes of a stored tensor when it is loaded, and what that is called."""
    one = stored[name]
    groups = stored.get(quantised.groups_beside(name))
    inputs = None if groups is None else groups.elements
    if (matrix := quantised.plain_matrix(name, one.shape, config, inputs)) is not None:
        name, shape = matrix
        return name, replace(one, kind=_EXPANDED, elements=math.prod(shape), shape=shape)
    elements = quantised.weight_elements(name, one.kind, one.elements, config)
    return name, one if elements is None else replace(one, kind=_EXPANDED, elements=elements)
