"""A LoRA adapter as PEFT saves it: adapter_config.json, and pairs of small matrices in adapter_model.safetensors.

Read without torch, so that what an adapter will take, and whatever is wrong with it, is known before it is loaded.
What would make PEFT compute something else than x @ A.T @ B.T * scale is refused by name.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.core.errors import ModelUnavailable

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_EXPERT = re.compile(r"(^|\.)experts?\.")
_HEADER_BYTES = 100 * 2**20

_UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("bias", "init_lora_weights"),
}
_WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config"),
    *("qalora_group_size", "eva_config", "velora_config", "ensure_weight_tying"),
}
"""Keys of PEFT's that matter while an adapter is trained, or say where it is from."""
_CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations after which the adapter fits a base model with other weights than the published one."""


@dataclass(frozen=True, slots=True)
class LoraModule:
    """What an adapter adds to one linear layer: x @ A.T @ B.T * scale."""

    name: str
    rank: int
    inputs: int
    outputs: int
    scale: float


@dataclass(frozen=True, slots=True)
class LoraFiles:
    """An adapter, sized up."""

    folder: Path
    modules: tuple[LoraModule, ...]
    tensors: Mapping[tuple[str, str], str]
    """(module, A or B) to the tensor's name in the file."""

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def parameters(self) -> int:
        return sum(m.rank * (m.inputs + m.outputs) for m in self.modules)


def read_adapter(folder: Path) -> LoraFiles:
    """Size up the adapter in `folder`. Raises ModelUnavailable for one that can't be run as it was trained."""
    config = _read_config(folder)
    try:
        return _sized_up(folder, config)
    except (ValueError, TypeError, AttributeError, ArithmeticError, re.error) as error:
        raise _refused(folder, f"its {CONFIG} makes no sense ({error})") from error


def _sized_up(folder: Path, config: Mapping[str, Any]) -> LoraFiles:
    _refuse_other_kinds(folder, config)
    shapes = _shapes(folder / WEIGHTS)
    tensors: dict[tuple[str, str], str] = {}
    for tensor in shapes:
        found = _TENSOR.fullmatch(tensor)
        if found is None:
            raise _refused(folder, f"it holds the tensor {tensor!r}, which is not a LoRA matrix")
        tensors[found[1], found[2]] = tensor
    names = sorted({name for name, _ in tensors})
    if not names:
        raise _refused(folder, "it has no LoRA matrices")
    modules = tuple(_module(folder, config, name, tensors, shapes) for name in names)
    return LoraFiles(folder, modules, tensors)


def is_targeted(config: Mapping[str, Any], name: str) -> bool:
    """Whether the configuration puts an adapter at the module of that name, by PEFT's rules."""
    if _is_named(config.get("exclude_modules"), name):
        return False
    targets = config.get("target_modules")
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    if name in (targets or ()):
        return True  # the whole path, for which layers don't count
    return _is_named(targets, name) and _is_in_layers(config, name)


def scale_of(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """(rank, scale) of the module of that name."""
    rank = int(_by_pattern(config.get("rank_pattern"), name, config.get("r", 8)))
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelUnavailable(
            f"{folder} is not a PEFT adapter: it has no {CONFIG}. Give the folder that holds it and {WEIGHTS}."
        ) from None
    except (ValueError, OSError) as error:
        raise ModelUnavailable(f"{path} could not be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{path} is not a JSON object.")
    return config


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _refused(folder, f"its peft_type is {kind!r}, and only LORA is run")
    if config.get("bias", "none") != "none":
        raise _refused(folder, f"it trains biases (bias = {config['bias']!r})")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_THE_BASE):
        raise _refused(
            folder,
            f"it was begun with init_lora_weights = {config['init_lora_weights']!r}, which changes the base model;"
            " save it converted (path_initial_model_for_weight_conversion)",
        )
    for key in sorted(config.keys() - _UNDERSTOOD - _WITHOUT_EFFECT):
        if config[key]:
            raise _refused(folder, f"it uses {key} = {config[key]!r}")


def _module(
    folder: Path,
    config: Mapping[str, Any],
    name: str,
    tensors: Mapping[tuple[str, str], str],
    shapes: Mapping[str, list[int]],
) -> LoraModule:
    if _EXPERT.search(name):
        raise _refused(folder, f"it adapts the experts of a mixture ({name})")
    if not is_targeted(config, name):
        raise _refused(folder, f"it has matrices for {name}, which its target_modules leave out")
    try:
        first, second = shapes[tensors[name, "A"]], shapes[tensors[name, "B"]]
    except KeyError:
        raise _refused(folder, f"it has one matrix for {name} where there should be two") from None
    try:
        rank, scale = scale_of(config, name)
        (rows, inputs), (outputs, columns) = first, second
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise _refused(folder, f"rank or shape of {name} make no sense ({error})") from None
    if not rows == columns == rank:
        raise _refused(
            folder,
            f"the matrices for {name} are {first} and {second}, and its configuration says rank {rank}",
        )
    return LoraModule(name, rank, inputs, outputs, scale)


def _is_named(names: Any, module: str) -> bool:
    """A list names modules by the end of their path, a text is an expression for all of it."""
    if not names:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_in_layers(config: Mapping[str, Any], name: str) -> bool:
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            layers = [wanted] if isinstance(wanted, int) else wanted
            return int(found[1]) in layers
    return False


def _by_pattern(patterns: Any, name: str, otherwise: Any) -> Any:
    """The value of the first pattern that the module's name ends with."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise


def _shapes(path: Path) -> dict[str, list[int]]:
    """Tensors and their shapes, from the header of a safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(size - 8, _HEADER_BYTES):
                raise ValueError("its header does not fit in it")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes and its header promises {8 + length + end}")
        return {name: list(entry["shape"]) for name, entry in header.items()}
    except FileNotFoundError:
        raise ModelUnavailable(
            f"{path.parent} has no {WEIGHTS}. Adapters saved as pickles (.bin) are not read, since these can run"
            " programs: save it with safetensors."
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise ModelUnavailable(
            f"{path} is not a whole safetensors file: {error}. The download or copy was cut off; get it again."
        ) from error


def _refused(folder: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(f"The adapter in {folder} can't be served: {why}.")
