"""What a decoder computes between its matrix products, each part in one pass over memory.

Everything is computed in float32 and rounded to the tensors' type wherever transformers' own modules round: greedy
answers shall be theirs. So no product is contracted with the sum after it (`enable_fp_fusion`). A place whose slot is
negative is padding: it is computed like the others, at position 0, and nothing of it enters the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

STARTS_EARLY = False
"""Kernels are made ready, and read what no other kernel writes, while the one before them still runs. Needs compute
capability 9.0."""
NORM_ELEMENTS_PER_WARP = 256
"""One program has a whole token: 4,096 numbers are 16 warps, which read 16 bytes a thread."""
NORM_MOST_WARPS = 16
ROPE_HEADS = 8
"""Heads of a token that one program turns."""
ROPE_WARPS = 2
SILU_ELEMENTS = 1024
SILU_WARPS = 4


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H] over its root mean square, times `weight` [H]; returns [T, H]."""
    return _norm(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` of the sum of x and `residual`, both [T, H]; the sum is then in `residual`."""
    return _norm(x, residual, weight, eps)


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    tokens, hidden = x.shape
    assert x.stride(1) == 1 and weight.is_contiguous()
    assert residual is None or (residual.shape == x.shape and residual.stride(1) == 1)
    out = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(hidden)
    before = x if residual is None else residual
    if tokens:
        _norm_kernel[(tokens,)](
            x,
            before,
            weight,
            out,
            eps,
            x.stride(0),
            before.stride(0),
            HIDDEN=hidden,
            BLOCK=block,
            ADDS=residual is not None,
            num_warps=min(max(block // NORM_ELEMENTS_PER_WARP, 1), NORM_MOST_WARPS),
            enable_fp_fusion=False,
            EARLY=STARTS_EARLY,
            launch_pdl=STARTS_EARLY,
        )
    return out


def rope_and_write(
    qkv: Tensor,
    table: Tensor,
    positions: Tensor,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_out: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Queries turned to `query_out`, keys turned and values as they are to the caches.

    qkv [T, (heads + 2 * kv_heads) * dim]: queries, then keys, then values. table [positions, 2, dim / 2]: cosines, then
    sines, of the angles by which numbers i and i + dim / 2 of a head are turned. positions [T]. slots [T]: where a key
    and a value go, as block * block_tokens + offset; negative for padding. Caches [blocks, block_tokens, kv_heads,
    dim], of the type of qkv or float8_e4m3fn, where what is too large becomes the largest number. query_out [T, heads,
    dim]. q_norm and k_norm [dim]: weights of an RMSNorm over each head before it is turned; both or neither.
    """
    tokens, heads, dim = query_out.shape
    block_tokens, kv_heads = key_cache.shape[1], key_cache.shape[2]
    every = heads + 2 * kv_heads
    assert qkv.shape == (tokens, every * dim) and qkv.stride(1) == 1
    assert table.shape[1:] == (2, dim // 2) and table.is_contiguous() and dim % 2 == 0
    assert query_out.is_contiguous() and key_cache.stride(3) == 1 == value_cache.stride(3)
    assert (q_norm is None) == (k_norm is None)
    assert positions.is_contiguous() and slots.is_contiguous()
    if not tokens:
        return
    _rope_kernel[(tokens, triton.cdiv(every, ROPE_HEADS))](
        qkv,
        table,
        positions,
        slots,
        key_cache,
        value_cache,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        query_out,
        eps,
        qkv.stride(0),
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        HALF=triton.next_power_of_2(dim // 2),
        BLOCK_TOKENS=block_tokens,
        BLOCK_HEADS=ROPE_HEADS,
        NORMS=q_norm is not None,
        SATURATES=key_cache.dtype is torch.float8_e4m3fn,
        num_warps=ROPE_WARPS,
        enable_fp_fusion=False,
        EARLY=STARTS_EARLY,
        launch_pdl=STARTS_EARLY,
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F], the gate first -> [T, F]: silu(gate) * up."""
    tokens, both = gate_up.shape
    features = both // 2
    assert gate_up.stride(1) == 1
    out = torch.empty((tokens, features), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        _silu_mul_kernel[(tokens, triton.cdiv(features, SILU_ELEMENTS))](
            gate_up,
            out,
            gate_up.stride(0),
            FEATURES=features,
            BLOCK=SILU_ELEMENTS,
            num_warps=SILU_WARPS,
            enable_fp_fusion=False,
            EARLY=STARTS_EARLY,
            launch_pdl=STARTS_EARLY,
        )
    return out


@triton.jit
def _rounded(x, like):
    """x in float32, as exact as the numbers that the pointer `like` leads to."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _storable(x, SATURATES: tl.constexpr):
    """x as a float8 holds it at most. NaN stays NaN."""
    if SATURATES:
        x = tl.where(x > 448.0, 448.0, x)
        x = tl.where(x < -448.0, -448.0, x)
    return x


@triton.jit
def _norm_kernel(
    x,
    residual,
    weight,
    out,
    eps,
    x_stride,
    residual_stride,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < HIDDEN
    # Before the sum, for which a program waits: one token alone is all waiting.
    scale = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
    wide = tl.load(x + token * x_stride + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        at = residual + token * residual_stride + place
        wide = _rounded(wide + tl.load(at, mask=inside, other=0.0).to(tl.float32), x)
        tl.store(at, wide.to(residual.dtype.element_ty), mask=inside)
    variance = tl.sum(wide * wide, axis=0) / HIDDEN
    normed = _rounded(wide * tl.rsqrt(variance + eps), x)
    tl.store(out + token * HIDDEN + place, (normed * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _head_norm(first, second, q_norm, k_norm, is_query, place, inside, eps, DIM: tl.constexpr):
    """Both halves [heads, dim / 2] of some heads, normalised, before their rounding. `place` is as large as they are:
    what is read through it lies in the same threads, and needs no exchange between them."""
    q_first = tl.load(q_norm + place, mask=inside, other=0.0).to(tl.float32)
    k_first = tl.load(k_norm + place, mask=inside, other=0.0).to(tl.float32)
    q_second = tl.load(q_norm + DIM // 2 + place, mask=inside, other=0.0).to(tl.float32)
    k_second = tl.load(k_norm + DIM // 2 + place, mask=inside, other=0.0).to(tl.float32)
    variance = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / DIM
    scale = tl.rsqrt(variance + eps)[:, None]
    return (
        _rounded(first * scale, q_norm) * tl.where(is_query, q_first, k_first),
        _rounded(second * scale, q_norm) * tl.where(is_query, q_second, k_second),
    )


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rope_kernel(
    qkv,
    table,
    positions,
    slots,
    key_cache,
    value_cache,
    q_norm,
    k_norm,
    query_out,
    eps,
    qkv_stride,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    value_block_stride,
    value_token_stride,
    value_head_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    NORMS: tl.constexpr,
    SATURATES: tl.constexpr,
    EARLY: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    place = tl.arange(0, HALF)[None, :] + tl.zeros([BLOCK_HEADS, 1], dtype=tl.int32)
    if EARLY:
        gdc_wait()
    slot = tl.load(slots + token).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    position = tl.where(slot < 0, 0, position)

    is_query = (head < HEADS)[:, None]
    is_turned = (head < HEADS + KV_HEADS)[:, None]
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & (place < DIM // 2)
    source = qkv + token * qkv_stride + head[:, None] * DIM + place
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + DIM // 2, mask=inside, other=0.0).to(tl.float32)
    angle = table + position * DIM + place
    cos = tl.load(angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(angle + DIM // 2, mask=inside, other=0.0).to(tl.float32)
    a = first
    b = second
    if NORMS:
        a, b = _head_norm(first, second, q_norm, k_norm, is_query, place, inside, eps, DIM)
        a = _rounded(a, qkv)
        b = _rounded(b, qkv)
    a_turned = _rounded(_rounded(a * cos, qkv) - _rounded(b * sin, qkv), qkv)
    b_turned = _rounded(_rounded(b * cos, qkv) + _rounded(a * sin, qkv), qkv)
    first = tl.where(is_turned, a_turned, first)
    second = tl.where(is_turned, b_turned, second)

    target = query_out + token * (HEADS * DIM) + head[:, None] * DIM + place
    tl.store(target, first.to(query_out.dtype.element_ty), mask=inside & is_query)
    tl.store(target + DIM // 2, second.to(query_out.dtype.element_ty), mask=inside & is_query)

    first = _storable(first, SATURATES)
    second = _storable(second, SATURATES)
    kept = inside & (slot >= 0)
    block = slot // BLOCK_TOKENS
    offset = slot % BLOCK_TOKENS
    is_key = kept & is_turned & (head >= HEADS)[:, None]
    target = key_cache + block * key_block_stride + offset * key_token_stride
    target = target + (head - HEADS)[:, None] * key_head_stride + place
    tl.store(target, first.to(key_cache.dtype.element_ty), mask=is_key)
    tl.store(target + DIM // 2, second.to(key_cache.dtype.element_ty), mask=is_key)
    is_value = kept & (head >= HEADS + KV_HEADS)[:, None]
    target = value_cache + block * value_block_stride + offset * value_token_stride
    target = target + (head - HEADS - KV_HEADS)[:, None] * value_head_stride + place
    tl.store(target, first.to(value_cache.dtype.element_ty), mask=is_value)
    tl.store(target + DIM // 2, second.to(value_cache.dtype.element_ty), mask=is_value)


@triton.jit
def _silu_mul_kernel(
    gate_up, out, stride, FEATURES: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < FEATURES
    if EARLY:
        gdc_wait()
    gate = tl.load(gate_up + token * stride + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * stride + FEATURES + place, mask=inside, other=0.0)
    activated = _rounded(gate / (1.0 + tl.exp(-gate)), gate_up)
    product = activated * up.to(tl.float32)
    tl.store(out + token * FEATURES + place, product.to(out.dtype.element_ty), mask=inside)
