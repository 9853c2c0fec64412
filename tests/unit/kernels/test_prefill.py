"""Whoever attends to rows of several tokens gives what float64 gives: our kernel, and adapters of libraries."""

import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.kernels import attention_doubles as doubles
from tests.unit.kernels.paged import Shape, Step, expected, make_step
from tests.unit.kernels.prefill_rows import form_of, rows_of

from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.flash_attention_3 import FlashAttention3
from llmhost.engines.torch.flashinfer_attention import FlashInfer
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.prefill import (
    Form,
    Kind,
    PrefillAttention,
    TritonPrefill,
)

CPU = torch.device("cpu")
HALF, BF16 = torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    doubles.install_fa3(monkeypatch)
    doubles.install_flashinfer(monkeypatch)
    yield


MAKERS: dict[str, Callable[[Form], PrefillAttention]] = {
    "triton": lambda form: TritonPrefill(),
    "flash_attention_3": FlashAttention3,
    "flashinfer": lambda form: FlashInfer(form, CPU, (8, 0)),
    "flashinfer_on_hopper": lambda form: FlashInfer(form, CPU, (9, 0)),
}


def scores_of(window: int | None, softcap: float | None, scaling: float | None) -> Scores:
    return Scores(scaling=scaling, window=window, softcap=softcap)


