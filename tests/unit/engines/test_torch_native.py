"""Machine code of our own for one-token rows, against one query at a time, by hand."""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.test_torch_attention import HEADS, KV_HEADS, attended, in_torch
from torch import Tensor

from llmhost.engines.torch import backend_torch
from llmhost.engines.torch.backend_torch import Scores, StepAttention
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.native import choice
from llmhost.engines.torch.native.choice import Seen, SeenByChunk, Shape, chunks_code, rows_code

pytest.importorskip("llvmlite")

from llmhost.engines.torch.native.code import POINTER, Code, Value
from llmhost.engines.torch.native.machine import Machine
from llmhost.engines.torch.native.rows import _parts

SINKS = torch.tensor([-1.0, 0.0, 1.0, 3.0])
PLAIN = Shape(
    kv_heads=KV_HEADS,
    queries=HEADS // KV_HEADS,
    head_dim=48,
    block_tokens=16,
    dtype=torch.bfloat16,
    softcap=None,
    has_sinks=False,
)


ROW = st.tuples(st.sampled_from([0, 1, 5, 15, 16, 40, 700]), st.sampled_from([1, 1, 1, 2, 7, 18]))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    window=st.sampled_from([None, 1, 6, 30, 600]),
    case=st.sampled_from(
        [
            (torch.bfloat16, 16, Scores(scaling=0.2)),
            (torch.float16, 12, Scores(softcap=3.0, sinks=SINKS)),
        ]
    ),
)
def test_every_query_gets_what_it_would_get_alone(
    rows: list[tuple[int, int]],
    seed: int,
    window: int | None,
    case: tuple[torch.dtype, int, Scores],
) -> None:
    dtype, size, scores = case
    steps: list[StepAttention] = []

    def backend(layout: StepLayout, size: int, dtype: torch.dtype) -> StepAttention:
        steps.append(in_torch(layout, size, dtype))
        return steps[0]

    asked = scores._replace(window=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_torch, "lacks_arithmetic", lambda _: True)
        out, expected = attended((rows, size, seed), asked, dtype, backend, dim=48)
    ((spans),) = steps[0]._spans.values()
    by_code = {span.last - span.first for span in spans if span.seen is not None}
    if any(tokens == 1 for _, tokens in rows):
        assert spans[0].seen is not None
    if window is None:
        assert by_code >= {tokens for start, tokens in rows if start and tokens > 1}
    for span in spans:
        mine = slice(span.first, span.last)
        exact = (
            {"rtol": 1e-2, "atol": 1e-4} if span.seen is not None else {"rtol": 0.3, "atol": 0.03}
        )
        torch.testing.assert_close(out[mine].float(), expected[mine], **exact)


def rows_of(count: int, blocks_each: int) -> tuple[Tensor, KeyValue, Tensor]:
    """Queries, a cache and tables of rows whose blocks lie anywhere."""
    numbers = torch.Generator().manual_seed(5)
    blocks = count * blocks_each
    cache = KeyValue(
        *(torch.randn(blocks, 16, KV_HEADS, 48, generator=numbers).bfloat16() for _ in range(2))
    )
    query = torch.randn(count, HEADS, 48, generator=numbers)
    return query, cache, torch.randperm(blocks, generator=numbers).view(count, blocks_each)


def by_code(query: Tensor, cache: KeyValue, tables: Tensor, ends: list[int]) -> Tensor:
    code = rows_code(PLAIN)
    assert code is not None
    seen = object.__new__(Seen)
    seen.tables, seen.ends = tables.contiguous(), np.array(ends)
    seen.firsts = np.zeros_like(seen.ends)
    return code.attend(query, cache, seen, 0.1, None)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_bit_of_a_row_depends_on_others_or_on_where_its_blocks_lie(threads: int) -> None:
    query, cache, tables = rows_of(5, 4)
    ends = [1, 16, 17, 50, 64]
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = by_code(query, cache, tables, ends)
    finally:
        torch.set_num_threads(usual)
    gathered = KeyValue(*(part[tables.flatten()] for part in cache))
    for row, end in enumerate(ends):
        here = slice(row, row + 1)
        own = torch.arange(4)[None] + 4 * row
        assert torch.equal(by_code(query[here], gathered, own, [end]), together[here])


@pytest.mark.parametrize("tokens", [2, 9])
def test_no_bit_of_a_token_depends_on_the_chunk_that_it_comes_in(tokens: int) -> None:
    query, cache, tables = rows_of(tokens, 4)
    code = chunks_code(PLAIN)
    assert code is not None
    out = code.attend(query, cache, SeenByChunk(tables[0], 50), 0.1, None)
    for token in range(tokens):
        here, end = slice(token, token + 1), 50 - tokens + token + 1
        alone = code.attend(query[here], cache, SeenByChunk(tables[0], end), 0.1, None)
        assert torch.equal(alone, out[here])
        assert torch.equal(by_code(query[here], cache, tables[:1], [end]), out[here])


