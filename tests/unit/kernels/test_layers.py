"""The fused layers against plain torch, rounded as transformers' modules round. On a GPU where there is one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from llmhost.engines.torch.kernels.layers import add_rms_norm, rms_norm, rope_and_write, silu_mul

EPS = 1e-5
TYPES = [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
BLOCK_TOKENS = 4
BLOCKS = 5


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype is theirs.dtype
    most = TOLERANCE.get(ours.dtype, 0.0)
    torch.testing.assert_close(ours, theirs, rtol=most, atol=most)


def norm_in_torch(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def turned(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """x [T, heads, dim]"""
    cos, sin = (table[positions][:, i].repeat(1, 2)[:, None] for i in range(2))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def table_of(dim: int, dtype: torch.dtype, positions: int = 32) -> Tensor:
    angles = torch.arange(positions)[:, None] * 10.0 ** -torch.linspace(0, 2, dim // 2)
    return torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype)


def caches(kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (BLOCKS, BLOCK_TOKENS, kv_heads, dim)
    return torch.full(shape, 7.0).to(dtype), torch.full(shape, 7.0).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [64, 112])
def test_a_norm_rounds_as_transformers_does(dtype: torch.dtype, hidden: int) -> None:
    x, weight = torch.randn(3, hidden).to(dtype), torch.randn(hidden).to(dtype)
    close(rms_norm(x, weight, EPS), norm_in_torch(x, weight))


def test_a_norm_reads_rows_that_lie_apart() -> None:
    wide, weight = torch.randn(3, 100), torch.randn(64)
    close(rms_norm(wide[:, :64], weight, EPS), norm_in_torch(wide[:, :64], weight))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_sum_that_is_normalised_stays_in_the_residual(dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, 3, 48).to(dtype)
    weight, total = torch.randn(48).to(dtype), x + residual
    normed = add_rms_norm(x, residual, weight, EPS)
    assert residual.equal(total)
    close(normed, norm_in_torch(total, weight))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_gate_rounds_before_it_is_multiplied(dtype: torch.dtype) -> None:
    gate_up = (torch.randn(3, 2 * 1100) * 3).to(dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    close(silu_mul(gate_up), silu(gate) * up)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (10, 1, 24), (3, 3, 8)])
@pytest.mark.parametrize("has_norms", [False, True])
def test_queries_keys_and_values_go_where_they_belong(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, has_norms: bool
) -> None:
    tokens = 4
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    positions, slots = torch.tensor([0, 9, 3, 20]), torch.tensor([19, 2, 7, 8])
    table, (keys, values) = table_of(dim, dtype), caches(kv_heads, dim, dtype)
    q_norm, k_norm = torch.randn(2, dim).to(dtype)
    query = torch.empty(tokens, heads, dim, dtype=dtype)
    norms = {"q_norm": q_norm, "k_norm": k_norm, "eps": EPS} if has_norms else {}
    rope_and_write(qkv, table, positions, slots, keys, values, query, **norms)

    q, k, v = qkv.view(tokens, -1, dim).split([heads, kv_heads, kv_heads], dim=1)
    if has_norms:
        q, k = norm_in_torch(q, q_norm), norm_in_torch(k, k_norm)
    close(query, turned(q, table, positions))
    close(keys.flatten(0, 1)[slots], turned(k, table, positions))
    assert values.flatten(0, 1)[slots].equal(v)
    others = torch.ones(BLOCKS * BLOCK_TOKENS, dtype=torch.bool).index_fill_(0, slots, False)
    assert (keys.flatten(0, 1)[others] == 7).all() and (values.flatten(0, 1)[others] == 7).all()


def test_padding_enters_no_cache_and_may_have_any_position() -> None:
    qkv, (keys, values) = torch.randn(3, 4 * 8), caches(1, 8, torch.float32)
    positions, slots = torch.tensor([2**40, 5, -1]), torch.tensor([-1, 6, -1])
    query = torch.empty(3, 2, 8)
    rope_and_write(qkv, table_of(8, torch.float32), positions, slots, keys, values, query)
    for cache in (keys, values):
        written = (cache.flatten(0, 1) != 7).any(-1).any(-1)
        assert written.nonzero().flatten().tolist() == [6]
    assert query.isfinite().all()


def test_caches_may_be_parts_of_one_tensor() -> None:
    both = torch.full((BLOCKS, 2, BLOCK_TOKENS, 2, 8), 7.0)
    qkv, slots = torch.randn(2, 8 * 8), torch.tensor([3, 17], dtype=torch.int32)
    query = torch.empty(2, 4, 8)
    positions = torch.tensor([1, 2], dtype=torch.int32)
    table = table_of(8, torch.float32)
    rope_and_write(qkv, table, positions, slots, both[:, 0], both[:, 1], query)
    _, k, v = qkv.view(2, -1, 8).split([4, 2, 2], dim=1)
    close(both[[0, 4], 0, [3, 1]], turned(k, table, positions))
    assert both[[0, 4], 1, [3, 1]].equal(v)


def test_a_float8_cache_holds_what_fits_and_the_largest_number_otherwise() -> None:
    # Of these numbers a float8 holds each exactly, so that only what is too large is rounded.
    value = torch.tensor([[1.0, -1.5, 448.0, 449.0, -1e6, 0.0, 240.0, float("inf")]])
    qkv = torch.cat([torch.zeros(1, 16), value], dim=1)
    keys, values = caches(1, 8, torch.float8_e4m3fn)
    query, place = torch.empty(1, 1, 8), torch.tensor([5])
    rope_and_write(qkv, table_of(8, torch.float32), place, place, keys, values, query)
    written = values.view(torch.uint8).view(-1, 8)[5].view(torch.float8_e4m3fn).float()
    assert written.tolist() == [1.0, -1.5, 448.0, 448.0, -448.0, 0.0, 240.0, 448.0]


def test_no_tokens_are_no_work() -> None:
    assert rms_norm(torch.empty(0, 8), torch.ones(8), EPS).shape == (0, 8)
    assert silu_mul(torch.empty(0, 8)).shape == (0, 4)
