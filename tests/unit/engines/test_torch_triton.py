"""Attention by kernels in place of plain torch's, for steps and for a whole runner."""

from collections.abc import Callable
from typing import Any

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from tests.unit.engines.test_torch_attention import CPU, DIM, HEADS, KV_HEADS, attended
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.engines.torch import backend_triton
from llmhost.engines.torch import runner as torch_runner
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.backend_triton import (
    ACCEPTABLE,
    TritonAttention,
    self_test,
    warm_up,
)
from llmhost.engines.torch.kernels.attention import (
    DecodeRoom,
    Tiles,
    decode_attention,
    prefill_tiles,
)
from llmhost.engines.torch.layout import StepLayout

PLAIN = Scores()
RICH = Scores(0.2, 6, 3.0, torch.tensor([-1.0, 0.0, 1.0, 3.0]))


def by_kernels(layout: StepLayout, block_tokens: int, dtype: torch.dtype) -> TritonAttention:
    return TritonAttention(layout, DecodeRoom(8, HEADS, KV_HEADS, DIM, CPU, multiprocessors=4))


@pytest.mark.parametrize("scores", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("rows", [[(40, 1), (5, 7), (0, 1)], [(0, 20), (1, 7)], [(16, 1), (17, 1)]])
def test_every_query_gets_what_it_would_get_alone(
    rows: list[tuple[int, int]], scores: Scores
) -> None:
    out, expected = attended((rows, 8, 1), scores, torch.float32, by_kernels)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_the_self_test_finds_nothing_wrong() -> None:
    error = self_test(CPU, torch.float32, HEADS, KV_HEADS, 24, 16)
    assert 0 < error < ACCEPTABLE[torch.float32]


def test_the_self_test_notices_a_kernel_that_reads_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_far(*args: Any, **asked: Any) -> None:
        query, keys, values, tables, ends, out = args
        decode_attention(query, keys, values, tables, ends + 1, out, **asked)

    monkeypatch.setattr(backend_triton, "decode_attention", too_far)
    assert self_test(CPU, torch.float32, HEADS, KV_HEADS, DIM, 16) > ACCEPTABLE[torch.float32]


@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (32, 8), (28, 4)])
def test_a_warm_up_has_every_form_of_prefill(
    heads: int, kv_heads: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def form(longest: int, *, keeps_busy: bool = True) -> Tiles:
        return prefill_tiles(2, dim, longest * heads // kv_heads, keeps_busy=keeps_busy)

    def note(*_: Any, **asked: Any) -> None:
        seen.add((form(asked["longest"]), asked["window"]))

    seen: set[tuple[Tiles, int | None]] = set()
    monkeypatch.setattr(backend_triton, "prefill_attention", note)
    warm_up(CPU, torch.bfloat16, heads, kv_heads, dim, 16, [PLAIN, RICH])
    wanted = {form(longest, keeps_busy=busy) for longest in range(1, 300) for busy in (True, False)}
    assert seen == {(tiles, window) for tiles in wanted for window in (None, 6)}


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_a_model_says_by_kernels_what_it_says_by_torch(
    load: Callable[..., Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(family, block_tokens=8)
    by_torch = answers(runner)
    kept: list[TritonAttention] = []

    def backend(layout: StepLayout, *_: Any, **__: Any) -> TritonAttention:
        heads, kv_heads, dim = (
            runner._model.config.num_attention_heads,
            runner._kv.shape.kv_heads,
            runner._kv.shape.head_dim,
        )
        kept.append(TritonAttention(layout, DecodeRoom(4, heads, kv_heads, dim, CPU)))
        return kept[-1]

    monkeypatch.setattr(torch_runner, "StepAttention", backend)
    assert answers(runner) == by_torch
    assert kept


def answers(runner: Any) -> list[list[int]]:
    """Of prompts in chunks beside sequences that decode, longer than the window."""
    asked = [Asked(range(3, 19), 2), Asked([5, 6], 3), Asked([8], 1, joins_at=1)]
    return ToyScheduler(runner, chunk=9).answer(*asked)
