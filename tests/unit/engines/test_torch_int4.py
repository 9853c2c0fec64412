"""Projections in 4 bits: how they are stored, and how far they are from what was loaded."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from llmhost.engines.torch import int4
from llmhost.engines.torch.int4 import Int4Projection, pack_matrix, unpack_matrix


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_sixteen_numbers_can_say_comes_back_as_it_was():
    steps = torch.arange(256).remainder(16).float() - 8
    matrix = torch.stack([steps * 0.5, steps * -2, steps * 0])
    assert torch.equal(unpack_matrix(*pack_matrix(matrix)), matrix)


def test_few_weights_are_farther_off_than_half_a_step():
    matrix = random(6, 512)
    packed, scales = pack_matrix(matrix)
    step = scales.t().abs().repeat_interleave(128, dim=1)
    distance = (unpack_matrix(packed, scales) - matrix).abs()
    assert (distance <= step * 2).all()
    assert float((distance <= step * 0.501).float().mean()) > 0.97


def test_of_some_scales_the_one_with_the_least_error_is_taken(monkeypatch: pytest.MonkeyPatch):
    matrix = random(20, 256)
    errors = []
    for tried in ((1.0,), (1.0, 0.9)):
        monkeypatch.setattr(int4, "_TRIED", tried)
        errors.append(float((unpack_matrix(*pack_matrix(matrix)) - matrix).norm() / matrix.norm()))
    assert 0.9 < errors[1] / errors[0] < 0.99


def test_columns_of_a_chunk_lie_in_the_halves_of_its_bytes():
    matrix = torch.zeros(1, 256)
    matrix[0, 5], matrix[0, 128 + 5] = -8.0, 7.0
    matrix[0, 128] = -8.0
    packed, _ = pack_matrix(matrix)
    assert packed[0, 5].item() == 0 | 15 << 4
    assert packed[0, 6].item() == 8 | 8 << 4


def test_a_matrix_is_packed_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch):
    matrix = random(10, 256)
    whole = pack_matrix(matrix)
    monkeypatch.setattr(int4, "_ROWS_AT_ONCE", 4)
    for part, all_at_once in zip(pack_matrix(matrix), whole, strict=True):
        assert torch.equal(part, all_at_once)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_near_that_of_the_loaded_weights(rows: int, dtype: torch.dtype):
    x, weight, bias = random(rows, 256).to(dtype), random(48, 256, seed=1), random(48, seed=2)

    got = Int4Projection.of(weight.to(dtype), bias.to(dtype))(x)

    exact = linear(x.float(), weight, bias)
    assert got.dtype == dtype
    assert 0.02 < float((got.float() - exact).norm() / exact.norm()) < 0.14


def test_a_projection_takes_half_a_byte_for_each_weight_and_the_scales():
    projection = Int4Projection.of(random(32, 512), random(32))
    assert sum(one.nbytes for one in projection.tensors) == 32 * 256 + 4 * 32 * 4 + 4 * 32
