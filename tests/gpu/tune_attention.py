"""Times of paged attention on a GPU: `python -m tests.gpu.tune_attention`, under a minute with what it compiles.

For each case the five fastest of the constants that are tried, and the ones in use: positions per tile, warps, stages,
and for decode programs per multiprocessor, for prefill places of a program. Calls take turns over more data than the
GPU's cache holds and are timed by CUDA graph, so that what the host takes doesn't count. What decode gives for some
rows is compared with float64 first: what is wrong is said, and not timed. Libraries that are installed and right attend
to the same prompts beside our kernel.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product

import torch
from tests.unit.kernels.paged import Step, expected
from torch import Tensor
from triton.runtime.errors import OutOfResources

from llmhost.config.environment import process_environment
from llmhost.engines.attention_libraries import LIBRARIES
from llmhost.engines.torch import flashinfer_attention
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kernels import attention
from llmhost.engines.torch.kernels.attention import (
    DecodeRoom,
    Tiles,
    decode_attention,
    decode_tiles,
    prefill_attention,
    prefill_tiles,
)
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.prefill import Form, PrefillAttention, PrefillRows, RowsThere
from llmhost.engines.torch.prefill_choice import Model, Unusable, tried

HEADS, KV_HEADS, DIM, BLOCK_TOKENS = 32, 8, 128, 16
BLOCKS = 2**16
"""4 GiB in bfloat16: 256 rows of 4,096 positions."""
DEVICE = torch.device("cuda")
MOST_CALLS, REPLAYS = 40, 4

DECODE_ROWS, DECODE_POSITIONS = (1, 32, 256), (1024, 4096)
DECODE_TILES = [
    Tiles(tile, warps, stages)
    for tile, warps, stages in (
        (64, 4, 3), (64, 4, 2), (64, 4, 4), (64, 8, 3), (32, 4, 4), (128, 4, 2), (128, 8, 3),
    )
]  # fmt: skip
FP8_TILES = [Tiles(64, 4, 4), Tiles(64, 8, 3)]
"""For caches in float8 that are read number by number."""
WORD_TILES = [
    Tiles(tile, warps, stages)
    for tile, warps, stages in (
        (64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 3), (64, 8, 4), (32, 4, 3), (32, 4, 4), (32, 2, 4),
        (128, 4, 2), (128, 8, 3),
    )
]  # fmt: skip
"""For those that are read in words of two."""
WORST = 1e-2
PER_SM = (1, 2, 3, 4, 6)
PREFILL_CASES = ((1, 2048, 0), (1, 256, 4096), (32, 5, 4096))
"""Rows, tokens of each, and what is before them."""
PREFILL_TILES = [
    Tiles(tile, warps, stages, queries)
    for queries, tile, warps, stages in (
        (128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2),
    )
]  # fmt: skip
SHORT_TILES = [
    Tiles(64, 4, 3, 64), Tiles(64, 4, 2, 32), Tiles(64, 4, 3, 16), Tiles(128, 8, 2, 32)
]  # fmt: skip

Call = Callable[[int], None]
"""Of the number of the data set."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A layer's cache, and block tables that never meet."""

    keys: Tensor
    values: Tensor
    order: Tensor

    def tables(self, rows: int, positions: int) -> list[Tensor]:
        """[rows, blocks] of as many data sets as there can be, up to the calls of a graph."""
        width = -(-positions // BLOCK_TOKENS)
        sets = min(MOST_CALLS, BLOCKS // (rows * width))
        return [
            self.order[at * rows * width : (at + 1) * rows * width].view(rows, width)
            for at in range(sets)
        ]


def new_pool(kind: torch.dtype) -> Pool:
    shape = (BLOCKS, BLOCK_TOKENS, KV_HEADS, DIM)
    halves = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).to(kind) for _ in "kv")
    return Pool(*halves, torch.randperm(BLOCKS, device=DEVICE).int())


def fits(call: Call) -> bool:
    """Run it, if the GPU has room for what is tried."""
    try:
        call(0)
    except OutOfResources:
        return False
    torch.cuda.synchronize()
    return True