def test_what_is_not_a_number_stays_in_its_row_and_head() -> None:
    query, cache, tables = rows_of(3, 2)
    cache.key[tables[1, 0], 3, 0, 7] = float("nan")
    cache.key[tables[2, 1], 15, 1, 0] = float("nan")  # after its end
    cache.value[tables[2, 1], 15, 1, 0] = float("inf")
    out = by_code(query, cache, tables, [20, 20, 31]).view(3, KV_HEADS, -1)
    assert out[1, 0].isnan().all()
    assert out[[0, 2]].isfinite().all()
    assert out[1, 1].isfinite().all()


def test_scores_beyond_all_numbers_give_none() -> None:
    query, cache, tables = rows_of(1, 2)
    cache.key[tables[0, 1], 2] = float("inf")
    assert by_code(query, cache, tables, [20]).isnan().all()


@pytest.mark.parametrize(
    "shape",
    [
        replace(PLAIN, dtype=torch.float32),
        replace(PLAIN, dtype=torch.float8_e4m3fn),
        replace(PLAIN, head_dim=24),
        replace(PLAIN, queries=71),
    ],
)
def test_other_shapes_are_left_to_torch(shape: Shape) -> None:
    assert rows_code(shape) is None


@pytest.mark.parametrize("lost", ["llvmlite", "threads"])
def test_rows_are_left_to_torch_where_there_is_no_llvm_or_no_pool_of_threads(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lost == "llvmlite":
        monkeypatch.setitem(sys.modules, "llmhost.engines.torch.native.machine", None)
        monkeypatch.delattr(sys.modules["llmhost.engines.torch.native"], "machine")
    else:
        monkeypatch.setattr("llmhost.engines.torch.native.machine._team", lambda: None)
    monkeypatch.setattr(choice, "_has_llvm", choice._has_llvm.__wrapped__)
    assert choice.rows_code.__wrapped__(PLAIN) is None
    assert choice.chunks_code.__wrapped__(PLAIN) is None


@pytest.mark.parametrize("lacking", ["fma", "f16c"])
def test_rows_are_left_to_torch_where_the_cpu_lacks_what_the_code_needs(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"fma": True, "f16c": True, lacking: False}
    monkeypatch.setattr("llvmlite.binding.get_process_triple", lambda: "x86_64-unknown-linux-gnu")
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: known)
    monkeypatch.setattr(choice, "_has_llvm", choice._has_llvm.__wrapped__)
    assert choice.rows_code.__wrapped__(PLAIN) is None


def test_a_row_is_cut_by_heads_where_there_are_more_threads_than_rows() -> None:
    assert [_parts(rows, 8, 2) for rows in (1, 2, 3, 4, 8, 64)] == [8, 4, 4, 2, 1, 1]
    assert _parts(1, 8, 1) == 1
    assert _parts(1, 6, 64) == 6
    assert _parts(3, 6, 2) == 3


def test_exponentials_and_their_kin_are_as_exact_as_float32_is() -> None:
    numbers = torch.cat([torch.linspace(-110, 0, 4000), torch.tensor([-1e9, float("-inf"), -0.0])])
    numbers = torch.cat([numbers, torch.full((16 - len(numbers) % 16,), float("nan"))])
    exponentials = through(numbers, Code.exp)
    expected = numbers.double().exp()
    off = (exponentials.double() - expected).abs() / expected.clamp(min=2e-38)
    assert off.nan_to_num(0).max() < 3e-7
    assert exponentials[-1].isnan()
    small = numbers / 20
    for one in (small, -small):
        assert (through(one, Code.tanh) - one.tanh()).abs().nan_to_num(0).max() < 2e-7


def test_sums_are_in_the_order_of_what_was_summed() -> None:
    numbers = torch.arange(16.0)

    def sums(code: Code, vector: Value) -> Value:
        scaled = [code.b.fmul(vector, code.floats(float(10**i % 97))) for i in range(16)]
        return code.sums(scaled)

    assert through(numbers, sums).tolist() == [120.0 * (10**i % 97) for i in range(16)]


def through(numbers: Tensor, word: Callable[[Code, Value], Value]) -> Tensor:
    """What `word` makes of 16 numbers at a time."""
    code = Code("each")
    start = code.load(code.function.args[0], code.whole(0), POINTER)
    with code.loop(code.whole(0), code.whole(len(numbers)), 16) as at:
        code.store_floats(word(code, code.load_floats(start, at)), start, at)
    code.b.ret_void()
    out = numbers.float().clone()
    Machine(code).run(np.array([out.data_ptr()]))
    return out
