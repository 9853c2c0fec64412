"""Stage 7: run the sequences of a request and merge what they say into one replayable stream.

The last delta of the last choice enters the stream only when the request has been settled: no reader can see the end
of an answer whose ledger entry could still be lost.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from llmhost.core.errors import EngineFailed, LlmhostError, SafetyUnavailable
from llmhost.core.ids import new_seed
from llmhost.core.output import Delta, FinishReason, Outcome, Usage
from llmhost.core.ports import Clock
from llmhost.core.request import SequenceSpec
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.screen import ScreenStage
from llmhost.pipeline.stream import ReplayStream
from llmhost.safety.screen import OutputScreen

log = logging.getLogger("llmhost.request")

SEED_STRIDE = 0x9E3779B97F4A7C15
SEED_MASK = 2**63 - 1

Settle = Callable[[RequestContext], "asyncio.Future[None]"]
"""Stores, bills and logs a request that has ended; done when its ledger entry can't be lost any more."""


class Generation:
    """The running part of one request: its sequences, its stream, and the moment when all have ended."""

    def __init__(
        self,
        context: RequestContext,
        clock: Clock,
        settle: Settle,
        observe_gap: Callable[[float], None],
    ) -> None:
        self.context = context
        self.stream = ReplayStream(on_abandoned=self.cancel)
        self.ended = asyncio.get_running_loop().create_future()
        self._clock = clock
        self._settle = settle
        self._observe_gap = observe_gap
        self._last_ns: dict[int, int] = {}  # choice -> when it last said something
        self._sequences: dict[int, int] = {}  # choice -> sequence id
        self._open: set[int] = set()  # choices that have not ended
        self._usage: dict[int, Usage] = {}
        self._pumps: list[ScreenPump] = []
        self._is_detached = False

    def submit(self, index: int, spec: SequenceSpec, screen: OutputScreen | None) -> None:
        """Start one choice. Raises Overloaded; then nothing of it runs."""
        sink: Callable[[Delta], None] = self._publish
        pump = None
        if screen is not None:
            pump = ScreenPump(index, screen, self._publish, partial(self._cancel_choice, index))
            sink = pump.push
        assert self.context.replica is not None
        self._open.add(index)
        try:
            self._sequences[index] = self.context.replica.engine.submit(spec, sink)
        except BaseException:
            self._open.discard(index)
            raise
        if pump is not None:
            self._pumps.append(pump)
            pump.start()

    def cancel(self) -> None:
        """Stop every choice; each still delivers its last delta, with what it used. Idempotent."""
        for index in list(self._open):
            self._cancel_choice(index)

    def cut(self, error: LlmhostError) -> None:
        """Stop every choice on the server's own account: a failure, which nobody pays for."""
        if self._open:
            self.context.error = self.context.error or error
            self.cancel()

    def detach(self) -> None:
        """Stop what was submitted of a request that could not be submitted whole; nobody is told."""
        self._is_detached = True
        self.cancel()

    def _cancel_choice(self, index: int) -> None:
        assert self.context.replica is not None
        if index in self._sequences:
            self.context.replica.engine.cancel(self._sequences[index])

    def _publish(self, delta: Delta) -> None:
        if self._is_detached:
            return
        if delta.tokens:
            self._note_time(delta.index)
        if delta.finish_reason is None:
            self.stream.push(delta)
            return
        self._open.discard(delta.index)
        self._note_end(delta)
        if self._open:
            self.stream.push(_for_readers(delta))
        else:
            self._complete(delta)

    def _note_time(self, index: int) -> None:
        now_ns = self._clock.monotonic_ns()
        if self.context.first_token_ns is None:
            self.context.first_token_ns = now_ns
        if (last_ns := self._last_ns.get(index)) is not None:
            self._observe_gap((now_ns - last_ns) / 1e9)
        self._last_ns[index] = now_ns

    def _note_end(self, delta: Delta) -> None:
        """Fold one choice's end into the request's: an error or a leaving reader outweighs an answer."""
        context = self.context
        if delta.usage is not None:
            self._usage[delta.index] = delta.usage
        if delta.error is not None and context.error is None:
            context.error = delta.error
            self.cancel()
        if context.finish_reason is None or delta.index == 0:
            context.finish_reason = delta.finish_reason
        if context.error is not None:
            context.outcome, context.finish_reason = Outcome.FAILED, FinishReason.ERROR
        elif delta.finish_reason is FinishReason.CANCELLED:
            context.outcome = Outcome.CANCELLED
        elif context.outcome is None:
            context.outcome = Outcome.ANSWERED

    def _complete(self, last: Delta) -> None:
        context = self.context
        context.usage = self._merged_usage()
        context.ended_ns = self._clock.monotonic_ns()
        settled = self._settle(context)
        settled.add_done_callback(lambda done: self._release(last, done))

    def _release(self, last: Delta, settled: "asyncio.Future[None]") -> None:
        """Let the end of the answer out, now that it can't be lost."""
        if (failure := settled.exception()) is not None:
            self.stream.fail(self.context.error or ledger_unavailable(failure))
        elif self.context.error is not None:
            self.stream.push(_for_readers(last))
            self.stream.fail(self.context.error)
        else:
            self.stream.push(last)
            self.stream.close()
        if not self.ended.done():
            self.ended.set_result(None)

    def _merged_usage(self) -> Usage:
        """Prompt tokens count once per prompt, however many choices it has; the rest adds up."""
        n = self.context.request.n
        merged = Usage()
        for index, usage in self._usage.items():
            if index % n:
                usage = replace(usage, prompt_tokens=0, cached_tokens=0)
            merged += usage
        return merged


