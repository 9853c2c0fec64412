"""What runs on the device for `draw`: `look` at each tile of each line, then `settle` each line. Why is said there."""

import triton
import triton.language as tl

_ONE_EACH = ("temperature", "top_k", "top_p", "min_p", "seed", "position", "out")
"""Arguments with one number per line: how they lie in memory changes with the step, and must not ask for a compiler."""
_END = tl.constexpr(2**31 - 1)
_LOWEST = tl.constexpr(-(2**31) + 2**23 - 1)
"""What `_ordered` makes of negative infinity."""


@triton.jit
def _mixed(bits):
    """A 32-bit number, each bit of which depends on all bits of the given one (the end of MurmurHash3)."""
    bits = bits ^ (bits >> 16)
    bits = bits * 0x85EBCA6B
    bits = bits ^ (bits >> 13)
    bits = bits * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def _row_keys(seed, position):
    """Two 32-bit numbers that belong to a seed and a position, of which the low 32 bits count."""
    low = seed.to(tl.uint32)
    high = (seed >> 32).to(tl.uint32)
    place = position.to(tl.uint32)
    first = _mixed(_mixed(_mixed(low + 0x9E3779B9) ^ high) + place)
    second = _mixed(_mixed(_mixed(place + 0x7F4A7C15) ^ low) + high)
    return first, second


@triton.jit
def _patience(tokens, first, second):
    """An exponentially distributed number that belongs to each token, from 2**-33 to 24.

    Small numbers decide the race, so these are the fine ones.
    """
    bits = _mixed(_mixed(tokens.to(tl.uint32) + first) ^ second)
    share = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    # -log2(1 - share): by its series where 1 - share would round most of it away.
    series = tl.fma(share, 0.28853901, 0.36067376)
    series = tl.fma(share, series, 0.48089835)
    series = tl.fma(share, series, 0.72134752)
    series = tl.fma(share, series, 1.442695)
    return tl.where(share < 0.015625, share * series, -tl.log2(1.0 - share))


@triton.jit
def _arrival(logits, best, scale, tokens, first, second):
    """When each token reaches the goal: its patience over its weight, that of `best` being 1.

    Weights end at 2**-100. What is lighter loses to the best whatever the numbers are.
    """
    return _patience(tokens, first, second) * tl.exp2(tl.minimum((best - logits) * scale, 100.0))


@triton.jit
def _scale(temperature):
    """What logits are multiplied by to be log2 of weights."""
    return 1.4426950408889634 / tl.maximum(temperature, 1e-30)


@triton.jit
def _units(logits, best, scale):
    """Weights as integers, in units of 2**-43 of the weight of `best`. Two conversions to int32, as int64 is slow."""
    scaled = tl.exp2(tl.minimum((logits - best) * scale, 0.0)) * 1073741824.0
    high = scaled.to(tl.int32)
    low = ((scaled - high.to(tl.float32)) * 8192.0).to(tl.int32)
    return (high.to(tl.int64) << 13) + low.to(tl.int64)


