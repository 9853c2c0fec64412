"""The running part of one request: what its sequences say, merged into one replayable stream, and its end.

The last delta of the last choice enters the stream only when the request has been settled: no reader can see the end
of an answer whose ledger entry could still be lost.
"""

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial

from msgspec import structs

from llmhost.core.errors import DeadlineExceeded, EngineFailed, LlmhostError, SafetyUnavailable
from llmhost.core.output import Delta, FinishReason, Outcome, Usage
from llmhost.core.ports import Clock
from llmhost.core.sequence import SequenceSpec
from llmhost.cost.under_way import Then
from llmhost.observe.loop import Gaps
from llmhost.pipeline.best_of import BestOf
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.screen_pump import ScreenPump
from llmhost.pipeline.spending import Spending
from llmhost.pipeline.stream import ReplayStream
from llmhost.pipeline.voice import Voice
from llmhost.safety.output import OutputScreen
from llmhost.safety.verdict import Screening

NOT_JUDGED = "The prompt could not be judged, so it is not answered. Try again."

Settle = Callable[[RequestContext, Then], None]
"""Stores, bills and logs a request that has ended; tells in a later turn of the loop that its entry can't be lost."""
Bear = Callable[[str, Usage], None]
"""Told what a choice has cost on a device that no request bears."""


def nobody(device: str, usage: Usage) -> None:
    """Where costs are nobody's business."""


class Generation:
    """The running part of one request: its sequences, its stream, and the moment when all have ended."""

    __slots__ = (
        *(
            "_bear",
            "_clock",
            "_contest",
            "_ended",
            "_gaps_of",
            "_held_end",
            "_is_over",
            "_is_refused",
        ),
        *(
            "_screens",
            "_sequences",
            "_settle",
            "_then",
            "_usage",
            "context",
            "is_detached",
            "stream",
        ),
    )

    def __init__(
        self,
        context: RequestContext,
        clock: Clock,
        settle: Settle,
        gaps_of: Callable[[str], Gaps],
        bear: Bear = nobody,
        then: "Callable[[Generation], None] | None" = None,
    ) -> None:
        """`then` is called with it when it has ended, in the same turn."""
        self.context = context
        self.stream = ReplayStream(on_abandoned=self.cancel)
        self._ended: asyncio.Future[None] | None = None
        self._is_over = False
        self._clock = clock
        self._settle = settle
        self._gaps_of = gaps_of
        self._bear = bear
        self._then = then
        self._sequences: dict[int, int] = {}  # choice that has not ended -> sequence id
        self._usage: dict[int, Usage] = {}
        self._screens: Seq[OutputScreen] = ()
        self.is_detached = False
        """Nobody is told any more what it says."""
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
        return bool(self._screens)

    def submit(self, index: int, spec: SequenceSpec, screen: OutputScreen | None) -> None:
        """Start one choice. Raises Overloaded; then nothing of it runs."""
        context, contest = self.context, self._contest
        push = None if contest is None else contest.push
        voice = Voice(self, index, now_ns=self._clock.monotonic_ns, push=push)
        sink: Callable[[Delta], None] = voice if contest is None else voice.hear
        if screen is not None:
            sink = ScreenPump(screen, voice, self)
        assert context.replica is not None
        spending = context.spending
        if spending is not None and not spending.is_final:
            if screen is None:
                voice.spend(spending, self._allow)
            else:
                sink = partial(self._spend, spending, sink)
        self._sequences[index] = context.replica.engine.submit(spec, sink)
        if screen is not None:
            self._screens = (*self._screens, screen)

    def end_at_once(self) -> None:
        """Of a request that asks for nothing but its model: all of it has been done."""
        self.context.outcome, self.context.finish_reason = Outcome.ANSWERED, FinishReason.STOP
        self._complete(Delta(0, finish_reason=FinishReason.STOP))

    def cancel(self) -> None:
        """Stop every choice; each still delivers its last delta, with what it used. Idempotent."""
        for index in list(self._sequences):
            self.cancel_choice(index)

    def cut(self, error: LlmhostError) -> None:
        """Stop every choice on the server's own account: a failure, which nobody pays for."""
        if self._held_end is not None:
            self.context.outcome, self.context.finish_reason = Outcome.FAILED, FinishReason.ERROR
        if self._sequences or self._held_end is not None:
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
        self.is_detached = True
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

    def gaps(self) -> Gaps:
        """Where the times between two of its tokens are noted."""
        return self._gaps_of(self.context.model)

    def lose(self, delta: Delta) -> None:
        """What a choice has cost whose end comes too late for its request to bear it."""
        assert self.context.replica is not None
        if delta.usage is not None:
            self._bear(self.context.replica.facts.device, delta.usage)

    def cancel_choice(self, index: int) -> None:
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
        if index in self._sequences:
            self.context.replica.engine.allow(self._sequences[index], tokens, is_final=is_final)

    def end_choice(self, delta: Delta) -> None:
        """Its last words have come: fold its end into the request's."""
        context, error = self.context, delta.error
        self._sequences.pop(delta.index, None)
        if delta.usage is not None:
            self._usage[delta.index] = delta.usage
        # An error or a leaving reader outweighs an answer.
        if error is not None and context.error is None:
            context.error = _for_caller(error, context.request.timeout_ms)
            self.cancel()
        if context.finish_reason is None or delta.index == 0:
            context.finish_reason = delta.finish_reason
        if context.error is not None:
            context.outcome, context.finish_reason = _outcome(context.error), FinishReason.ERROR
        elif delta.finish_reason is FinishReason.CANCELLED:
            context.outcome = Outcome.CANCELLED
        elif context.outcome is None:
            context.outcome = Outcome.ANSWERED
        if not self._sequences:
            self._complete(delta)
        elif self._contest is not None:
            self._contest.push(delta)
        else:
            self.stream.push(_for_readers(delta))

    def _complete(self, last: Delta) -> None:
        context = self.context
        if context.verdict is not None and not context.verdict.done():
            self._held_end = last
            return
        if self._is_refused:
            context.outcome, context.finish_reason = Outcome.REFUSED, FinishReason.ERROR
        context.usage = self._merged_usage()
        for screen in self._screens:
            context.held_by = context.held_by or screen.held_by
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
            error = self.context.error
            self.stream.end(ends if error is None else list(map(_for_readers, ends)), error)
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


def _without(usage: Usage, shared: int) -> Usage:
    """Without the tokens that another prompt of the request has, too."""
    return structs.replace(
        usage,
        prompt_tokens=max(usage.prompt_tokens - shared, 0),
        cached_tokens=max(usage.cached_tokens - shared, 0),
    )
