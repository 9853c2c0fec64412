"""Attention over block tables: one kernel for rows of one token, one for rows of several.

A query reads exactly the positions that it sees. Places of a tile beyond them read the last one again and weigh
nothing, so no load needs a mask, and whatever lies behind a row's end in its last block reaches nobody. Scores are in
base 2, softmax runs online in float32 (Milakov and Gimelshein, 2018; Dao et al., 2022), and few rows are split over
their positions, to be put together by a second kernel (Dao et al., 2023).
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
from torch import Tensor

from llmhost.engines.torch.kernels import attention_kernels

LOG2E = math.log2(math.e)
PROGRAMS_PER_SM = 2
"""Rows are split until `decode_attention` has about so many equal programs for each multiprocessor."""
SPREAD = 2
"""A row that is longer than the others may have so many times the splits that rows of equal length would have."""
MOST_SPLITS = 64
WORDS = True
"""`decode_attention` reads caches in float8 as words of two numbers where it can, and takes them apart in registers.

Only 16-bit elements are copied ahead in the background and come from shared memory as a product wants them.
"""
WORD_DIMS = 32
"""Where a head has a multiple of so many dimensions."""
CPU_MULTIPROCESSORS = 1
"""What the interpreter pretends to have."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a kernel cuts its work; to be varied by a benchmark."""

    tile: int
    """Positions that are read at a time."""
    warps: int
    stages: int
    queries: int = 16
    """Prefill: places for (token, head) pairs in a program."""


def decode_tiles(query_bytes: int, dim: int) -> Tiles:
    """For queries of so many bytes an element."""
    if query_bytes == 4:
        return Tiles(tile=32, warps=4, stages=2)
    return Tiles(tile=64 if dim <= 128 else 32, warps=4, stages=3)


def prefill_tiles(
    query_bytes: int, dim: int, pairs: int, *, keeps_busy: bool = True, joins_warps: bool = True
) -> Tiles:
    """For rows of at most so many (token, head) pairs for each head of keys.

    Large programs read keys less often, if there are enough of them to keep the device busy. Where warps don't join for
    a product they hold more of it in registers, of which smaller tiles leave some.
    """
    if query_bytes == 4:
        return Tiles(tile=32 if dim <= 128 else 16, warps=8, stages=2, queries=16)
    if pairs <= 16:
        return Tiles(tile=64 if dim <= 128 else 32, warps=4, stages=3, queries=16)
    if not joins_warps and dim <= 128 and pairs > 64 and keeps_busy:
        return Tiles(tile=32, warps=8, stages=3, queries=128)
    if not joins_warps:
        return Tiles(tile=64 if dim <= 128 else 32, warps=8, stages=3, queries=64)
    if pairs <= 64 or dim <= 128 or not keeps_busy:
        return Tiles(tile=64 if dim <= 128 else 32, warps=4, stages=3, queries=64)
    return Tiles(tile=32, warps=8, stages=3, queries=128)


