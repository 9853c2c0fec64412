"""What is on its way on the device: tokens that were just drawn, and keys and values before they are in blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def feed_tokens(ids: Tensor, places: Tensor, drawn: Tensor, out: Tensor) -> None:
    """`out` [T] gets `ids` [T], or where `places` [T] is not negative what was drawn there: `drawn[places]`. All int32.

    A draw that failed (-1) is fed as token 0; nobody reads what comes of it.
    """
    _feed[(triton.cdiv(len(ids), 256),)](ids, places, drawn, out, len(ids), BLOCK=256, num_warps=4)


def write_kv(
    key: Tensor, value: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor
) -> None:
    """Put keys and values [T, kv_heads, dim] at `slots` [T] (block * block_tokens + offset) of one layer's caches
    [blocks, block_tokens, kv_heads, dim], in the caches' type. A negative slot is padding: nothing is written."""
    count, kv_heads, dim = key.shape
    assert key.stride(2) == value.stride(2) == 1
    assert key_cache.is_contiguous() and value_cache.is_contiguous()
    _write[(count, kv_heads)](
        key, value, slots, key_cache, value_cache,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        HEADS=kv_heads, DIM=dim, DIM_ROOM=triton.next_power_of_2(dim),
        IS_FP8=key_cache.dtype is torch.float8_e4m3fn, num_warps=1,
    )  # fmt: skip


@triton.jit
def _feed(ids, places, drawn, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(places + at, mask=inside, other=-1)
    own = tl.load(ids + at, mask=inside, other=0)
    foretold = tl.load(drawn + place, mask=inside & (place >= 0), other=0)
    tl.store(out + at, tl.where(place >= 0, tl.maximum(foretold, 0), own), mask=inside)


@triton.jit
def _write(
    key, value, slots, key_cache, value_cache,
    key_stride, key_head_stride, value_stride, value_head_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_ROOM: tl.constexpr, IS_FP8: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + token).to(tl.int64)
    at = tl.arange(0, DIM_ROOM)
    inside = (at < DIM) & (slot >= 0)
    k = tl.load(key + token * key_stride + head * key_head_stride + at, mask=inside, other=0.0)
    v = tl.load(
        value + token * value_stride + head * value_head_stride + at, mask=inside, other=0.0
    )
    if IS_FP8:  # what is larger would become NaN
        k = tl.minimum(tl.maximum(k.to(tl.float32), -448.0), 448.0)
        v = tl.minimum(tl.maximum(v.to(tl.float32), -448.0), 448.0)
    target = (slot * HEADS + head) * DIM + at
    tl.store(key_cache + target, k.to(key_cache.dtype.element_ty), mask=inside)
    tl.store(value_cache + target, v.to(value_cache.dtype.element_ty), mask=inside)
