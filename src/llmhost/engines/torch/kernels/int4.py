"""Products with weights of 4 bits, and the same weights as plain numbers.

256 columns of a row are 128 bytes: byte j has column j in its low half and column 128 + j in its high one. 128 columns
share a scale. A weight is its 4 bits, less 8 or the zero point that they share too, times that.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmhost.engines.torch.kernels.skinny import (
    FEW_ROWS,
    LEAST_ROWS,
    MOST_ROWS,
    Blocks,
    stages_within,
)

CHUNK = 256
"""Columns whose weights lie in CHUNK / 2 bytes."""
FEW = Blocks(32, CHUNK, 4, 2)
"""For up to FEW_ROWS: a warp has 16 rows of weights, and nobody else makes plain numbers of them."""
MANY = Blocks(64, CHUNK, 4, 4)
WIDEN_ROWS = 32
"""Rows of weights that a program makes plain numbers of."""


def int4_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    blocks: Blocks | None = None,
    *,
    zeros: Tensor | None = None,
) -> Tensor:
    """`x` [M, K] times the transposed weights as [M, N] in the type of `x`, whose M is at most MOST_ROWS.

    `packed` [N, K / 2] uint8, `scales` [K / 128, N] of any float type and `zeros` [K / 128, N] uint8, which are 8 where
    there are none. Rows of both are contiguous.
    """
    rows, width = x.shape
    count = packed.shape[0]
    assert rows <= MOST_ROWS and width % CHUNK == 0 and packed.is_contiguous()
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    blocks = blocks or blocks_for(rows)
    added = bias if bias is not None else scales
    block_m = max(LEAST_ROWS, triton.next_power_of_2(rows))
    stage_bytes = CHUNK * block_m * x.itemsize + CHUNK // 2 * blocks.n
    _skinny[(triton.cdiv(count, blocks.n),)](
        x.contiguous(), packed, scales, scales if zeros is None else zeros, added, out,
        rows, count, scales.stride(0), scales.stride(0) if zeros is None else zeros.stride(0),
        K=width, CHUNK=CHUNK, HAS_ZEROS=zeros is not None, HAS_BIAS=bias is not None, ON_GPU=x.is_cuda, BLOCK_M=block_m,
        BLOCK_N=blocks.n, STAGES=stages_within(blocks.stages, stage_bytes), num_warps=blocks.warps,
    )  # fmt: skip
    return out


def blocks_for(rows: int) -> Blocks:
    return FEW if rows <= FEW_ROWS else MANY


def widen(
    packed: Tensor, scales: Tensor, dtype: torch.dtype, zeros: Tensor | None = None
) -> Tensor:
    """The weights [N, K] as plain numbers."""
    count, width = packed.shape[0], 2 * packed.shape[1]
    out = torch.empty(count, width, dtype=dtype, device=packed.device)
    grid = (triton.cdiv(count, WIDEN_ROWS), width // CHUNK)
    _widen[grid](
        packed, scales, scales if zeros is None else zeros, out,
        count, scales.stride(0), scales.stride(0) if zeros is None else zeros.stride(0),
        K=width, CHUNK=CHUNK, HAS_ZEROS=zeros is not None, BLOCK_N=WIDEN_ROWS, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _plain(packed, KIND: tl.constexpr, ON_GPU: tl.constexpr):
    """The numbers -8 to 7 in the low and in the high halves of bytes, as numbers of KIND.

    A GPU has no short way from integers to those of 16 bits. Four bits in the last places of 128 (1024 in float16) are
    that and the number, so one sum makes them what they are.
    """
    if ON_GPU and KIND == tl.bfloat16:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 low, high, one, less;
            mov.b32 one, 0x3F803F80;
            mov.b32 less, 0xC308C308;
            and.b32 low, $4, 0x0F0F0F0F;
            shr.u32 high, $4, 4;
            and.b32 high, high, 0x0F0F0F0F;
            prmt.b32 $0, low, 0x43434343, 0x4140;
            prmt.b32 $1, low, 0x43434343, 0x4342;
            prmt.b32 $2, high, 0x43434343, 0x4140;
            prmt.b32 $3, high, 0x43434343, 0x4342;
            fma.rn.bf16x2 $0, $0, one, less;
            fma.rn.bf16x2 $1, $1, one, less;
            fma.rn.bf16x2 $2, $2, one, less;
            fma.rn.bf16x2 $3, $3, one, less;
            }
            """,
            "=r,=r,=r,=r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
    elif ON_GPU and KIND == tl.float16:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 low, high, one, less;
            mov.b32 one, 0x3C003C00;
            mov.b32 less, 0xE408E408;
            and.b32 low, $4, 0x0F0F0F0F;
            shr.u32 high, $4, 4;
            and.b32 high, high, 0x0F0F0F0F;
            prmt.b32 $0, low, 0x64646464, 0x4140;
            prmt.b32 $1, low, 0x64646464, 0x4342;
            prmt.b32 $2, high, 0x64646464, 0x4140;
            prmt.b32 $3, high, 0x64646464, 0x4342;
            fma.rn.f16x2 $0, $0, one, less;
            fma.rn.f16x2 $1, $1, one, less;
            fma.rn.f16x2 $2, $2, one, less;
            fma.rn.f16x2 $3, $3, one, less;
            }
            """,
            "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        low = ((packed & 15).to(tl.int8) - 8).to(KIND)
        high = ((packed >> 4).to(tl.int8) - 8).to(KIND)
    return low, high


@triton.jit(do_not_specialize=["M"])
def _skinny(
    x_ptr, w_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, M, N, scale_stride, zero_stride,
    K: tl.constexpr, CHUNK: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, ON_GPU: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = CHUNK // 2
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(rows, N - 1)
    tokens = tl.arange(0, BLOCK_M)
    is_token = (tokens < M)[None, :]
    columns = tl.arange(0, HALF)
    x_block = x_ptr + tokens[None, :] * K + columns[:, None]
    w_block = w_ptr + read.to(tl.int64)[:, None] * (K // 2) + columns[None, :]
    # Scales are read a turn ahead: they are too small to be copied in the background.
    scale_block = scale_ptr + read
    low_scale = tl.load(scale_block)
    high_scale = tl.load(scale_block + scale_stride)
    out = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    for chunk in tl.range(0, K // CHUNK, num_stages=STAGES):
        packed = tl.load(w_block + chunk * HALF)
        low_x = tl.load(x_block + chunk * CHUNK, mask=is_token, other=0.0)
        high_x = tl.load(x_block + chunk * CHUNK + HALF, mask=is_token, other=0.0)
        scale_block = scale_ptr + tl.minimum(chunk + 1, K // CHUNK - 1) * 2 * scale_stride + read
        next_low = tl.load(scale_block)
        next_high = tl.load(scale_block + scale_stride)
        low, high = _plain(packed, x_ptr.dtype.element_ty, ON_GPU)
        if HAS_ZEROS:  # the numbers are small, so nothing is rounded
            zero_block = zero_ptr + 2 * chunk * zero_stride + read
            low += (8.0 - tl.load(zero_block).to(tl.float32)).to(low.dtype)[:, None]
            high += (8.0 - tl.load(zero_block + zero_stride).to(tl.float32)).to(high.dtype)[:, None]
        product = tl.dot(low, low_x, input_precision="ieee")
        out += product * low_scale.to(tl.float32)[:, None]
        product = tl.dot(high, high_x, input_precision="ieee")
        out += product * high_scale.to(tl.float32)[:, None]
        low_scale, high_scale = next_low, next_high
    if HAS_BIAS:
        out += tl.load(bias_ptr + read).to(tl.float32)[:, None]
    at = tokens.to(tl.int64)[None, :] * N + rows[:, None]
    inside = is_token & (rows < N)[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _widen(
    w_ptr, scale_ptr, zero_ptr, out_ptr, N, scale_stride, zero_stride,
    K: tl.constexpr, CHUNK: tl.constexpr, HAS_ZEROS: tl.constexpr, BLOCK_N: tl.constexpr,
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
    low_zero = tl.full([BLOCK_N], 8.0, tl.float32)
    high_zero = low_zero
    if HAS_ZEROS:
        zero_block = zero_ptr + 2 * chunk * zero_stride + read
        low_zero = tl.load(zero_block).to(tl.float32)
        high_zero = tl.load(zero_block + zero_stride).to(tl.float32)
    low = ((packed & 15).to(tl.float32) - low_zero[:, None]) * low_scale[:, None]
    high = ((packed >> 4).to(tl.float32) - high_zero[:, None]) * high_scale[:, None]
    place = out_ptr + rows.to(tl.int64)[:, None] * K + chunk * CHUNK + columns[None, :]
    inside = (rows < N)[:, None]
    tl.store(place, low.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(place + HALF, high.to(out_ptr.dtype.element_ty), mask=inside)
