"""Rows of activations as float8 numbers with one scale each, on the way into a product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
"""The largest number that float8_e4m3fn has."""
LEAST_SCALE = 1e-12
"""A row of zeros still has a scale that can be divided by."""
BLOCK_K = 4096
"""Numbers of a row that are looked at together."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` [T, K] as float8_e4m3fn [T, K] and float32 scales [T, 1]: `x` is about their product."""
    rows, width = x.shape
    x = x.contiguous()
    out = torch.empty(rows, width, dtype=FP8, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(width), BLOCK_K)
    _quantise_rows[(rows,)](
        x, out, scales, K=width, MOST=FP8_MOST, LEAST=LEAST_SCALE, BLOCK_K=block, num_warps=8
    )
    return out, scales


@triton.jit
def _quantise_rows(
    x_ptr, out_ptr, scale_ptr,
    K: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    x_row = x_ptr + row.to(tl.int64) * K
    out_row = out_ptr + row.to(tl.int64) * K
    columns = tl.arange(0, BLOCK_K)
    largest = tl.zeros([BLOCK_K], dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        at = start + columns
        x = tl.load(x_row + at, mask=at < K, other=0.0).to(tl.float32)
        # A row with something that is no number has no finite scale, so that it is noticed.
        largest = tl.maximum(largest, tl.where(x == x, tl.abs(x), float("inf")))
    scale = tl.maximum(tl.max(largest, axis=0) / MOST, LEAST)
    tl.store(scale_ptr + row, scale)
    for start in range(0, K, BLOCK_K):
        at = start + columns
        x = tl.load(x_row + at, mask=at < K, other=0.0).to(tl.float32)
        # Rounding must not lead past the largest number, where the type has only NaN.
        kept = tl.minimum(tl.maximum(x / scale, -MOST), MOST)
        tl.store(out_row + at, kept.to(tl.float8e4nv), mask=at < K)
