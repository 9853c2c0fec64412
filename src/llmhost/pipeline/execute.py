"""Stage 7: run the sequences of a request and merge what they say into one replayable stream.

The last delta of the last choice enters the stream only when the request has been settled: no reader can see the end
of an answer whose ledger entry could still be lost.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from msgspec import structs

from llmhost.core.errors import DeadlineExceeded, EngineFailed, LlmhostError, SafetyUnavailable
from llmhost.core.ids import new_seed
from llmhost.core.output import Delta, FinishReason, Outcome, Usage
from llmhost.core.ports import Clock
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.cost.under_way import INPUT, Then
from llmhost.observe.loop import Gaps
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.begin import begin
from llmhost.pipeline.best_of import BestOf
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.decide import decided_specs
from llmhost.pipeline.pool import pooled_specs
from llmhost.pipeline.screen import ScreenStage
from llmhost.pipeline.spending import Spending
from llmhost.pipeline.stream import ReplayStream
from llmhost.pipeline.voice import Said, Voice
from llmhost.safety.output import OutputScreen
from llmhost.safety.verdict import Screening

log = logging.getLogger("llmhost.request")

SEED_STRIDE = 0x9E3779B97F4A7C15
SEED_MASK = 2**63 - 1

NOT_JUDGED = "The prompt could not be judged, so it is not answered. Try again."

Settle = Callable[[RequestContext, Then], None]
"""Stores, bills and logs a request that has ended; tells in a later turn of the loop that its entry can't be lost."""
Bear = Callable[[str, Usage], None]
"""Told what a choice has cost on a device that no request bears."""


def _nobody(device: str, usage: Usage) -> None:
    """Where costs are nobody's business."""


