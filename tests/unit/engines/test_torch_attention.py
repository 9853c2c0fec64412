"""The pure-torch attention against one query at a time, by hand."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.toy_scheduler import GREEDY
from torch import Tensor

from llmhost.core.step import Row
from llmhost.engines.torch import backend_torch, chunk_rows
from llmhost.engines.torch.backend_torch import (
    GROUP_OVERHEAD_BLOCKS,
    Scores,
    Scratch,
    StepAttention,
    split_by_length,
)
from llmhost.engines.torch.kv import KeyValue, KvShape, PagedKv
from llmhost.engines.torch.layout import StepLayout, lay_out

HEADS, KV_HEADS, DIM = 4, 2, 16
CPU = torch.device("cpu")


def by_hand(query: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
    """One query [heads, dim] over the keys [length, kv_heads, dim] that it may see."""
    if scores.window is not None:
        keys, values = keys[-scores.window :], values[-scores.window :]
    keys = keys.repeat_interleave(HEADS // KV_HEADS, 1)
    values = values.repeat_interleave(HEADS // KV_HEADS, 1)
    products = torch.einsum("hd,lhd->hl", query, keys) * (scores.scaling or query.shape[-1] ** -0.5)
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    if scores.sinks is not None:
        products = torch.cat([products, scores.sinks[:, None]], dim=-1)
    weights = products.softmax(-1)[:, : len(keys)]
    return torch.einsum("hl,lhd->hd", weights, values)


def leave_to_torch(patch: pytest.MonkeyPatch) -> None:
    """No code of our own takes the step."""
    for name in ("rows_code", "chunks_code"):
        patch.setattr(backend_torch, name, lambda _: None)


def cases(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int, int]:
    """(start, tokens) of each row, block size, seed."""
    row = st.tuples(st.sampled_from([0, 1, 5, 16, 40, 700]), st.sampled_from([1, 1, 1, 2, 7, 20]))
    rows = draw(st.lists(row, min_size=1, max_size=6))
    return rows, draw(st.sampled_from([8, 16])), draw(st.integers(0, 1000))


@settings(max_examples=40, deadline=None)
@given(
    case=st.composite(cases)(),
    scores=st.builds(
        Scores,
        scaling=st.sampled_from([None, 0.2]),
        window=st.sampled_from([None, 1, 6, 30, 600]),
        softcap=st.sampled_from([None, 3.0]),
        sinks=st.sampled_from([None, torch.tensor([-1.0, 0.0, 1.0, 3.0])]),
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    worthwhile=st.sampled_from([0, 300, 2**14]),
    tile=st.sampled_from([None, 3, 64, 512]),
)
def test_every_query_gets_what_it_would_get_alone(
    case: tuple[list[tuple[int, int]], int, int],
    scores: Scores,
    dtype: torch.dtype,
    worthwhile: int,
    tile: int | None,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        leave_to_torch(patch)
        patch.setattr(torch, "get_num_threads", lambda: 1)
        patch.setattr(backend_torch, "WORTHWHILE_ELEMENTS", {2: worthwhile, 4: worthwhile})
        patch.setattr(backend_torch, "lacks_arithmetic", lambda _: tile is not None)
        patch.setattr(chunk_rows, "LEAST_POSITIONS", 8)
        patch.setattr(chunk_rows, "TILE_POSITIONS", tile)
        out, expected = attended(case, scores, dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(out.float(), expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tile", "scores"),
    [
        (torch.float32, 64, Scores()),
        (torch.float32, 8192, Scores(softcap=3.0, sinks=torch.tensor([-1.0, 0.0, 1.0, 3.0]))),
        (torch.bfloat16, 8192, Scores()),
    ],
)
def test_rows_that_several_threads_share_give_the_same(
    dtype: torch.dtype, tile: int, scores: Scores
) -> None:
    scratch = Scratch()
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            leave_to_torch(patch)
            patch.setattr(backend_torch, "WORTHWHILE_ELEMENTS", {2: 0, 4: 0})
            patch.setattr(backend_torch, "lacks_arithmetic", lambda _: True)
            patch.setattr(chunk_rows, "LEAST_POSITIONS", 80)
            patch.setattr(chunk_rows, "LARGE_TILE", tile)
            out, expected = attended(
                ([(3, 1), (40, 1), (41, 1), (90, 1), (90, 5), (500, 1), (1100, 12)], 4, 7),
                scores,
                dtype,
                lambda layout, size, kind: StepAttention(
                    layout, scratch, block_tokens=size, dtype=kind
                ),
            )
        assert scratch.rows._crew is not None
    finally:
        torch.set_num_threads(usual)
        scratch.close()
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(out.float(), expected, rtol=10 * tolerance, atol=tolerance)


def in_torch(layout: StepLayout, block_tokens: int, dtype: torch.dtype) -> StepAttention:
    return StepAttention(layout, Scratch(), block_tokens=block_tokens, dtype=dtype)


def attended(
    case: tuple[list[tuple[int, int]], int, int],
    scores: Scores,
    dtype: torch.dtype,
    backend: Callable[[StepLayout, int, torch.dtype], Any] = in_torch,
    dim: int = DIM,
) -> tuple[Tensor, Tensor]:
    """What attention gives for every query of a step, and what it should."""
    spans, size, seed = case
    numbers = torch.Generator().manual_seed(seed)
    known = [
        torch.randn(2, start + count, KV_HEADS, dim, generator=numbers).to(dtype)
        for start, count in spans
    ]
    queries = [torch.randn(count, HEADS, dim, generator=numbers).to(dtype) for _, count in spans]

    pool = list(range(sum(-(-one.shape[1] // size) for one in known) + 3))
    random.Random(seed).shuffle(pool)
    if seed % 2:  # blocks that follow each other, but for some
        pool.sort()
        pool.insert(len(pool) // 2, pool.pop())
    rows = []
    for i, (start, count) in enumerate(spans):
        blocks = [pool.pop() for _ in range(-(-(start + count) // size))]
        rows.append(Row(i, [0] * count, start, blocks, GREEDY, 0, True))
    shape = KvShape(layers=1, kv_heads=KV_HEADS, head_dim=dim, block_tokens=size, dtype=dtype)
    kv = PagedKv(shape, CPU)
    kv.resize(sum(len(row.blocks) for row in rows) + 3)
    for part in kv.layers[0]:
        part.fill_(float("nan"))
    for row, (keys, values) in zip(rows, known, strict=True):
        if row.start:
            past = row._replace(tokens=[0] * row.start, start=0)
            write(kv, [past], [KeyValue(keys[: row.start], values[: row.start])], size)

    fresh, layout = write(
        kv,
        rows,
        [
            KeyValue(keys[row.start :], values[row.start :])
            for row, (keys, values) in zip(rows, known, strict=True)
        ],
        size,
    )
    attention = backend(layout, size, dtype)
    query = torch.cat([queries[i] for i in layout.order]).transpose(0, 1)[None]
    out = attention.attend(query, fresh, kv.layers[0], scores)[0]

    expected = torch.stack(
        [
            by_hand(
                queries[i][t].float(),
                known[i][0][: start + t + 1].float(),
                known[i][1][: start + t + 1].float(),
                scores,
            )
            for i in layout.order
            for start, count in [spans[i]]
            for t in range(count)
        ]
    )
    return out, expected


def write(
    kv: PagedKv, rows: list[Row], parts: list[KeyValue], size: int
) -> tuple[KeyValue, StepLayout]:
    """Lay `rows` out and write their keys and values, as a layer does."""
    layout = lay_out(rows, block_tokens=size, device=CPU)
    fresh = KeyValue(
        *(
            torch.cat([parts[i][side] for i in layout.order]).transpose(0, 1)[None]
            for side in (0, 1)
        )
    )
    kv.write(0, fresh, layout.slots, layout.entered)
    return fresh, layout


def test_rows_of_similar_length_stay_together() -> None:
    assert split_by_length([]) == []
    assert split_by_length([4, 4, 5, 7]) == [(0, 4)]
    assert split_by_length([1, 8]) == [(0, 2)]  # little to win


def test_short_rows_do_not_pay_for_a_long_one() -> None:
    assert split_by_length([4] * 30 + [200]) == [(0, 30), (30, 31)]
    assert split_by_length([1] * 60 + [20] * 10 + [300] * 2) == [(0, 60), (60, 70), (70, 72)]


@given(st.lists(st.integers(1, 500), max_size=80))
def test_groups_cover_all_rows_once_and_waste_little(counts: list[int]) -> None:
    counts.sort()
    groups = split_by_length(counts)
    assert [row for first, last in groups for row in range(first, last)] == list(range(len(counts)))
    padding = sum(counts[last - 1] * (last - first) for first, last in groups) - sum(counts)
    assert padding <= sum(counts) + GROUP_OVERHEAD_BLOCKS * len(groups)


def test_the_layout_says_where_each_token_goes() -> None:
    rows = [
        Row(0, [7, 8, 9], 6, [5, 2], GREEDY, 0, True),
        Row(1, [4], 8, [1, 3], GREEDY, 0, True),
        Row(2, [6, 6], 0, [0, 4], GREEDY, 0, False),
    ]
    layout = lay_out(rows, block_tokens=8, device=CPU)
    assert layout.order == [1, 2, 0]
    assert layout.decode_rows == 1
    assert layout.input_ids.tolist() == [[4, 6, 6, 7, 8, 9]]
    assert layout.positions.tolist() == [[8, 0, 1, 6, 7, 8]]
    assert layout.slots.tolist() == [24, 0, 1, 46, 47, 16]
    assert layout.block_tables.tolist() == [[1, 3], [0, 0], [5, 2]]
    assert layout.sampled.tolist() == [0, 5]
    assert layout.scored is None
    assert layout.entered is not None
    assert layout.entered.tolist() == [3, 0, 2]


def test_a_row_draws_after_its_guesses_too_and_scores_its_prompt() -> None:
    asked = replace(GREEDY, prompt_logprobs=0)
    rows = [
        Row(0, [7, 8, 9], 6, [5, 2], GREEDY, 0, True, drafts=2),
        Row(1, [6, 6, 7], 0, [0, 4], asked, 0, False, prompt_tokens=7, known=range(7)),
        Row(2, [6, 6, 7, 8], 5, [3, 6], asked, 0, True, prompt_tokens=8, known=range(9)),
    ]
    layout = lay_out(rows, block_tokens=8, device=CPU)
    assert layout.order == [1, 2, 0]
    assert layout.sampled.tolist() == [6, 7, 8, 9]
    assert layout.scored is not None
    assert layout.scored.tolist() == [0, 1, 2, 3, 4]


def test_a_block_that_was_begun_before_is_not_wiped() -> None:
    rows = [Row(0, [1, 2], 9, [0, 1], GREEDY, 0, True), Row(1, [1] * 8, 0, [2], GREEDY, 0, True)]
    assert lay_out(rows, block_tokens=8, device=CPU).entered is None


@pytest.mark.parametrize(("before", "after"), [(4, 9), (9, 4), (4, 0), (0, 4)])
def test_a_resize_keeps_what_is_below_both_counts(before: int, after: int) -> None:
    shape = KvShape(layers=2, kv_heads=1, head_dim=4, block_tokens=8, dtype=torch.bfloat16)
    assert shape.block_bytes == 2 * 2 * 8 * 4 * 2
    kv = PagedKv(shape, CPU)
    kv.resize(before)
    for number, tensor in enumerate(part for layer in kv.layers for part in layer):
        tensor.copy_(torch.arange(before).view(-1, 1, 1, 1) + 10 * number)
    kv.resize(after)
    assert kv.block_count == after
    kept = min(before, after)
    for number, tensor in enumerate(part for layer in kv.layers for part in layer):
        assert tensor[:kept, 3, 0, 1].tolist() == [10 * number + i for i in range(kept)]
        assert not tensor[kept:].any()
