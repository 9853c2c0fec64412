"""Paged attention through Triton's real compiler, in the types that a GPU is used with."""

from collections.abc import Iterator
from typing import Any

import triton
from tests.unit.kernels.gpu_compiler import COMPUTE_CAPABILITY, Launch
from tests.unit.kernels.machine_code import SHARED_BYTES

from llmhost.engines.torch.kernels import attention, attention_kernels
from llmhost.engines.torch.kernels.attention import Tiles, decode_tiles, fitted, prefill_tiles

BYTES = {"bf16": 2, "fp32": 4, "fp8e4nv": 1, "i16": 1}
KV_HEADS = 8
PLAIN = dict.fromkeys(("window", "softcap", "sinks"))
ALL: dict[str, Any] = {}
WINDOW = {"softcap": None, "sinks": None}
SOFTCAP = {"window": None, "sinks": None}
SINKS = {"window": None, "softcap": None}
LONG = 32_768
"""Pairs of a prompt."""
SMALLER = {80: 163 * 2**10, 89: 99 * 2**10}
"""Compute capabilities, and what a program has there of shared memory."""


def launches() -> Iterator[Launch]:
    yield _decode("bf16", "bf16", group=4, dim=128, is_split=False, given=PLAIN)
    yield _decode("bf16", "bf16", group=4, dim=128, is_split=True, given=ALL, tables="*i64")
    yield _decode("bf16", "fp8e4nv", group=7, dim=80, is_split=False, given=PLAIN)
    yield _decode("bf16", "i16", group=4, dim=128, is_split=False, given=PLAIN)
    yield _decode("bf16", "i16", group=3, dim=96, is_split=True, given=ALL)
    yield _decode("fp32", "fp32", group=1, dim=64, is_split=True, given=PLAIN)
    yield _reduce("bf16", dim=96)
    yield _prefill("bf16", "bf16", group=4, dim=128, pairs=LONG, given=PLAIN)
    yield _prefill("bf16", "bf16", group=4, dim=128, pairs=LONG, given=ALL, tables="*i64")
    yield _prefill("bf16", "fp8e4nv", group=4, dim=128, pairs=LONG, given=PLAIN)
    yield _prefill("bf16", "bf16", group=4, dim=256, pairs=LONG, given=PLAIN)
    yield _prefill("bf16", "fp8e4nv", group=7, dim=80, pairs=16, given=PLAIN)
    for capability, shared_bytes in SMALLER.items():
        where = {"capability": capability, "shared_bytes": shared_bytes}
        yield _decode("bf16", "bf16", group=4, dim=128, is_split=False, given=PLAIN, **where)
        for dim, pairs in ((128, LONG), (128, 64), (256, LONG)):
            yield _prefill("bf16", "bf16", 4, dim, pairs, PLAIN, **where)


def more_launches() -> Iterator[Launch]:
    """What `launches` leaves out, for the report."""
    for tokens, dim in ((32, 128), (16, 64), (16, 256)):
        for cache in ("bf16", "i16"):
            yield _decode("bf16", cache, 4, dim, False, PLAIN, block_tokens=tokens)
        yield _prefill("bf16", "bf16", 4, dim, LONG, PLAIN, block_tokens=tokens)
    for name, given in (("window", WINDOW), ("softcap", SOFTCAP), ("sinks", SINKS)):
        for cache in ("bf16", "i16"):
            yield _decode("bf16", cache, 4, 128, False, given, name=name)
        yield _prefill("bf16", "bf16", 4, 128, LONG, given, name=name)
    for pairs in (16, 64):
        yield _prefill("bf16", "bf16", 4, 128, pairs, PLAIN)
    yield _decode("fp32", "fp32", 4, 128, False, PLAIN)
    yield _prefill("fp32", "fp32", 4, 128, LONG, PLAIN)


def _decode(
    kind: str,
    cache: str,
    group: int,
    dim: int,
    is_split: bool,
    given: dict[str, Any],
    **how: Any,
) -> Launch:
    room = how.get("shared_bytes", SHARED_BYTES)
    tiles = fitted(decode_tiles(BYTES[kind], dim), dim, BYTES[kind], room)
    rows = max(16, triton.next_power_of_2(group))
    more = {"GROUP_ROWS": rows, "IS_SPLIT": is_split, **given}
    how["name"] = how.get("name", "" if given else "all") + (" split" if is_split else "")
    return _launch(attention_kernels.decode, kind, cache, group, dim, tiles, more, **how)


def _prefill(
    kind: str, cache: str, group: int, dim: int, pairs: int, given: dict[str, Any], **how: Any
) -> Launch:
    room = how.get("shared_bytes", SHARED_BYTES)
    joins = how.get("capability", COMPUTE_CAPABILITY) == COMPUTE_CAPABILITY
    tiles = prefill_tiles(BYTES[kind], dim, pairs, joins_warps=joins)
    tiles = fitted(tiles, dim, BYTES[kind], room)
    more = {"PLACES": tiles.queries, **given}
    how["name"] = f"{how.get('name', '' if given else 'all')} of {tiles.queries}"
    return _launch(attention_kernels.prefill, kind, cache, group, dim, tiles, more, **how)


def _reduce(kind: str, dim: int) -> Launch:
    tiles = Tiles(tile=64, warps=2, stages=3)
    more = {"ROOM": attention.MOST_SPLITS, "PARTS": 16}
    return _launch(attention_kernels.reduce, kind, kind, 1, dim, tiles, more)


def _launch(
    kernel: Any,
    kind: str,
    cache: str,
    group: int,
    dim: int,
    tiles: Tiles,
    more: dict[str, Any],
    *,
    tables: str = "*i32",
    block_tokens: int = 16,
    name: str = "",
    capability: int = COMPUTE_CAPABILITY,
    shared_bytes: int = SHARED_BYTES,
) -> Launch:
    types = {
        **dict.fromkeys(("query", "sinks", "out"), f"*{kind}"),
        **dict.fromkeys(("key", "value"), f"*{cache}"),
        **dict.fromkeys(("ends", "starts", "offsets"), "*i32"),
        **dict.fromkeys(("weights", "results"), "*fp32"),
        **dict.fromkeys(("factor", "softcap", "value_factor"), "fp32"),
        "tables": tables,
    }
    head = dim // 2 if cache == "i16" else dim
    constants = {
        **{"BLOCK_STRIDE": block_tokens * KV_HEADS * head, "TOKEN_STRIDE": KV_HEADS * head},
        **{"HEAD_STRIDE": head, "BLOCK_TOKENS": block_tokens},
        **{"BLOCK_BITS": block_tokens.bit_length() - 1, "GROUP": group, "TILE": tiles.tile},
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
        form=" ".join(
            f"{cache} {dim} in {block_tokens} {name} {'' if capability == COMPUTE_CAPABILITY else capability}".split()
        ),
        turn_bytes=2 * tiles.tile * dim * BYTES[cache] * (kernel is not attention_kernels.reduce),
        capability=capability,
        shared_bytes=shared_bytes,
    )
