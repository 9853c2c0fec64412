"""Rows as float8 numbers with a scale.

Triton's interpreter rounds to float8 in a way of its own, so rows here are such that nothing has to be rounded.
"""

import warnings

import pytest
import torch

from llmhost.engines.torch.kernels import quantise
from llmhost.engines.torch.kernels.quantise import quantise_rows


def exact_rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows whose largest number is 448 times a power of two and whose others are float8 times the same."""
    codes = torch.arange(width, dtype=torch.int32).remainder(127).to(torch.uint8)
    numbers = codes.view(torch.float8_e4m3fn).float()
    numbers[0] = -448.0
    return torch.stack([numbers, numbers.flip(0) / 64, numbers * 2]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [256, 300])
def test_each_row_has_the_scale_that_makes_its_largest_number_the_largest_there_is(
    width: int, dtype: torch.dtype
):
    x = exact_rows(width, dtype)

    numbers, scales = quantise_rows(x)

    assert numbers.dtype == torch.float8_e4m3fn
    assert scales.tolist() == [[1.0], [1 / 64], [2.0]]
    assert torch.equal(numbers.float() * scales, x.float())


def test_a_row_wider_than_a_block_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantise, "BLOCK_K", 64)
    x = exact_rows(300, torch.float32)
    numbers, scales = quantise_rows(x)
    assert torch.equal(numbers.float() * scales, x)


def test_a_row_of_zeros_stays_one():
    numbers, scales = quantise_rows(torch.zeros(1, 32))
    assert numbers.float().abs().sum() == 0
    assert scales.isfinite().all()


def test_no_number_passes_the_largest():
    x = torch.linspace(-1e38, 1e38, 64)[None]
    numbers, _ = quantise_rows(x)
    assert numbers.float().isfinite().all()


def test_a_row_with_something_that_is_no_number_has_none():
    x = exact_rows(256, torch.float32)
    x[0, 3], x[2, 5] = torch.nan, torch.inf
    with warnings.catch_warnings(action="ignore"):  # the interpreter's, which divides as numpy does
        numbers, scales = quantise_rows(x)
    whole = numbers.float() * scales
    assert not whole[0].isfinite().all()
    assert not whole[2].isfinite().all()
    assert torch.equal(whole[1], x[1])
