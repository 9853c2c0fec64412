"""Times of a decoder's matrix products on a GPU: `python -m tests.gpu.tune_fp8 [seconds]`, 40 seconds unless told.

For each matrix of an 8B model and number of rows: torch's product, our own over 16-bit weights, over float8 and over
4 bits, and the product in float8. Microseconds by CUDA graph, and GB/s of the weights as each has them. Kernels are
compiled by some processes at once beforehand; what does not fit into the time is left out, the less important last.

They set `projections.OWN_MOST_ROWS`, `fp8.WEIGHT_ONLY_ROWS` and `FAST_ACCUMULATION`, `skinny.VECTOR_ROWS` (0 if 2 rows
are quicker than one), and the tables of blocks in `kernels.skinny` and `kernels.int4`.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from tests.gpu.tune_layers import graph_us, sets_of
from torch import Tensor
from torch.nn.functional import linear

from llmhost.engines.torch import fp8
from llmhost.engines.torch.kernels import skinny
from llmhost.engines.torch.kernels.int4 import int4_linear
from llmhost.engines.torch.kernels.skinny import Blocks, skinny_linear
from llmhost.engines.torch.narrow import KINDS

MATRICES = {
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "head": (128256, 4096),
}
ROWS = (1, 2, 16, 32, 64, 256)
KIND = torch.bfloat16
COMPILERS = 8
SECONDS = 40.0

VECTOR = {
    "bf16": (Blocks(8, 1024, 3, 4), Blocks(4, 1024, 4, 4), Blocks(8, 512, 1, 4), Blocks(4, 2048, 1, 8)),
    "fp8": (Blocks(8, 1024, 3, 4), Blocks(4, 2048, 3, 4), Blocks(8, 1024, 1, 4), Blocks(4, 2048, 1, 4)),
    "int4": (Blocks(32, 256, 4, 2), Blocks(32, 256, 8, 2), Blocks(16, 256, 8, 1), Blocks(64, 256, 4, 4)),
}  # fmt: skip
SKINNY = {
    "bf16": (Blocks(32, 256, 4, 2), Blocks(16, 256, 6, 1), Blocks(64, 128, 4, 4)),
    "fp8": (
        Blocks(32, 256, 3, 2),
        Blocks(32, 256, 4, 2),
        Blocks(64, 256, 4, 4),
        Blocks(32, 512, 3, 4),
    ),
    "int4": (Blocks(32, 256, 4, 2), Blocks(16, 256, 8, 1), Blocks(64, 256, 4, 4)),
}


class Way(NamedTuple):
    """One way to multiply."""

    kind: str
    """Of the weights: plain, bf16, fp8, int4; or float8 times float8, scaled with sums as the tensor cores keep them or
    exact, and widened, for 4 bits. One row in float8 goes through the tensor cores by the way of that name."""
    blocks: Blocks | None = None

    @property
    def label(self) -> str:
        return self.kind + ("" if self.blocks is None else " " + "/".join(map(str, self.blocks)))


def ways(rows: int) -> Iterator[Way]:
    yield Way("plain")
    tried = VECTOR if rows == 1 else SKINNY if rows <= 64 else {}
    yield from (Way(kind, one) for kind, blocks in tried.items() for one in blocks)
    if rows == 1:
        yield from (Way("cores", blocks) for blocks in SKINNY["fp8"][:2])
    yield Way("scaled")
    yield Way("exact")
    if rows > 16:
        yield Way("widened")


STORED = {
    "plain": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "cores": "fp8",
    "scaled": "fp8",
    "int4": "int4",
    "widened": "int4",
}
"""By the kind of a way: what is in memory."""
BITS = {"bf16": 16, "fp8": 8, "int4": 4}


@cache
def stored(kind: str, count: int, columns: int, sets: int) -> list[Any]:
    """Random matrices of that size, kept for the other ways that read them."""
    made = []
    for _ in range(sets):
        matrix = 0.02 * torch.randn(count, columns, device="cuda", dtype=KIND)
        made.append(matrix if kind == "bf16" else KINDS[kind].of(matrix))
    return made


def multiply(way: Way, x: Tensor, matrix: Any) -> Tensor:
    match way.kind:
        case "plain":
            return linear(x, matrix)
        case "bf16":
            return skinny_linear(x, matrix, blocks=way.blocks)
        case "fp8":
            return skinny_linear(x, matrix.weight, scale=matrix.scale, blocks=way.blocks)
        case "cores":
            before, skinny.VECTOR_ROWS = skinny.VECTOR_ROWS, 0
            try:
                return multiply(Way("fp8", way.blocks), x, matrix)
            finally:
                skinny.VECTOR_ROWS = before
        case "int4":
            return int4_linear(x, matrix.weight, matrix.scales, None, way.blocks)
        case "widened":
            return cast(Tensor, matrix.widened(x))
    fp8.FAST_ACCUMULATION = way.kind == "scaled"
    scaled: Tensor = matrix.scaled(x)
    return scaled


def off(way: Way, columns: int) -> float:
    """How far a product in float8 is from the same numbers in float64."""
    x = torch.randn(64, columns, device="cuda", dtype=KIND)
    [matrix] = stored("fp8", 1024, columns, 1)
    numbers, scale = fp8.quantise_matrix(x)
    weights = matrix.weight.double() * matrix.scale[:, None]
    right = (numbers.double() * scale[:, None]) @ weights.t()
    return float((multiply(way, x, matrix).double() - right).norm() / right.norm())


def compile_share(share: list[tuple[int, int, Way]]) -> None:
    """Have Triton's cache hold the kernels of (columns, rows, way)."""
    for columns, rows, way in share:
        try:
            [matrix] = stored(STORED[way.kind], 256, columns, 1)
            multiply(way, torch.ones(rows, columns, device="cuda", dtype=KIND), matrix)
        except Exception as error:  # noqa: BLE001 - what does not compile is told of
            sys.stdout.write(f"{way.label} K={columns} M={rows}: {error!r:.300}\n")


