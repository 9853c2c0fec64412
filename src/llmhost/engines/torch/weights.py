"""The weights of a checkpoint whose tensors are the model's own, one to one, read straight to where they are used.

That is what most dense models are. Whatever has to be renamed, split, stacked or expanded is transformers' business
(`load`), and whatever is wrong with a checkpoint is said there: here it is only not one to one.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmhost.engines.torch.blank import blank_model
from llmhost.engines.torch.file_reader import Read, progress, read_all
from llmhost.engines.torch.joined import PARTNERS, side_by_side
from llmhost.engines.torch.quantised import method_of
from llmhost.engines.torch.weight_files import StoredTensor, read_headers
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

DIRECT_DEVICES = ("cuda",)
"""Kinds of device whose weights are read this way. On the CPU transformers maps the files, which takes no time."""

_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class NotOneToOne(Exception):
    """Why a checkpoint has to be read by transformers."""


def read_model(
    folder: Path, config: Any, *, dtype: torch.dtype, attention: str, device: torch.device
) -> Any:
    """The language model of `folder` with its weights on `device`, in eval mode.

    Raises NotOneToOne or CantBeBlank when transformers has to read it, OSError when a file can't be read, and
    torch.OutOfMemoryError.
    """
    if method_of(config.to_dict()) is not None:
        raise NotOneToOne("its weights are quantised")
    model = blank_model(copy.deepcopy(config), dtype=dtype, attention=attention)
    if reason := _converted(model, dtype):
        raise NotOneToOne(reason)
    blanks = model.state_dict(keep_vars=True)  # kept to the end: they are told apart by identity
    sources = _sources(blanks, dict(read_headers(folder)))
    targets = _rooms(blanks, device)
    reads = [
        Read(stored.path, stored.offset, stored.stored_bytes, _KINDS[stored.kind], targets[key])
        for key, stored in sources.items()
    ]
    took_s = read_all(reads, device=device)
    _put(model, targets)
    size_bytes = sum(read.size for read in reads)
    log_event(log, "weights.read", took_s=round(took_s, 3), **progress(size_bytes, took_s))
    return model.to(device)  # what is left on the host: buffers that no file has


def _converted(model: Any, dtype: torch.dtype) -> str | None:
    """Why transformers changes tensors of this model while it reads them; None if it doesn't."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    if not all(isinstance(one, WeightRenaming) for one in get_model_conversion_mapping(model)):
        return "its stored tensors are rearranged"
    kept = (
        getattr(model, name, None)
        for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    )
    if dtype is not torch.float32 and any(kept):
        return "some of its modules stay in float32"
    return None


def _sources(
    blanks: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]
) -> dict[int, StoredTensor]:
    """By the identity of each tensor of the model that a file must have: where it is."""
    names: dict[int, list[str]] = {}
    for name, blank in blanks.items():
        names.setdefault(id(blank), []).append(name)
    found = {}
    for key, known in names.items():
        places = [stored[name] for name in known if name in stored]
        if len(places) != 1:
            raise NotOneToOne(f"the files have {len(places)} tensors for {known[0]}")
        _check_same(known[0], blanks[known[0]], places[0])
        found[key] = places[0]
    return found


def _check_same(name: str, blank: Tensor, stored: StoredTensor) -> None:
    kind = _KINDS.get(stored.kind)
    if tuple(blank.shape) != stored.shape or kind is None:
        raise NotOneToOne(f"{name} is stored as {stored.kind} {list(stored.shape)}")
    is_float = kind.is_floating_point and blank.is_floating_point()
    if kind != blank.dtype and not is_float:
        raise NotOneToOne(f"{name} is stored as {stored.kind}")


def _rooms(blanks: Mapping[str, Tensor], device: torch.device) -> dict[int, Tensor]:
    """By the identity of each blank tensor: memory for it, that of layers which are fed the same side by side."""
    rooms: dict[int, Tensor] = {}
    for name, blank in blanks.items():
        if id(blank) in rooms:
            continue
        group = [blanks[one] for one in _partners(name) if one in blanks]
        if len(group) < 2 or any(id(one) in rooms for one in group):
            group = [blank]
        rooms |= {
            id(one): room for one, room in zip(group, side_by_side(group, device), strict=True)
        }
    return rooms


def _partners(name: str) -> Sequence[str]:
    """Names of the tensors that `name`'s should lie beside, its own among them; none for most."""
    owner, _, leaf = name.rpartition(".")
    parent, _, layer = owner.rpartition(".")
    for group in PARTNERS:
        if layer in group:
            return [f"{parent}.{one}.{leaf}" for one in group]
    return ()


def _put(model: nn.Module, rooms: Mapping[int, Tensor]) -> None:
    """Have the model use what was read. A tensor that it has under several names stays one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, blank in list(module.named_parameters(recurse=False)):
            key = id(blank)
            if key not in made:
                made[key] = nn.Parameter(rooms[key], requires_grad=False)
            setattr(module, name, made[key])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if id(buffer) in rooms:
                setattr(module, name, rooms[id(buffer)])
