"""Projections whose weights are float8 numbers with a scale for each row.

A few rows of activations stay as they are and the weights are widened where they are read: time is what it takes to
read them. More rows are quantised too, each with a scale of its own, and multiplied by the tensor cores in float8.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llmhost.engines.torch.kv import FP8_MOST

FP8 = torch.float8_e4m3fn
WEIGHT_ONLY_ROWS = 16
"""Up to so many rows of activations are not quantised."""
MOST_WEIGHT_ONLY_ROWS = 64
"""So many can be."""
FAST_ACCUMULATION = True
"""Sums of a product are kept in the tensor cores' own precision."""
_LEAST_SCALE = 1e-12
_ROWS_AT_ONCE = 4096
"""Rows of weights that are quantised together, which bounds the memory that it takes."""


_weight_only_rows: ContextVar[int] = ContextVar("llmhost_fp8", default=WEIGHT_ONLY_ROWS)


@contextmanager
def rows_as_they_are() -> Iterator[None]:
    """Until the block ends, up to MOST_WEIGHT_ONLY_ROWS rows are not quantised in this thread: what was computed in
    other steps is the same but for rounding then."""
    token = _weight_only_rows.set(MOST_WEIGHT_ONLY_ROWS)
    try:
        yield
    finally:
        _weight_only_rows.reset(token)


class Fp8Projection:
    """A matrix in float8. On the CPU the same numbers are multiplied in float32, slowly."""

    steps = (16, 16)
    """Rows and columns are whole numbers of these."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        """[N, K] float8_e4m3fn"""
        self.scale = scale
        """[N] float32: the matrix is `weight` times this."""
        self.bias = bias
        """[N]"""

    @classmethod
    def of(cls, matrix: Tensor, bias: Tensor | None = None) -> "Fp8Projection":
        """A plain `matrix` [N, K], quantised on its device."""
        return cls(*quantise_matrix(matrix), bias)

    def part(self, first: int, last: int) -> "Fp8Projection":
        """Rows `first` to `last`, exclusive, in the same memory."""
        rows = slice(first, last)
        bias = None if self.bias is None else self.bias[rows]
        return Fp8Projection(self.weight[rows], self.scale[rows], bias)

    def __call__(self, x: Tensor) -> Tensor:
        is_few = len(x) <= _weight_only_rows.get()
        if x.device.type == "cpu":
            return self._on_cpu(x, is_few)
        if not is_few:
            return self.scaled(x)
        from llmhost.engines.torch.kernels.skinny import skinny_linear

        return skinny_linear(x, self.weight, scale=self.scale, bias=self.bias)

    def scaled(self, x: Tensor) -> Tensor:
        """Rows of any number, quantised and multiplied in float8 on a GPU."""
        from llmhost.engines.torch.kernels.quantise import quantise_rows

        numbers, scale = quantise_rows(x)
        out = torch._scaled_mm(
            numbers,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale[None],
            out_dtype=torch.bfloat16,  # the only type that scales for each row can have
            use_fast_accum=FAST_ACCUMULATION,
        ).to(x.dtype)
        return out if self.bias is None else out.add_(self.bias)

    @property
    def columns(self) -> int:
        """K"""
        return self.weight.shape[1]

    @property
    def tensors(self) -> Sequence[Tensor]:
        stored = (self.weight, self.scale)
        return stored if self.bias is None else (*stored, self.bias)

    def _on_cpu(self, x: Tensor, is_few: bool) -> Tensor:
        wide = x.float()
        if not is_few:
            numbers, scale = quantise_matrix(x)
            wide = numbers.float() * scale[:, None]
        weight = self.weight.float() * self.scale[:, None]
        bias = None if self.bias is None else self.bias.float()
        return F.linear(wide, weight, bias).to(x.dtype)


def quantise_matrix(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`matrix` [N, K] as float8_e4m3fn [N, K] and float32 scales [N], on its device, some rows at a time."""
    numbers = torch.empty(matrix.shape, dtype=FP8, device=matrix.device)
    scales = torch.empty(len(matrix), dtype=torch.float32, device=matrix.device)
    for first in range(0, len(matrix), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        wide = matrix[rows].float()
        scale = (wide.abs().amax(dim=1) / FP8_MOST).clamp_(min=_LEAST_SCALE)
        scales[rows] = scale
        # Rounding must not lead past the largest number, where the type has only NaN.
        numbers[rows] = (wide / scale[:, None]).clamp_(-FP8_MOST, FP8_MOST).to(FP8)
    return numbers, scales
