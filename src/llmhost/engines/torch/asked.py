"""How tokens are to be drawn at the places of a step, as tensors on the device: what a drawing kernel reads.

All of it lies in one tensor, so that one copy brings it over, and another refills it for the next step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmhost.engines.drawing import Place

_MASK = 2**64 - 1
COLDEST = 1e-30
"""Lower temperatures than this are taken as this: float32 would divide by zero. What is drawn is the best token."""


@dataclass(frozen=True, slots=True)
class DrawAsked:
    """One entry per place [places]; all of these are views of `packed`, [4 * places] in int64."""

    packed: Tensor
    seed: Tensor
    """int64"""
    position: Tensor
    """Of the token to draw, counted from the sequence's beginning, in int64."""
    temperature: Tensor
    """float32; 0 takes the first of the largest logits, whatever the filters are."""
    top_p: Tensor
    """float32; 1 is off."""
    min_p: Tensor
    """float32; 0 is off."""
    top_k: Tensor
    """int32; 0 is off."""

    @classmethod
    def of(cls, packed: Tensor) -> "DrawAsked":
        """Views of what `pack` has packed, on whatever device it is now."""
        width = packed.shape[0] // 4
        whole, heat, rest = packed[: 2 * width], packed[2 * width : 3 * width], packed[3 * width :]
        temperature, top_p = heat.view(torch.float32).view(2, width)
        min_p = rest.view(torch.float32)[:width]
        top_k = rest.view(torch.int32)[width:]
        return cls(packed, whole[:width], whole[width:], temperature, top_p, min_p, top_k)

    @classmethod
    def greedy(cls, places: int, device: torch.device) -> "DrawAsked":
        """Room for `places`, all of which take the best token until it is refilled: `packed.copy_(pack(...))`."""
        return cls.of(pack([], places).to(device))


def pack(places: Sequence[Place], width: int | None = None) -> Tensor:
    """What `places` ask for, as one tensor of the host, [4 * width] in int64. Places up to `width` are greedy."""
    count = len(places)
    width = count if width is None else width
    packed = np.zeros(4 * width, np.int64)
    seeds = [place.row.seed & _MASK for place in places]
    packed[:count] = np.array(seeds, np.uint64).view(np.int64)
    packed[width : width + count] = [place.position for place in places]
    floats = packed[2 * width :].view(np.float32).reshape(4, width)
    asked = [place.row.sampling for place in places]
    floats[0, :count] = [max(one.temperature, COLDEST) if one.temperature else 0 for one in asked]
    floats[1] = 1.0
    floats[1, :count] = [one.top_p for one in asked]
    floats[2, :count] = [one.min_p for one in asked]
    floats[3].view(np.int32)[:count] = [min(one.top_k or 0, 2**31 - 1) for one in asked]
    return torch.from_numpy(packed)


def asked_of(places: Sequence[Place], device: torch.device) -> DrawAsked:
    """What `places` ask for, brought to the device by one copy that nobody waits for."""
    return DrawAsked.of(to_device(pack(places), device))


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device. On a GPU the copy is ordered behind its work, and the host goes on."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)