def compile_all() -> None:
    every = [
        (columns, rows, way)
        for columns in sorted({columns for _, columns in MATRICES.values()})
        for rows in (1, 16, 32, 64)
        for way in ways(rows)
        if way.kind != "plain"
    ]
    with ProcessPoolExecutor(COMPILERS, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_share, (every[i::COMPILERS] for i in range(COMPILERS))))


def timed(way: Way, rows: int, shape: tuple[int, int]) -> tuple[float, int]:
    """Microseconds, and bytes of weights. Calls take turns over more matrices than a GPU's cache holds."""
    kind = STORED[way.kind]
    size = shape[0] * shape[1] * BITS[kind] // 8
    matrices = stored(kind, *shape, sets_of(size))
    x = torch.randn(rows, shape[1], device="cuda", dtype=KIND)
    return graph_us(lambda at: multiply(way, x, matrices[at]), len(matrices)), size


def main() -> None:
    out, began = sys.stdout, time.monotonic()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    compile_all()
    out.write(
        f"{torch.cuda.get_device_name()}, {KIND}; compiled in {time.monotonic() - began:.1f} s\n"
    )
    for way in (Way("scaled"), Way("exact")):
        out.write(f"{way.label} sums are off by {off(way, 4096):.2g} and {off(way, 14336):.2g}\n")
    out.write("us (GB/s of weights)\n")
    for rows in ROWS:
        for name, shape in MATRICES.items():
            out.write(f"{name} {shape[0]}x{shape[1]} M={rows}:")
            for way in ways(rows):
                if time.monotonic() - began > seconds:
                    out.write(" out of time\n")
                    return
                try:
                    us, size = timed(way, rows, shape)
                    out.write(f"  {way.label} {us:.1f} ({size / us / 1e3:.0f})")
                except Exception as error:  # noqa: BLE001 - the other ways are worth knowing
                    out.write(f"  {way.label} {error!r:.200}")
                out.flush()
            out.write("\n")


if __name__ == "__main__":
    main()
