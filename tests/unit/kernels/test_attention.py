"""Paged attention, by Triton's interpreter, against float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.unit.kernels.paged import (
    FP8,
    Shape,
    asked,
    decoded,
    expected,
    make_step,
    prefilled,
    scatter_bytes,
)

from llmhost.engines.torch.kernels import attention
from llmhost.engines.torch.kernels.attention import (
    DecodeRoom,
    Tiles,
    decode_tiles,
    fitted,
    prefill_tiles,
)

HALF, BF16 = torch.float16, torch.bfloat16

SHAPES = [
    Shape(heads=4, kv_heads=2, dim=16, block_tokens=8),
    Shape(heads=3, kv_heads=1, dim=80, block_tokens=16),
    Shape(heads=2, kv_heads=2, dim=32, block_tokens=32, dtype=torch.float16),
    Shape(heads=17, kv_heads=1, dim=24, block_tokens=64),
]
WAYS: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 40},
    {"softcap": 3.0},
    {"sinks": 2.0},
    {"window": 33, "softcap": 5.0, "sinks": -1.0, "key_scale": 0.5, "value_scale": 3.0},
]
CASES = [
    *((SHAPES[i % 3], way, 1 + 2 * (i % 2)) for i, way in enumerate(WAYS)),
    (SHAPES[1], WAYS[-1], 3),
    (SHAPES[2], WAYS[-1], 1),
    (SHAPES[3], WAYS[0], 1),
]
"""With the most splits of a row."""


def is_close(out: torch.Tensor, reference: torch.Tensor) -> None:
    tolerance = 2e-6 if out.dtype is torch.float32 else 2e-3
    torch.testing.assert_close(out.double(), reference, rtol=5 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("shape", "way", "splits"), CASES)
def test_a_row_of_one_token_gets_what_it_would_get_in_float64(
    shape: Shape, way: dict[str, Any], splits: int
) -> None:
    step = make_step(shape, [1] * 3, [0, 33, 90], seed=splits)
    ask = asked(way, shape)
    is_close(decoded(step, ask, splits=splits), expected(step, **ask))


@pytest.mark.parametrize(("shape", "way"), [case[:2] for case in CASES])
def test_every_token_of_a_chunk_gets_what_it_would_get_in_float64(
    shape: Shape, way: dict[str, Any]
) -> None:
    step = make_step(shape, [1, 20, 3], [9, 20, 75], seed=7)
    ask = asked(way, shape)
    tiles = Tiles(tile=32, warps=4, stages=2, queries=32)
    is_close(prefilled(step, ask, tiles=tiles), expected(step, **ask))


@pytest.mark.parametrize("window", [None, 1, 50, 150])
def test_a_long_chunk_has_tiles_that_all_its_queries_see_and_tiles_that_some_do(
    window: int | None,
) -> None:
    step = make_step(SHAPES[0], [70, 33], [200, 33], seed=11)
    ask = asked({"window": window}, SHAPES[0])
    tiles = Tiles(tile=16, warps=4, stages=2, queries=32)
    is_close(prefilled(step, ask, tiles=tiles), expected(step, **ask))


def test_keys_and_values_may_be_stored_in_float8() -> None:
    shape = replace(SHAPES[0], stored=FP8)
    step, ask = make_step(shape, [1, 1], [5, 40], seed=3), asked({"value_scale": 2.0}, shape)
    is_close(decoded(step, ask), expected(step, **ask))
    step = make_step(shape, [5, 2], [5, 40], seed=3)
    is_close(prefilled(step, ask), expected(step, **ask))


FP8_CASES: list[tuple[Shape, dict[str, Any], int]] = [
    (Shape(heads=4, kv_heads=2, dim=32, block_tokens=8, dtype=HALF, stored=FP8), {}, 1),
    (Shape(heads=17, kv_heads=1, dim=64, block_tokens=16, dtype=HALF, stored=FP8), WAYS[2], 3),
    (Shape(heads=3, kv_heads=1, dim=96, block_tokens=16, dtype=BF16, stored=FP8), WAYS[5], 3),
    (Shape(heads=2, kv_heads=2, dim=80, block_tokens=32, dtype=HALF, stored=FP8), WAYS[5], 1),
]
"""In two bytes a query: as on a GPU."""


@pytest.mark.parametrize("in_words", [True, False])
@pytest.mark.parametrize(("shape", "way", "splits"), FP8_CASES)
def test_every_number_in_float8_counts_whether_it_is_read_in_words_or_not(
    shape: Shape,
    way: dict[str, Any],
    splits: int,
    in_words: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "WORDS", in_words)
    step = make_step(shape, [1] * 3, [0, 33, 90], seed=splits)
    scatter_bytes(step, seed=splits)
    ask = asked({**way, "key_scale": 0.003}, shape)
    reference = expected(step, **ask)
    error = (decoded(step, ask, splits=splits).double() - reference).norm() / reference.norm()
    assert error < (1e-3 if shape.dtype is HALF else 6e-3)


def test_one_position_gives_its_values_exactly() -> None:
    step = make_step(FP8_CASES[0][0], [1] * 4, [1] * 4, seed=0)
    scatter_bytes(step, seed=1)
    ask = asked({}, FP8_CASES[0][0])
    torch.testing.assert_close(decoded(step, ask).double(), expected(step, **ask), rtol=0, atol=0)


def test_few_rows_are_split_and_many_are_not() -> None:
    room = DecodeRoom(16, 4, 2, 8, torch.device("cpu"), multiprocessors=4)
    splits = [room.splits(rows, 2) for rows in range(1, 17)]
    assert splits == sorted(splits, reverse=True)
    assert splits[0] * 2 >= room.programs > 1
    assert splits[room.programs // 2 - 1 :] == [1] * (17 - room.programs // 2)
    assert room.parts == max((rows * many for rows, many in enumerate(splits, start=1) if many > 1))


@pytest.mark.parametrize("kib", [64, 99, 163, 227])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_tiles_fit_into_the_shared_memory_of_smaller_devices(dim: int, kib: int) -> None:
    prompts = [
        prefill_tiles(2, dim, pairs, joins_warps=joins)
        for pairs in (16, 999)
        for joins in (True, False)
    ]
    for tiles in (decode_tiles(2, dim), *prompts):
        found = fitted(tiles, dim, 2, kib * 2**10)
        rows = found.queries + 2 * (found.stages - 1) * found.tile
        assert rows * dim * 2 < kib * 2**10
        assert found.tile >= 16 and found.stages >= 2
        assert found == tiles or kib < 163


def test_a_room_that_is_too_small_is_noticed() -> None:
    step = make_step(SHAPES[0], [1] * 9, [1] * 9, seed=0)
    with pytest.raises(AssertionError, match="fewer rows"):
        decoded(step, asked({}, SHAPES[0]), splits=2)
