"""Times of the fused layers on a GPU: `python -m tests.gpu.tune_layers`, about 20 seconds.

For each kernel and number of tokens, microseconds by CUDA graph, so that what the host takes doesn't count, and how
much memory went by, with the constants as they are and with others. The fastest of a line has a star.

At the end of a line, `early` is what it takes with the constants as they are and STARTS_EARLY.
"""

import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from llmhost.engines.torch.kernels import layers

HIDDEN, FEATURES = 4096, 14336
HEADS, KV_HEADS, DIM = 32, 8, 128
BLOCK_TOKENS, POSITIONS = 16, 8192
TOKENS = (1, 32, 256, 2048)
CALLS, REPLAYS = 20, 5
SETS_BYTES = 256 * 2**20
"""Calls take turns over so many bytes of data: more than a GPU's cache holds."""
KIND = torch.bfloat16

Call = Callable[[int], object]
"""Of the number of the data set."""
Constants = Mapping[str, int]

NORM_TRIED: tuple[Constants, ...] = tuple(
    {"NORM_ELEMENTS_PER_WARP": elements, "NORM_MOST_WARPS": most}
    for elements, most in ((256, 16), (128, 32), (512, 8), (1024, 4))
)
ROPE_TRIED: tuple[Constants, ...] = tuple(
    {"ROPE_HEADS": heads, "ROPE_WARPS": warps}
    for heads, warps in ((8, 2), (8, 4), (4, 1), (4, 2), (16, 4), (16, 8), (2, 1))
)
SILU_TRIED: tuple[Constants, ...] = tuple(
    {"SILU_ELEMENTS": elements, "SILU_WARPS": warps}
    for elements, warps in ((1024, 4), (512, 2), (1024, 2), (2048, 4), (2048, 8), (4096, 8))
)


def graph_us(call: Call, sets: int) -> float:
    """Of one call, the least of some replays."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(CALLS):
            call(at % sets)
    times = []
    for _ in range(REPLAYS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(1e3 * began.elapsed_time(ended) / CALLS)
    return min(times)


def random(sets: int, *shape: int) -> list[Tensor]:
    return [torch.randn(shape, device="cuda", dtype=KIND) for _ in range(sets)]


def sets_of(bytes_each: int) -> int:
    return max(1, min(CALLS, SETS_BYTES // bytes_each))


def norm_call(tokens: int) -> tuple[Call, int, int]:
    moved = 4 * tokens * HIDDEN * KIND.itemsize
    sets = sets_of(moved)
    x, residual = random(sets, tokens, HIDDEN), random(sets, tokens, HIDDEN)
    weight = random(1, HIDDEN)[0]
    return lambda at: layers.add_rms_norm(x[at], residual[at], weight, 1e-5), sets, moved


def silu_call(tokens: int) -> tuple[Call, int, int]:
    moved = 3 * tokens * FEATURES * KIND.itemsize
    sets = sets_of(moved)
    gate_up = random(sets, tokens, 2 * FEATURES)
    return lambda at: layers.silu_mul(gate_up[at]), sets, moved


def rope_call(tokens: int, cache_kind: torch.dtype, has_norms: bool) -> tuple[Call, int, int]:
    width = (HEADS + 2 * KV_HEADS) * DIM
    kept = 2 * KV_HEADS * DIM
    moved = tokens * ((2 * width - kept) * KIND.itemsize + kept * cache_kind.itemsize)
    sets = sets_of(moved)
    qkv, query = random(sets, tokens, width), random(sets, tokens, HEADS, DIM)
    table = random(1, POSITIONS, 2, DIM // 2)[0]
    positions = torch.randint(POSITIONS, (tokens,), device="cuda")
    blocks = 256
    slots = torch.randperm(blocks * BLOCK_TOKENS, device="cuda")[:tokens]
    cache = torch.zeros(2, blocks, BLOCK_TOKENS, KV_HEADS, DIM, dtype=cache_kind, device="cuda")
    weight = random(1, DIM)[0] if has_norms else None

    def call(at: int) -> None:
        layers.rope_and_write(
            qkv[at],
            table,
            positions,
            slots,
            cache[0],
            cache[1],
            query[at],
            q_norm=weight,
            k_norm=weight,
            eps=1e-6,
        )

    return call, sets, moved


EARLY: Constants = {"STARTS_EARLY": True}


def kernels(tokens: int) -> Iterator[tuple[str, tuple[Call, int, int], tuple[Constants, ...]]]:
    yield "add_rms_norm", norm_call(tokens), (*NORM_TRIED, EARLY)
    yield "silu_mul", silu_call(tokens), (*SILU_TRIED, EARLY)
    yield "rope_and_write", rope_call(tokens, KIND, has_norms=False), (*ROPE_TRIED, EARLY)
    yield "rope with norms", rope_call(tokens, KIND, has_norms=True), ROPE_TRIED[:4]
    yield "rope to float8", rope_call(tokens, torch.float8_e4m3fn, has_norms=False), ROPE_TRIED[:4]


def timed(call: Call, sets: int, constants: Constants) -> float:
    before = {name: getattr(layers, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(layers, name, value)
        return graph_us(call, sets)
    finally:
        for name, value in before.items():
            setattr(layers, name, value)


def _label(constants: Constants) -> str:
    return "early" if constants is EARLY else "/".join(str(one) for one in constants.values())


def main() -> None:
    out = sys.stdout
    out.write(f"{torch.cuda.get_device_name()}, {KIND}; us and GB/s, constants as they are first\n")
    for tokens in TOKENS:
        for name, (call, sets, moved), tried in kernels(tokens):
            times = {_label(constants): timed(call, sets, constants) for constants in tried}
            least = min(times.values())
            columns = (
                f"{label} {us:.1f} ({moved / us / 1e3:.0f}){'*' if us == least else ''}"
                for label, us in times.items()
            )
            out.write(f"{name:16} T={tokens:<5} {'  '.join(columns)}\n")
            out.flush()


if __name__ == "__main__":
    main()
