"""Products with weights of 4 bits, and the same weights as plain numbers.

256 columns of a row are 128 bytes: byte j has column j in its low half and column 128 + j in its high one. 128 columns
share a scale. A weight is its 4 bits, less 8, times that.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmhost.engines.torch.kernels.skinny import MOST_ROWS, VECTOR_ROWS, Blocks, stages_within

CHUNK = 256
"""Columns whose weights lie in CHUNK / 2 bytes."""
VECTOR = Blocks(16, CHUNK, 4, 2)
"""For one row."""
SKINNY = Blocks(32, CHUNK, 4, 4)
"""For some rows."""
WIDEN_ROWS = 32
"""Rows of weights that a program makes plain numbers of."""


def int4_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """`x` [M, K] times the transposed weights as [M, N] in the type of `x`, whose M is at most MOST_ROWS.

    `packed` [N, K / 2] uint8, `scales` [K / 128, N] of any float type, whose rows are contiguous.
    """
    rows, width = x.shape
    count = packed.shape[0]
    assert rows <= MOST_ROWS and width % CHUNK == 0 and packed.is_contiguous()
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    if blocks is None:
        blocks = VECTOR if rows <= VECTOR_ROWS else SKINNY
    grid = (triton.cdiv(count, blocks.n),)
    added = bias if bias is not None else scales
    settings = {
        "K": width, "CHUNK": CHUNK, "HAS_BIAS": bias is not None,
        "BLOCK_N": blocks.n, "STAGES": blocks.stages, "num_warps": blocks.warps,
    }  # fmt: skip
    x = x.contiguous()
    if rows <= VECTOR_ROWS:
        _vector[grid](x, packed, scales, added, out, count, scales.stride(0), **settings)
    else:
        settings["BLOCK_M"] = block_m = max(16, triton.next_power_of_2(rows))
        stage_bytes = CHUNK * block_m * x.itemsize + CHUNK // 2 * blocks.n
        settings["STAGES"] = stages_within(blocks.stages, stage_bytes)
        _skinny[grid](x, packed, scales, added, out, rows, count, scales.stride(0), **settings)
    return out


def widen(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [N, K] as plain numbers."""
    count, width = packed.shape[0], 2 * packed.shape[1]
    out = torch.empty(count, width, dtype=dtype, device=packed.device)
    grid = (triton.cdiv(count, WIDEN_ROWS), width // CHUNK)
    _widen[grid](
        packed, scales, out, count, scales.stride(0), K=width, CHUNK=CHUNK, BLOCK_N=WIDEN_ROWS, num_warps=4
    )  # fmt: skip
    return out


@triton.jit
def _vector(
    x_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, N, scale_stride,
    K: tl.constexpr, CHUNK: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = CHUNK // 2
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # The last block reads its last row again, which costs less than a mask in the loop.
    read = tl.minimum(rows, N - 1).to(tl.int64)
    columns = tl.arange(0, HALF)
    w_block = w_ptr + read[:, None] * (K // 2) + columns[None, :]
    products = tl.zeros([BLOCK_N, HALF], dtype=tl.float32)
    for chunk in tl.range(0, K // CHUNK, num_stages=STAGES):
        packed = tl.load(w_block + chunk * HALF)
        scale_block = scale_ptr + 2 * chunk * scale_stride + read
        low_scale = tl.load(scale_block).to(tl.float32)
        high_scale = tl.load(scale_block + scale_stride).to(tl.float32)
        low_x = tl.load(x_ptr + chunk * CHUNK + columns).to(tl.float32)
        high_x = tl.load(x_ptr + chunk * CHUNK + HALF + columns).to(tl.float32)
        low = (packed & 15).to(tl.float32) * low_x[None, :] - (low_x * 8.0)[None, :]
        high = (packed >> 4).to(tl.float32) * high_x[None, :] - (high_x * 8.0)[None, :]
        products += low * low_scale[:, None]
        products += high * high_scale[:, None]
    out = tl.sum(products, axis=1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + read).to(tl.float32)
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=rows < N)


@triton.jit(do_not_specialize=["M"])
def _skinny(
    x_ptr, w_ptr, scale_ptr, bias_ptr, out_ptr, M, N, scale_stride,
    K: tl.constexpr, CHUNK: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = CHUNK // 2
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(rows, N - 1).to(tl.int64)
    tokens = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HALF)
    x_block = x_ptr + tl.minimum(tokens, M - 1)[:, None] * K + columns[None, :]
    w_block = w_ptr + read[None, :] * (K // 2) + columns[:, None]
    out = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for chunk in tl.range(0, K // CHUNK, num_stages=STAGES):
        packed = tl.load(w_block + chunk * HALF)
        scale_block = scale_ptr + 2 * chunk * scale_stride + read
        low_scale = tl.load(scale_block).to(tl.float32)
        high_scale = tl.load(scale_block + scale_stride).to(tl.float32)
        low_x = tl.load(x_block + chunk * CHUNK)
        high_x = tl.load(x_block + chunk * CHUNK + HALF)
        low = ((packed & 15).to(tl.int8) - 8).to(x_ptr.dtype.element_ty)
        high = ((packed >> 4).to(tl.int8) - 8).to(x_ptr.dtype.element_ty)
        out += tl.dot(low_x, low, input_precision="ieee") * low_scale[None, :]
        out += tl.dot(high_x, high, input_precision="ieee") * high_scale[None, :]
    if HAS_BIAS:
        out += tl.load(bias_ptr + read).to(tl.float32)[None, :]
    at = tokens.to(tl.int64)[:, None] * N + rows[None, :]
    inside = (tokens < M)[:, None] & (rows < N)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _widen(
    w_ptr, scale_ptr, out_ptr, N, scale_stride,
    K: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = CHUNK // 2
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(rows, N - 1).to(tl.int64)
    chunk = tl.program_id(1)
    columns = tl.arange(0, HALF)
    packed = tl.load(w_ptr + read[:, None] * (K // 2) + chunk * HALF + columns[None, :])
    scale_block = scale_ptr + 2 * chunk * scale_stride + read
    low_scale = tl.load(scale_block).to(tl.float32)
    high_scale = tl.load(scale_block + scale_stride).to(tl.float32)
    low = ((packed & 15).to(tl.float32) - 8.0) * low_scale[:, None]
    high = ((packed >> 4).to(tl.float32) - 8.0) * high_scale[:, None]
    place = out_ptr + rows.to(tl.int64)[:, None] * K + chunk * CHUNK + columns[None, :]
    inside = (rows < N)[:, None]
    tl.store(place, low.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(place + HALF, high.to(out_ptr.dtype.element_ty), mask=inside)
