"""The request's story: authenticate, resolve, limit, screen, cached, route, execute, store, bill, log.

Each stage is one sentence here and one module beside. However a request ends, it ends once and is metered.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from llmhost.cache.wish import HEADER, TAG_HEADER
from llmhost.core.caller import Caller
from llmhost.core.errors import (
    DeadlineExceeded,
    LlmhostError,
    Overloaded,
)
from llmhost.core.ids import new_request_id
from llmhost.core.output import Outcome
from llmhost.core.ports import Clock
from llmhost.core.request import GenerationRequest
from llmhost.core.sequence import SequenceSpec
from llmhost.observe.logs import request_id
from llmhost.pipeline.asked import Asked
from llmhost.pipeline.authenticate import RUN_HEADER, check_run, run_of
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.deferral import Deferral
from llmhost.pipeline.endings import Endings
from llmhost.pipeline.exchange import Exchange, Running
from llmhost.pipeline.generation import Generation
from llmhost.pipeline.inquiries import Inquiries
from llmhost.pipeline.stages import Stages
from llmhost.pipeline.stream import Outbox
from llmhost.safety.verdict import Direction, Screening

log = logging.getLogger("llmhost.request")


class Processor:
    """Runs requests through the stages. Owns nothing else."""

    def __init__(self, stages: Stages, clock: Clock, *, write_share: float = 1.0) -> None:
        self._stages = stages
        self._clock = clock
        self._endings = Endings(stages, clock)
        self.inquiries = Inquiries(stages, self._arrived)
        self._outbox = Outbox(write_share)
        self._live: set[Running] = set()
        self._opening: set[str] = set()
        self.heard_ns: int | None = None
        """When somebody last asked who is no batch, on the monotonic clock."""
        self._refreshes: set[asyncio.Task[None]] = set()
        self._unknown = 0
        """Those of whom it is not known yet who they are."""
        self.coming = 0
        """Those that repeat others, and are let in before this turn of the loop ends."""

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and have not been settled."""
        return len(self._live) + len(self._opening) + self._unknown + self.coming

    def has_been_idle(self, for_ns: int) -> bool:
        """Nothing runs, and nobody who is no batch has asked for so long: whoever asks all the time does so again."""
        heard_ns = self.heard_ns
        is_heard = heard_ns is not None and self._clock.monotonic_ns() - heard_ns < for_ns
        return not is_heard and self.in_flight == 0

    async def identify(
        self, blank: Callable[[], GenerationRequest], bearer: str | None, headers: Mapping[str, str]
    ) -> Caller:
        """Who asks, before the body is read. Raises why it is refused, after that has been metered by a request that
        is `blank` but for its ids, and is made for that alone."""
        arrived = self._clock.monotonic_ns(), self._clock.utc_ns()
        self._unknown += 1
        try:
            return await self._stages.authenticate.identify(bearer, headers)
        except BaseException:
            with self._metered(RequestContext(blank(), bearer, headers, *arrived)):
                raise
        finally:
            self._unknown -= 1

    def check_still(
        self, request: GenerationRequest, bearer: str | None, caller: Caller, model: str | None
    ) -> None:
        """Whether a request may have an answer that was made before. `model` is the one that it names.

        Raises, unmetered: Unauthenticated when the key of whom `identify` found has ended since, ModelNotAllowed.
        """
        self._stages.authenticate.check_still(self._arrived(request, bearer, {}, caller))
        if model is not None:
            self._stages.resolve.check_allowed(caller, model)

    def turn_away(
        self, request: GenerationRequest, error: LlmhostError, caller: Caller | None = None
    ) -> None:
        """Meter a request that was refused before it could be opened."""
        context = self._arrived(request, None, {}, caller)
        self._endings.refuse(context, error)

    def lose(self, request: GenerationRequest, caller: Caller) -> None:
        """Meter a request whose client left before all of it had come."""
        self._endings.end_early(self._arrived(request, None, {}, caller), Outcome.CANCELLED)

    async def open(
        self,
        request: GenerationRequest,
        bearer: str | None,
        headers: Mapping[str, str],
        *,
        caller: Caller | None = None,
        fault: LlmhostError | None = None,
        deferral: Deferral | None = None,
    ) -> Exchange:
        """Take a request in. Raises why it is refused, after that has been metered.

        `caller` is whom `identify` found; without it the request is authenticated here. `fault` is what was wrong
        with the request before it could become one: it is refused with that, but a stranger hears first that he is one.
        `deferral` gets its entry in place of the ledger.
        """
        context = self._arrived(request, bearer, headers, caller)
        if deferral is None:
            self.heard_ns = context.arrived_ns
        context.deferral = deferral
        with self._metered(context):
            generation = await self._admit_in_time(context, fault)
        self._live.add(generation)
        generation.ended.add_done_callback(lambda _: self._ended(generation))
        exchange = Exchange(generation, self._outbox)
        if context.verdict is not None:
            await self._hear(exchange, generation, context.verdict)
        return exchange

    def run_again(self, alike: list[Asked[Any]], spec: SequenceSpec, policy: str | None) -> None:
        """What is left of `open` for requests that are as one before them, once limits have let them in and their price
        is known: hold for them and run them, stage by stage. `policy` is what their prompts pass by.

        Each has its outcome then, and is told of it when it runs and has ended, but for streams, which are read. What
        is refused has been metered.
        """
        stages, contexts = self._stages, [each.known_context for each in alike]
        self.heard_ns = contexts[-1].arrived_ns
        stages.bill.take_part_all(contexts)
        is_held = stages.bill.hold_alike(contexts)
        left = self._each(alike, stages.bill.hold_slot if is_held else stages.bill.hold)
        if policy is not None and left:
            left = self._passed(left, policy)
        for each in left:
            request_id.set(each.request_id)
            then = self._ended if each.is_stream else partial(self._ended_again, each.then)
            try:
                generation = stages.execute.again(
                    each.known_context, self._endings.settle_soon, spec, then
                )
            except Exception as error:  # noqa: BLE001 - boundary: told to whoever asked
                each.ran = self.give_up(each.known_context, error)
            else:
                self._live.add(generation)
                each.ran = generation

    def exchange(self, generation: Generation) -> Exchange:
        """One that runs, for whoever reads its answer while it is made."""
        return Exchange(generation, self._outbox)

    def _passed(self, alike: list[Asked[Any]], policy: str) -> list[Asked[Any]]:
        """Write down that their prompts pass, which are one caller's."""
        screen, caller = self._stages.screen, alike[0].known_context.known_caller
        if screen.count_passed(caller, Direction.INPUT, policy, len(alike)):
            return alike
        return self._each(
            alike, lambda context: screen.note_passed(context, Direction.INPUT, policy)
        )

    def _each(
        self, alike: list[Asked[Any]], stage: Callable[[RequestContext], None]
    ) -> list[Asked[Any]]:
        """Those that pass a stage; the others have been refused by it."""
        left = []
        for each in alike:
            request_id.set(each.request_id)
            try:
                stage(each.known_context)
            except Exception as error:  # noqa: BLE001 - boundary: told to whoever asked
                each.ran = self.give_up(each.known_context, error)
            else:
                left.append(each)
        return left

    def _ended_again(self, then: Callable[[Generation], None], ended: Generation) -> None:
        self._ended(ended)
        then(ended)

    def give_up(self, context: RequestContext, error: Exception) -> Exception:
        """Meter a request of a group that is not let in; what its client hears: why, or what broke amid that, which
        must not cost the others of the group their answers."""
        try:
            self._endings.fail(context, error)
        except Exception as bug:  # boundary: as around a route
            log.error("request.bug", exc_info=bug)
            return bug
        return error

    async def _hear(
        self, exchange: Exchange, running: Running, verdict: "asyncio.Task[Screening]"
    ) -> None:
        """The request runs, and its prompt is judged meanwhile. Raises why it is refused; the generation has heard."""
        context = exchange.context
        try:
            async with asyncio.timeout(self._left_s(context)) as patience:
                await asyncio.shield(verdict)
        except BaseException as error:
            why = context.error if verdict.cancelled() and not _is_cancelled() else None
            if isinstance(error, TimeoutError) and patience.expired():
                why = DeadlineExceeded.unjudged(context.request.timeout_ms or 0)
                if isinstance(running, Generation):
                    running.forgo(why)
            elif not verdict.done():
                context.is_waived = True
            verdict.cancel()  # nobody waits for it any more
            exchange.leave()
            if context.deferral is not None and not _is_cancelled():
                await asyncio.wait({running.ended})  # whoever runs it asks for its entry next
            if why is not None:
                raise why from None
            raise

    def _ended(self, generation: Running) -> None:
        self._live.discard(generation)
        generation.context.let_go()

    def _arrived(
        self,
        request: GenerationRequest,
        bearer: str | None,
        headers: Mapping[str, str],
        caller: Caller | None = None,
    ) -> RequestContext:
        request_id.set(request.request_id)
        now_ns, utc_ns = self._clock.monotonic_ns(), self._clock.utc_ns()
        run_id = run_of(headers)
        return RequestContext(
            request, bearer, headers, now_ns, utc_ns, caller=caller, run_id=run_id
        )

    def _metered(self, context: RequestContext) -> "_Metered":
        """Whatever is raised in there ended the request, and is metered."""
        return _Metered(self, context)

    def has(self, request_id: str) -> bool:
        """Whether a request has arrived and has not ended: it may wait for its model longer than for anything else."""
        if request_id in self._opening:
            return True
        return any(live.context.request.request_id == request_id for live in self._live)

    def drain(self) -> None:
        """Refuse what comes from now on; what runs goes on."""
        self._stages.limit.is_draining = True

    def cancel_all(self) -> None:
        """Cut what still runs. Its readers hear why, and nobody pays for it."""
        error = Overloaded(
            "The server is shutting down and could not wait for the end of this answer. Ask again.",
            retry_after_s=1,
        )
        self._stages.limit.send_away(error)
        for generation in list(self._live):
            generation.cut(error)

    async def _admit_in_time(self, context: RequestContext, fault: LlmhostError | None) -> Running:
        """A deadline runs from the arrival: what waits for a model to load is in time, too, or not."""
        timeout_ms, left_s = context.request.timeout_ms, self._left_s(context)
        if timeout_ms is None:
            return await self._admit(context, fault)
        try:
            async with asyncio.timeout(left_s) as patience:
                return await self._admit(context, fault)
        except TimeoutError:
            if not patience.expired():
                raise
            raise DeadlineExceeded.after(timeout_ms) from None

    def _left_s(self, context: RequestContext) -> float | None:
        """Until its deadline; None where it has none."""
        deadline_ns = context.deadline_ns
        return None if deadline_ns is None else (deadline_ns - self._clock.monotonic_ns()) / 1e9

    async def _admit(self, context: RequestContext, fault: LlmhostError | None) -> Running:
        stages = self._stages
        if context.caller is None:
            await stages.authenticate(context)
        check_run(context.headers)
        if fault is not None:
            raise fault
        stages.screen.check_length(context)
        await stages.resolve(context)
        await stages.limit(context)
        await stages.cached.look(context, self._outbox)
        is_hit = context.cache is not None and context.cache.is_hit
        if not is_hit:
            await stages.resolve.compile_grammar(context)
        await stages.bill.quote(context)
        stages.bill.hold(context)
        if not is_hit and await stages.cached.look_alike(context):
            is_hit = True
            await stages.bill.hold_again(context)
        await self._screen(context)
        if is_hit:
            if await stages.cached.may_replay(context):
                stages.authenticate.check_still(context)
                if stages.cached.may_refresh(context):
                    self._start_refresh(context)
                return stages.cached.replay(context, self._endings.settle)
            stages.cached.give_up(context)
            await stages.resolve.compile_grammar(context)
            await stages.bill.hold_again(context)
        await stages.route(context)
        if context.verdict is not None and context.verdict.done():
            context.verdict.result()  # raises what it was refused with
        stages.authenticate.check_still(context)
        generation = stages.execute(context, self._endings.settle_soon)
        stages.cached.began(context, generation)
        return generation

    async def _screen(self, context: RequestContext) -> None:
        """Whatever is redacted is read again, and paid for as it is then."""
        stages = self._stages
        if await stages.screen(context):
            await stages.resolve(context)
            await stages.resolve.compile_grammar(context)
            stages.bill.hold_anew(context)

    def _start_refresh(self, context: RequestContext) -> None:
        refresh = asyncio.create_task(self._refresh(context))
        self._refreshes.add(refresh)  # asyncio itself keeps no task alive
        refresh.add_done_callback(self._refreshes.discard)

    async def _refresh(self, context: RequestContext) -> None:
        """Have a fresh answer made for those who ask next: a request of its own, of the caller who met the old one,
        for whom it costs what it would have cost without that."""
        request = replace(context.request, request_id=new_request_id(), timeout_ms=None)
        use = context.cache
        assert use is not None and use.answer is not None, "there was an old one"
        headers = {HEADER: "refresh"}
        if tag := use.tag or use.answer.tag:
            headers[TAG_HEADER] = tag
        if context.run_id is not None:
            headers[RUN_HEADER] = context.run_id
        try:
            exchange = await self.open(request, context.bearer, headers, caller=context.caller)
            await exchange.read_whole()
        except LlmhostError as error:
            log.info("cache.not_refreshed request=%s why=%s", request.request_id, error.code)
        finally:
            self._stages.cached.refreshed(context)


class _Metered:
    """A context manager by hand: one made of a generator costs several times as much, and each request has it."""

    __slots__ = ("_context", "_processor")

    def __init__(self, processor: Processor, context: RequestContext) -> None:
        self._processor = processor
        self._context = context

    def __enter__(self) -> None:
        self._processor._opening.add(self._context.request.request_id)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                self._processor._endings.fail(self._context, error)
        finally:
            self._processor._opening.discard(self._context.request.request_id)


def _is_cancelled() -> bool:
    """Whether whoever waits here is to end, and not only what he waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
