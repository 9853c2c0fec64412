"""What a model that pools needs and does, read from its folder: transformers' files and those of sentence-transformers.

As in `footprint`, no tensor is read and torch is not imported. sentence-transformers says in modules.json what follows
the transformer: how its tokens become one vector, linear layers after that, and whether the vector is normalised.
Where it says nothing, encoders are averaged, decoders give their last token, and vectors are normalised.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import RunnerFacts
from llmhost.engines.torch.footprint import (
    _FLOATS,
    _ITEM_BYTES,
    _computation_dtype,
    _layer_width,
    _number,
    _read_config,
)
from llmhost.engines.torch.weight_files import read_headers

_GENERATES = ("ForCausalLM", "LMHeadModel")
_CLASSIFIES = "ForSequenceClassification"
_OFFSET_POSITIONS = frozenset(
    ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet")
)
"""Model types whose first position comes after that of the padding: they hold so many tokens less."""
_UNFUSED = frozenset(("mpnet",))
"""Model types whose attention transformers computes score by score."""
PADDED = 1.25
"""Tokens with padding to tokens without, at most, when groups are large."""
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingFiles:
    """How a checkpoint pools, and what it takes once it is loaded."""

    architecture: str
    task: str
    """`embed` or `classify`."""
    pooling: str = "mean"
    """mean, cls, last or max: which of its tokens' vectors make the text's."""
    is_normalised: bool = False
    dense: tuple["Dense", ...] = ()
    activation: str = "identity"
    """What makes probabilities of scores: identity, sigmoid or softmax."""
    labels: tuple[str, ...] = ()
    pooled_size: int
    dtype: str
    weights_bytes: int
    vocab_size: int
    max_sequence_length: int
    step_token_bytes: int
    """Of intermediate results, for each token that a step feeds."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after pooling, in a folder of its own."""

    folder: Path
    size: int
    activation: str


def task_of(folder: Path, options: TorchOptions) -> str:
    """What the checkpoint in `folder` is for: generate, embed or classify. Raises ModelUnavailable."""
    if options.task != "auto":
        return options.task
    names = [str(name) for name in _read_config(folder).get("architectures") or []]
    if any(name.endswith(_CLASSIFIES) for name in names):
        return "classify"
    if (folder / "modules.json").is_file():
        return "embed"
    if not names or any(name.endswith(_GENERATES) for name in names):
        return "generate"
    return "embed"


def read_pooling(
    folder: Path, *, task: str, options: TorchOptions, on_gpu: bool = False
) -> PoolingFiles:
    """Size up a checkpoint that embeds or classifies.

    Raises ModelUnavailable where the torch engine could not serve it, saying why.
    """
    config = _read_config(folder)
    architecture = str(next(iter(config.get("architectures") or []), "no architecture"))
    _refuse_unserved(folder, config)
    tensors = dict(read_headers(folder))
    if not tensors:
        raise ModelUnavailable(f"The weight files in {folder} hold no tensors.")
    computed = _computation_dtype(config, tensors, dtype=options.dtype, on_gpu=on_gpu)
    item = _ITEM_BYTES[computed]
    sizes = [t.elements * item if t.kind in _FLOATS else t.stored_bytes for t in tensors.values()]
    how = _embedding(folder, config, options) if task == "embed" else _classes(folder, config)
    return PoolingFiles(
        architecture=architecture,
        task=task,
        dtype=computed,
        weights_bytes=sum(sizes),
        vocab_size=_number(folder, config, "vocab_size"),
        max_sequence_length=_longest(folder, config),
        step_token_bytes=_step_token_bytes(folder, config, item),
        **how,
    )


def facts_of(files: PoolingFiles, device: str, block_tokens: int) -> RunnerFacts:
    """What the scheduler and the memory ledger must know of it: it keeps no KV memory."""
    return RunnerFacts(
        device=device,
        vocab_size=files.vocab_size,
        max_sequence_length=files.max_sequence_length,
        block_tokens=block_tokens,
        kv_block_bytes=0,
        weights_bytes=files.weights_bytes,
        step_token_bytes=files.step_token_bytes,
        reenters=True,
        task=files.task,
        pooled_size=files.pooled_size,
        labels=files.labels,
    )


def _step_token_bytes(folder: Path, config: Mapping[str, Any], item: int) -> int:
    """One layer's numbers, the pooled copy in float32, and padding; without a fused attention its scores, too."""
    hidden = _number(folder, config, "hidden_size", "n_embd", "d_model", "dim")
    heads = _number(folder, config, "num_attention_heads", "n_head", "n_heads")
    numbers = item * _layer_width(config, hidden, 3 * hidden) + 4 * 2 * hidden
    if config.get("model_type") in _UNFUSED:
        numbers += 2 * item * heads * _longest(folder, config)
    return int(numbers * PADDED)


def _refuse_unserved(folder: Path, config: Mapping[str, Any]) -> None:
    reason = None
    if config.get("is_encoder_decoder"):
        reason = "is an encoder-decoder model"
    elif method := config.get("quantization_config"):
        reason = f"is quantised ({method.get('quant_method', 'method not named')})"
    if reason:
        raise ModelUnavailable(
            f"The model in {folder} {reason}, which the torch engine can't pool with yet."
        )


