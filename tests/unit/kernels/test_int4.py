"""Products with 4-bit weights: what the kernels give is the product with the same weights as plain numbers."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from llmhost.engines.torch import int4
from llmhost.engines.torch.int4 import Int4Projection, pack_matrix, unpack_matrix
from llmhost.engines.torch.kernels.int4 import int4_linear, widen
from llmhost.engines.torch.kernels.skinny import Blocks

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_few_rows_times_packed_weights(rows: int, dtype: torch.dtype):
    x, weight = random(rows, 512, dtype=dtype), random(40, 512, dtype=dtype, seed=1)
    packed, scales = pack_matrix(weight)

    got = int4_linear(x, packed, scales)

    assert got.dtype == dtype
    assert off(got, linear(x.double(), unpack_matrix(packed, scales).double())) < TOLERANCE[dtype]


def quantised(count: int, width: int) -> Int4Projection:
    """As some checkpoints have them: with zero points."""
    numbers = torch.Generator().manual_seed(3)
    packed = torch.randint(0, 256, (count, width // 2), generator=numbers, dtype=torch.uint8)
    scales = random(width // 128, count, seed=4).abs()
    zeros = torch.randint(0, 17, (width // 128, count), generator=numbers, dtype=torch.uint8)
    return Int4Projection(packed, scales, random(count, seed=5), zeros)


@pytest.mark.parametrize("rows", [1, 5, 17])
def test_zero_points_are_taken_off(rows: int):
    matrix, x = quantised(40, 512), random(rows, 512)
    exact = linear(
        x.double(),
        unpack_matrix(matrix.weight, matrix.scales, matrix.zeros).double(),
        matrix.bias.double(),
    )
    got = int4_linear(x, matrix.weight, matrix.scales, matrix.bias, zeros=matrix.zeros)
    assert off(got, exact) < 1e-5
    assert off(matrix.widened(x), exact) < 1e-5
    part = matrix.part(16, 40)
    got = int4_linear(x, part.weight, part.scales, part.bias, zeros=part.zeros)
    assert off(got, exact[:, 16:]) < 1e-5


@pytest.mark.parametrize("rows", [1, 3])
def test_a_part_of_the_rows_with_a_bias_and_other_blocks(rows: int):
    x = random(rows, 256)
    whole = Int4Projection.of(random(70, 256, seed=1), random(70, seed=2))
    part = whole.part(16, 70)

    got = int4_linear(x, part.weight, part.scales, part.bias, Blocks(16, 256, 2, 2))

    assert off(got, whole(x)[:, 16:]) < 1e-5


def test_weights_are_made_plain_numbers():
    packed, scales = pack_matrix(random(37, 512))
    assert torch.equal(widen(packed, scales, torch.float32), unpack_matrix(packed, scales))


def test_many_rows_are_multiplied_with_some_plain_weights_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(int4, "_WIDENED_ELEMENTS", 20 * 256)
    matrix, x = Int4Projection.of(random(50, 256), random(50, seed=1)), random(70, 256, seed=2)
    assert off(matrix.widened(x), matrix(x)) < 1e-5
