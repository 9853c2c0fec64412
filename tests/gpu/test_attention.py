"""Paged attention on a GPU against float64: many shapes of rows, few of models, since each of those is compiled."""

import random
from typing import Any

import pytest
import torch
from tests.unit.kernels.paged import (
    FP8,
    Shape,
    Step,
    asked,
    decoded,
    expected,
    make_step,
    prefilled,
    scatter_bytes,
)
from tests.unit.kernels.prefill_rows import form_of, rows_of

from llmhost.config.environment import process_environment
from llmhost.engines.attention_libraries import LIBRARIES, Library, library_refusal
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.backend_triton import ACCEPTABLE, self_test
from llmhost.engines.torch.kernels.attention import DecodeRoom, decode_attention
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.prefill import ByLibrary, Form, Kind, TritonPrefill
from llmhost.engines.torch.prefill_choice import Model, Unusable, tried
from llmhost.engines.torch.prefill_trial import Trial

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALF, BF16 = torch.float16, torch.bfloat16
MODELS: list[tuple[Shape, dict[str, Any]]] = [
    (Shape(heads=32, kv_heads=8, dim=128, block_tokens=16, dtype=BF16), {}),
    (Shape(heads=28, kv_heads=4, dim=64, block_tokens=8, dtype=BF16), {"window": 1, "sinks": 1.0}),
    (Shape(heads=8, kv_heads=4, dim=256, block_tokens=64, dtype=BF16), {"window": 1, "softcap": 9.0}),
    (
        Shape(heads=32, kv_heads=8, dim=128, block_tokens=16, dtype=BF16, stored=FP8),
        {"key_scale": 0.7, "value_scale": 2.0},
    ),
    (Shape(heads=6, kv_heads=6, dim=80, block_tokens=32, dtype=torch.float16), {"sinks": 0.0}),
    (Shape(heads=8, kv_heads=4, dim=64, block_tokens=16), {"window": 1, "softcap": 9.0}),
]  # fmt: skip
"""A window of 1 stands for one of any size."""
ROUNDS = 34
"""Of each model; half of them decode."""
WORST = {torch.float32: 1e-5, torch.float16: 1e-3, BF16: 6e-3}
"""Relative error of all numbers of a step together."""


@pytest.mark.parametrize(("shape", "way"), MODELS)
def test_rows_get_what_they_would_get_in_float64(shape: Shape, way: dict[str, Any]) -> None:
    rng = random.Random(str(shape))
    for round_ in range(ROUNDS):
        step = random_step(shape, rng, is_decode=round_ % 2 == 0)
        ask = asked({**way, "scaling": shape.dim**-0.5}, shape, "cuda")
        if "window" in way:
            ask["window"] = rng.choice([1, 17, 128, 1000])
        splits = rng.choice([None, None, 1])
        out = decoded(step, ask, splits=splits) if round_ % 2 == 0 else prefilled(step, ask)
        reference = expected(step, **ask)
        error = ((out.double() - reference).norm() / reference.norm()).item()
        assert error < WORST[shape.dtype], (step.counts, step.ends, ask)
        torch.testing.assert_close(out.double(), reference, rtol=0.05, atol=10 * WORST[shape.dtype])


FP8_MODELS: list[tuple[Shape, dict[str, Any]]] = [
    (Shape(heads=32, kv_heads=8, dim=128, block_tokens=16, dtype=HALF, stored=FP8), {}),
    (
        Shape(heads=28, kv_heads=4, dim=64, block_tokens=8, dtype=BF16, stored=FP8),
        {"window": 100, "sinks": 1.0},
    ),
    (
        Shape(heads=8, kv_heads=4, dim=256, block_tokens=64, dtype=BF16, stored=FP8),
        {"softcap": 9.0, "value_scale": 2.0},
    ),
    (Shape(heads=6, kv_heads=1, dim=96, block_tokens=16, dtype=HALF, stored=FP8), {}),
    (Shape(heads=6, kv_heads=6, dim=80, block_tokens=32, dtype=HALF, stored=FP8), {}),
]
"""The last can't be read in words."""


@pytest.mark.parametrize(("shape", "way"), FP8_MODELS)
def test_every_number_in_float8_counts(shape: Shape, way: dict[str, Any]) -> None:
    rng = random.Random(str(shape))
    for splits in [None, 1] * 4:
        step = random_step(shape, rng, is_decode=True)
        scatter_bytes(step, seed=rng.randint(0, 2**30))
        ask = asked({**way, "scaling": shape.dim**-0.5, "key_scale": 0.01}, shape, "cuda")
        reference = expected(step, **ask)
        error = (decoded(step, ask, splits=splits).double() - reference).norm() / reference.norm()
        assert error < WORST[shape.dtype], (step.ends, splits)