def _classes(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    names = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith(_CLASSIFIES) for name in names):
        raise ModelUnavailable(
            f"{folder} holds a {', '.join(names) or 'model without an architecture'}, which has no trained"
            f" head for labels. options.task = 'classify' needs an architecture ending in {_CLASSIFIES}."
        )
    # transformers has two labels where nothing is said; save_pretrained leaves them out.
    table = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = tuple(str(table[key]) for key in sorted(table, key=int))
    return {"labels": labels, "pooled_size": len(labels), "activation": _activation(folder, config)}


def _activation(folder: Path, config: Mapping[str, Any]) -> str:
    """The one that sentence-transformers wrote down, else the one that the kind of problem asks for.

    It writes down the identity for several labels where nobody chose; that gives no probabilities.
    """
    count = len(config.get("id2label") or ("0", "1"))
    path = folder / "config_sentence_transformers.json"
    own = _read_json(path) if path.is_file() else {}
    named = (
        own.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    if named and not (count > 1 and str(named).endswith(".Identity")):
        return _known_activation(folder, str(named))
    match config.get("problem_type"):
        case "regression":
            return "identity"
        case "multi_label_classification":
            return "sigmoid"
        case "single_label_classification":
            return "softmax"
    return "sigmoid" if count == 1 else "softmax"


def _known_activation(folder: Path, name: str) -> str:
    kind = name.rpartition(".")[2]
    if kind not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ModelUnavailable(
            f"{folder} asks for the activation {name!r}; the torch engine has {known}."
        )
    return _ACTIVATIONS[kind]


def _embedding(folder: Path, config: Mapping[str, Any], options: TorchOptions) -> dict[str, Any]:
    names = [str(name) for name in config.get("architectures") or []]
    is_decoder = any(name.endswith(_GENERATES) for name in names)
    size = _number(folder, config, "hidden_size", "n_embd", "d_model", "dim")
    how: dict[str, Any] = {
        "pooling": "last" if is_decoder else "mean",
        "is_normalised": True,
        "dense": (),
    }
    if (folder / "modules.json").is_file():
        how = _modules(folder, options.pooling)
    if options.pooling is not None:
        how["pooling"] = options.pooling
    if options.normalize is not None:
        how["is_normalised"] = options.normalize
    return {**how, "pooled_size": how["dense"][-1].size if how["dense"] else size}


def _modules(folder: Path, pooling: str | None) -> dict[str, Any]:
    """What modules.json says: a transformer, a pooling, and then linear layers and a normalisation, or neither.

    `pooling` is the option of that name, which stands in for a kind that the engine does not have.
    """
    modules = [(str(m.get("type")), str(m.get("path") or "")) for m in _json_list(folder)]
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or modules[0][1] not in ("", "."):
        raise ModelUnavailable(
            f"modules.json in {folder} lists {', '.join(kinds) or 'nothing'}; the torch engine serves a Transformer"
            " in the folder itself, then a Pooling, then Dense layers and Normalize if there are any."
        )
    is_normalised = kinds[-1] == "Normalize"
    middle = modules[2:-1] if is_normalised else modules[2:]
    for kind, _ in middle:
        if not kind.endswith(".Dense"):
            raise ModelUnavailable(
                f"modules.json in {folder} has a {kind} after pooling, which the torch engine does not have."
            )
    return {
        "pooling": pooling or _mode(folder / modules[1][1]),
        "is_normalised": is_normalised,
        "dense": tuple(_dense(folder / path) for _, path in middle),
    }


def _mode(folder: Path) -> str:
    config = _read_config(folder)
    if named := config.get("pooling_mode"):
        wanted = [named] if isinstance(named, str) else [str(name) for name in named]
        modes = [name for name in wanted if name in _MODES.values()]
        modes += ["last" for name in wanted if name == "lasttoken"]
    else:
        wanted = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        modes = [_MODES[key] for key in wanted if key in _MODES]
    if len(wanted) != 1 or len(modes) != 1:
        raise ModelUnavailable(
            f"{folder / 'config.json'} pools by {', '.join(wanted) or 'nothing'}; the torch engine pools by one of"
            f" {', '.join(_MODES.values())}. options.pooling sets one of them."
        )
    return modes[0]


def _dense(folder: Path) -> Dense:
    config = _read_config(folder)
    activation = _known_activation(folder, str(config.get("activation_function") or "Tanh"))
    if not (folder / "model.safetensors").is_file():
        raise ModelUnavailable(
            f"{folder} has no model.safetensors, so its linear layer can't be read."
        )
    return Dense(folder, _number(folder, config, "out_features"), activation)


def _json_list(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelUnavailable(f"{path} could not be read as JSON: {error}.") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelUnavailable(f"{path} is not a list of modules.")
    return modules


def _longest(folder: Path, config: Mapping[str, Any]) -> int:
    """Most tokens of one text: positions that the model has, or less where the tokenizer or sentence-transformers
    says so."""
    positions = _number(folder, config, "max_position_embeddings", "n_positions", "n_ctx")
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id", 1)) + 1
    for name, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        limit = _read_json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(limit, int | float) and 0 < limit < positions:
            positions = int(limit)
    return positions


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelUnavailable(f"{path} could not be read as JSON: {error}.") from error
    if not isinstance(read, dict):
        raise ModelUnavailable(f"{path} is not a JSON object.")
    return read
