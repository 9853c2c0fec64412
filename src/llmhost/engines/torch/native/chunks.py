"""Attention of a prompt's chunk over what came before it, as machine code.

A tile of 16 positions is widened where the first cache holds it, and all queries of a chunk go over it, a few at a
time.
"""

import numpy as np
import torch
from torch import Tensor

from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.native.choice import SeenByChunk, Shape
from llmhost.engines.torch.native.code import INT64, LANES, Code, Value
from llmhost.engines.torch.native.machine import Machine
from llmhost.engines.torch.native.tiles import Queries, Tiles

BLOCK = 4
"""Queries at once: their sums keep the processor busy while each waits for its last addition."""


class NativeChunks:
    """The code for one shape."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._machine = Machine(written(shape))

    def attend(
        self,
        query: Tensor,
        cache: KeyValue,
        seen: SeenByChunk,
        scaling: float,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attend with `query` [tokens, heads, head_dim], the last tokens of what is seen, over `cache`
        [blocks, block_tokens, kv_heads, head_dim].

        Returns [tokens, heads, head_dim], in the query's type.
        """
        tokens, heads, dim = query.shape
        kv_heads = self._shape.kv_heads
        count = heads // kv_heads * tokens
        padded = -(-count // BLOCK) * BLOCK
        asked = torch.zeros(kv_heads, padded, dim, dtype=torch.float32)
        by_token = query.reshape(tokens, kv_heads, -1, dim).transpose(0, 1)
        asked[:, :count].view(by_token.shape).copy_(by_token).mul_(scaling)
        out = torch.empty_like(asked)
        sunk = None
        if sinks is not None:
            sunk = torch.zeros(kv_heads, padded, dtype=torch.float32)
            sunk[:, :count] = sinks.float().view(kv_heads, -1).repeat(1, tokens)
        job = [
            asked.data_ptr(),
            cache.key.data_ptr(),
            cache.value.data_ptr(),
            out.data_ptr(),
            0 if sunk is None else sunk.data_ptr(),
            seen.table.data_ptr(),
            seen.end,
            seen.end - tokens,
            padded,
            0,
        ]
        self._machine.run(np.array(job, np.int64))
        answer = out[:, :count].view(kv_heads, tokens, -1, dim).transpose(0, 1)
        return answer.reshape(tokens, heads, dim).to(query.dtype)


def written(shape: Shape) -> Code:
    return _Chunks(shape).code


class _Chunks(Tiles):
    """A task is one head of the cache, with the queries of all tokens, by token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, BLOCK)
        c = self.code
        self.query, self.keys, self.values, self.out, self.sinks = map(self.field, range(5))
        self.table = self.field(5)
        self.stop, self.start, self.count = (self.field(number, INT64) for number in range(6, 9))
        blocks = c.b.udiv(self.count, c.whole(BLOCK))
        self.share = c.b.udiv(c.b.add(blocks, c.whole(LANES - 1)), blocks)
        groups = c.b.add(c.b.udiv(self.count, c.whole(LANES)), c.whole(2))
        self.tops, self.totals = c.room(groups), c.room(self.count)
        self.wide_keys, self.wide_values = (c.room(c.whole(shape.head_dim)) for _ in range(2))
        with c.each_task(self.shared(9), c.whole(shape.kv_heads)) as head:
            self._task(head)
        c.b.ret_void()

    def _task(self, head: Value) -> None:
        c = self.code
        first = c.b.mul(head, self.count)
        at = self.number(first, 0)
        of = Queries(c.place(self.query, at), c.place(self.out, at), self.tops, self.totals)
        sinks = c.place(self.sinks, first)
        self.begin(of, c.whole(0), self.count, sinks)
        with c.loop(c.whole(0), self.stop, LANES) as position:
            last = c.b.sub(self.stop, c.whole(1))
            self.find(self.table, last, position, self.here)
            self.find(self.table, last, c.b.add(position, c.whole(LANES)), self.next)
            self._widen(head)
            count = c.least(c.b.sub(self.stop, position), c.whole(LANES))
            with c.loop(c.whole(0), self.count, BLOCK) as first:
                self._announce_some(head, first)
                self._block(of, first, position, count)
        self.end(of, c.whole(0), self.count)

    def _widen(self, head: Value) -> None:
        c = self.code
        with c.loop(c.whole(0), c.whole(LANES)) as lane:
            vector = self.vector(self.here, lane, head)
            for start, wide in ((self.keys, self.wide_keys), (self.values, self.wide_values)):
                for chunk in self.chunks:
                    part = c.widened(start, c.b.add(vector, c.whole(chunk)), self.kind)
                    c.store_floats(part, wide, self.number(lane, chunk))

    def _announce_some(self, head: Value, first: Value) -> None:
        """The block's share of the next tile: all at once would wait for memory, and leave it idle afterwards."""
        c = self.code
        begin = c.b.mul(c.b.udiv(first, c.whole(BLOCK)), self.share)
        until = c.least(c.b.add(begin, self.share), c.whole(LANES))
        with c.loop(begin, until) as lane:
            self.announce((self.keys, self.values), self.vector(self.next, lane, head))

    def _block(self, of: Queries, first: Value, position: Value, count: Value) -> None:
        """Some queries over one tile, each up to the position of its own token."""
        c = self.code

        def key(lane: Value, chunk: int) -> Value:
            return c.load_floats(self.wide_keys, self.number(lane, chunk))

        def value(lane: Value, chunk: int) -> Value:
            return c.load_floats(self.wide_values, self.number(lane, chunk))

        with c.loop(c.whole(0), c.whole(LANES)) as lane:
            self.multiply(of, first, lane, key)
        after = c.b.add(c.b.sub(self.start, position), c.whole(1))
        counts = []
        for query in range(BLOCK):
            number = c.b.add(first, c.whole(query))
            token = c.b.udiv(number, c.whole(self.shape.queries))
            counts.append(c.b.add(after, token))
        self.sum_up(of, first, count, self.weigh(of, first, counts), value)
