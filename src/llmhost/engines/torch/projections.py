"""Linear layers as the fused decoder calls them: one product of a step's tokens with one matrix.

How the matrix is stored and in what precision it is multiplied is the projection's own business; which layers of a
model it stands for is its owner's.
"""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

OWN_MOST_ROWS = 1
"""On a GPU up to so many rows are multiplied by our own kernel with weights of 16 bits. `tests.gpu.tune_fp8` tells
whether torch is slower."""


class Projection(Protocol):
    """x [T, K] -> [T, N], in the type of x. It can be captured in a CUDA graph."""

    def __call__(self, x: Tensor) -> Tensor: ...

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Everything that it keeps on the device, for the books of memory."""
        ...


class PlainProjection:
    """The matrix as it was loaded, multiplied by torch, or for a few rows by a kernel of our own."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        """[N, K]"""
        self.bias = bias
        """[N]"""

    def __call__(self, x: Tensor) -> Tensor:
        if 0 < len(x) <= OWN_MOST_ROWS and x.is_cuda and x.itemsize == 2:
            from llmhost.engines.torch.kernels.skinny import can_multiply, skinny_linear

            if can_multiply(len(x), self.weight):
                return skinny_linear(x, self.weight, bias=self.bias)
        return F.linear(x, self.weight, self.bias)

    @property
    def tensors(self) -> Sequence[Tensor]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)