def is_right(step: Step, scores: Scores) -> None:
    scaling = step.query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling
    reference = expected(step, scaling=scaling, window=scores.window, softcap=scores.softcap)
    tolerance = 2e-3 if step.out.dtype is HALF else 1e-2
    torch.testing.assert_close(step.out.double(), reference, rtol=5 * tolerance, atol=tolerance)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Tokens and ends of rows, most of which end inside a block."""
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    pasts = [draw(st.sampled_from([0, 0, 1, 15, 16, 33, 90])) for _ in counts]
    return counts, [past + count for past, count in zip(pasts, counts, strict=True)]


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "triton"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=chunks(),
    heads=st.sampled_from([(4, 4), (4, 2), (8, 1), (6, 2)]),
    dim=st.sampled_from([64, 128]),
    block_tokens=st.sampled_from([8, 16, 32]),
    dtype=st.sampled_from([HALF, BF16]),
    scores=st.builds(
        scores_of,
        st.sampled_from([None, 1, 7, 16, 40]),
        st.sampled_from([None, 3.0]),
        st.sampled_from([None, 0.3]),
    ),
    seed=st.integers(0, 1000),
)
def test_a_library_is_asked_for_what_float64_gives(
    name: str,
    rows: tuple[list[int], list[int]],
    heads: tuple[int, int],
    dim: int,
    block_tokens: int,
    dtype: torch.dtype,
    scores: Scores,
    seed: int,
) -> None:
    shape = Shape(
        heads=heads[0], kv_heads=heads[1], dim=dim, block_tokens=block_tokens, dtype=dtype
    )
    step = make_step(shape, *rows, seed=seed)
    attention = MAKERS[name](form_of(shape))
    assert attention.refusal(Kind.of(scores)) is None
    attention.attend(rows_of(step), step.query, KeyValue(step.keys, step.values), scores, step.out)
    is_right(step, scores)


@pytest.mark.parametrize("scores", [Scores(), Scores(0.3, 7, 3.0)], ids=["plain", "rich"])
@pytest.mark.parametrize("name", MAKERS)
def test_all_keep_the_same_contract(name: str, scores: Scores) -> None:
    shape = Shape(heads=4, kv_heads=2, dim=64, block_tokens=8, dtype=HALF)
    step = make_step(shape, [20, 3, 9], [20, 75, 41], seed=7)
    rows, cache = rows_of(step), KeyValue(step.keys, step.values)
    attention = MAKERS[name](form_of(shape))
    for _ in "ab":  # in another layer of the same step
        step.out.fill_(float("nan"))
        attention.attend(rows, step.query, cache, scores, step.out)
        is_right(step, scores)
    assert attention.is_built(Kind.of(scores))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "triton"])
@pytest.mark.parametrize(
    ("form", "kind", "reason"),
    [
        ({"dtype": torch.float32, "stored": torch.float32}, Kind(), "computes in bfloat16"),
        ({"stored": torch.float8_e4m3fn}, Kind(), "a KV cache of the computation type"),
        ({"dim": 100}, Kind(), "no heads of 100 numbers"),
        ({"dim": 320}, Kind(), "no heads of 320 numbers"),
        ({}, Kind(has_sinks=True), "no attention sinks"),
    ],
)
def test_what_a_library_does_not_cover_is_said(
    name: str, form: dict[str, Any], kind: Kind, reason: str
) -> None:
    usual = Form(heads=8, kv_heads=2, dim=128, block_tokens=16, dtype=BF16, stored=BF16)
    assert reason in str(MAKERS[name](replace(usual, **form)).refusal(kind))


def test_blocks_that_are_read_whole_are_left_to_others() -> None:
    form = Form(heads=8, kv_heads=2, dim=256, block_tokens=64, dtype=BF16, stored=BF16)
    attention = FlashAttention3(form)
    assert attention.refusal(Kind()) is None
    assert "past a row's end" in str(attention.refusal(Kind(window=100)))


def test_plans_on_their_way_are_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    late = doubles.LateDevice()
    monkeypatch.setattr(doubles.BatchPrefillWithPagedKVCacheWrapper, "late", late)
    shape = Shape(heads=4, kv_heads=2, dim=64, block_tokens=8, dtype=HALF)
    attention = FlashInfer(form_of(shape), CPU, (9, 0), event=late.event)
    rng, steps = random.Random(0), []
    kinds = [Scores(), Scores(window=9)]
    for seed in range(7):
        counts = [rng.randint(9, 30) for _ in range(rng.randint(1, 4))]
        ends = [count + rng.randint(0, 50) for count in counts]
        step = make_step(shape, counts, ends, seed=seed)
        rows, cache = rows_of(step), KeyValue(step.keys, step.values)
        for scores in kinds:
            out = torch.full_like(step.out, float("nan"))
            attention.attend(rows, step.query, cache, scores, out)
            steps.append((step, scores, out))
    late.run()
    for step, scores, out in steps:
        step.out.copy_(out)
        is_right(step, scores)


def test_a_plan_may_be_made_in_inference_mode_and_outside() -> None:
    shape = Shape(heads=4, kv_heads=2, dim=64, block_tokens=8, dtype=HALF)
    attention = FlashInfer(form_of(shape), CPU, (9, 0))
    for seed in range(5):
        step = make_step(shape, [9, 20], [9, 31], seed=seed)
        cache = KeyValue(step.keys, step.values)
        with torch.inference_mode(seed % 4 == 0):
            attention.attend(rows_of(step), step.query, cache, Scores(), step.out)
        is_right(step, Scores())


def names_of(function: Any) -> list[tuple[str, Any]]:
    parameters = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [(one.name, one.default) for one in parameters]


@pytest.mark.skipif(not doubles.HAS_FLASHINFER, reason="FlashInfer is not installed")
def test_the_double_of_flashinfer_is_called_as_the_real_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flashinfer = doubles.real_flashinfer(monkeypatch)
    real, double = (
        flashinfer.BatchPrefillWithPagedKVCacheWrapper,
        doubles.BatchPrefillWithPagedKVCacheWrapper,
    )
    for method in ("__init__", "plan", "run"):
        assert names_of(getattr(double, method)) == names_of(getattr(real, method))
    for real_one in (
        flashinfer.jit.gen_batch_prefill_module,
        flashinfer.prefill._gen_batch_prefill_primary_module,
    ):
        assert names_of(doubles.gen_batch_prefill_module) == names_of(real_one)


@pytest.mark.skipif(not doubles.HAS_FA3, reason="it is not installed")
def test_the_double_of_flash_attention_3_is_called_as_the_real_one() -> None:
    schema = torch.ops.flash_attn_3.fwd.default._schema
    assert schema == torch._C.parse_schema(f"flash_attn_3::{doubles.FA3_SCHEMA}")
