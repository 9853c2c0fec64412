"""Attention of one-token rows, as machine code: keys and values are read once, where they lie and as they are kept.

A tile of 16 positions at a time, for each head of the cache: the scores of all queries that share the head, then their
weights relative to the largest score so far (Milakov and Gimelshein, "Online normalizer calculation for softmax",
2018), then the sum of values. All in float32. Tiles are counted from the first position that a row sees, so what comes
out depends on that row alone, wherever its blocks lie, whatever else is in the step and however many threads there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.native.choice import RowsShape, Seen
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
from llmhost.engines.torch.native.machine import Machine, has_wide_registers

TASKS_OF_A_THREAD = 4
"""So many at least, where there are heads enough to share a row: the last one done keeps the others waiting less."""
LINE_BYTES = 64

KINDS = {torch.bfloat16: INT16, torch.float16: ir.HalfType()}


class NativeRows:
    """The code for one shape."""

    def __init__(self, shape: RowsShape) -> None:
        self._shape = shape
        self._machine = Machine(_Kernel(shape).code)

    def attend(
        self, query: Tensor, cache: KeyValue, seen: Seen, scaling: float, sinks: Tensor | None
    ) -> Tensor:
        """Attend with `query` [rows, heads, head_dim], over `cache` [blocks, block_tokens, kv_heads, head_dim].

        Returns [rows, heads, head_dim], in the query's type.
        """
        asked = query.float().contiguous() * scaling
        out = torch.empty_like(asked)
        sunk = None if sinks is None else sinks.float().contiguous()
        rows, heads = len(asked), self._shape.kv_heads
        parts = _parts(rows, heads, torch.get_num_threads())
        job = np.array(
            [
                asked.data_ptr(),
                cache.key.data_ptr(),
                cache.value.data_ptr(),
                out.data_ptr(),
                0 if sunk is None else sunk.data_ptr(),
                seen.tables.data_ptr(),
                seen.tables.shape[1],
                seen.firsts.ctypes.data,
                seen.ends.ctypes.data,
                rows * parts,
                parts,
                heads // parts,
                0,
            ],
            np.int64,
        )
        self._machine.run(job)
        return out.to(query.dtype)


@cache
def _parts(rows: int, heads: int, threads: int) -> int:
    """In how many tasks of equally many heads each row is cut."""
    wanted = 1 if threads == 1 else -(-TASKS_OF_A_THREAD * threads // rows)
    return next((parts for parts in range(wanted, heads) if heads % parts == 0), heads)


class _Job:
    """The fields of a job, in the order in which `NativeRows.attend` has them."""

    def __init__(self, code: Code) -> None:
        job = code.function.args[0]

        def field(number: int, kind: Value) -> Value:
            return code.load(job, code.whole(number), kind)

        self.query, self.keys, self.values, self.out, self.sinks, self.tables = (
            field(number, POINTER) for number in range(6)
        )
        self.width = field(6, INT64)
        self.firsts, self.ends = field(7, POINTER), field(8, POINTER)
        self.tasks, self.parts, self.heads = (field(number, INT64) for number in range(9, 12))
        self.counter = code.place(job, code.whole(12), INT64)


@dataclass(frozen=True, slots=True)
class _Row:
    """The row of a task."""

    table: Value
    last: Value
    """The last position that it sees."""
    query: Value
    out: Value
    """[kv_heads, queries, head_dim]: sums of values times weights, until they are divided by the weights' sums."""


