"""How requests end: settled, stored, billed and logged, each once, and those of one turn of the loop together."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial

from llmhost.core.errors import (
    CacheMiss,
    DeadlineExceeded,
    LlmhostError,
    Overloaded,
    PluginFailed,
)
from llmhost.core.output import FinishReason, Outcome
from llmhost.core.ports import Clock
from llmhost.cost.under_way import Then
from llmhost.observe.logs import request_id
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.generation import ledger_unavailable
from llmhost.pipeline.log import tell_of_each
from llmhost.pipeline.stages import Stages

log = logging.getLogger("llmhost.request")

TOGETHER = 32
"""So many that ended in one turn are booked, and told of, at once: with more the loop would be held for too long."""
REFUSALS = (CacheMiss, DeadlineExceeded, Overloaded, PluginFailed)
"""With a status of 5xx, and yet nothing that broke."""


class Endings:
    """Of one processor's requests."""

    def __init__(self, stages: Stages, clock: Clock) -> None:
        self._stages = stages
        self._clock = clock
        self._ending: list[_Ending] = []
        """Requests that have ended in this turn of the loop, and are to be settled in the next."""
        self._unlogged: list[RequestContext] = []
        """Those that are settled, and of which nobody has been told yet."""

    def settle(self, context: RequestContext, then: Then) -> None:
        """Store and bill what has ended; once it is known whether the entry was taken, `then` let the answer's end out,
        and log it."""
        self._past(self._free, context)
        self._past(self._keep, context)
        self._stages.bill.settle(context, partial(self._booked, context, then))

    def settle_soon(self, context: RequestContext, then: Then) -> None:
        """The same in the loop's next turn, with all others that end in this one: with a step many do."""
        self._ending.append(_Ending(self, context, then))
        if len(self._ending) == 1:
            asyncio.get_running_loop().call_soon(self._settle_all, context=Context())

    def _settle_all(self) -> None:
        """What ended in one turn, stage by stage: what is done for one request after the other takes less time, since
        its code and its data are at hand. Each is for itself: none costs another its end, nor a stage that breaks the
        request its own."""
        ending, self._ending = self._ending, []
        for stage in (self._free, self._keep):
            for end in ending:
                request_id.set(end.context.request.request_id)
                self._past(stage, end.context)
        for at in range(0, len(ending), TOGETHER):
            self._stages.bill.settle.all(ending[at : at + TOGETHER], self._all_booked)

    def _past(self, stage: Callable[[RequestContext], None], context: RequestContext) -> None:
        """One that breaks keeps no request from being booked: what it holds would never come back."""
        try:
            stage(context)
        except Exception:  # boundary: as around what an engine tells
            log.exception("request.not_settled")

    def _free(self, context: RequestContext) -> None:
        self._stages.limit.settle(context)

    def _keep(self, context: RequestContext) -> None:
        self._stages.store(context)

    def _all_booked(self, endings: "Sequence[_Ending]") -> None:
        """As `_booked` of each whose entry is safe: the answers go out one after the other."""
        if not self._unlogged:
            asyncio.get_running_loop().call_soon(self._log_all)
        self._unlogged.extend([end.context for end in endings])
        for end in endings:
            request_id.set(end.context.request.request_id)
            try:
                end.then(None)
            except Exception:  # boundary: as above
                log.exception("request.not_let_out")

    def _booked(self, context: RequestContext, then: Then, failure: BaseException | None) -> None:
        """An answer whose entry is safe is told of when its end is on its way, with others of this turn."""
        if failure is None:
            self._unlogged.append(context)
            if len(self._unlogged) == 1:
                asyncio.get_running_loop().call_soon(self._log_all)
            then(None)
            return
        try:
            self._log(context, failure)
        finally:
            then(failure)

    def _log_all(self) -> None:
        """Before anything is looked at that comes in after the answers."""
        unlogged, self._unlogged = self._unlogged, []
        tell_of_each(self._stages.store.count, unlogged, _id_of)
        self._stages.log.all(unlogged)

    def _log(self, context: RequestContext, unrecorded: BaseException | None) -> None:
        """Say how it ended. An answer whose entry was not taken has failed, and is counted as nobody's money."""
        if unrecorded is not None:
            context.error = context.error or ledger_unavailable(unrecorded)
            context.outcome, context.finish_reason = Outcome.FAILED, FinishReason.ERROR
            self._stages.bill.settle.take_back(context)
            context.ended = None
        self._stages.store.count(context)
        self._stages.log(context)

    def refuse(self, context: RequestContext, error: LlmhostError) -> None:
        """End one that is not let in."""
        context.error = error
        is_refusal = error.status < 500 or isinstance(error, REFUSALS)
        self.end_early(context, Outcome.REFUSED if is_refusal else Outcome.FAILED)

    def end_early(self, context: RequestContext, outcome: Outcome) -> None:
        """End a request that never reached an engine. Its zero-amount entry need not be waited for."""
        context.let_go()
        context.outcome = outcome
        context.finish_reason = (
            FinishReason.CANCELLED if outcome is Outcome.CANCELLED else FinishReason.ERROR
        )
        context.ended_ns = self._clock.monotonic_ns()
        self._past(self._free, context)
        self._past(self._keep, context)
        self._stages.bill.settle(context, _log_unrecorded)
        self._stages.log(context)

    def fail(self, context: RequestContext, error: BaseException) -> None:
        """End one that was not let in, by what was raised."""
        if isinstance(error, LlmhostError):
            self.refuse(context, error)
        elif isinstance(error, asyncio.CancelledError):
            self.end_early(context, Outcome.CANCELLED)
        elif isinstance(error, Exception):
            log.error("request.bug", exc_info=error)
            self.refuse(context, LlmhostError(f"Internal error: {type(error).__name__}."))


class _Ending:
    """A request that has ended, and what is to be done once its entry is safe, or can't be taken."""

    __slots__ = ("_endings", "context", "then")

    def __init__(self, endings: Endings, context: RequestContext, then: Then) -> None:
        self._endings = endings
        self.context = context
        self.then = then

    def __call__(self, failure: BaseException | None) -> None:
        self._endings._booked(self.context, self.then, failure)


def _id_of(context: RequestContext) -> str:
    return context.request.request_id


def _log_unrecorded(failure: BaseException | None) -> None:
    if failure is not None:
        log.error("ledger.unrecorded error=%s", failure)
