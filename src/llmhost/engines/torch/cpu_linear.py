"""Linear layers of 16-bit weights on CPUs that have no 16-bit arithmetic.

There torch's own product unpacks the weights in its innermost loop, again for every few rows of the input: it takes
two to three times as long as float32 does. Here the weights are packed for a product that widens them in registers
(`packed`). Until they are, and where they can't be, a slice of them that fits the cache is widened once, and all rows
are multiplied with it in float32. Memory is read in 16 bits, sums are at least as exact.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmhost.engines.torch.packed import CantPack, PackedMatrix, Packing, can_pack

log = logging.getLogger("llmhost.engines")

FEW_ROWS = 4
"""Up to so many rows the weights are read faster than they are computed with, and torch's own product is best."""
FEW_ROWS_TOGETHER = 24
"""The same where several threads compute: each slice is a place where they wait for each other, which on a busy machine
takes longer than the slice. There are none then, and only what gains without them is widened, in one piece."""
SOME_ROWS = 10
"""Up to so many the product is best written row by row."""
MANY_ROWS = 256
"""From here on too, with slices that no cache holds; in between it is best written column by column."""
SOME_ELEMENTS, MORE_ELEMENTS, MANY_ELEMENTS = 2**17, 2**18, 2**22
"""Elements of a slice: half of a usual second-level cache, all of it, and most layers whole."""


class Room:
    """Where slices are widened. One model's layers share it: they run one after the other, in one thread."""

    def __init__(self) -> None:
        self._elements = torch.empty(0, dtype=torch.float32)

    def take(self, rows: int, columns: int) -> Tensor:
        if self._elements.numel() < rows * columns:
            self._elements = torch.empty(rows * columns, dtype=torch.float32)
        return self._elements[: rows * columns].view(rows, columns)


class WideningLinear(nn.Linear):
    """An `nn.Linear` that computes in float32. Same weights, same result up to rounding."""

    room: Room
    packed: PackedMatrix | None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights, which have to be unpacked for it where they were packed."""
        if self.packed is not None:
            return self.packed.unpacked()
        kept = self._parameters["weight"]
        assert kept is not None
        return kept

    def pack(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Go over to packed weights, and give back the memory of the others; from any thread."""
        kept = self.weight
        try:
            self.packed = PackedMatrix.of(kept.detach(), is_wanted)
        except CantPack as why:
            log.debug("weights.unpacked why=%s", why)
            return
        self._parameters["weight"] = stand_in(kept)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear calls it
        flat = input.reshape(-1, input.shape[-1])
        if self.packed is not None:
            return self._finished(self.packed.product(flat), input)
        few = FEW_ROWS if torch.get_num_threads() == 1 else FEW_ROWS_TOGETHER
        if len(flat) <= few or input.dtype is torch.float32:
            return F.linear(input, self.weight, self.bias)
        return self._finished(self._product(flat.float()), input)

    def _finished(self, out: Tensor, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear calls it
        if self.bias is not None:
            out += self.bias
        narrow = out.to(input.dtype, memory_format=torch.contiguous_format)
        return narrow.view(*input.shape[:-1], self.out_features)

    def _product(self, wide: Tensor) -> Tensor:
        if len(wide) >= MANY_ROWS or torch.get_num_threads() > 1:
            return self._by_row(wide, MANY_ELEMENTS)
        if len(wide) <= SOME_ROWS:
            return self._by_row(wide, SOME_ELEMENTS)
        return self._by_column(wide, MORE_ELEMENTS)

    def _by_row(self, wide: Tensor, elements: int) -> Tensor:
        product = wide.new_empty(len(wide), self.out_features)
        parts = self._slices(elements)
        for part, out in zip(parts, torch.split(product, len(parts[0]), 1), strict=True):
            torch.mm(wide, self._widened(part).t(), out=out)
        return product

    def _by_column(self, wide: Tensor, elements: int) -> Tensor:
        columns = wide.t().contiguous()
        product = wide.new_empty(self.out_features, len(wide))
        parts = self._slices(elements)
        for part, out in zip(parts, torch.split(product, len(parts[0])), strict=True):
            torch.mm(self._widened(part), columns, out=out)
        return product.t()

    def _slices(self, elements: int) -> tuple[Tensor, ...]:
        rows = max(elements // self.in_features, 1)
        return torch.split(self.weight, rows)

    def _widened(self, part: Tensor) -> Tensor:
        return self.room.take(*part.shape).copy_(part)


def stand_in(weight: Tensor) -> nn.Parameter:
    """Who counts parameters or asks for their type still finds one of that size; its numbers are not the weights."""
    blank = torch.empty(1, dtype=weight.dtype).expand(weight.shape)
    return nn.Parameter(blank, requires_grad=False)


def widen_where_it_helps(model: nn.Module) -> int:
    """Have `model`'s 16-bit linear layers compute in float32 if this CPU is faster so; how many do then."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    chosen = [one for one in linears if is_slow_here(one.weight)]
    room = Room()
    for linear in chosen:
        linear.__class__ = WideningLinear
        linear.room = room  # type: ignore[assignment]
        linear.packed = None  # type: ignore[assignment]
    return len(chosen)


def pack_beside(model: nn.Module) -> Packing:
    """Begin to pack the weights of `model`'s widening layers: with few rows each product then takes a third as long.

    Weights that others have too, such as an embedding's, would be there twice, and stay as they are.
    """
    holders = holders_of(model)
    layers = [
        one
        for one in model.modules()
        if isinstance(one, WideningLinear) and holders[one.weight.data_ptr()] == 1
    ]
    return Packing(layers if can_pack() else (), torch.get_num_threads())


def holders_of(model: nn.Module) -> Counter[int]:
    """How many modules have the weights at an address."""
    return Counter(
        parameter.data_ptr()
        for one in model.modules()
        for parameter in one.parameters(recurse=False)
    )


def is_slow_here(weight: Tensor) -> bool:
    """The weights are on an x86 CPU that has no instructions for their type."""
    return weight.device.type == "cpu" and lacks_arithmetic(weight.dtype)


def lacks_arithmetic(dtype: torch.dtype) -> bool:
    """This is an x86 CPU, and `dtype` a 16-bit type that it has no instructions for."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    can: Mapping[str, Any] = torch.cpu.get_capabilities()
    if can.get("architecture") != "x86_64":
        return False
    kind = "bf16" if dtype is torch.bfloat16 else "fp16"
    return not (can.get(f"avx512_{kind}") or can.get(f"amx_{kind}"))
