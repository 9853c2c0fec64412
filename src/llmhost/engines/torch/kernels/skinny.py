"""Products of few rows with a large matrix of weights, which are read once, at the speed of memory.

One row is multiplied and added by the threads that read the weights; some rows go through the tensor cores. Weights
are plain numbers, or float8 with a scale for each row, or packed 4-bit numbers (`int4`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 64
"""Rows of `x` that a program takes."""
VECTOR_ROWS = 1
"""0 has a single row go through the tensor cores too."""
LEAST_BLOCK_K = 16
"""A row of weights is a whole number of these."""


class Blocks(NamedTuple):
    """How a product is cut: so many rows of weights by so many columns at a time, each by so many warps."""

    n: int
    k: int
    stages: int
    """Blocks on their way from memory at a time."""
    warps: int


VECTOR = {1: Blocks(8, 1024, 3, 4), 2: Blocks(4, 2048, 1, 8), 4: Blocks(8, 256, 3, 4)}
"""For one row, by bytes of a weight."""
FEW_ROWS = 16
FEW = {1: Blocks(32, 256, 3, 2), 2: Blocks(32, 256, 4, 2), 4: Blocks(16, 128, 3, 4)}
"""For up to FEW_ROWS, by bytes of a weight: a warp has 16 rows of weights, and nobody else widens those."""
MANY = {1: Blocks(64, 256, 4, 4), 2: Blocks(64, 128, 4, 4), 4: Blocks(16, 128, 3, 4)}
"""For more."""
LEAST_ROWS = 8
"""Of `x` that a product of the tensor cores has."""
SHARED_BYTES = 96 * 2**10
"""What the blocks on their way may take of a processor's memory: it is the smaller GPUs', and leaves the larger ones
room for a second program."""


def can_multiply(rows: int, weight: Tensor) -> bool:
    """Whether `skinny_linear` has an answer for so many rows."""
    is_whole = weight.shape[1] % LEAST_BLOCK_K == 0
    return rows <= MOST_ROWS and is_whole and weight.is_contiguous()


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """`x` [M, K] times the transposed `weight` [N, K] as [M, N] in the type of `x`.

    `weight` has the type of `x`, or float8 and then `scale` [N] float32. M is at most MOST_ROWS.
    """
    rows, width = x.shape
    count = weight.shape[0]
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    if blocks is None:
        blocks = blocks_for(rows, weight.itemsize)
    block_k = min(blocks.k, _whole_block(width))
    grid = (triton.cdiv(count, blocks.n),)
    held = scale if scale is not None else weight
    added = bias if bias is not None else weight
    settings = {
        "K": width, "HAS_SCALE": scale is not None, "HAS_BIAS": bias is not None,
        "BLOCK_N": blocks.n, "BLOCK_K": block_k, "STAGES": blocks.stages, "num_warps": blocks.warps,
    }  # fmt: skip
    x = x.contiguous()
    if rows <= VECTOR_ROWS:
        _vector[grid](x, weight, held, added, out, count, **settings)
    else:
        settings["BLOCK_M"] = block_m = max(LEAST_ROWS, triton.next_power_of_2(rows))
        stage_bytes = block_k * (block_m * x.itemsize + blocks.n * weight.itemsize)
        settings["STAGES"] = stages_within(blocks.stages, stage_bytes)
        _skinny[grid](x, weight, held, added, out, rows, count, **settings)
    return out


def blocks_for(rows: int, weight_bytes: int) -> Blocks:
    if rows <= VECTOR_ROWS:
        return VECTOR[weight_bytes]
    return (FEW if rows <= FEW_ROWS else MANY)[weight_bytes]


def stages_within(stages: int, stage_bytes: int) -> int:
    """As many of `stages` as there is room for. One is always computed with while the next one comes."""
    return max(min(stages, SHARED_BYTES // stage_bytes), 2)


def _whole_block(width: int) -> int:
    """The largest power of two that divides `width`."""
    return width & -width


@triton.jit
def widened(w, KIND: tl.constexpr):
    """`w` as numbers of KIND. From float8 it goes by float32: the GPU has no way to bfloat16 that is as short."""
    if w.dtype == KIND:
        return w
    return w.to(tl.float32).to(KIND)


@triton.jit
def _vector(
    x_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, N,
    K: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # The last block reads its last row again, which costs less than a mask in the loop.
    read = tl.minimum(rows, N - 1).to(tl.int64)
    columns = tl.arange(0, BLOCK_K)
    w_block = w_ptr + read[:, None] * K + columns[None, :]
    products = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        x = tl.load(x_ptr + start + columns).to(tl.float32)
        w = tl.load(w_block + start).to(tl.float32)
        products += w * x[None, :]
    out = tl.sum(products, axis=1)
    if HAS_SCALE:
        out *= tl.load(scale_ptr + read)
    if HAS_BIAS:
        out += tl.load(bias_ptr + read).to(tl.float32)
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=rows < N)


@triton.jit(do_not_specialize=["M"])
def _skinny(
    x_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, M, N,
    K: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(rows, N - 1).to(tl.int64)
    tokens = tl.arange(0, BLOCK_M)
    is_token = (tokens < M)[None, :]
    columns = tl.arange(0, BLOCK_K)
    # Weights come first in the product, to be widened in the registers that it takes them from.
    w_block = w_ptr + read[:, None] * K + columns[None, :]
    x_block = x_ptr + tokens[None, :] * K + columns[:, None]
    out = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        w = widened(tl.load(w_block + start), x_ptr.dtype.element_ty)
        x = tl.load(x_block + start, mask=is_token, other=0.0)
        out = tl.dot(w, x, out, input_precision="ieee")
    if HAS_SCALE:
        out *= tl.load(scale_ptr + read)[:, None]
    if HAS_BIAS:
        out += tl.load(bias_ptr + read).to(tl.float32)[:, None]
    at = tokens.to(tl.int64)[None, :] * N + rows[:, None]
    inside = is_token & (rows < N)[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)
