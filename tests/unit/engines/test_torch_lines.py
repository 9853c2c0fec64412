"""What is looked up in lines of numbers, by numpy on the CPU and by torch elsewhere."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
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


@pytest.fixture(params=["numpy", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(lines, "NUMPYS", "none")


@pytest.mark.usefixtures("way")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, st.data())
def test_lines_are_looked_up_as_defined(table: Tensor, data: st.DataObject) -> None:
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
    kept, some = table.clone(), [*range(0, len(table), 2)]
    lines.bar(kept, some, (table[some] < 0).numpy())
    assert kept[some].tolist() == table[some].where(table[some] >= 0, float("-inf")).tolist()
    assert kept[1::2].tolist() == table[1::2].tolist()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("length", [lines.SORTED_WHOLE, 3 * lines.SORTED_WHOLE])
def test_the_top_of_a_long_line_is_sorted(length: int) -> None:
    table = torch.randn(2, length)
    assert lines.top(table, 100).tolist() == table.topk(100).values.tolist()


@pytest.mark.usefixtures("way")
def test_a_number_that_is_none_is_the_largest() -> None:
    table = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), 0.0, 3.0]]).bfloat16()
    best, first = lines.largest(table)
    assert best.isfinite().tolist() == [False, False]
    assert first == [1, 0]