def is_right(label: str, out: Tensor, reference: Tensor) -> bool:
    error = float((out.double() - reference).norm() / reference.norm())
    if not error < WORST:
        sys.stdout.write(f"  WRONG by {error:.3g}: {label}\n")
    return error < WORST


def graph_us(call: Call, sets: int) -> float:
    """Of one call, the least of some replays; infinite where the GPU has no room for what is tried."""
    if not fits(call):
        return math.inf
    calls = max(sets, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(calls):
            call(at % sets)
    times = []
    for _ in range(REPLAYS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(1e3 * began.elapsed_time(ended) / calls)
    return min(times)


def decode_times(
    pool: Pool, rows: int, positions: int, tried: list[Tiles]
) -> Iterator[tuple[str, float]]:
    query = torch.randn(rows, HEADS, DIM, device=DEVICE, dtype=torch.bfloat16)
    ends = torch.full((rows,), positions, dtype=torch.int32, device=DEVICE)
    tables, out = pool.tables(rows, positions), torch.empty_like(query)
    some = sorted({0, rows // 2, rows - 1})
    step = Step(
        counts=[1] * len(some),
        ends=[positions] * len(some),
        query=query[some],
        keys=pool.keys,
        values=pool.values,
        tables=tables[0][some],
        out=out,
    )
    reference = expected(step, scaling=DIM**-0.5)
    seen = set()
    for per_sm in dict.fromkeys((attention.PROGRAMS_PER_SM, *PER_SM)):
        room = new_room(rows, per_sm)
        splits = room.splits(rows, KV_HEADS)
        if splits in seen and splits == 1:
            continue
        seen.add(splits)
        for tiles in tried:

            def call(at: int, room: DecodeRoom = room, tiles: Tiles = tiles) -> None:
                decode_attention(
                    query, pool.keys, pool.values, tables[at], ends, out,
                    room=room, scaling=DIM**-0.5, tiles=tiles,
                )  # fmt: skip

            label = f"tile {tiles.tile} warps {tiles.warps} stages {tiles.stages}"
            label = f"{label} per SM {per_sm} (splits {splits})"
            is_timed = fits(call) and is_right(label, out[some], reference)
            yield label, graph_us(call, len(tables)) if is_timed else math.inf


def new_room(rows: int, per_sm: int) -> DecodeRoom:
    before = attention.PROGRAMS_PER_SM
    attention.PROGRAMS_PER_SM = per_sm
    try:
        return DecodeRoom(rows, HEADS, KV_HEADS, DIM, DEVICE)
    finally:
        attention.PROGRAMS_PER_SM = before


def prefill_times(
    pool: Pool, rows: int, tokens: int, start: int, tried: list[Tiles]
) -> Iterator[tuple[str, float]]:
    query = torch.randn(rows * tokens, HEADS, DIM, device=DEVICE, dtype=torch.bfloat16)
    starts = torch.full((rows,), start, dtype=torch.int32, device=DEVICE)
    offsets = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device=DEVICE)
    tables, out = pool.tables(rows, start + tokens), torch.empty_like(query)
    for tiles in tried:

        def call(at: int, tiles: Tiles = tiles) -> None:
            prefill_attention(
                query, pool.keys, pool.values, tables[at], starts, offsets, out,
                longest=tokens, scaling=DIM**-0.5, tiles=tiles,
            )  # fmt: skip

        label = (
            f"places {tiles.queries} tile {tiles.tile} warps {tiles.warps} stages {tiles.stages}"
        )
        yield label, graph_us(call, len(tables))


def library_times(pool: Pool, rows: int, tokens: int, start: int) -> Iterator[tuple[str, float]]:
    """Of each library that `auto` would take for such layers."""
    query = torch.randn(rows * tokens, HEADS, DIM, device=DEVICE, dtype=torch.bfloat16)
    out = torch.empty_like(query)
    ends = [start + tokens] * rows
    steps = [told_of(tables, ends, [tokens] * rows) for tables in pool.tables(rows, start + tokens)]
    for name, library in installed_libraries():

        def call(at: int, library: PrefillAttention = library) -> None:
            library.attend(steps[at], query, KeyValue(pool.keys, pool.values), Scores(), out)

        for at in range(len(steps)):  # plans are made on the host, and no part of what is timed
            call(at)
        yield name, graph_us(call, len(steps))


def told_of(tables: Tensor, ends: list[int], counts: list[int]) -> PrefillRows:
    starts = [end - count for end, count in zip(ends, counts, strict=True)]
    offsets = [0, *accumulate(counts)]
    there = (
        torch.tensor(given, dtype=torch.int32, device=DEVICE) for given in (starts, ends, offsets)
    )
    return PrefillRows(tables, starts, ends, offsets, RowsThere(*there), max(counts))


def installed_libraries() -> Iterator[tuple[str, PrefillAttention]]:
    flashinfer_attention.TURNS = MOST_CALLS  # all data sets are planned before any is timed
    form = Form(
        heads=HEADS,
        kv_heads=KV_HEADS,
        dim=DIM,
        block_tokens=BLOCK_TOKENS,
        dtype=torch.bfloat16,
        stored=torch.bfloat16,
    )
    model = Model(
        name="tuned",
        form=form,
        layers=[Scores()],
        device=DEVICE,
        capability=torch.cuda.get_device_capability(),
        environ=process_environment(),
    )
    for library in LIBRARIES:
        try:
            yield library.option, tried(library, model, compiles=False).library
        except Unusable as why:
            sys.stdout.write(f"  {library.shown}: {why}\n")


def report(case: str, times: Iterator[tuple[str, float]], amount: float, unit: str) -> None:
    """`amount` is what a call does, in units of 1,000 `unit` a microsecond."""
    found = list(times)
    best = sorted(found, key=lambda one: one[1])[:5]
    sys.stdout.write(f"{case}\n")
    for label, us in [*best, found[0]]:
        mark = " as it is" if label == found[0][0] else ""
        sys.stdout.write(f"  {us:9.1f} us {amount / us:8.1f} {unit}  {label}{mark}\n")
    sys.stdout.flush()


def first(chosen: Tiles, tried: list[Tiles]) -> list[Tiles]:
    return [chosen, *(tiles for tiles in tried if tiles != chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("decode", "fp8", "prefill"))
    only = parser.parse_args().only
    began = time.monotonic()
    sys.stdout.write(f"{torch.cuda.get_device_name()}, {HEADS}/{KV_HEADS} heads of {DIM}\n")
    for name, kind, forms in (
        ("decode", torch.bfloat16, {"": DECODE_TILES}),
        ("fp8", torch.float8_e4m3fn, {" in words": WORD_TILES, " by numbers": FP8_TILES}),
    ):
        if only not in (None, name):
            continue
        pool = new_pool(kind)
        for rows in DECODE_ROWS if name == "decode" else DECODE_ROWS[-1:]:
            for positions, form in product(DECODE_POSITIONS, forms):
                attention.WORDS = form != " by numbers"
                tried = first(decode_tiles(2, DIM), forms[form])
                moved = 2 * rows * positions * KV_HEADS * DIM * kind.itemsize
                case = f"{name}{form}: {rows} rows of {positions}"
                report(case, decode_times(pool, rows, positions, tried), moved / 1e3, "GB/s")
        del pool
    if only in (None, "prefill"):
        pool = new_pool(torch.bfloat16)
        for rows, tokens, start in PREFILL_CASES:
            chosen = prefill_tiles(2, DIM, tokens * HEADS // KV_HEADS)
            tiles = first(chosen, PREFILL_TILES if tokens > 16 else SHORT_TILES)
            pairs = rows * tokens * (start + (tokens + 1) / 2)
            case = f"prefill: {rows} rows of {tokens} after {start}"
            times = partial(prefill_times, pool, rows, tokens, start)
            amount = 4 * HEADS * DIM * pairs / 1e6
            report(case, times(tiles), amount, "TFLOP/s")
            for name, us in library_times(pool, rows, tokens, start):
                sys.stdout.write(f"  {us:9.1f} us {amount / us:8.1f} TFLOP/s  {name}\n")
    sys.stdout.write(f"{time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