def test_one_position_gives_its_values_exactly() -> None:
    shape = FP8_MODELS[0][0]
    step, ask = make_step(shape, [1] * 9, [1] * 9, seed=0, device="cuda"), asked({}, shape, "cuda")
    scatter_bytes(step, seed=1)
    torch.testing.assert_close(decoded(step, ask).double(), expected(step, **ask), rtol=0, atol=0)


def random_step(shape: Shape, rng: random.Random, *, is_decode: bool) -> Step:
    """From one row to many, with all sorts of lengths; some rows of a captured graph are empty."""
    rows = rng.choice([1, 2, 7, 40] if is_decode else [1, 1, 3, 9])
    longest = rng.choice([20, 300, 3000])
    if is_decode:
        ends = sorted(rng.randint(1, longest) for _ in range(rows))
        ends += [0] * rng.choice([0, 0, 3])
        counts = [1] * len(ends)
    else:
        counts = [rng.choice([1, rng.randint(1, 9), rng.randint(1, 500)]) for _ in range(rows)]
        ends = [count + rng.choice([0, rng.randint(0, longest)]) for count in counts]
    return make_step(shape, counts, ends, seed=rng.randint(0, 2**30), device="cuda")


@pytest.mark.parametrize("stored", [None, FP8])
def test_the_self_test_finds_nothing_wrong(stored: torch.dtype | None) -> None:
    error = self_test(torch.device("cuda"), BF16, 32, 8, 128, 16, stored=stored)
    assert 0 < error < ACCEPTABLE[BF16]


def test_a_captured_graph_is_right_for_other_lengths() -> None:
    shape = MODELS[0][0]
    long = make_step(shape, [1] * 4, [700, 2000, 3000, 4000], seed=1, device="cuda")
    ask = asked({}, shape, "cuda")
    ends, room = long.numbers([1, 1, 1, 0]), DecodeRoom(4, 32, 8, 128, torch.device("cuda"))

    def call() -> None:
        decode_attention(
            long.query, long.keys, long.values, long.tables, ends, long.out, room=room, **ask
        )

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for lengths in ([700, 2000, 3000, 4000], [1, 2, 3, 0], [30, 0, 0, 4000]):
        ends.copy_(long.numbers(lengths))
        long.out.fill_(float("nan"))
        graph.replay()
        step = Step(
            counts=long.counts,
            ends=lengths,
            query=long.query,
            keys=long.keys,
            values=long.values,
            tables=long.tables,
            out=long.out,
        )
        torch.testing.assert_close(long.out.double(), expected(step, **ask), rtol=0.05, atol=0.02)


LAYERS: list[tuple[Shape, list[Scores]]] = [
    (Shape(heads=32, kv_heads=8, dim=128, block_tokens=16, dtype=BF16), [Scores(), Scores(window=300)]),
    (Shape(heads=28, kv_heads=4, dim=64, block_tokens=8, dtype=HALF), [Scores(0.2), Scores(window=17)]),
    (Shape(heads=8, kv_heads=4, dim=256, block_tokens=32, dtype=BF16), [Scores(softcap=9.0, window=100)]),
]  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.option)
@pytest.mark.parametrize(("shape", "layers"), LAYERS)
def test_libraries_that_are_installed_give_what_float64_gives(
    library: Library, shape: Shape, layers: list[Scores]
) -> None:
    """FlashInfer with those kernels that it has compiled."""
    rng = random.Random(str(shape))
    prefill = by_library(library, form_of(shape), layers)
    for _ in range(ROUNDS):
        step = random_step(shape, rng, is_decode=False)
        for scores in layers:
            if Kind.of(scores) not in prefill.kinds:
                continue
            out = torch.full_like(step.out, float("nan"))
            cache = KeyValue(step.keys, step.values)
            prefill.library.attend(rows_of(step), step.query, cache, scores, out)
            scaling = shape.dim**-0.5 if scores.scaling is None else scores.scaling
            reference = expected(
                step, scaling=scaling, window=scores.window, softcap=scores.softcap
            )
            error = ((out.double() - reference).norm() / reference.norm()).item()
            assert error < WORST[shape.dtype], (step.counts, step.ends, scores)


def by_library(library: Library, form: Form, layers: list[Scores]) -> ByLibrary:
    capability = torch.cuda.get_device_capability()
    if (reason := library_refusal(library, capability)) is not None:
        pytest.skip(reason)
    model = Model(
        name="test",
        form=form,
        layers=layers,
        device=torch.device("cuda"),
        capability=capability,
        environ=process_environment(),
    )
    try:
        return tried(library, model, compiles=False)
    except Unusable as why:
        if "not compiled" in str(why):
            pytest.skip(str(why))
        raise


@pytest.mark.parametrize(("shape", "layers"), LAYERS)
def test_the_trial_of_libraries_finds_our_kernel_right(shape: Shape, layers: list[Scores]) -> None:
    for scores in layers:
        trial = Trial.of(form_of(shape), scores, torch.device("cuda"))
        assert 0 < trial.error_of(TritonPrefill()) < ACCEPTABLE[shape.dtype]