class Generation:
    """The running part of one request: its sequences, its stream, and the moment when all have ended."""

    def __init__(
        self,
        context: RequestContext,
        clock: Clock,
        settle: Settle,
        gaps: Gaps,
        bear: Bear = _nobody,
        then: "Callable[[Generation], None] | None" = None,
    ) -> None:
        """`then` is called with it when it has ended, in the same turn."""
        self.context = context
        self.stream = ReplayStream(on_abandoned=self.cancel)
        self._ended: asyncio.Future[None] | None = None
        self._is_over = False
        self._clock = clock
        self._settle = settle
        self._gaps = gaps
        self._bear = bear
        self._then = then
        self._sequences: dict[int, int] = {}  # choice -> sequence id
        self._open: set[int] = set()  # choices that have not ended
        self._usage: dict[int, Usage] = {}
        self._said = Said()
        self._pumps: list[ScreenPump] = []
        self._is_screened = False
        request = context.request
        self._contest = None if request.best_of is None else BestOf(n=request.n, runs=request.runs)
        self._is_refused = False
        self._held_end: Delta | None = None
        """The last delta, of an answer that was whole before it was known whether it may be given."""
        if context.verdict is not None:
            context.verdict.add_done_callback(self._hear)

    @property
    def ended(self) -> "asyncio.Future[None]":
        """Done when it has ended. Made for whoever asks: many are told by `then` alone."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
            if self._is_over:
                self._ended.set_result(None)
        return self._ended

    @property
    def is_screened(self) -> bool:
        """Something judges its answer on the way."""
        return self._is_screened

    def submit(self, index: int, spec: SequenceSpec, screen: OutputScreen | None) -> None:
        """Start one choice. Raises Overloaded; then nothing of it runs."""
        voice = self._voice(index)
        sink: Callable[[Delta], None] = voice if self._contest is None else voice.hear
        pump = None
        if screen is not None:
            stop = partial(self._cancel_choice, index)
            pump = ScreenPump(index, screen, voice.hear, stop, self._lose)
            sink = pump.push
        assert self.context.replica is not None
        spending = self.context.spending
        if spending is not None and not spending.is_final:
            if pump is None:
                voice.spend(spending, self._allow)
            else:
                sink = partial(self._spend, spending, sink)
        self._open.add(index)
        try:
            self._sequences[index] = self.context.replica.engine.submit(spec, sink)
        except BaseException:
            self._open.discard(index)
            raise
        if pump is not None:
            self._pumps.append(pump)
            self._is_screened = True

    def end_at_once(self) -> None:
        """Of a request that asks for nothing but its model: all of it has been done."""
        self.context.outcome, self.context.finish_reason = Outcome.ANSWERED, FinishReason.STOP
        self._complete(Delta(0, finish_reason=FinishReason.STOP))

    def cancel(self) -> None:
        """Stop every choice; each still delivers its last delta, with what it used. Idempotent."""
        for index in list(self._open):
            self._cancel_choice(index)

    def cut(self, error: LlmhostError) -> None:
        """Stop every choice on the server's own account: a failure, which nobody pays for."""
        if self._held_end is not None:
            self.context.outcome, self.context.finish_reason = Outcome.FAILED, FinishReason.ERROR
        if self._open or self._held_end is not None:
            self.context.error = self.context.error or error
            self.cancel()
            if self.context.verdict is not None:
                self.context.verdict.cancel()  # or its end would be waited for

    def forgo(self, error: LlmhostError) -> None:
        """The prompt was not judged in time: what was made of it is thrown away, and not paid for. The verdict's end
        ends the request."""
        self._is_refused = True
        self.context.error = error
        self.cancel()

    def leave(self) -> None:
        """Of one whose answer is read by no reader, but when it has ended: nobody wants it any more. Idempotent."""
        self.stream.abandon()

    def detach(self) -> None:
        """Stop what was submitted of a request that could not be submitted whole; nobody is told."""
        self._said.is_detached = True
        self.cancel()

    def _hear(self, verdict: "asyncio.Task[Screening]") -> None:
        """A guard has judged the prompt: what was made of one that it refuses is thrown away, and not paid for."""
        if self.context.first_token_ns is not None:
            # Nobody could read it before.
            was_heard = not verdict.cancelled()
            self.context.first_token_ns = self._clock.monotonic_ns() if was_heard else None
        if not verdict.cancelled() and (error := verdict.exception()) is not None:
            self._is_refused = True
            known = error if isinstance(error, LlmhostError) else SafetyUnavailable(NOT_JUDGED)
            self.context.error = self.context.error or known
            self.cancel()
        if self._held_end is not None:
            held, self._held_end = self._held_end, None
            self._complete(held)

    def _lose(self, delta: Delta) -> None:
        """What a choice has cost whose end comes too late for its request to bear it."""
        assert self.context.replica is not None
        if delta.usage is not None:
            self._bear(self.context.replica.facts.device, delta.usage)

    def _cancel_choice(self, index: int) -> None:
        assert self.context.replica is not None
        if index in self._sequences:
            self.context.replica.engine.cancel(self._sequences[index])

    def _spend(self, spending: Spending, sink: Callable[[Delta], None], delta: Delta) -> None:
        """Keep the budgets' ceiling ahead of a choice that goes on."""
        if delta.tokens and delta.finish_reason is None:
            spending.made(delta.index, len(delta.tokens), self._allow)
        sink(delta)

    def _allow(self, index: int, tokens: int, is_final: bool) -> None:
        assert self.context.replica is not None
        self.context.replica.engine.allow(self._sequences[index], tokens, is_final=is_final)

    def _voice(self, index: int) -> Voice:
        return Voice(
            *(self.context, self._said, index),
            now_ns=self._clock.monotonic_ns,
            gaps=self._gaps,
            stream=self.stream,
            push=None if self._contest is None else self._contest.push,
            end=self._end_choice,
            lose=self._lose,
        )

    def _end_choice(self, delta: Delta) -> None:
        self._open.discard(delta.index)
        self._note_end(delta)
        if not self._open:
            self._complete(delta)
        elif self._contest is not None:
            self._contest.push(delta)
        else:
            self.stream.push(_for_readers(delta))

    def _note_end(self, delta: Delta) -> None:
        """Fold one choice's end into the request's: an error or a leaving reader outweighs an answer."""
        context = self.context
        if delta.usage is not None:
            self._usage[delta.index] = delta.usage
        if delta.error is not None and context.error is None:
            context.error = _for_caller(delta.error, context.request.timeout_ms)
            self.cancel()
        if context.finish_reason is None or delta.index == 0:
            context.finish_reason = delta.finish_reason
        if context.error is not None:
            context.outcome, context.finish_reason = _outcome(context.error), FinishReason.ERROR
        elif delta.finish_reason is FinishReason.CANCELLED:
            context.outcome = Outcome.CANCELLED
        elif context.outcome is None:
            context.outcome = Outcome.ANSWERED

    def _complete(self, last: Delta) -> None:
        context = self.context
        if context.verdict is not None and not context.verdict.done():
            self._held_end = last
            return
        if self._is_refused:
            context.outcome, context.finish_reason = Outcome.REFUSED, FinishReason.ERROR
        context.usage = self._merged_usage()
        if self._pumps:
            held = [pump.held_by for pump in self._pumps]
            context.held_by = next(filter(None, held), None)
            # They refer to it: kept, all of a request would stay in memory until somebody looks for garbage.
            self._pumps.clear()
        if context.spending is not None and context.spending.was_cut:
            context.stop = "budget"
        context.ended_ns = self._clock.monotonic_ns()
        ends = [last] if self._contest is None else self._winners(self._contest, last)
        if context.cache is not None and context.cache.stores:
            context.said = [*self.stream.so_far(), *ends]
        self._settle(context, partial(self._release, ends))

    def _winners(self, contest: BestOf, last: Delta) -> list[Delta]:
        contest.push(last)
        if self.context.outcome is not Outcome.ANSWERED:
            return []
        winners = list(contest.winners())
        self.context.finish_reason = next(d.finish_reason for d in winners if d.finish_reason)
        return winners

    def _release(self, ends: list[Delta], failure: BaseException | None) -> None:
        """Let the end of the answer out, now that it can't be lost."""
        if failure is not None:
            self.stream.fail(self.context.error or ledger_unavailable(failure))
        else:
            for delta in ends:
                self.stream.push(delta if self.context.error is None else _for_readers(delta))
            if self.context.error is not None:
                self.stream.fail(self.context.error)
            else:
                self.stream.close()
        self._is_over = True
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        then, self._then = self._then, None  # who is told may refer to it
        if then is not None:
            then(self)

    def _merged_usage(self) -> Usage:
        """Prompt tokens count once per prompt, however many choices it has; the rest adds up."""
        shared = self.context.known_terms.shared
        if len(self._usage) == 1 and not shared and (only := self._usage.get(0)) is not None:
            return only
        runs = self.context.request.runs
        merged = Usage()
        for index, usage in self._usage.items():
            if shared:
                usage = _without(usage, shared[index])
            elif index % runs:
                usage = structs.replace(usage, prompt_tokens=0, cached_tokens=0)
            merged += usage
        return merged


