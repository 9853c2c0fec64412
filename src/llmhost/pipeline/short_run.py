"""The short way of a request that repeats one word for word which ran: admitted and given to its engine in one turn.

As on the way of `short_way`, what the stages found out about the first is remembered and holds while nothing has
changed that it rests on. Limits, budgets, plugins, the journal and the engine are asked anew each time, by the stages'
own parts, and what ends it, settles it, judges its answer and writes it down is what does so for all that run.

Whoever has to wait before he runs takes the long way, and nothing has been taken for him by then. So does whoever a
limit or a plugin refuses. What refuses him later (a budget, a full engine, a ledger that can't be written) is metered
here as it is there, and raised.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmhost.core.output import Outcome
from llmhost.core.ports import Clock
from llmhost.core.sequence import SequenceSpec
from llmhost.core.world import World
from llmhost.cost.pricing import Price
from llmhost.deploy.deployment import State
from llmhost.deploy.replica import Replica
from llmhost.hooks.call import NotNow, ask_now
from llmhost.hooks.registry import Plugins
from llmhost.observe.logs import request_id as named
from llmhost.pipeline.cache_use import CacheUse, Status
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.execute import spec_of
from llmhost.pipeline.generation import Generation
from llmhost.pipeline.limit import size_of
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.short_way import (
    STATEFUL,
    again,
    is_of_now,
    is_routed_here,
    known_of,
    until_ns,
)
from llmhost.pipeline.stages import Stages
from llmhost.safety.verdict import Direction
from llmhost.tenants.limiter import Size


@dataclass(slots=True)
class KnownRun:
    """What is known of a request that runs."""

    generation: int
    until_ns: int
    context: RequestContext
    """Of the request that ran before."""
    replica: Replica
    spec: SequenceSpec
    size: Size
    candidates: tuple[str, ...]
    listed: Price | None
    """What the price list said of it; a clock that is set back behind its arrival is asked anew."""
    judged_in: str | None
    """The policy by which its prompt was judged, and passed; None where nobody judges."""


class ShortRuns:
    """Learns from requests that took the long way, and has those run that are the same."""

    def __init__(
        self, processor: Processor, stages: Stages, plugins: Plugins, clock: Clock, world: World
    ) -> None:
        self._processor = processor
        self._stages = stages
        self._plugins = plugins
        self._clock = clock
        self._world = world
        self._is_open = not any(map(plugins.has, STATEFUL))

    def learn(self, context: RequestContext, bearer: str | None) -> KnownRun | None:
        """What there is to know of a request that has just been answered; None where the next can't be short."""
        if not self._is_open or not self._is_plain(context):
            return None
        assert context.replica is not None
        stages, caller = self._stages, context.known_caller
        return KnownRun(
            generation=self._world.generation,
            until_ns=until_ns(stages, context, bearer),
            context=known_of(context),
            replica=context.replica,
            spec=spec_of(context, 0),
            size=size_of(context),
            candidates=stages.resolve.candidates(caller),
            listed=stages.bill.listed(context),
            judged_in=stages.screen.judged_by(caller, Direction.INPUT),
        )

    def _is_plain(self, context: RequestContext) -> bool:
        """It has one answer, which is text, and nothing was to be waited for before it ran."""
        request = context.request
        return (
            context.outcome is Outcome.ANSWERED
            and context.replica is not None
            and (context.cache is None or context.cache.status is Status.BYPASS)
            and self._stages.cached.is_outside(context)
            and not (context.is_touched or context.is_waived or context.has_files)
            and not (context.can_wait or context.held_by is not None)
            and context.verdict is None
            and context.deferral is None
            and context.reading is None
            and context.grammar is None
            and context.adapter is None
            and len(context.prompts) * request.runs == 1
            and isinstance(next(iter(request.prompts), ""), str)
            and request.batch is None
            and request.timeout_ms is None
            and not (request.include_cost or request.stream or request.only_loads)
            and self._stages.screen.is_light(context.known_caller)
            and self._stages.resolve.is_named(context)
        )

    def holds(self, known: KnownRun) -> bool:
        """Whether it is still so; else it is to be learnt anew."""
        context = known.context
        is_old = known.generation != self._world.generation
        return not is_old and _is_in_time(known, self._clock.utc_ns()) and is_of_now(context)

    def run(
        self, known: KnownRun, request_id: str, then: Callable[[Generation], None]
    ) -> Generation | None:
        """Have a request run that is the same, of which all that is known `holds`, and `then` called when it has ended.
        None, and nothing is taken, for one that has to take the long way.

        Raises why it is refused, after that has been metered.
        """
        arrived_ns, utc_ns = self._clock.monotonic_ns(), self._clock.utc_ns()
        # Asked again of its own arrival, for which the price and the key that are known have to hold.
        if not _is_in_time(known, utc_ns) or self._stages.limit.is_draining or not _is_ready(known):
            return None
        token = named.set(request_id)
        try:
            use = None if known.context.cache is None else CacheUse(Status.BYPASS)
            context = again(known.context, request_id, arrived_ns, utc_ns, use)
            if not self._is_let_in(known, context):
                return None
            return self._processor.run_again(context, known.spec, known.judged_in, then)
        finally:
            named.reset(token)  # where a connection asks, its next request is none of this one

    def _is_let_in(self, known: KnownRun, context: RequestContext) -> bool:
        """Whether nobody need be waited for; limits, which are asked last, have counted it then."""
        try:
            return (
                is_routed_here(self._plugins, known.candidates, context)
                and self._stages.bill.price_now(context, known.listed)
                and self._passes(context)
                and self._stages.limit.enter(context, known.size)
            )
        except NotNow:
            return False

    def _passes(self, context: RequestContext) -> bool:
        """Whether plugins have nothing against the prompt. Raises NotNow."""
        plugins = self._plugins
        if not plugins.has("check_input"):
            return True
        return ask_now(plugins, "check_input", context.request, context.caller) is None


def _is_in_time(known: KnownRun, utc_ns: int) -> bool:
    return known.context.arrived_utc_ns <= utc_ns < known.until_ns


def _is_ready(known: KnownRun) -> bool:
    """Whether its model is loaded, as it was."""
    deployment = known.context.known_deployment
    return deployment.state is State.READY and deployment.replicas == (known.replica,)
