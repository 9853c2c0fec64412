"""A request of a thousand texts goes to its engine a few at a time, so that it neither fills the queue nor is refused
for being longer than that.

It stands between one request and the engine, and looks like the engine to both. Everything happens on the HTTP loop.
"""

import asyncio
import itertools

from llmhost.core.errors import LlmhostError, Overloaded
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.ports import DeltaSink, EngineClient, EngineLoad
from llmhost.core.sequence import SequenceSpec


class PacedEngine:
    """Implements EngineClient for the sequences of one request: at most `most_live` of them are with the engine."""

    def __init__(self, engine: EngineClient, most_live: int) -> None:
        self._engine = engine
        self._most_live = most_live
        self._ids = itertools.count(1)
        self._started: dict[int, int] = {}  # our id -> the engine's
        self._waiting: dict[int, tuple[SequenceSpec, DeltaSink]] = {}  # the first came first

    @property
    def live(self) -> int:
        return len(self._started) + len(self._waiting)

    def submit(self, spec: SequenceSpec, sink: DeltaSink) -> int:
        """Raises Overloaded only where nothing of the request runs yet: what waits here has its place."""
        ours = next(self._ids)
        has_turn = len(self._started) < self._most_live and not self._waiting
        if not (has_turn and self._start(ours, spec, sink)):
            self._waiting[ours] = (spec, sink)
        return ours

    def cancel(self, seq_id: int) -> None:
        if seq_id in self._started:
            self._engine.cancel(self._started[seq_id])
            return
        if seq_id in self._waiting:
            spec, sink = self._waiting.pop(seq_id)
            last = Delta(spec.index, finish_reason=FinishReason.CANCELLED, usage=Usage())
            # Not from within the call: the canceller may be in the midst of another delta.
            asyncio.get_running_loop().call_soon(sink, last)

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> None:
        if seq_id in self._started:
            self._engine.allow(self._started[seq_id], held_tokens, is_final=is_final)
        elif seq_id in self._waiting:
            spec, sink = self._waiting[seq_id]
            self._waiting[seq_id] = (spec.allowed(held_tokens, is_final=is_final), sink)

    def load(self) -> EngineLoad:
        return self._engine.load()

    def resize_kv(self, blocks: int) -> None:
        self._engine.resize_kv(blocks)

    async def sleep(self, *, drain_s: float = 0.0) -> None:
        await self._engine.sleep(drain_s=drain_s)

    async def wake(self) -> None:
        await self._engine.wake()

    async def stop(self, *, drain_s: float = 0.0) -> None:
        await self._engine.stop(drain_s=drain_s)

    def _start(self, ours: int, spec: SequenceSpec, sink: DeltaSink) -> bool:
        """Hand one over; False when the engine is full and one of ours, which still runs, will make room."""

        def watch(delta: Delta) -> None:
            if delta.finish_reason is not None:
                del self._started[ours]
            sink(delta)
            if delta.finish_reason is not None:
                self._start_waiting()

        try:
            self._started[ours] = self._engine.submit(spec, watch)
        except Overloaded:
            if not self._started:
                raise
            return False
        return True

    def _start_waiting(self) -> None:
        while self._waiting and len(self._started) < self._most_live:
            ours = next(iter(self._waiting))
            spec, sink = self._waiting[ours]
            try:
                if not self._start(ours, spec, sink):
                    return
            except LlmhostError as error:
                del self._waiting[ours]
                sink(Delta(spec.index, finish_reason=FinishReason.ERROR, error=error))
            else:
                del self._waiting[ours]