def _for_readers(delta: Delta) -> Delta:
    """A choice that did not end by itself has no reason that a client knows; the stream's error says why."""
    if delta.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
        return delta.but(finish_reason=None, usage=None)
    return delta


def _for_caller(error: LlmhostError, timeout_ms: int | None) -> LlmhostError:
    if isinstance(error, DeadlineExceeded) and timeout_ms is not None:
        return DeadlineExceeded.after(timeout_ms)
    return error


def _outcome(error: LlmhostError) -> Outcome:
    """A caller whose own deadline is over has left, and pays for what was made; other errors are ours."""
    return Outcome.CANCELLED if isinstance(error, DeadlineExceeded) else Outcome.FAILED


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
        lose: Callable[[Delta], None],
    ) -> None:
        self._index = index
        self._screen = screen
        self._publish = publish
        self._stop = stop
        self._lose = lose
        self._waiting: deque[Delta] = deque()
        self._usage: Usage | None = None
        """Of the choice, once its last delta is looked at."""
        self._has_failed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def held_by(self) -> str | None:
        """The review that this choice waits for."""
        return self._screen.held_by

    def push(self, delta: Delta) -> None:
        """Most text is only held back until there is more of it, for which no task need wake."""
        if self._has_failed:
            self._lose(delta)
            return
        is_last = delta.finish_reason is not None
        if self._task is None:
            if not is_last and self._screen.hold(delta.text):
                if delta.tokens:
                    self._publish(delta.but(text=""))
                return
            if is_last and (text := self._passed_whole(delta.text)) is not None:
                self._publish(delta if text == delta.text else delta.but(text=text))
                return
        self._waiting.append(delta)
        if self._task is not None:
            return
        running = self._run()
        if self._screen.has_guard:
            self._task = asyncio.create_task(running)
        elif (left := begin(running)) is None:
            return
        else:
            self._task = left
        self._task.add_done_callback(self._check_end)

    def _passed_whole(self, text: str) -> str | None:
        try:
            return self._screen.pass_whole(text)
        except Exception:  # noqa: BLE001 - nobody would end the choice here; `_run` does, if it meets the same
            return None

    async def _run(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            delta = self._waiting.popleft()
            self._usage = delta.usage
            was_refused = self._screen.is_refused
            text = "" if was_refused else await self._screen.push(delta.text)
            if delta.finish_reason is not None:
                self._publish(await self._last(delta, text, was_refused=was_refused))
            elif self._screen.is_refused:
                self._stop()  # what still comes is surplus; the last delta brings the usage
            elif text or delta.tokens:
                self._publish(delta.but(text=text, cuts=self._screen.take_cuts()))
        self._task = None

    def _check_end(self, task: "asyncio.Task[None]") -> None:
        """A screen that fails, fails closed: the choice ends, or its stream would wait for ever."""
        if task.cancelled() or (failure := task.exception()) is None:
            return
        if not isinstance(failure, SafetyUnavailable):
            log.error("screen.failed choice=%d", self._index, exc_info=failure)
        self._has_failed = True
        while self._waiting:
            self._lose(self._waiting.popleft())
        self._stop()
        error = SafetyUnavailable("The answer could not be checked, so it was ended. Try again.")
        last = Delta(self._index, finish_reason=FinishReason.ERROR, usage=self._usage, error=error)
        self._publish(last)

    async def _last(self, delta: Delta, text: str, *, was_refused: bool) -> Delta:
        """A choice that failed or was left has ended so, whatever is found in its last words: they are kept back."""
        is_cut = delta.finish_reason in (FinishReason.CANCELLED, FinishReason.ERROR)
        if not self._screen.is_refused:
            text += await self._screen.finish(is_cut=is_cut)
        cuts = self._screen.take_cuts()
        if self._screen.is_refused and (was_refused or not is_cut):
            reason = FinishReason.CONTENT_FILTER
            return delta.but(text=text, finish_reason=reason, error=None, cuts=cuts)
        return delta.but(text=text, cuts=cuts)


class Execute:
    """Turns a resolved request into sequences."""

    def __init__(
        self, screen: ScreenStage, clock: Clock, metrics: Metrics, bear: Bear = _nobody
    ) -> None:
        self._screen = screen
        self._clock = clock
        self._metrics = metrics
        self._bear = bear

    def again(
        self,
        context: RequestContext,
        settle: Settle,
        spec: SequenceSpec,
        then: Callable[[Generation], None],
    ) -> Generation:
        """As calling it, of a request with one choice that is as one before it, whose sequence was `spec`; `then` is
        called when it has ended."""
        generation = self._begun(context, settle, then)
        seed, spending = context.request.sampling.seed, context.spending
        mine = spec.anew(
            context.request.request_id,
            seed=spec.seed if seed is not None else new_seed() & SEED_MASK,
            arrival_ns=context.arrived_ns,
            held_tokens=None if spending is None else spending.first_tokens or None,
        )
        try:
            generation.submit(0, mine, self._screen.output(context))
        except BaseException:
            generation.detach()
            raise
        return generation

    def _begun(
        self,
        context: RequestContext,
        settle: Settle,
        then: Callable[[Generation], None] | None = None,
    ) -> Generation:
        gaps = self._metrics.gaps(context.model)
        context.submitted_ns = self._clock.monotonic_ns()
        if context.slot is not None:
            context.slot.count(INPUT, context.known_terms.prompt_tokens)
        return Generation(context, self._clock, settle, gaps, self._bear, then)

    def __call__(self, context: RequestContext, settle: Settle) -> Generation:
        generation = self._begun(context, settle)
        if context.request.only_loads:
            generation.end_at_once()
            return generation
        try:
            if (specs := _silent(context)) is not None:
                for index, spec in enumerate(specs):
                    generation.submit(index, spec, None)
                return generation
            for index in range(len(context.prompts) * context.request.runs):
                spec = spec_of(context, index)
                generation.submit(index, spec, self._screen.output(context))
        except BaseException:
            generation.detach()
            raise
        return generation


def spec_of(context: RequestContext, index: int) -> SequenceSpec:
    """One choice as its engine takes it."""
    request, entry, terms = context.request, context.known_deployment.entry, context.known_terms
    assert context.replica is not None
    reading = context.reading
    prompt = terms.prompts[index // request.runs]
    seed = request.sampling.seed if request.sampling.seed is not None else new_seed()
    eos = frozenset() if request.ignore_eos else context.replica.tokenizer.eos_ids
    room = context.longest_tokens - len(prompt)
    wanted = room if request.max_tokens is None else request.max_tokens
    return SequenceSpec(
        request_id=request.request_id,
        index=index,
        model=entry.ref,
        prompt=prompt,
        sampling=_sampling(context, index),
        seed=(seed + index * SEED_STRIDE) & SEED_MASK,
        max_new_tokens=min(wanted, room),
        held_tokens=None if context.spending is None else context.spending.first_tokens or None,
        min_new_tokens=request.min_tokens,
        stop=request.stop,
        tells_stop=request.tells_stop,
        shown=context.shown,
        predicted=terms.predicted[: max(room, 0)],
        thoughts=None if reading is None else reading.thought_ids,
        begins_with_thoughts=reading is not None and reading.begun,
        stop_token_ids=eos | terms.stop_ids,
        grammar=context.grammar,
        priority=request.priority,
        arrival_ns=context.arrived_ns,
        deadline_ns=context.deadline_ns,
        tenant=context.known_caller.org,
        cache_scope=_cache_scope(context),
        adapter=context.adapter_hold.key if context.adapter_hold is not None else None,
    )


def _silent(context: RequestContext) -> Iterator[SequenceSpec] | None:
    """The sequences of a request that draws no token; None where it does."""
    if context.poolings:
        return pooled_specs(context)
    return decided_specs(context, _cache_scope(context)) if context.request.questions else None


def _without(usage: Usage, shared: int) -> Usage:
    """Without the tokens that another prompt of the request has, too."""
    return structs.replace(
        usage,
        prompt_tokens=max(usage.prompt_tokens - shared, 0),
        cached_tokens=max(usage.cached_tokens - shared, 0),
    )


def _sampling(context: RequestContext, index: int) -> Sampling:
    request, terms = context.request, context.known_terms
    if index % request.runs:
        return _of_answer(terms.sampling)
    if (
        request.warms
    ):  # who wants to know of the last token alone has all before it computed, or found
        last = len(terms.prompts[index // request.runs]) - 1
        return replace(terms.sampling, prompt_logprobs=0, prompt_logprobs_from=last)
    return terms.sampling


def _of_answer(sampling: Sampling) -> Sampling:
    """Of all choices of a prompt the first reports what is thought of the prompt; the others may share its blocks."""
    return sampling if sampling.prompt_logprobs is None else replace(sampling, prompt_logprobs=None)


def _cache_scope(context: RequestContext) -> str:
    """Who may share computed prompt blocks."""
    scope = context.known_caller.scope(context.known_deployment.entry.spec.cache_scope)
    salt = context.request.cache_salt
    return f"{scope}\0{salt}" if salt else scope
