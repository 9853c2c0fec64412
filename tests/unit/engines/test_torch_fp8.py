"""Projections in float8: what they compute, and how far that is from what was loaded."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from llmhost.engines.torch import fp8
from llmhost.engines.torch.fp8 import Fp8Projection, quantise_matrix


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off(got: Tensor, exact: Tensor) -> float:
    return float((got.float() - exact.float()).norm() / exact.float().norm())


def test_each_row_of_a_matrix_has_a_scale_of_its_own():
    matrix = random(6, 32) * torch.tensor([1e-4, 1e-2, 1.0, 1e2, 1e4, 0.0])[:, None]

    numbers, scales = quantise_matrix(matrix)

    assert numbers.dtype == torch.float8_e4m3fn
    assert numbers.float()[:5].abs().amax(dim=1).tolist() == [448.0] * 5
    back = numbers.float() * scales[:, None]
    assert torch.equal(back[5], matrix[5])
    assert (back - matrix).abs().le(matrix.abs() / 15 + scales[:, None] * 2**-9).all()


def test_a_matrix_is_quantised_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch):
    matrix = random(10, 16)
    whole = quantise_matrix(matrix)
    monkeypatch.setattr(fp8, "_ROWS_AT_ONCE", 4)
    parts = quantise_matrix(matrix)
    assert torch.equal(parts[0].float(), whole[0].float())
    assert torch.equal(parts[1], whole[1])


@pytest.mark.parametrize(("rows", "most"), [(1, 0.03), (16, 0.03), (17, 0.05), (64, 0.05)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_near_that_of_the_loaded_weights(rows: int, most: float, dtype: torch.dtype):
    x, weight, bias = random(rows, 256).to(dtype), random(96, 256, seed=1), random(96, seed=2)

    got = Fp8Projection.of(weight.to(dtype), bias.to(dtype))(x)

    assert got.dtype == dtype and got.shape == (rows, 96)
    assert 1e-3 < off(got, linear(x.float(), weight, bias)) < most


def test_a_row_of_activations_that_is_large_takes_nothing_from_the_others():
    x, weight = random(20, 64), random(32, 64, seed=1)
    x[3] *= 1e5
    got, exact = Fp8Projection.of(weight)(x), linear(x, weight)
    assert max(off(one, other) for one, other in zip(got, exact, strict=True)) < 0.1


def test_a_projection_keeps_the_narrow_weights_alone():
    projection = Fp8Projection.of(random(32, 64), random(32))
    assert sum(tensor.nbytes for tensor in projection.tensors) == 32 * 64 + 4 * 32 + 4 * 32


def test_a_part_is_some_rows_in_the_same_memory():
    whole, x = Fp8Projection.of(random(48, 64), random(48, seed=1)), random(20, 64, seed=2)

    part = whole.part(16, 48)

    assert part.weight.data_ptr() == whole.weight[16:].data_ptr()
    assert torch.allclose(part(x), whole(x)[:, 16:], rtol=1e-5, atol=1e-5)
