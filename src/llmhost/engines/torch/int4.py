"""Projections whose weights have 4 bits, with a scale for each 128 of a row, and a zero point too where they were
quantised so before. Activations stay as they are.

The weights are widened where they are read, for some rows of activations, and as a whole before a product of many. The
kernels are our own: a library's would be one more thing that must fit the version of torch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 128
"""Weights of a row that share a scale."""
CHUNK = 2 * GROUP
"""Columns that lie in GROUP bytes: byte j has column j in its low half and column GROUP + j in its high one."""
_LOWEST = -8
"""Of the 16 numbers that 4 bits are, before the scale."""
ZERO = -_LOWEST
"""The zero point where there is no other."""
_TRIED = (1.0, 0.95, 0.9, 0.85)
"""Scales, as parts of the one that lets the farthest number be said: others gain by a smaller one."""
_ROWS_AT_ONCE = 2048
"""Rows of weights that are quantised together, which bounds the memory that it takes."""
_WIDENED_ELEMENTS = 2**24
"""So many weights are plain numbers at a time before a product of many rows: they stay in a GPU's cache."""


class Quantised(NamedTuple):
    """How a matrix [N, K] was quantised before: into 4 bits, less a zero point, times a scale."""

    scales: Tensor
    """[N, K / 128]"""
    zeros: Tensor | None
    """[N, K / 128] uint8; None where all are ZERO."""


class Int4Projection:
    """A matrix in 4 bits. On the CPU it is widened for each product, slowly."""

    steps = (16, CHUNK)
    """Rows and columns are whole numbers of these."""

    def __init__(
        self,
        packed: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        zeros: Tensor | None = None,
    ) -> None:
        self.weight = packed
        """[N, K / 2] uint8"""
        self.scales = scales
        """[K / 128, N] in the type of the matrix"""
        self.zeros = zeros
        """[K / 128, N] uint8; None where all are ZERO"""
        self.bias = bias
        """[N]"""

    @classmethod
    def of(
        cls, matrix: Tensor, bias: Tensor | None = None, known: Quantised | None = None
    ) -> "Int4Projection":
        """A plain `matrix` [N, K], quantised on its device; into the very numbers that it was made of, if that is
        `known`."""
        zeros = None if known is None or known.zeros is None else known.zeros.t().contiguous()
        return cls(*pack_matrix(matrix, known), bias, zeros)

    def part(self, first: int, last: int) -> "Int4Projection":
        """Rows `first` to `last`, exclusive, in the same memory."""
        rows = slice(first, last)
        bias = None if self.bias is None else self.bias[rows]
        zeros = None if self.zeros is None else self.zeros[:, rows]
        return Int4Projection(self.weight[rows], self.scales[:, rows], bias, zeros)

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            plain = unpack_matrix(self.weight, self.scales, self.zeros)
            return F.linear(x, plain.to(x.dtype), self.bias)
        from llmhost.engines.torch.kernels.int4 import int4_linear
        from llmhost.engines.torch.kernels.skinny import MOST_ROWS

        if len(x) <= MOST_ROWS:
            return int4_linear(x, self.weight, self.scales, self.bias, zeros=self.zeros)
        return self.widened(x)

    def widened(self, x: Tensor) -> Tensor:
        """Any number of rows times weights that are plain numbers for a moment, some of them at a time."""
        from llmhost.engines.torch.kernels.int4 import widen

        count = len(self.weight)
        out = x.new_empty(len(x), count)
        step = max(_WIDENED_ELEMENTS // self.columns, 1)
        for first in range(0, count, step):
            rows = slice(first, first + step)
            zeros = None if self.zeros is None else self.zeros[:, rows]
            weights = widen(self.weight[rows], self.scales[:, rows], x.dtype, zeros)
            torch.mm(x, weights.t(), out=out[:, rows])
        return out if self.bias is None else out.add_(self.bias)

    @property
    def columns(self) -> int:
        """K"""
        return 2 * self.weight.shape[1]

    @property
    def tensors(self) -> Sequence[Tensor]:
        stored = (self.weight, self.scales, self.zeros, self.bias)
        return [tensor for tensor in stored if tensor is not None]


def pack_matrix(matrix: Tensor, known: Quantised | None = None) -> tuple[Tensor, Tensor]:
    """`matrix` [N, K] as uint8 [N, K / 2] and scales [K / 128, N] of its type, on its device, some rows at a time.

    What is `known` of a matrix that has been quantised before is taken. Else the zero point is ZERO, and a scale has
    the sign that gives it the farthest number of its group, as the lowest of the 16 numbers reaches farther than the
    highest; and of some sizes it has the one with the least squared error.
    """
    count, width = matrix.shape
    packed = torch.empty(count, width // 2, dtype=torch.uint8, device=matrix.device)
    scales = torch.empty(width // GROUP, count, dtype=matrix.dtype, device=matrix.device)
    for first in range(0, count, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        groups = matrix[rows].float().view(-1, width // GROUP, GROUP)
        if known is None:
            farthest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True)).squeeze(2)
            scale = _best_scale(groups, farthest / _LOWEST, matrix.dtype)
        else:
            scale = known.scales[rows].to(matrix.dtype)
        zeros = None if known is None or known.zeros is None else known.zeros[rows]
        scales[:, rows] = scale.t()
        bits = (_steps(groups, scale, zeros) - _LOWEST).to(torch.uint8)
        halves = bits.view(-1, width // CHUNK, 2, GROUP)
        packed[rows] = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
    return packed, scales


def _best_scale(groups: Tensor, widest: Tensor, dtype: torch.dtype) -> Tensor:
    best, least = widest.to(dtype), None
    for part in _TRIED:
        scale = (widest * part).to(dtype)
        error = (_steps(groups, scale) * scale.float()[:, :, None] - groups).square_().sum(dim=2)
        best = scale if least is None else torch.where(error < least, scale, best)
        least = error if least is None else torch.minimum(error, least)
    return best


def _steps(groups: Tensor, scale: Tensor, zeros: Tensor | None = None) -> Tensor:
    """From -8 to 7, as float32."""
    divisor = torch.where(scale == 0, 1.0, scale.float())[:, :, None]
    steps = (groups / divisor).round_()
    if zeros is not None:
        steps += zeros.float()[:, :, None] - ZERO
    return steps.clamp_(_LOWEST, _LOWEST + 15)


def unpack_matrix(packed: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """The matrix [N, K] that they stand for, in float32."""
    chunks = packed.view(len(packed), -1, GROUP)
    bits = torch.stack([chunks & 15, chunks >> 4], dim=2).flatten(1, 2).float()
    bits -= ZERO if zeros is None else zeros.float().t()[:, :, None]
    return (bits * scales.float().t()[:, :, None]).flatten(1)