@triton.jit
def _ordered(numbers):
    """float32 as int32 in the same order, both zeros as one."""
    bits = numbers.to(tl.int32, bitcast=True)
    bits = tl.where(bits == -2147483648, 0, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _is_filtered(top_k, top_p, min_p, vocabulary):
    return ((top_k > 0) & (top_k < vocabulary)) | (top_p < 1.0) | (min_p > 0.0)


@triton.jit(do_not_specialize_on_alignment=_ONE_EACH)
def look(
    logits,
    stride,
    vocabulary,
    groups,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    position,
    tile_best,
    tile_first,
    tile_time,
    tile_token,
    tile_mass,
    group_best,
    TILE_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of one line: its largest logit and the first token that has it, the winner of its race, its mass."""
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    group = tile * TILE_GROUPS + tl.arange(0, TILE_GROUPS)
    tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    line = logits + row * stride
    x = tl.load(line + tokens, mask=tokens < vocabulary, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    tops = tl.max(x, 1)
    tl.store(group_best + row * groups + group, tops, mask=group < groups)
    best = tl.max(tops, 0)
    at = row * tl.num_programs(0) + tile
    tl.store(tile_best + at, best)
    tl.store(tile_first + at, tl.min(tl.min(tl.where(x == best, tokens, _END), 1), 0))
    heat = tl.load(temperature + row)
    if heat > 0.0:
        scale = _scale(heat)
        start = tl.where(tl.abs(best) < float("inf"), best, 0.0)
        share = tl.load(top_p + row)
        if _is_filtered(tl.load(top_k + row), share, tl.load(min_p + row), vocabulary):
            if share < 1.0:
                tl.store(tile_mass + at, tl.sum(tl.sum(_units(x, start, scale), 1), 0))
        else:
            first, second = _row_keys(tl.load(seed + row), tl.load(position + row))
            times = _arrival(x, start, scale, tokens, first, second)
            time = tl.min(tl.min(times, 1), 0)
            tl.store(tile_time + at, time)
            tl.store(tile_token + at, tl.min(tl.min(tl.where(times == time, tokens, _END), 1), 0))


@triton.jit(do_not_specialize_on_alignment=_ONE_EACH)
def settle(
    logits,
    stride,
    vocabulary,
    groups,
    tiles,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    position,
    tile_best,
    tile_first,
    tile_time,
    tile_token,
    tile_mass,
    group_best,
    listed,
    edges,
    out,
    TILES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST_GROUPS: tl.constexpr,
    SPARE_BITS: tl.constexpr,
):
    """One line: what its tiles come to, or the race again behind the edge of its filters."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    at = row * tiles + tile
    is_tile = tile < tiles
    bests = tl.load(tile_best + at, mask=is_tile, other=float("-inf"))
    best = tl.max(bests, 0)
    heat = tl.load(temperature + row)
    limit = tl.load(top_k + row)
    share = tl.load(top_p + row)
    least = tl.load(min_p + row)
    scale = _scale(heat)
    drawn = tl.full((), -1, tl.int32)
    if (best > float("-inf")) & (best < float("inf")):
        if heat > 0.0:
            first, second = _row_keys(tl.load(seed + row), tl.load(position + row))
            behind = (bests - best) * scale
            if _is_filtered(limit, share, least, vocabulary):
                mass = tl.zeros((), tl.float64)
                if share < 1.0:
                    masses = tl.load(tile_mass + at, mask=is_tile, other=0)
                    mass = tl.sum(masses.to(tl.float64) * tl.exp2(behind).to(tl.float64), 0)
                drawn, edge = _race_behind_the_edge(
                    logits + row * stride,
                    group_best + row * groups,
                    listed + row * groups,
                    vocabulary,
                    groups,
                    best,
                    mass,
                    scale,
                    limit,
                    share,
                    least,
                    first,
                    second,
                    GROUPS,
                    GROUP,
                    CHUNK,
                    FIRST_GROUPS,
                    SPARE_BITS,
                )
                tl.store(edges + row, edge)
            else:
                # Logarithms, as a tile may be behind by more than float32 reaches.
                keys = behind - tl.log2(tl.load(tile_time + at, mask=is_tile, other=1.0))
                tokens = tl.load(tile_token + at, mask=is_tile, other=_END)
                drawn = tl.min(tl.where(keys == tl.max(keys, 0), tokens, _END), 0)
        else:
            firsts = tl.load(tile_first + at, mask=is_tile, other=_END)
            drawn = tl.min(tl.where(bests == best, firsts, _END), 0)
    tl.store(out + row, drawn)


@triton.jit
def _race_behind_the_edge(
    line,
    group_best,
    listed,
    vocabulary,
    groups,
    best,
    mass,
    scale,
    limit,
    share,
    least,
    first,
    second,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST_GROUPS: tl.constexpr,
    SPARE_BITS: tl.constexpr,
):
    """The token drawn on a line that filters, and the least logit that stays in.

    An edge is the least `_ordered` number that stays in, without its spare bits, as int64. No edge that is looked for
    lies below the one that decides which groups are listed.
    """
    group = tl.arange(0, GROUPS)
    tops = tl.load(group_best + group, mask=group < groups, other=float("-inf"))
    order = _ordered(tops) >> SPARE_BITS
    has_limit = (limit > 0) & (limit < vocabulary)
    has_share = share < 1.0
    lowest = tl.full((), _LOWEST >> SPARE_BITS, tl.int64)
    end = (_ordered(best) >> SPARE_BITS).to(tl.int64) + 1
    edge = lowest
    # The n largest logits are not below the n largest of the groups' best.
    wanted = tl.where(has_limit, limit, FIRST_GROUPS)
    if (has_limit | has_share) & (wanted < groups):
        edge = _nth_largest(order, wanted, lowest, end)
    floor = tl.where(least > 0.0, tl.log2(tl.maximum(least, 1e-37)), float("-inf"))
    # Of what top_k leaves top_p takes the mass of all, also of what min_p bars.
    cut = tl.where(has_limit & has_share, float("-inf"), floor)
    is_in = (order >= edge.to(tl.int32)) & (tops > float("-inf"))
    count = _list(listed, group, is_in & ((tops - best) * scale >= cut))
    if has_limit:
        low = edge
        high = end
        while high - low > 1:
            middle = (low + high) >> 1
            found = _count(line, listed, count, vocabulary, middle, GROUP, CHUNK, SPARE_BITS)
            low = tl.where(found >= limit, middle, low)
            high = tl.where(found >= limit, high, middle)
        edge = low
    if has_share:
        reached = _mass(
            line, listed, count, vocabulary, edge, best, scale, GROUP, CHUNK, SPARE_BITS
        ).to(tl.float64)
        whole = tl.where(has_limit, reached, mass)
        goal = whole * share.to(tl.float64)
        if reached < goal:
            # Tokens below this are too light to reach the rest of the mass, were all of the vocabulary such.
            light = (whole - goal) / vocabulary / 8796093022208.0
            cut = tl.maximum(floor, tl.log2(light.to(tl.float32)) - 0.01)
            is_in = (tops > float("-inf")) & ((tops - best) * scale >= cut)
            count = _list(listed, group, is_in)
            edge = lowest
        low = edge
        high = end
        while high - low > 1:
            middle = (low + high) >> 1
            found = _mass(
                line, listed, count, vocabulary, middle, best, scale, GROUP, CHUNK, SPARE_BITS
            ).to(tl.float64)
            low = tl.where(found >= goal, middle, low)
            high = tl.where(found >= goal, high, middle)
        edge = low
    return _race(
        line,
        listed,
        count,
        vocabulary,
        edge,
        floor,
        best,
        scale,
        first,
        second,
        GROUP,
        CHUNK,
        SPARE_BITS,
    )


@triton.jit
def _race(
    line,
    listed,
    count,
    vocabulary,
    edge,
    floor,
    best,
    scale,
    first,
    second,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    SPARE_BITS: tl.constexpr,
):
    """The winner among the listed groups' tokens behind the edge and the floor (log2 of a share of the best's
    weight), and the least of their logits."""
    last = edge.to(tl.int32)
    times = tl.full((CHUNK, GROUP), float("inf"), tl.float32)
    winners = tl.full((CHUNK, GROUP), _END, tl.int32)
    leasts = tl.full((CHUNK, GROUP), float("inf"), tl.float32)
    at = 0
    while at < count:
        tokens, x = _chunk(line, listed, at, count, vocabulary, GROUP, CHUNK)
        is_kept = ((_ordered(x) >> SPARE_BITS) >= last) & ((x - best) * scale >= floor)
        is_kept = is_kept & (x > float("-inf"))
        time = _arrival(x, best, scale, tokens, first, second)
        time = tl.where(is_kept, time, float("inf"))
        winners = tl.where(time < times, tokens, winners)
        times = tl.minimum(time, times)
        leasts = tl.where(is_kept, tl.minimum(x, leasts), leasts)
        at += CHUNK
    time = tl.min(tl.min(times, 1), 0)
    drawn = tl.min(tl.min(tl.where(times == time, winners, _END), 1), 0)
    return drawn, tl.min(tl.min(leasts, 1), 0)


@triton.jit
def _nth_largest(order, nth, low, high):
    """The nth largest of the numbers in `order`; all are below `high`."""
    while high - low > 1:
        middle = (low + high) >> 1
        found = tl.sum((order >= middle.to(tl.int32)).to(tl.int32), 0)
        low = tl.where(found >= nth, middle, low)
        high = tl.where(found >= nth, high, middle)
    return low


@triton.jit
def _list(listed, group, is_in):
    """Write down in order which groups are in, and return how many."""
    flags = is_in.to(tl.int32)
    slots = tl.cumsum(flags, 0) - flags
    tl.debug_barrier()  # nobody reads the last list any more
    tl.store(listed + slots, group, mask=is_in)
    tl.debug_barrier()  # all have written
    return tl.sum(flags, 0)


@triton.jit
def _chunk(line, listed, at, count, vocabulary, GROUP: tl.constexpr, CHUNK: tl.constexpr):
    """Tokens and logits [CHUNK, GROUP] of the next groups that are listed, negative infinity behind the end."""
    place = at + tl.arange(0, CHUNK)
    group = tl.load(listed + place, mask=place < count, other=0)
    tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_there = (place < count)[:, None] & (tokens < vocabulary)
    return tokens, tl.load(line + tokens, mask=is_there, other=float("-inf")).to(tl.float32)


@triton.jit
def _count(
    line,
    listed,
    count,
    vocabulary,
    edge,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    SPARE_BITS: tl.constexpr,
):
    """How many logits of the listed groups are not below the edge."""
    last = edge.to(tl.int32)
    found = tl.zeros((CHUNK, GROUP), tl.int32)
    at = 0
    while at < count:
        _, x = _chunk(line, listed, at, count, vocabulary, GROUP, CHUNK)
        found += ((_ordered(x) >> SPARE_BITS) >= last).to(tl.int32)
        at += CHUNK
    return tl.sum(tl.sum(found, 1), 0)


@triton.jit
def _mass(
    line,
    listed,
    count,
    vocabulary,
    edge,
    best,
    scale,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    SPARE_BITS: tl.constexpr,
):
    """What the logits of the listed groups weigh that are not below the edge, in `_units`."""
    last = edge.to(tl.int32)
    found = tl.zeros((CHUNK, GROUP), tl.int64)
    at = 0
    while at < count:
        _, x = _chunk(line, listed, at, count, vocabulary, GROUP, CHUNK)
        is_kept = (_ordered(x) >> SPARE_BITS) >= last
        found += tl.where(is_kept, _units(x, best, scale), 0)
        at += CHUNK
    return tl.sum(tl.sum(found, 1), 0)
