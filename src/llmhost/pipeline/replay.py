"""An answer that is not made for this request: one that was kept, or that an identical request is being given.

From outside it is like a generation: a stream, an end, and a settlement before the last delta. It uses no device. A hit
that costs nothing waits for no entry: until that is on disk the request has its slot in the journal.
"""

import asyncio
import logging

from llmhost.cache.answer import Answer, saved_usage
from llmhost.core.errors import DeadlineExceeded, EngineFailed, LlmhostError
from llmhost.core.output import Delta, FinishReason, Outcome, Usage
from llmhost.core.ports import Clock
from llmhost.cost.under_way import INPUT, OUTPUT
from llmhost.pipeline.cache_use import Flight
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.generation import Settle, ledger_unavailable
from llmhost.pipeline.stream import ReplayStream, StreamReader

log = logging.getLogger("llmhost.request")


class Replay:
    """One request that has another one's answer."""

    def __init__(self, context: RequestContext, clock: Clock, settle: Settle) -> None:
        self.context = context
        self.stream = ReplayStream(on_abandoned=self._leave)
        self.ended = asyncio.get_running_loop().create_future()
        self._clock = clock
        self._settle = settle
        self._said_tokens = 0
        self._held: list[Delta] = []
        """The end of the answer, which nobody sees before it is settled."""
        self._left = len(context.prompts) * context.request.n
        """Choices that have not ended."""
        self._reader: StreamReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self._is_owed = False
        """Its end waits for its entry."""
        context.submitted_ns = clock.monotonic_ns()
        if context.slot is not None:
            context.slot.count(INPUT, context.prompt_tokens)

    def play(self, answer: Answer) -> None:
        """Say what was kept, at once."""
        self._said_tokens = answer.completion_tokens
        self._note_tokens()
        self._held = [part.delta() for part in answer.parts]
        self._end(Outcome.ANSWERED, answer.finish_reason, answer.usage())

    def follow(self, reader: StreamReader, flight: Flight) -> None:
        """Say what the other request is told, as it is told, and end when that has ended."""
        self._reader = reader
        if (deadline_ns := self.context.deadline_ns) is not None:
            left_s = (deadline_ns - self._clock.monotonic_ns()) / 1e9
            self._timer = asyncio.get_running_loop().call_later(left_s, self._time_is_over)
        self._task = asyncio.create_task(self._run(reader, flight))

    def cut(self, error: LlmhostError) -> None:
        """End it on the server's own account: a failure, which nobody pays for."""
        self._fail(error)

    async def _run(self, reader: StreamReader, flight: Flight) -> None:
        try:
            while fresh := await reader.next(None, self._take):
                self._push(fresh)
        except LlmhostError as error:
            self._fail(error)
        except Exception:  # boundary: whatever it is, the caller must hear an end
            log.exception("replay.failed request=%s", self.context.request.request_id)
            self._fail(EngineFailed("The answer could not be passed on. Try again."))
        else:
            self._finish(flight)

    def _take(self, deltas: list[Delta]) -> bool:
        self._push(deltas)
        return True

    def _push(self, deltas: list[Delta]) -> None:
        """All but the last choice's end is said at once."""
        for delta in deltas:
            if self.context.first_token_ns is None:
                self.context.first_token_ns = self._clock.monotonic_ns()
            self._said_tokens += len(delta.tokens)
            if delta.finish_reason is not None:
                self._left -= 1
                delta = delta.but(usage=delta.usage and saved_usage(delta.usage))
            if self._left:
                self.stream.push(delta)
            else:
                self._held.append(delta)
        self._note_tokens()

    def _finish(self, flight: Flight) -> None:
        other = flight.context
        if self._is_over:
            return
        if other is None or other.outcome is not Outcome.ANSWERED or other.finish_reason is None:
            self._fail(
                EngineFailed("The identical request that this one waited for failed. Try again.")
            )
            return
        self._end(Outcome.ANSWERED, other.finish_reason, saved_usage(other.usage))

    def _leave(self) -> None:
        """Its reader is gone: what was said until then is what it had."""
        if not self._is_over:
            self._end(Outcome.CANCELLED, FinishReason.CANCELLED, self._usage_so_far())

    def _time_is_over(self) -> None:
        if self._is_over:
            return
        timeout_ms = self.context.request.timeout_ms
        assert timeout_ms is not None
        self.context.error = DeadlineExceeded.after(timeout_ms)
        self._end(Outcome.CANCELLED, FinishReason.ERROR, self._usage_so_far())

    def _fail(self, error: LlmhostError) -> None:
        if not self._is_over:
            self.context.error = error
            self._end(Outcome.FAILED, FinishReason.ERROR, self._usage_so_far())

    def _usage_so_far(self) -> Usage:
        return saved_usage(Usage(self.context.prompt_tokens, completion_tokens=self._said_tokens))

    def _note_tokens(self) -> None:
        if self.context.slot is not None:
            self.context.slot.count(OUTPUT, self._said_tokens)

    def _end(self, outcome: Outcome, finish: FinishReason, usage: Usage) -> None:
        context = self.context
        self._is_over = True
        context.usage, context.outcome, context.finish_reason = usage, outcome, finish
        context.ended_ns = self._clock.monotonic_ns()
        if context.first_token_ns is None:
            context.first_token_ns = context.ended_ns
        self._stop_following()
        self._settle(context, self._recorded)
        self._is_owed = bool(context.amount_nano)
        if not self._is_owed:
            self._release(None)

    def _recorded(self, failure: BaseException | None) -> None:
        """A free hit whose entry could not be taken was logged where that happened; nobody waits for it."""
        if self._is_owed:
            self._release(failure)

    def _stop_following(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reader is not None:
            self._reader.close()

    def _release(self, failure: BaseException | None) -> None:
        """Let the end of the answer out, now that it can't be lost."""
        context = self.context
        if failure is not None:
            self.stream.fail(context.error or ledger_unavailable(failure))
        elif context.error is not None:
            self.stream.fail(context.error)
        else:
            for delta in self._held:
                self.stream.push(delta)
            self.stream.close()
        if not self.ended.done():
            self.ended.set_result(None)
