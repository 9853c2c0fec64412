"""Narrow weights on a real GPU: the kernels and the products in float8, in the types that a GPU is used with."""

import pytest
import torch
from tests.unit.engines.paged_steps import PagedSteps
from tests.unit.engines.test_torch_narrow import made
from torch import Tensor
from torch.nn.functional import linear

from llmhost.engines.torch import projections
from llmhost.engines.torch.fp8 import Fp8Projection, quantise_matrix, rows_as_they_are
from llmhost.engines.torch.fused import FusedDecoder
from llmhost.engines.torch.int4 import Int4Projection, unpack_matrix
from llmhost.engines.torch.kernels.quantise import quantise_rows
from llmhost.engines.torch.kernels.skinny import skinny_linear
from llmhost.engines.torch.narrow import KINDS, narrow_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALVES = [torch.bfloat16, torch.float16]
CASES = [(torch.bfloat16, (1040, 4096)), (torch.float16, (544, 14336))]
"""Each combination compiles kernels of its own, which takes most of the time."""
ROWS = [1, 7, 12, 24, 64]
MOST_OFF = {torch.bfloat16: 4e-3, torch.float16: 6e-4}
"""What rounding a result makes of it."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def off(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def widened(matrix: Fp8Projection | Int4Projection) -> Tensor:
    if isinstance(matrix, Int4Projection):
        return unpack_matrix(matrix.weight, matrix.scales)
    return matrix.weight.float() * matrix.scale[:, None]


@pytest.mark.parametrize(("dtype", "shape"), CASES)
@pytest.mark.parametrize("rows", ROWS)
def test_few_rows_times_plain_weights(dtype: torch.dtype, rows: int, shape: tuple[int, int]):
    x, weight, bias = (random(*s, dtype=dtype) for s in ((rows, shape[1]), shape, shape[:1]))
    exact = linear(x.double(), weight.double(), bias.double())
    assert off(skinny_linear(x, weight, bias=bias), exact) < MOST_OFF[dtype]


@pytest.mark.parametrize(("dtype", "shape"), CASES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_times_narrow_weights(
    dtype: torch.dtype, kind: str, rows: int, shape: tuple[int, int]
):
    x, bias = random(rows, shape[1], dtype=dtype), random(shape[0], dtype=dtype)
    whole = KINDS[kind].of(random(*shape, dtype=dtype), bias)
    part = whole.part(16, 528)

    with rows_as_they_are():
        got = part(x)

    exact = linear(x.double(), widened(whole)[16:528].double(), bias[16:528].double())
    assert off(got, exact) < MOST_OFF[dtype]


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_rows_are_quantised_as_torch_does_it(dtype: torch.dtype):
    x = 3 * random(33, 14336, dtype=dtype)
    ours, theirs = quantise_rows(x), quantise_matrix(x)
    torch.testing.assert_close(ours[1][:, 0], theirs[1], rtol=1e-6, atol=0)
    assert float((ours[0].float() == theirs[0].float()).float().mean()) > 0.999


def test_what_is_no_number_stays_none():
    matrix = Fp8Projection.of(random(64, 512, dtype=torch.bfloat16))
    for rows in (4, 40):
        x = random(rows, 512, dtype=torch.bfloat16)
        x[1, 7], x[3, 100] = torch.nan, torch.inf
        is_number = matrix(x).isfinite().all(dim=1)
        assert is_number.logical_not().nonzero()[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize("rows", [17, 256, 1000])
@pytest.mark.parametrize("dtype", HALVES)
def test_products_in_float8_are_those_of_the_quantised_numbers(dtype: torch.dtype, rows: int):
    x, bias = random(rows, 4096, dtype=dtype), random(1024, dtype=dtype)
    matrix = Fp8Projection.of(random(1024, 4096, dtype=dtype), bias)
    numbers, scale = quantise_matrix(x)
    exact = linear((numbers.double() * scale[:, None]), widened(matrix).double(), bias.double())
    assert off(matrix(x), exact) < 0.02  # sums are kept as the tensor cores keep them
    assert off(matrix(x), linear(x.double(), widened(matrix).double(), bias.double())) < 0.05


@pytest.mark.parametrize("rows", [65, 300])
def test_many_rows_times_four_bits(rows: int):
    x = random(rows, 4096, dtype=torch.bfloat16)
    matrix = Int4Projection.of(random(1024, 4096, dtype=torch.bfloat16))
    assert off(matrix(x), linear(x.double(), widened(matrix).double())) < 6e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 12, 40])
def test_a_decoder_with_narrow_weights_can_be_captured_in_a_graph(kind: str, rows: int):
    model = made("qwen2").to("cuda", torch.bfloat16)
    plain = FusedDecoder.of(model, 64)
    assert plain is not None
    ids = torch.arange(rows, device="cuda")
    steps = PagedSteps(model, [list(range(rows))])

    def run(decoder: FusedDecoder) -> Tensor:
        at = ids.clamp(max=40)
        seen = decoder.hidden(ids, at, at, steps.caches, lambda layer, query: query * 0.5)
        return decoder.logits(seen).float()

    exact = run(plain)
    narrow_weights(model, kind, torch.device("cuda"))
    narrow = FusedDecoder.of(model, 64)
    assert narrow is not None
    alone = run(narrow)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(narrow)
    graph.replay()
    torch.cuda.synchronize()
    assert off(captured, alone) < 0.01
    assert off(alone, exact) < {"fp8": 0.15, "int4": 0.4}[kind]


def test_a_plain_projection_may_use_our_own_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(projections, "OWN_MOST_ROWS", 16)
    for rows in (1, 16, 17):
        x, weight = (
            random(rows, 4096, dtype=torch.bfloat16),
            random(512, 4096, dtype=torch.bfloat16),
        )
        exact = linear(x.double(), weight.double())
        assert off(projections.PlainProjection(weight)(x), exact) < MOST_OFF[torch.bfloat16]
