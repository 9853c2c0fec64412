"""Linear layers as the fused decoder calls them: one product of a step's tokens with one matrix.

How the matrix is stored and in what precision it is multiplied is the projection's own business; which layers of a
model it stands for is its owner's.
"""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Projection(Protocol):
    """x [T, K] -> [T, N], in the type of x. It can be captured in a CUDA graph."""

    def __call__(self, x: Tensor) -> Tensor: ...

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Everything that it keeps on the device, for the books of memory."""
        ...


class PlainProjection:
    """The matrix as it was loaded, multiplied by torch."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        """[N, K]"""
        self.bias = bias
        """[N]"""

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def tensors(self) -> Sequence[Tensor]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)
