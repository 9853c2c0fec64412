"""Attention whose numbers at a position depend on what it sees alone: right, and the same bits in any company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.test_torch_attention import attended

from llmhost.engines.torch import steady_rows
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kv import KvShape
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.steady_rows import SteadyAttention, SteadyRooms

SINKS = torch.tensor([-1.0, 0.0, 1.0, 3.0])
SCORES = st.builds(
    Scores,
    scaling=st.sampled_from([None, 0.2]),
    window=st.sampled_from([None, 1, 6, 30, 600]),
    softcap=st.sampled_from([None, 3.0]),
    sinks=st.sampled_from([None, SINKS]),
)
START = st.sampled_from([0, 1, 5, 16, 40, 240, 255, 256, 700])
COUNT = st.sampled_from([1, 1, 1, 2, 7, 20, 90])


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.tuples(START, COUNT), min_size=1, max_size=6),
    size=st.sampled_from([16, 32]),
    seed=st.integers(0, 1000),
    scores=SCORES,
    tile=st.sampled_from(steady_rows.TILES),
    worthwhile=st.sampled_from([0, 2**11, 2**15]),
    at_once=st.sampled_from([8, 64]),
)
def test_every_query_gets_what_it_should(
    rows: list[tuple[int, int]],
    size: int,
    seed: int,
    scores: Scores,
    tile: int,
    worthwhile: int,
    at_once: int,
) -> None:
    def steady(layout: StepLayout, size: int, dtype: torch.dtype) -> SteadyAttention:
        return SteadyAttention(layout, SteadyRooms(tile), block_tokens=size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steady_rows, "WORTHWHILE_ELEMENTS", worthwhile)
        patch.setattr(steady_rows, "AT_ONCE", at_once)
        out, expected = attended((rows, size, seed), scores, torch.float32, steady)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 64, 80, 128])
def test_a_tile_is_one_whose_sums_are_the_same_for_any_number_of_its_keys(dim: int) -> None:
    """With AVX-512 it is the longer one; others cut its sums where there are over 192."""
    torch.set_num_threads(1)
    tile = steady_rows.tile_for(
        KvShape(layers=1, kv_heads=2, head_dim=dim, block_tokens=16, dtype=torch.float32)
    )
    assert tile is not None
    numbers = torch.Generator().manual_seed(2)
    weights = torch.rand(2, 8, tile, generator=numbers)
    values = torch.rand(2, tile, dim, generator=numbers)
    for length in range(steady_rows.LEAST, tile):
        seen = weights.clone()
        seen[..., length:] = 0.0
        fewer = torch.bmm(weights[..., :length], values[:, :length])
        assert torch.equal(fewer, torch.bmm(seen, values)), length
