"""Attention of one-token rows, as machine code: keys and values are read once, where they lie and as they are kept.

Tiles are counted from the first position that a row sees, so what comes out depends on that row alone, wherever its
blocks lie, whatever else is in the step and however many threads there are.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.native.choice import Seen, Shape
from llmhost.engines.torch.native.code import INT64, LANES, Code, Value
from llmhost.engines.torch.native.machine import Machine
from llmhost.engines.torch.native.tiles import Queries, Tiles

TASKS_OF_A_THREAD = 4
"""So many at least, where there are heads enough to share a row: the last one done keeps the others waiting less."""


class NativeRows:
    """The code for one shape."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._machine = Machine(written(shape))

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
        job = [
            asked.data_ptr(),
            cache.key.data_ptr(),
            cache.value.data_ptr(),
            out.data_ptr(),
            0 if sunk is None else sunk.data_ptr(),
            seen.tables.data_ptr(),
            seen.firsts.ctypes.data,
            seen.ends.ctypes.data,
            seen.tables.shape[1],
            rows * parts,
            parts,
            heads // parts,
            0,
        ]
        self._machine.run(np.array(job, np.int64))
        return out.to(query.dtype)


@cache
def _parts(rows: int, heads: int, threads: int) -> int:
    """In how many tasks of equally many heads each row is cut."""
    wanted = 1 if threads == 1 else -(-TASKS_OF_A_THREAD * threads // rows)
    return next((parts for parts in range(wanted, heads) if heads % parts == 0), heads)


def written(shape: Shape) -> Code:
    return _Rows(shape).code


class _Rows(Tiles):
    """A task is some heads of one row; a block is the queries that share a head of the cache."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, shape.queries)
        c, count = self.code, shape.kv_heads * shape.queries
        self.query, self.keys, self.values, self.out, self.sinks = map(self.field, range(5))
        self.tables, self.firsts, self.ends = map(self.field, range(5, 8))
        self.width, self.tasks, self.parts, self.heads = (
            self.field(number, INT64) for number in range(8, 12)
        )
        self.tops, self.totals = c.room(c.whole(count // LANES + 2)), c.room(c.whole(count))
        with c.each_task(self.shared(12), self.tasks) as task:
            self._task(c.b.sub(c.b.sub(self.tasks, c.whole(1)), task))  # the longest row first
        c.b.ret_void()

    def _task(self, task: Value) -> None:
        c, shape = self.code, self.shape
        row = c.b.udiv(task, self.parts)
        head = c.b.mul(c.b.urem(task, self.parts), self.heads)
        until = c.b.add(head, self.heads)
        first, end = c.load(self.firsts, row, INT64), c.load(self.ends, row, INT64)
        table = c.place(self.tables, c.b.mul(row, self.width), INT64)
        at = c.b.mul(row, c.whole(shape.kv_heads * shape.queries * shape.head_dim))
        of = Queries(c.place(self.query, at), c.place(self.out, at), self.tops, self.totals)
        begin, stop = (c.b.mul(one, c.whole(shape.queries)) for one in (head, until))
        self.begin(of, begin, stop, self.sinks)
        with c.loop(first, end, LANES) as position:
            last = c.b.sub(end, c.whole(1))
            self.find(table, last, position, self.here)
            self.find(table, last, c.b.add(position, c.whole(LANES)), self.next)
            count = c.least(c.b.sub(end, position), c.whole(LANES))
            with c.loop(head, until) as one:
                self._head(of, one, count)
        self.end(of, begin, stop)

    def _head(self, of: Queries, head: Value, count: Value) -> None:
        """One tile."""
        c = self.code
        first = c.b.mul(head, c.whole(self.shape.queries))

        def part(start: Value, lane: Value, chunk: int) -> Value:
            place = c.b.add(self.vector(self.here, lane, head), c.whole(chunk))
            return c.widened(start, place, self.kind)

        with c.loop(c.whole(0), c.whole(LANES)) as lane:
            self.announce((self.keys, self.values), self.vector(self.next, lane, head))
            self.multiply(of, first, lane, lambda lane, chunk: part(self.keys, lane, chunk))
        shrinks = self.weigh(of, first, [count] * self.block)
        self.sum_up(of, first, count, shrinks, lambda lane, chunk: part(self.values, lane, chunk))