@cache
def fitted(tiles: Tiles, dim: int, item_bytes: int, shared_bytes: int) -> Tiles:
    """`tiles`, or smaller ones that need no more than a multiprocessor's shared memory."""
    row = triton.next_power_of_2(dim) * item_bytes
    while True:
        loads = 2 * max(tiles.stages - 1, 1) * tiles.tile * row
        if tiles.queries * (row + tiles.tile * item_bytes) + loads <= shared_bytes:
            return tiles
        if tiles.stages > 2:
            tiles = replace(tiles, stages=tiles.stages - 1)
        elif tiles.queries > 16:
            tiles = replace(tiles, queries=tiles.queries // 2)
        elif tiles.tile > 16:
            tiles = replace(tiles, tile=tiles.tile // 2)
        else:
            return tiles


class DecodeRoom:
    """Room for the parts of split rows, made once for the most rows that `decode_attention` will be given."""

    def __init__(
        self,
        rows: int,
        heads: int,
        kv_heads: int,
        dim: int,
        device: torch.device,
        *,
        multiprocessors: int | None = None,
    ) -> None:
        self.kv_heads = kv_heads
        self.programs = PROGRAMS_PER_SM * (multiprocessors or _multiprocessors(device))
        split = ((count, self.splits(count, kv_heads)) for count in range(1, rows + 1))
        self.parts = max((count * splits for count, splits in split if splits > 1), default=1)
        """Most (row, split) pairs."""
        self.weights = torch.empty(self.parts * heads, dtype=torch.float32, device=device)
        """[row, split, head]: the base-2 logarithm of the part's summed weights."""
        self.results = torch.empty(self.parts * heads * dim, dtype=torch.float32, device=device)
        """[row, split, head, dim]: what the part alone would give."""

    def splits(self, rows: int, kv_heads: int) -> int:
        """How many programs may share the positions of a row and a head of keys.

        The same for every length, so that a captured graph stays right; how many do share them is found on the device.
        """
        programs = max(rows * kv_heads, 1)
        if programs >= self.programs:
            return 1
        return min(-(-SPREAD * self.programs // programs), MOST_SPLITS)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _joins_warps(device: torch.device) -> bool:
    """Whether four warps compute a product together: on servers' GPUs from compute capability 9.0 on."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


@cache
def _shared_bytes(device: torch.device) -> int:
    """What a program may have, by the number that Triton itself goes by."""
    if device.type != "cuda":
        return 2**20
    index = torch.cuda.current_device()  # where Triton launches
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    ends: Tensor,
    out: Tensor,
    *,
    room: DecodeRoom,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    splits: int | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    tiles: Tiles | None = None,
) -> None:
    """Attend with one token per row: `query` and `out` are [R, heads, dim], with any strides but the last.

    Caches are [blocks, block_tokens, kv_heads, dim], of the query's dtype or float8_e4m3fn; what is stored in them
    counts `key_scale` and `value_scale` times. Row r sees positions below `ends[r]`, which are in the blocks
    `block_tables[r]` [R, W]; with a `window` only the last so many. A row that ends at 0 reads nothing and gets zeros.
    `sinks` [heads] are scores of places that take their share and give nothing.
    """
    rows, heads, dim = query.shape
    if rows == 0:
        return
    kv_heads = key_cache.shape[2]
    splits = splits or max(min(room.splits(rows, kv_heads), room.parts // rows), 1)
    assert splits == 1 or rows * splits <= room.parts, "the room was made for fewer rows"
    assert query.stride(2) == out.stride(2) == key_cache.stride(3) == value_cache.stride(3) == 1
    assert key_cache.stride() == value_cache.stride()
    tiles = tiles or decode_tiles(query.itemsize, dim)
    tiles = fitted(tiles, dim, query.itemsize, _shared_bytes(query.device))
    group, is_narrow = heads // kv_heads, _is_narrow(query, key_cache)
    in_words = WORDS and is_narrow and dim % WORD_DIMS == 0
    if in_words:
        key_cache, value_cache = key_cache.view(torch.int16), value_cache.view(torch.int16)
    attention_kernels.decode[(kv_heads, splits, rows)](
        query, key_cache, value_cache, block_tables, ends, sinks, out, room.weights, room.results,
        query.stride(0), query.stride(1), out.stride(0), out.stride(1), block_tables.stride(0),
        *_factors(scaling * key_scale, softcap), value_scale, window, room.programs,
        BLOCK_STRIDE=key_cache.stride(0), TOKEN_STRIDE=key_cache.stride(1),
        HEAD_STRIDE=key_cache.stride(2), BLOCK_TOKENS=key_cache.shape[1],
        BLOCK_BITS=_bits(key_cache.shape[1]), GROUP=group, GROUP_ROWS=max(triton.next_power_of_2(group), 16),
        DIM=dim, DIM_ROOM=max(triton.next_power_of_2(dim), 16),
        TILE=tiles.tile, NARROW=is_narrow, WIDENS=is_narrow and query.is_cuda, IN_WORDS=in_words,
        IS_SPLIT=splits > 1,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if splits > 1:
        attention_kernels.reduce[(heads, rows)](
            room.weights, room.results, ends, sinks, out, out.stride(0), out.stride(1),
            window, room.programs, kv_heads, splits,
            DIM=dim, DIM_ROOM=triton.next_power_of_2(dim), TILE=tiles.tile,
            ROOM=MOST_SPLITS, PARTS=16, num_warps=2,
        )  # fmt: skip


def prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    starts: Tensor,
    offsets: Tensor,
    out: Tensor,
    *,
    longest: int,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    tiles: Tiles | None = None,
) -> None:
    """Attend with rows of one to `longest` tokens: `query` and `out` are [T, heads, dim].

    Row r's tokens are at places `offsets[r]` to `offsets[r + 1] - 1` and positions from `starts[r]` on; each sees its
    own and what is before it. The rest is as in `decode_attention`.
    """
    _, heads, dim = query.shape
    rows = len(starts)
    if rows == 0:
        return
    kv_heads = key_cache.shape[2]
    assert query.stride(2) == out.stride(2) == key_cache.stride(3) == value_cache.stride(3) == 1
    assert key_cache.stride() == value_cache.stride()
    group = heads // kv_heads
    if tiles is None:
        programs = rows * kv_heads * longest * group / 128
        keeps_busy = programs >= _multiprocessors(query.device)
        tiles = prefill_tiles(
            query.itemsize,
            dim,
            longest * group,
            keeps_busy=keeps_busy,
            joins_warps=_joins_warps(query.device),
        )
    tiles = fitted(tiles, dim, query.itemsize, _shared_bytes(query.device))
    places = max(tiles.queries, triton.next_power_of_2(group))
    attention_kernels.prefill[(kv_heads, triton.cdiv(longest, places // group), rows)](
        query, key_cache, value_cache, block_tables, starts, offsets, sinks, out,
        query.stride(0), query.stride(1), out.stride(0), out.stride(1), block_tables.stride(0),
        *_factors(scaling * key_scale, softcap), value_scale, window,
        BLOCK_STRIDE=key_cache.stride(0), TOKEN_STRIDE=key_cache.stride(1),
        HEAD_STRIDE=key_cache.stride(2), BLOCK_TOKENS=key_cache.shape[1],
        BLOCK_BITS=_bits(key_cache.shape[1]), GROUP=group, PLACES=places,
        DIM=dim, DIM_ROOM=max(triton.next_power_of_2(dim), 16),
        TILE=tiles.tile, NARROW=_is_narrow(query, key_cache),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _bits(block_tokens: int) -> int:
    assert block_tokens.bit_count() == 1, "blocks have a power of two of tokens"
    return block_tokens.bit_length() - 1


def _is_narrow(query: Tensor, cache: Tensor) -> bool:
    return cache.itemsize == 1 and query.itemsize == 2


def _factors(scaling: float, softcap: float | None) -> tuple[float, float | None]:
    """The factor on a product, and the bound of what comes out, in base 2."""
    if softcap is None:
        return scaling * LOG2E, None
    return scaling / softcap, softcap * LOG2E