class _Kernel:
    """Writes the code."""

    def __init__(self, shape: RowsShape) -> None:
        self.shape = shape
        self.kind = KINDS[shape.dtype]
        self.chunks = range(0, shape.head_dim, LANES)
        self.registers = 16 if has_wide_registers() else 6  # for sums of values
        self.code = c = Code("attend")
        count = shape.kv_heads * shape.queries
        self.tops, self.totals = c.room(FLOAT, count), c.room(FLOAT, count)
        self.here, self.next = c.room(INT64, LANES), c.room(INT64, LANES)
        self.products = c.room(FLOATS, shape.queries * LANES)
        self.weights = c.room(FLOATS, shape.queries)
        self.job = _Job(c)
        with c.each_task(self.job.counter, self.job.tasks) as task:
            self._task(c.b.sub(c.b.sub(self.job.tasks, c.whole(1)), task))  # the longest row first
        c.b.ret_void()

    def _task(self, task: Value) -> None:
        """Some heads of one row."""
        c, job, shape = self.code, self.job, self.shape
        number = c.b.udiv(task, job.parts)
        head = c.b.mul(c.b.urem(task, job.parts), job.heads)
        until = c.b.add(head, job.heads)
        first, end = c.load(job.firsts, number, INT64), c.load(job.ends, number, INT64)
        elements = c.whole(shape.kv_heads * shape.queries * shape.head_dim)
        row = _Row(
            table=c.place(job.tables, c.b.mul(number, job.width), INT64),
            last=c.b.sub(end, c.whole(1)),
            query=c.place(job.query, c.b.mul(number, elements)),
            out=c.place(job.out, c.b.mul(number, elements)),
        )
        self._begin(row, head, until)
        with c.loop(first, end, LANES) as position:
            self._find(row, position, self.here)
            self._find(row, c.b.add(position, c.whole(LANES)), self.next)
            left = c.b.sub(end, position)
            is_whole = c.b.icmp_signed("<", c.whole(LANES), left)
            count = c.b.select(is_whole, c.whole(LANES), left)
            with c.loop(head, until) as one:
                shrinks = self._weigh(row, one, count)
                self._sum_up(row, one, count, shrinks)
        self._end(row, head, until)

    def _begin(self, row: _Row, head: Value, until: Value) -> None:
        """Nothing is seen yet, or the sink: a score of its own, whose value is nothing."""
        c, queries = self.code, self.code.whole(self.shape.queries)
        with c.loop(c.b.mul(head, queries), c.b.mul(until, queries)) as at:
            if self.shape.has_sinks:
                top, total = c.load(self.job.sinks, at, FLOAT), 1.0
            else:
                top, total = ir.Constant(FLOAT, float("-inf")), 0.0
            c.store(top, self.tops, at, FLOAT)
            c.store(ir.Constant(FLOAT, total), self.totals, at, FLOAT)
            for chunk in self.chunks:
                c.store_floats(c.floats(0.0), row.out, self._number(at, chunk))

    def _end(self, row: _Row, head: Value, until: Value) -> None:
        c, queries = self.code, self.code.whole(self.shape.queries)
        with c.loop(c.b.mul(head, queries), c.b.mul(until, queries)) as at:
            total = c.spread(c.load(self.totals, at, FLOAT))
            for chunk in self.chunks:
                place = self._number(at, chunk)
                c.store_floats(c.b.fdiv(c.load_floats(row.out, place), total), row.out, place)

    def _number(self, query: Value, chunk: int) -> Value:
        """Of a query's vector, the `chunk`th number."""
        c = self.code
        return c.b.add(c.b.mul(query, c.whole(self.shape.head_dim)), c.whole(chunk))

    def _find(self, row: _Row, position: Value, places: Value) -> None:
        """Where keys and values of 16 positions begin, as numbers of the cache; of what is after the last, the last."""
        c, shape = self.code, self.shape
        block_tokens = ir.Constant(INT32, shape.block_tokens)
        with c.loop(c.whole(0), c.whole(LANES)) as at:
            wanted = c.b.add(position, at)
            is_seen = c.b.icmp_signed("<", wanted, row.last)
            short = c.b.trunc(c.b.select(is_seen, wanted, row.last), INT32)
            block, within = (
                c.b.zext(part, INT64)
                for part in (c.b.udiv(short, block_tokens), c.b.urem(short, block_tokens))
            )
            slot = c.b.add(
                c.b.mul(c.load(row.table, block, INT64), c.whole(shape.block_tokens)), within
            )
            place = c.b.mul(slot, c.whole(shape.kv_heads * shape.head_dim))
            c.store(place, places, at, INT64)

    def _weigh(self, row: _Row, head: Value, count: Value) -> list[Value]:
        """Puts the weights of `count` positions into `weights`; returns what the sums so far shrink by."""
        c, queries = self.code, range(self.shape.queries)
        self._multiply(row, head)
        lanes = ir.Constant(INTS, list(range(LANES)))
        is_there = c.b.icmp_signed("<", lanes, c.spread(c.b.trunc(count, INT32)))
        shrinks = []
        for query in queries:
            at = c.b.add(c.b.mul(head, c.whole(len(queries))), c.whole(query))
            products = [
                c.load(self.products, c.whole(query * LANES + lane), FLOATS)
                for lane in range(LANES)
            ]
            scores = self._bounded(c.sums(products))
            scores = c.b.select(is_there, scores, c.floats(float("-inf")))
            before = c.spread(c.load(self.tops, at, FLOAT))
            top = c.larger(c.over_lanes(scores, c.larger), before)
            weights, shrink = (c.exp(c.b.fsub(one, top)) for one in (scores, before))
            total = c.spread(c.load(self.totals, at, FLOAT))
            total = c.fma(total, shrink, c.over_lanes(weights, c.b.fadd))
            c.store(c.one_of(top), self.tops, at, FLOAT)
            c.store(c.one_of(total), self.totals, at, FLOAT)
            c.store(weights, self.weights, c.whole(query), FLOATS)
            shrinks.append(shrink)
        return shrinks

    def _multiply(self, row: _Row, head: Value) -> None:
        """Puts into `products`, for each query and position, 16 numbers whose sum is the score."""
        c, shape = self.code, self.shape
        first = c.b.mul(head, c.whole(shape.queries))
        with c.loop(c.whole(0), c.whole(LANES)) as lane:
            key = self._vector(self.here, lane, head)
            self._announce(self._vector(self.next, lane, head))
            sums = [c.floats(0.0)] * shape.queries
            for chunk in self.chunks:
                part = c.widened(self.job.keys, c.b.add(key, c.whole(chunk)), self.kind)
                for query in range(shape.queries):
                    place = self._number(c.b.add(first, c.whole(query)), chunk)
                    sums[query] = c.fma(part, c.load_floats(row.query, place), sums[query])
            for query, one in enumerate(sums):
                place = c.b.add(lane, c.whole(query * LANES))
                c.store(one, self.products, place, FLOATS)

    def _vector(self, places: Value, lane: Value, head: Value) -> Value:
        """The number of the cache at which a head's vector of a position begins."""
        c = self.code
        return c.b.add(c.load(places, lane, INT64), c.b.mul(head, c.whole(self.shape.head_dim)))

    def _announce(self, vector: Value) -> None:
        """A tile ahead: the processor's own guesses end where a page does."""
        c = self.code
        for part in range(0, self.shape.head_dim, LINE_BYTES // self.shape.dtype.itemsize):
            for start in (self.job.keys, self.job.values):
                c.soon(c.place(start, c.b.add(vector, c.whole(part)), self.kind))

    def _bounded(self, scores: Value) -> Value:
        c, softcap = self.code, self.shape.softcap
        if softcap is None:
            return scores
        shares = c.b.fdiv(scores, c.floats(softcap))
        return c.b.fmul(c.tanh(shares), c.floats(softcap))

    def _sum_up(self, row: _Row, head: Value, count: Value, shrinks: Sequence[Value]) -> None:
        """Adds values times weights, as many chunks of all queries at once as there are registers for."""
        each = max(self.registers // self.shape.queries, 1)
        for start in range(0, len(self.chunks), each):
            self._sum_chunks(row, head, count, shrinks, self.chunks[start : start + each])

    def _sum_chunks(
        self, row: _Row, head: Value, count: Value, shrinks: Sequence[Value], chunks: range
    ) -> None:
        c = self.code
        first = c.b.mul(head, c.whole(len(shrinks)))
        places = [
            self._number(c.b.add(first, c.whole(query)), chunk)
            for query in range(len(shrinks))
            for chunk in chunks
        ]
        starts = [
            c.b.fmul(c.load_floats(row.out, place), shrinks[i // len(chunks)])
            for i, place in enumerate(places)
        ]
        with c.carrying(c.whole(0), count, starts) as (lane, sums, following):
            value = self._vector(self.here, lane, head)
            parts = [
                c.widened(self.job.values, c.b.add(value, c.whole(chunk)), self.kind)
                for chunk in chunks
            ]
            for query in range(len(shrinks)):
                place = c.b.add(lane, c.whole(query * LANES))
                weight = c.spread(c.load(self.weights, place, FLOAT))
                for i, part in enumerate(parts):
                    following.append(c.fma(part, weight, sums[query * len(parts) + i]))
        for place, total in zip(places, sums, strict=True):
            c.store_floats(total, row.out, place)
