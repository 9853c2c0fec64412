"""What is looked up by numpy on the CPU is what torch finds elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmhost.engines.torch import lines

tables = st.builds(
    lambda count, length, seed, coarse: (
        torch.randn(count, length, generator=torch.Generator().manual_seed(seed))
        .mul(3 if coarse else 100)
        .round()
    ),
    st.integers(1, 5),
    st.integers(1, 300),
    st.integers(0, 10_000),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(tables, st.data())
def test_the_two_ways_agree(table: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, table.shape[1]))
    places = data.draw(st.lists(st.integers(0, table.shape[1] - 1), min_size=5, max_size=5))
    places = places[: len(table)]
    best, first = lines.largest(table)
    assert best.tolist() == table.amax(-1).tolist()
    assert first == table.max(-1).indices.tolist()
    assert lines.top(table, count).tolist() == table.topk(count).values.tolist()
    edges = table.topk(count).values[:, -1:]
    found = torch.stack(lines.at_least(table, edges), 1)
    assert found.tolist() == (table >= edges).nonzero().tolist()
    order = [sorted(range(len(line)), key=lambda at: (-line[at], at)) for line in table.tolist()]
    wanted = [line.index(at) + 1 for line, at in zip(order, places, strict=True)]
    assert lines.ranks(table, places) == wanted
    kept = table.clone()
    lines.zero_below(kept, edges)
    assert kept.tolist() == (table * (table >= edges)).tolist()


@pytest.mark.parametrize("length", [lines.SORTED_WHOLE, 3 * lines.SORTED_WHOLE])
def test_the_top_of_a_long_line_is_sorted(length: int) -> None:
    table = torch.randn(2, length)
    assert lines.top(table, 100).tolist() == table.topk(100).values.tolist()


def test_a_number_that_is_none_is_the_largest() -> None:
    table = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), 0.0, 3.0]]).bfloat16()
    best, first = lines.largest(table)
    assert best.isfinite().tolist() == [False, False]
    assert first == [1, 0]