def _for_readers(delta: Delta) -> Delta:
    """A choice that did not end by itself has no reason that a client knows; the stream's error says why."""
    if delta.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
        return replace(delta, finish_reason=None, usage=None)
    return delta


def ledger_unavailable(failure: BaseException) -> LlmhostError:
    """An answer that could not be recorded is not completed: money is never dropped."""
    if isinstance(failure, LlmhostError):
        return failure
    return EngineFailed("The answer was complete, but it could not be recorded. It was not billed.")


class ScreenPump:
    """Takes one choice's deltas through its screen, in order, off the engine's delivery path."""

    def __init__(
        self,
        index: int,
        screen: OutputScreen,
        publish: Callable[[Delta], None],
        stop: Callable[[], None],
    ) -> None:
        self._index = index
        self._screen = screen
        self._publish = publish
        self._stop = stop
        self._queue: asyncio.Queue[Delta] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._check_end)

    def push(self, delta: Delta) -> None:
        self._queue.put_nowait(delta)

    async def _run(self) -> None:
        while True:
            delta = await self._queue.get()
            text = await self._screen.push(delta.text) if not self._screen.is_refused else ""
            if delta.finish_reason is not None:
                self._publish(await self._last(delta, text))
                return
            if self._screen.is_refused:
                self._stop()  # what still comes is surplus; the last delta brings the usage
            elif text or delta.tokens:
                self._publish(replace(delta, text=text))

    def _check_end(self, task: "asyncio.Task[None]") -> None:
        """A screen that fails, fails closed: the choice ends, or its stream would wait for ever."""
        if task.cancelled() or (failure := task.exception()) is None:
            return
        log.error("screen.failed choice=%d", self._index, exc_info=failure)
        self._stop()
        error = SafetyUnavailable("The answer could not be checked, so it was ended. Try again.")
        self._publish(Delta(self._index, finish_reason=FinishReason.ERROR, error=error))

    async def _last(self, delta: Delta, text: str) -> Delta:
        if not self._screen.is_refused:
            text += await self._screen.finish()
        if self._screen.is_refused:
            return replace(delta, text=text, finish_reason=FinishReason.CONTENT_FILTER, error=None)
        return replace(delta, text=text)


class Execute:
    """Turns a resolved request into sequences."""

    def __init__(self, screen: ScreenStage, clock: Clock, metrics: Metrics) -> None:
        self._screen = screen
        self._clock = clock
        self._metrics = metrics

    def __call__(self, context: RequestContext, settle: Settle) -> Generation:
        observe_gap = self._metrics.gap_observer(context.model)
        generation = Generation(context, self._clock, settle, observe_gap)
        context.submitted_ns = self._clock.monotonic_ns()
        try:
            for index in range(len(context.prompts) * context.request.n):
                spec = self._spec(context, index)
                generation.submit(index, spec, self._screen.output(context))
        except BaseException:
            generation.detach()
            raise
        return generation

    def _spec(self, context: RequestContext, index: int) -> SequenceSpec:
        request, entry = context.request, context.known_deployment.entry
        assert context.replica is not None
        prompt = context.prompts[index // request.n]
        seed = request.sampling.seed if request.sampling.seed is not None else new_seed()
        eos = frozenset() if request.ignore_eos else context.replica.tokenizer.eos_ids
        room = context.longest_tokens - len(prompt)
        return SequenceSpec(
            request_id=request.request_id,
            index=index,
            model=entry.ref,
            prompt=prompt,
            sampling=request.sampling,
            seed=(seed + index * SEED_STRIDE) & SEED_MASK,
            max_new_tokens=min(request.max_tokens or room, room),
            stop=request.stop,
            stop_token_ids=eos,
            priority=request.priority,
            arrival_ns=context.arrived_ns,
            tenant=context.known_caller.org,
            cache_scope=context.known_caller.scope(entry.spec.cache_scope),
        )
