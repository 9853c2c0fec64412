"""In float32 on the CPU a row's numbers are the same bits in any company, and however its text was cut."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.toy_scheduler import GREEDY
from torch import Tensor

import llmhost.engines.builtin
from llmhost.config.schema.engines import TorchOptions
from llmhost.core.step import Row
from llmhost.engines.torch.layout import lay_out
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.packed import PackedMatrix
from llmhost.engines.torch.runner import TorchRunner
from llmhost.engines.torch.steady_linear import (
    BLOCKED_ROWS,
    BlockedMatrix,
    SteadyLinear,
    make_linears_steady,
    steady_sizes,
)

TINY = Path(llmhost.engines.builtin.__file__).parent / "tiny"
FAMILIES = ["tiny", "llama", "gemma2"]
"""Weights from 16 bits, and from 32; windows; bounded scores."""
TEXT = [(7919 * place + 31) % 251 + 3 for place in range(330)]
BLOCKS = 24
"""Of a sequence of `TEXT`, with blocks of 16."""

Company = Sequence[tuple[int, int]]
"""Where other rows start and how many tokens they feed."""


@pytest.fixture(scope="module")
def loaded(checkpoint: Callable[[str], Path]) -> Callable[[str], TorchRunner]:
    @cache
    def get(family: str) -> TorchRunner:
        torch.set_num_threads(1)
        folder = TINY if family == "tiny" else checkpoint(family)
        runner = load_runner(folder, block_tokens=16, options=TorchOptions())
        runner.set_kv_blocks(12 * BLOCKS)
        return runner

    return get


@pytest.fixture(scope="module")
def alone(loaded: Callable[[str], TorchRunner]) -> Callable[[str], Tensor]:
    """Logits after each token of `TEXT`, in one step."""
    return cache(lambda family: fed(loaded(family), 0, len(TEXT), ()))


def fed(runner: TorchRunner, start: int, end: int, company: Company) -> Tensor:
    """Logits after `TEXT`'s tokens from `start` to `end`, exclusive, computed beside others."""
    places = [*range(11 * BLOCKS, 11 * BLOCKS + BLOCKS)]
    mine = Row(0, TEXT[start:end], start, places, GREEDY, 0, True, drafts=end - start - 1)
    others = [
        Row(1 + i, TEXT[:count], first, range(BLOCKS * i, BLOCKS * i + BLOCKS), GREEDY, 0, True)
        for i, (first, count) in enumerate(company)
    ]
    with torch.inference_mode():
        layout = lay_out([*others, mine], block_tokens=16, device=runner.device)
        logits = runner.forward(layout)
    assert logits is not None
    before = sum(1 for i in layout.order[: layout.order.index(len(others))])
    return logits[before : before + end - start].clone()


COMPANY = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from([1, 1, 1, 2, 9, 40])), max_size=11
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from([1, 1, 2, 5, 16, 70, 190]), COMPANY), max_size=7),
    last=COMPANY,
)
def test_logits_are_the_same_bits_in_any_company_and_cut(
    family: str,
    steps: list[tuple[int, Company]],
    last: Company,
    loaded: Callable[[str], TorchRunner],
    alone: Callable[[str], Tensor],
) -> None:
    expected, start = alone(family), 0
    for count, company in [*steps, (len(TEXT), last)]:
        end = min(start + count, len(TEXT))
        if start < end:
            logits = fed(loaded(family), start, end, company)
            assert torch.equal(logits, expected[start:end]), (start, end, company)
        start = end


def test_where_fbgemms_rows_change_with_their_number_onednns_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As without AVX-512."""
    torch.set_num_threads(1)
    plain = PackedMatrix.product
    monkeypatch.setattr(
        PackedMatrix, "product", lambda *asked: plain(*asked) + len(asked[1]) * 1e-6
    )
    linear = torch.nn.Linear(64, 48).requires_grad_(False)
    linear.weight.copy_(linear.weight.half().float())
    rows = torch.rand(9, 64)
    expected = linear(rows)
    model = torch.nn.Sequential(linear)

    assert make_linears_steady(model) == 1
    assert isinstance(linear, SteadyLinear) and isinstance(linear.matrix, BlockedMatrix)
    torch.testing.assert_close(model(rows), expected)
    assert torch.equal(model(rows)[:3], model(rows[:3]))


def test_onednn_is_given_few_numbers_of_rows_as_it_keeps_code_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    plain, fed = torch.ops.mkldnn._linear_pointwise, set[int]()

    def spied(rows: Tensor, *asked: object) -> Tensor:
        fed.add(len(rows))
        return plain(rows, *asked)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spied)
    weight, rows = torch.rand(48, 64), torch.rand(150, 64)
    blocks = BlockedMatrix.of(weight).blocks
    matrix = BlockedMatrix(blocks, steady_sizes(blocks))
    assert set(matrix.sizes) >= {4, 16, 64}
    fed.clear()
    whole = matrix.product(rows)

    torch.testing.assert_close(whole, rows @ weight.t())
    assert all(torch.equal(matrix.product(rows[:n]), whole[:n]) for n in range(151))
    assert matrix.product(rows[:0]).shape == (0, 48)
    assert fed == set(matrix.sizes) <= set(BLOCKED_ROWS)
