"""Products of few rows: what the kernels give is what torch gives."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from llmhost.engines.torch.kernels.skinny import Blocks, can_multiply, skinny_linear

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 16, 19])
@pytest.mark.parametrize(("count", "width"), [(48, 256), (37, 320)])
def test_few_rows_times_weights(rows: int, count: int, width: int, dtype: torch.dtype):
    x, weight = random(rows, width, dtype=dtype), random(count, width, dtype=dtype, seed=1)

    got = skinny_linear(x, weight)

    assert got.dtype == dtype
    assert off(got, linear(x.double(), weight.double())) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 5])
def test_a_bias_is_added(rows: int):
    x, weight, bias = random(rows, 64), random(20, 64, seed=1), random(20, seed=2)
    assert off(skinny_linear(x, weight, bias=bias), linear(x, weight, bias)) < 1e-5


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_float8_weights_have_a_scale_for_each_row(rows: int, dtype: torch.dtype):
    x, weight = random(rows, 128, dtype=dtype), random(40, 128, seed=1).to(torch.float8_e4m3fn)
    scale = random(40, seed=2).abs()

    got = skinny_linear(x, weight, scale=scale)

    exact = linear(x.double(), weight.double() * scale.double()[:, None])
    assert off(got, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 5])
def test_other_blocks_give_the_same(rows: int):
    x, weight = random(rows, 96), random(50, 96, seed=1)
    for blocks in (Blocks(16, 32, 1, 4), Blocks(32, 16, 2, 2)):
        assert off(skinny_linear(x, weight, blocks=blocks), linear(x, weight)) < 1e-5


def test_odd_widths_and_many_rows_are_left_to_others():
    assert can_multiply(8, random(4, 64))
    assert not can_multiply(8, random(4, 72))
    assert not can_multiply(65, random(4, 64))
    assert not can_multiply(8, random(64, 4).t())
