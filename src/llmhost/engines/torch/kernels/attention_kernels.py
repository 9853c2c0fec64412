"""What runs on the device for `attention`: one kernel for rows of one token, one for rows of several, and one that puts
split rows together. How they are cut and launched is `attention`'s.
"""

import triton
import triton.language as tl

_LOOSE = ("table_stride", "window", "programs", "kv_heads", "splits")
_ANYWHERE = ("tables", "ends", "starts", "offsets", "sinks")
"""Numbers and addresses that change from step to step: kernels must not be compiled again for some of them."""


@triton.jit
def _places(
    table, positions,
    BLOCK_STRIDE: tl.constexpr, TOKEN_STRIDE: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """Where the cache has `positions` of the row that has the block `table`: [positions, 1]."""
    blocks = tl.load(table + positions // BLOCK_TOKENS).to(tl.int64)
    return (blocks * BLOCK_STRIDE + positions % BLOCK_TOKENS * TOKEN_STRIDE)[:, None]


@triton.jit
def _word_places(
    table, positions,
    BLOCK_STRIDE: tl.constexpr, TOKEN_STRIDE: tl.constexpr, BLOCK_BITS: tl.constexpr,
):  # fmt: skip
    """Where the cache has `positions` of the row that has the block `table`: [positions, 1]."""
    inner = positions & ((1 << BLOCK_BITS) - 1)
    blocks = tl.load(table + (positions >> BLOCK_BITS))
    if BLOCK_STRIDE == TOKEN_STRIDE << BLOCK_BITS:
        places = ((blocks.to(tl.int32) << BLOCK_BITS) + inner).to(tl.int64) * TOKEN_STRIDE
    else:
        places = blocks.to(tl.int64) * BLOCK_STRIDE + inner * TOKEN_STRIDE
    return places[:, None]


@triton.jit
def _read(cache, dims, DIM: tl.constexpr, DIM_ROOM: tl.constexpr):
    if DIM == DIM_ROOM:
        rows = tl.load(cache)
    else:
        rows = tl.load(cache, mask=(dims < DIM)[None, :], other=0.0)
    return rows


@triton.jit
def _operand(query, NARROW: tl.constexpr):
    """The query as keys and values in float8 are multiplied: float16 is what a GPU widens them to at once."""
    if NARROW:
        query = tl.clamp(query.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
    return query


@triton.jit
def _bounded(s, factor, softcap):
    """Products, or what is made of them where scores have a soft bound."""
    if softcap is not None:
        # tanh, by way of an exponential that may become infinite
        s = softcap - 2 * softcap / (1 + tl.exp2(s * (factor * 2.8853900817779268)))
    return s


@triton.jit
def _seen_only(s, at, high, seen_to, window):
    """Scores of positions `at` from which no query gets anything that it must not see."""
    is_seen = (at < high)[None, :]
    if seen_to is not None:
        is_seen = is_seen & (at[None, :] <= seen_to[:, None])
    if window is not None:
        is_seen = is_seen & (at[None, :] > seen_to[:, None] - window)
    return tl.where(is_seen, s, float("-inf"))


@triton.jit
def _weigh(s, total, top, seen_to, factor, softcap):
    """Weights of a tile's scores `s`, what earlier results fade by, and the new `total` and `top`."""
    # The factor is more than 0, so the largest score is that of the largest product.
    if softcap is None:
        higher = tl.maximum(top, tl.max(s, 1) * factor)
    else:
        higher = tl.maximum(top, tl.max(s, 1))
    base = higher
    if seen_to is not None:  # a query may have seen nothing yet
        base = tl.where(higher == float("-inf"), 0.0, higher)
    if softcap is None:
        p = tl.exp2(s * factor - base[:, None])
    else:
        p = tl.exp2(s - base[:, None])
    fade = tl.exp2(top - base)
    if seen_to is None:
        total = total * fade[:, None] + p
    else:
        total = total * fade + tl.sum(p, 1)
    return p, fade, total, higher


@triton.jit
def _over_tiles(
    acc, total, top, q, seen_to, keys, values, table, dims, low, edge_from, edge_to, high,
    factor, softcap, window,
    BLOCK_STRIDE: tl.constexpr, TOKEN_STRIDE: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_BITS: tl.constexpr, DIM: tl.constexpr, DIM_ROOM: tl.constexpr, TILE: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Go over the tiles of positions `low` to `high`, exclusive.

    Queries stand at positions `seen_to` and see all of tiles `edge_from` to `edge_to`, exclusive; or they stand behind
    all when None. In that case `total` is kept for each place of a tile, since warps would wait for each other to sum
    it up. It is one loop: another one would have to wait for its first keys anew.
    """
    # Block ids are read a tile ahead, so that keys and values wait for no other load.
    at = low + tl.arange(0, TILE)
    first = tl.minimum(at, high - 1)
    if seen_to is None:
        places = _places(table, first, BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_TOKENS)
    else:
        places = _word_places(table, first, BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_BITS)
    if AHEAD:
        v = _read(values + places, dims, DIM, DIM_ROOM)
    for tile in range(0, tl.cdiv(high - low, TILE)):
        k = _read(keys + places, dims, DIM, DIM_ROOM)
        if not AHEAD:
            v = _read(values + places, dims, DIM, DIM_ROOM)
        behind = tl.minimum(at + TILE, high - 1)
        if seen_to is None:
            places = _places(table, behind, BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_TOKENS)
        else:
            places = _word_places(table, behind, BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_BITS)
        if AHEAD:
            next_v = _read(values + places, dims, DIM, DIM_ROOM)

        s = tl.dot(q, tl.trans(k).to(q.dtype), input_precision="ieee")
        s = _bounded(s, factor, softcap)
        if seen_to is None:
            s = _seen_only(s, at, high, None, None)
        else:
            if (tile < edge_from) | (tile >= edge_to):
                s = _seen_only(s, at, high, seen_to, window)
        p, fade, total, top = _weigh(s, total, top, seen_to, factor, softcap)
        acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * fade[:, None], input_precision="ieee")
        at += TILE
        if AHEAD:
            v = next_v
    return acc, total, top


@triton.jit
def _halves(words, WIDENS: tl.constexpr):
    """The even and the odd float8 numbers, in float16, of `words` of 16 bits that hold two each."""
    if WIDENS:
        even, odd = tl.inline_asm_elementwise(
            """
            {
            .reg .b16 low, high;
            .reg .b32 sorted;
            prmt.b32 sorted, $2, 0, 0x3120;
            mov.b32 {low, high}, sorted;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
            }
            """,
            "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        even = (words & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        odd = ((words >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    return even, odd


@triton.jit
def _over_words(
    q, keys, values, table, words, low, high, factor, softcap,
    BLOCK_STRIDE: tl.constexpr, TOKEN_STRIDE: tl.constexpr, BLOCK_BITS: tl.constexpr,
    WORDS: tl.constexpr, WORDS_ROOM: tl.constexpr, TILE: tl.constexpr, WIDENS: tl.constexpr,
):  # fmt: skip
    """What `_over_tiles` gives for one token, from a cache of `words`: two numbers in float8 each."""
    ROWS: tl.constexpr = q.shape[0]
    q_even, q_odd = tl.split(tl.reshape(q, [ROWS, WORDS_ROOM, 2]))
    even = tl.zeros([ROWS, WORDS_ROOM], tl.float32)
    odd = tl.zeros([ROWS, WORDS_ROOM], tl.float32)
    total = tl.zeros([ROWS, TILE], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    at = low + tl.arange(0, TILE)
    places = _word_places(table, tl.minimum(at, high - 1), BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_BITS)
    for _ in range(0, tl.cdiv(high - low, TILE)):
        k = _read(keys + places, words, WORDS, WORDS_ROOM)
        v = _read(values + places, words, WORDS, WORDS_ROOM)
        behind = tl.minimum(at + TILE, high - 1)
        places = _word_places(table, behind, BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_BITS)

        k_even, k_odd = _halves(tl.trans(k), WIDENS)
        s = tl.dot(q_odd, k_odd, tl.dot(q_even, k_even))
        s = _seen_only(_bounded(s, factor, softcap), at, high, None, None)
        p, fade, total, top = _weigh(s, total, top, None, factor, softcap)
        p = p.to(tl.float16)
        v_even, v_odd = _halves(v, WIDENS)
        even = tl.dot(p, v_even, even * fade[:, None])
        odd = tl.dot(p, v_odd, odd * fade[:, None])
        at += TILE
    return tl.interleave(even, odd), total, top


@triton.jit
def _with_sinks(acc, total, top, sinks, is_there):
    """Let the places that give nothing take their share."""
    sink = tl.load(sinks, mask=is_there, other=0.0).to(tl.float32) * 1.4426950408889634
    higher = tl.maximum(top, sink)
    fade = tl.exp2(top - higher)
    return acc * fade[:, None], total * fade + tl.exp2(sink - higher)


@triton.jit
def _seen(ends, window):
    """The first position that each row sees, and how many it sees."""
    first = ends * 0
    if window is not None:
        first = tl.maximum(ends - window, 0)
    return first, ends - first


@triton.jit
def _share(ends, rows, seen, window, programs, kv_heads, splits, TILE: tl.constexpr):
    """How many of the `seen` positions of a row each of its programs takes, in whole tiles.

    If all rows were cut into such shares there would be about as many `programs` as are wanted.
    """
    total = seen * 0
    place = tl.arange(0, 128)
    for before in range(0, rows, 128):
        every = tl.load(ends + before + place, mask=before + place < rows, other=0)
        _, lengths = _seen(every, window)
        total += tl.sum(lengths, 0)
    share = tl.maximum(tl.cdiv(total * kv_heads, programs), TILE)
    used = tl.maximum(tl.minimum(tl.cdiv(seen, share), splits), 1)
    return tl.cdiv(tl.cdiv(seen, used), TILE) * TILE


@triton.jit(do_not_specialize=_LOOSE, do_not_specialize_on_alignment=_ANYWHERE)
def decode(
    query, key, value, tables, ends, sinks, out, weights, results,
    query_stride, query_head_stride, out_stride, out_head_stride, table_stride,
    factor, softcap, value_factor, window, programs,
    BLOCK_STRIDE: tl.constexpr, TOKEN_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_BITS: tl.constexpr,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, DIM: tl.constexpr, DIM_ROOM: tl.constexpr,
    TILE: tl.constexpr, NARROW: tl.constexpr, WIDENS: tl.constexpr, IN_WORDS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):  # fmt: skip
    """One program per head of keys, split and row; it has all query heads of its head of keys."""
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    # Rows are sorted by length: the longest begin first.
    row = tl.num_programs(2) - 1 - tl.program_id(2)

    end = tl.load(ends + row)
    first, share = _seen(end, window)
    if IS_SPLIT:
        share = _share(ends, tl.num_programs(2), share, window, programs, kv_heads, splits, TILE)
    low = first + split * share
    high = tl.minimum(low + share, end)

    member = tl.arange(0, GROUP_ROWS)
    head = kv_head * GROUP + member
    dims = tl.arange(0, DIM_ROOM)
    is_ours = (member < GROUP)[:, None] & (dims < DIM)[None, :]
    outs = out + row.to(tl.int64) * out_stride + head[:, None] * out_head_stride + dims[None, :]
    if low < high:
        queries = query + row.to(tl.int64) * query_stride + head[:, None] * query_head_stride
        q = _operand(tl.load(queries + dims[None, :], mask=is_ours, other=0.0), NARROW)
        table = tables + row.to(tl.int64) * table_stride
        if IN_WORDS:
            words = tl.arange(0, DIM_ROOM // 2)
            acc, total, top = _over_words(
                q, key + kv_head * HEAD_STRIDE + words[None, :],
                value + kv_head * HEAD_STRIDE + words[None, :], table, words, low, high,
                factor, softcap, BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_BITS,
                DIM // 2, DIM_ROOM // 2, TILE, WIDENS,
            )  # fmt: skip
        else:
            acc, total, top = _over_tiles(
                tl.zeros([GROUP_ROWS, DIM_ROOM], tl.float32),
                tl.zeros([GROUP_ROWS, TILE], tl.float32),
                tl.full([GROUP_ROWS], float("-inf"), tl.float32),
                q, None, key + kv_head * HEAD_STRIDE + dims[None, :],
                value + kv_head * HEAD_STRIDE + dims[None, :], table, dims,
                low, None, None, high, factor, softcap, None,
                BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_TOKENS, BLOCK_BITS, DIM, DIM_ROOM, TILE, AHEAD=NARROW,
            )  # fmt: skip
        total = tl.sum(total, 1)
        if not IS_SPLIT or high - low == end - first:
            if sinks is not None:
                acc, total = _with_sinks(acc, total, top, sinks + head, member < GROUP)
            given = acc * (value_factor / total)[:, None]
            tl.store(outs, given.to(out.dtype.element_ty), mask=is_ours)
        else:
            part = (row * splits + split) * kv_heads * GROUP + head
            tl.store(weights + part, top + tl.log2(total), mask=member < GROUP)
            given = acc * (value_factor / total)[:, None]
            tl.store(results + part[:, None] * DIM + dims[None, :], given, mask=is_ours)
    elif end <= 0 and split == 0:
        nothing = tl.zeros([GROUP_ROWS, DIM_ROOM], out.dtype.element_ty)
        tl.store(outs, nothing, mask=is_ours)


@triton.jit(do_not_specialize=_LOOSE, do_not_specialize_on_alignment=_ANYWHERE)
def reduce(
    weights, results, ends, sinks, out, out_stride, out_head_stride,
    window, programs, kv_heads, splits,
    DIM: tl.constexpr, DIM_ROOM: tl.constexpr, TILE: tl.constexpr, ROOM: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """One program per head and row: what the parts of a split row give together."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    _, seen = _seen(tl.load(ends + row), window)
    share = _share(ends, tl.num_programs(1), seen, window, programs, kv_heads, splits, TILE)
    if share < seen:
        used = tl.cdiv(seen, share)
        heads = tl.num_programs(0)
        every = tl.arange(0, ROOM)
        places = weights + (row * splits + every) * heads + head
        every_weight = tl.load(places, mask=every < used, other=float("-inf"))
        top = tl.max(every_weight, 0)
        if sinks is not None:
            sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
            top = tl.maximum(top, sink)
        total = tl.sum(tl.exp2(every_weight - top), 0)
        if sinks is not None:
            total += tl.exp2(sink - top)

        dims = tl.arange(0, DIM_ROOM)
        given = tl.zeros([DIM_ROOM], tl.float32)
        for before in range(0, used, PARTS):
            split = before + tl.arange(0, PARTS)
            part = (row * splits + split) * heads + head
            weight = tl.load(weights + part, mask=split < used, other=float("-inf"))
            is_there = (split < used)[:, None] & (dims < DIM)[None, :]
            parts = results + part[:, None] * DIM + dims[None, :]
            result = tl.load(parts, mask=is_there, other=0.0)
            given += tl.sum(result * tl.exp2(weight - top)[:, None], 0)
        outs = out + row.to(tl.int64) * out_stride + head * out_head_stride + dims
        tl.store(outs, (given / total).to(out.dtype.element_ty), mask=dims < DIM)


@triton.jit(do_not_specialize=_LOOSE, do_not_specialize_on_alignment=_ANYWHERE)
def prefill(
    query, key, value, tables, starts, offsets, sinks, out,
    query_stride, query_head_stride, out_stride, out_head_stride, table_stride,
    factor, softcap, value_factor, window,
    BLOCK_STRIDE: tl.constexpr, TOKEN_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_BITS: tl.constexpr,
    GROUP: tl.constexpr, PLACES: tl.constexpr, DIM: tl.constexpr, DIM_ROOM: tl.constexpr,
    TILE: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """One program per head of keys, tile of tokens and row; it has all query heads of its head of keys."""
    TOKENS: tl.constexpr = PLACES // GROUP
    kv_head = tl.program_id(0)
    row = tl.program_id(2)
    # Later tokens see more: they begin first.
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS
    flat = tl.load(offsets + row)
    count = tl.load(offsets + row + 1) - flat
    if begin < count:
        start = tl.load(starts + row)
        place = tl.arange(0, PLACES)
        token = begin + place // GROUP
        head = kv_head * GROUP + place % GROUP
        dims = tl.arange(0, DIM_ROOM)
        is_ours = (place < TOKENS * GROUP) & (token < count)
        is_stored = is_ours[:, None] & (dims < DIM)[None, :]
        where = (flat + token).to(tl.int64)[:, None]
        queries = query + where * query_stride + head[:, None] * query_head_stride + dims[None, :]
        q = _operand(tl.load(queries, mask=is_stored, other=0.0), NARROW)
        table = tables + row.to(tl.int64) * table_stride
        keys = key + kv_head * HEAD_STRIDE + dims[None, :]
        values = value + kv_head * HEAD_STRIDE + dims[None, :]

        high = start + tl.minimum(begin + TOKENS, count)
        low = start * 0
        edge_from = start * 0
        if window is not None:
            low = tl.maximum(start + begin - window + 1, 0)
            # All of our queries see from here on, as far as they see at all.
            edge_from = tl.cdiv(tl.maximum(high - window, 0) - low, TILE)
        edge_to = (start + begin + 1 - low) // TILE

        seen_to = tl.minimum(start + token, high - 1)
        top = tl.full([PLACES], float("-inf"), tl.float32)
        total = tl.zeros([PLACES], tl.float32)
        acc = tl.zeros([PLACES, DIM_ROOM], tl.float32)
        acc, total, top = _over_tiles(
            acc, total, top, q, seen_to, keys, values, table, dims, low, edge_from, edge_to, high,
            factor, softcap, window,
            BLOCK_STRIDE, TOKEN_STRIDE, BLOCK_TOKENS, BLOCK_BITS, DIM, DIM_ROOM, TILE, AHEAD=False,
        )  # fmt: skip

        if sinks is not None:
            acc, total = _with_sinks(acc, total, top, sinks + head, is_ours)
        outs = out + where * out_stride + head[:, None] * out_head_stride + dims[None, :]
        given = acc * (value_factor / total)[:, None]
        tl.store(outs, given.to(out.dtype.element_ty), mask=is_stored)
