"""Paged attention through Triton's real compiler, in the types that a GPU is used with."""

from collections.abc import Iterator
from typing import Any

import triton
from tests.unit.kernels.gpu_compiler import Launch

from llmhost.engines.torch.kernels import attention, attention_kernels
from llmhost.engines.torch.kernels.attention import Tiles, decode_tiles, prefill_tiles

BYTES = {"bf16": 2, "fp32": 4, "fp8e4nv": 1}
KV_HEADS, BLOCK_TOKENS = 8, 16
PLAIN = dict.fromkeys(("window", "softcap", "sinks"))


def launches() -> Iterator[Launch]:
    yield _decode("bf16", "bf16", group=4, dim=128, is_split=True, given={})
    yield _decode("bf16", "fp8e4nv", group=7, dim=80, is_split=False, given=PLAIN)
    yield _decode("bf16", "i16", group=4, dim=128, is_split=False, given=PLAIN)
    yield _decode("bf16", "i16", group=3, dim=96, is_split=True, given={})
    yield _decode("fp32", "fp32", group=1, dim=64, is_split=True, given=PLAIN)
    yield _reduce("bf16", dim=96)
    yield _prefill("bf16", "bf16", group=4, dim=128, pairs=4096, given={})
    yield _prefill("bf16", "fp8e4nv", group=7, dim=80, pairs=16, given=PLAIN)


def _decode(
    kind: str, cache: str, group: int, dim: int, is_split: bool, given: dict[str, Any]
) -> Launch:
    tiles = decode_tiles(BYTES[kind], dim)
    rows = max(16, triton.next_power_of_2(group))
    more = {"GROUP_ROWS": rows, "IS_SPLIT": is_split}
    return _launch(attention_kernels.decode, kind, cache, group, dim, tiles, {**more, **given})


def _prefill(
    kind: str, cache: str, group: int, dim: int, pairs: int, given: dict[str, Any]
) -> Launch:
    tiles = prefill_tiles(BYTES[kind], dim, pairs)
    more = {"PLACES": tiles.queries}
    return _launch(attention_kernels.prefill, kind, cache, group, dim, tiles, {**more, **given})


def _reduce(kind: str, dim: int) -> Launch:
    tiles = Tiles(tile=64, warps=2, stages=3)
    more = {"ROOM": attention.MOST_SPLITS, "PARTS": 16}
    return _launch(attention_kernels.reduce, kind, kind, 1, dim, tiles, more)


def _launch(
    kernel: Any, kind: str, cache: str, group: int, dim: int, tiles: Tiles, more: dict[str, Any]
) -> Launch:
    types = {
        **dict.fromkeys(("query", "sinks", "out"), f"*{kind}"),
        **dict.fromkeys(("key", "value"), f"*{cache}"),
        **dict.fromkeys(("ends", "starts", "offsets"), "*i32"),
        **dict.fromkeys(("weights", "results"), "*fp32"),
        **dict.fromkeys(("factor", "softcap", "value_factor"), "fp32"),
        "tables": "*i64",
    }
    head = dim // 2 if cache == "i16" else dim
    constants = {
        **{"BLOCK_STRIDE": BLOCK_TOKENS * KV_HEADS * head, "TOKEN_STRIDE": KV_HEADS * head},
        **{
            "HEAD_STRIDE": head,
            "BLOCK_TOKENS": 16,
            "BLOCK_BITS": 4,
            "GROUP": group,
            "TILE": tiles.tile,
        },
        **dict.fromkeys(("NARROW", "WIDENS"), cache in ("fp8e4nv", "i16")),
        "IN_WORDS": cache == "i16",
        **{"DIM": dim, "DIM_ROOM": triton.next_power_of_2(dim)},
        **more,
    }
    names = set(kernel.arg_names)
    numbers = {name: "i32" for name in names if name not in types and name.islower()}
    return Launch(
        kernel,
        {name: kind for name, kind in {**types, **numbers}.items() if name in names - {*constants}},
        {name: value for name, value in constants.items() if name in names},
        {"num_warps": tiles.warps, "num_stages": tiles.stages},
    )
