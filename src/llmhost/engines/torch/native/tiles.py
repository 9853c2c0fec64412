"""Attention over tiles of 16 positions, as it is written for LLVM: what rows of one token and chunks of more share.

For a block of queries and one tile: the scores, then their weights relative to the largest score so far (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018), then the sum of values. All in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from llvmlite import ir

from llmhost.engines.torch.native.choice import Shape
from llmhost.engines.torch.native.code import (
    FLOAT,
    FLOATS,
    INT16,
    INT32,
    INT64,
    INTS,
    LANES,
    POINTER,
    Code,
    Value,
)
from llmhost.engines.torch.native.machine import has_wide_registers

LINE_BYTES = 64
KINDS = {torch.bfloat16: INT16, torch.float16: ir.HalfType()}

Part = Callable[[Value, int], Value]
"""Of the position at a lane, 16 numbers of its key or value from the given one on, in float32."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Where a task's are."""

    query: Value
    """[queries, head_dim]"""
    out: Value
    """The same for the sums of values times weights, until they are divided by the weights' sums."""
    tops: Value
    """[queries + 16]: the largest score so far."""
    totals: Value
    """[queries, 16]: sums of the weights so far, of each lane."""


class Tiles:
    """Writes the parts; `code` is the function."""

    def __init__(self, shape: Shape, block: int) -> None:
        """`block` queries are computed at once."""
        self.shape, self.block = shape, block
        self.kind = KINDS[shape.dtype]
        self.chunks = range(0, shape.head_dim, LANES)
        self.registers = 16 if has_wide_registers() else 6  # for sums of values
        self.code = c = Code("attend")
        self.here, self.next = c.room(c.whole(2)), c.room(c.whole(2))  # 16 places
        self.products = c.room(c.whole(block * LANES))
        self.weights = c.room(c.whole(block))

    def field(self, number: int, kind: Value = POINTER) -> Value:
        """Of the job."""
        return self.code.load(self.code.function.args[0], self.code.whole(number), kind)

    def shared(self, number: int) -> Value:
        """The address of a field that all threads count up."""
        return self.code.place(self.code.function.args[0], self.code.whole(number), INT64)

    def begin(self, of: Queries, first: Value, last: Value, sinks: Value) -> None:
        """Nothing is seen yet, or the sink: a score of its own, whose value is nothing."""
        c = self.code
        with c.loop(first, last) as at:
            if self.shape.has_sinks:
                top, total = c.load(sinks, at, FLOAT), [1.0] + [0.0] * (LANES - 1)
            else:
                top, total = ir.Constant(FLOAT, float("-inf")), [0.0] * LANES
            c.store(top, of.tops, at, FLOAT)
            c.store(ir.Constant(FLOATS, total), of.totals, at, FLOATS)
            for chunk in self.chunks:
                c.store_floats(c.floats(0.0), of.out, self.number(at, chunk))

    def end(self, of: Queries, first: Value, last: Value) -> None:
        c = self.code
        with c.loop(first, last) as at:
            total = c.over_lanes(c.load(of.totals, at, FLOATS), c.b.fadd)
            for chunk in self.chunks:
                place = self.number(at, chunk)
                c.store_floats(c.b.fdiv(c.load_floats(of.out, place), total), of.out, place)

    def number(self, query: Value, chunk: int) -> Value:
        """Of a query's vector, the `chunk`th number."""
        c = self.code
        return c.b.add(c.b.mul(query, c.whole(self.shape.head_dim)), c.whole(chunk))

    def find(self, table: Value, last: Value, position: Value, places: Value) -> None:
        """Where keys and values of 16 positions begin, as numbers of the cache; of what is after `last`, the last."""
        c, shape = self.code, self.shape
        block_tokens = ir.Constant(INT32, shape.block_tokens)
        with c.loop(c.whole(0), c.whole(LANES)) as at:
            wanted = c.b.add(position, at)
            is_seen = c.b.icmp_signed("<", wanted, last)
            short = c.b.trunc(c.b.select(is_seen, wanted, last), INT32)
            block, within = (
                c.b.zext(part, INT64)
                for part in (c.b.udiv(short, block_tokens), c.b.urem(short, block_tokens))
            )
            slot = c.b.mul(c.load(table, block, INT64), c.whole(shape.block_tokens))
            elements = c.whole(shape.kv_heads * shape.head_dim)
            c.store(c.b.mul(c.b.add(slot, within), elements), places, at, INT64)

    def vector(self, places: Value, lane: Value, head: Value) -> Value:
        """The number of the cache at which a head's vector of a position begins."""
        c = self.code
        return c.b.add(c.load(places, lane, INT64), c.b.mul(head, c.whole(self.shape.head_dim)))

    def announce(self, starts: Sequence[Value], vector: Value) -> None:
        """A tile ahead: the processor's own guesses end where a page does."""
        c = self.code
        for part in range(0, self.shape.head_dim, LINE_BYTES // self.shape.dtype.itemsize):
            for start in starts:
                c.soon(c.place(start, c.b.add(vector, c.whole(part)), self.kind))

    def multiply(self, of: Queries, first: Value, lane: Value, key: Part) -> None:
        """Puts into `products`, for each query of the block at `first`, 16 numbers whose sum is the score of a lane."""
        c = self.code
        sums = [c.floats(0.0)] * self.block
        for chunk in self.chunks:
            part = key(lane, chunk)
            for query in range(self.block):
                place = self.number(c.b.add(first, c.whole(query)), chunk)
                sums[query] = c.fma(part, c.load_floats(of.query, place), sums[query])
        for query, one in enumerate(sums):
            c.store(one, self.products, c.b.add(lane, c.whole(query * LANES)), FLOATS)

    def weigh(self, of: Queries, first: Value, counts: Sequence[Value]) -> list[Value]:
        """Puts the weights of the first `counts` positions, by query of the block at `first`, into `weights`; returns
        what the sums so far shrink by."""
        c = self.code
        before = c.load_floats(of.tops, first)
        scores = [self._scores(query, count) for query, count in enumerate(counts)]
        tops = before
        for query, one in enumerate(scores):
            top = c.larger(c.over_lanes(one, c.larger), c.at_lane(before, query))
            tops = c.with_lane(tops, query, top)
            scores[query] = c.b.fsub(one, top)
        c.store_floats(tops, of.tops, first)
        every = c.exp(c.b.fsub(before, tops))
        shrinks = [c.at_lane(every, query) for query in range(self.block)]
        for query, (one, shrink) in enumerate(zip(scores, shrinks, strict=True)):
            at = c.b.add(first, c.whole(query))
            weights = c.exp(one)
            total = c.fma(c.load(of.totals, at, FLOATS), shrink, weights)
            c.store(total, of.totals, at, FLOATS)
            c.store(weights, self.weights, c.whole(query), FLOATS)
        return shrinks

    def _scores(self, query: Value, count: Value) -> Value:
        """Of a query of the block, for the first `count` positions; others are as far away as can be."""
        c = self.code
        products = [
            c.load(self.products, c.whole(query * LANES + lane), FLOATS) for lane in range(LANES)
        ]
        lanes = ir.Constant(INTS, list(range(LANES)))
        is_seen = c.b.icmp_signed("<", lanes, c.spread(c.b.trunc(count, INT32)))
        return c.b.select(is_seen, self._bounded(c.sums(products)), c.floats(float("-inf")))

    def _bounded(self, scores: Value) -> Value:
        c, softcap = self.code, self.shape.softcap
        if softcap is None:
            return scores
        return c.b.fmul(c.tanh(c.b.fdiv(scores, c.floats(softcap))), c.floats(softcap))

    def sum_up(
        self, of: Queries, first: Value, count: Value, shrinks: Sequence[Value], value: Part
    ) -> None:
        """Adds `count` values times weights for the block at `first`, as many chunks of all its queries at once as
        there are registers for."""
        each = max(self.registers // self.block, 1)
        for start in range(0, len(self.chunks), each):
            chunks = self.chunks[start : start + each]
            self._sum_chunks(of, first, count, shrinks, value, chunks)

    def _sum_chunks(
        self,
        of: Queries,
        first: Value,
        count: Value,
        shrinks: Sequence[Value],
        value: Part,
        chunks: range,
    ) -> None:
        c = self.code
        places = [
            self.number(c.b.add(first, c.whole(query)), chunk)
            for query in range(self.block)
            for chunk in chunks
        ]
        starts = [
            c.b.fmul(c.load_floats(of.out, place), shrinks[i // len(chunks)])
            for i, place in enumerate(places)
        ]
        with c.carrying(c.whole(0), count, starts) as (lane, sums, following):
            parts = [value(lane, chunk) for chunk in chunks]
            for query in range(self.block):
                place = c.b.add(lane, c.whole(query * LANES))
                weight = c.spread(c.load(self.weights, place, FLOAT))
                for i, part in enumerate(parts):
                    following.append(c.fma(part, weight, sums[query * len(parts) + i]))
        for place, total in zip(places, sums, strict=True):
            c.store_floats(total, of.out, place)
