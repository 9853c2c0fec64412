"""The short way of a request that repeats one word for word which had a kept answer: everything in one turn.

What the stages found out about the first is remembered (`Known`) and holds while nothing has changed that it rests on:
the world's generation, the clock up to a time, and the kept answer itself. Limits, budgets, plugins and the cache are
asked anew each time, and each request is held for, booked, counted and logged by the stages' own parts.

Nothing is refused here. Whoever has to wait for anything, or has an answer coming that is not the plain one, takes the
long way, and hears there why; nothing has been taken for him by then. Plugins that judge, route or quote may be asked
twice on that occasion. Where plugins identify callers, admit requests or decide on the cache, there is no short way.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llmhost.cache.answer import Answer
from llmhost.cache.policy import Policy
from llmhost.cache.response_cache import ResponseCache, Sought, answer_bytes
from llmhost.core.errors import SafetyUnavailable
from llmhost.core.output import Outcome, Usage
from llmhost.core.ports import Clock
from llmhost.core.request import GenerationRequest
from llmhost.core.world import World
from llmhost.hooks.call import Answer as Opinion
from llmhost.hooks.now import NotNow, ask_each_now, ask_now
from llmhost.hooks.registry import Plugins
from llmhost.observe.logs import request_id as named
from llmhost.pipeline.cache_use import CacheUse, Status
from llmhost.pipeline.context import RequestContext, each_named
from llmhost.pipeline.limit import size_of
from llmhost.pipeline.log import tell_of_each
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.stages import Stages
from llmhost.safety.verdict import Direction
from llmhost.storage.journal import Slot
from llmhost.tenants.limiter import Size

log = logging.getLogger("llmhost.request")

STATEFUL = ("identify_caller", "admit_request", "may_cache")
"""Hooks whose plugins may count what they are asked, so that they are asked once alone."""
EVER_NS = 2**63


@dataclass(slots=True)
class Known:
    """What is known of a request and the answer that is kept for it."""

    generation: int
    until_ns: int
    """UTC: the key, its secret or the price may be another one from then on."""
    context: RequestContext
    """Of the request that had the answer before."""
    answer: Answer
    usage: Usage
    sought: Sought
    policy: Policy | None
    """What was learnt of requests of its kind."""
    answer_bytes: int
    size: Size
    candidates: tuple[str, ...]
    judged_in: str | None
    """The policy by which its prompt was judged, and passed; None where nobody judges."""
    judged_out: str | None
    """The same of the answer, which plugins alone judge again."""
    windows: tuple[str, ...]
    """The parts of it that they are asked about."""


class ShortWay:
    """Learns from requests that took the long way, and answers those that are the same."""

    def __init__(
        self,
        processor: Processor,
        stages: Stages,
        cache: ResponseCache,
        plugins: Plugins,
        clock: Clock,
        world: World,
    ) -> None:
        self._processor = processor
        self._stages = stages
        self._cache = cache
        self._plugins = plugins
        self._clock = clock
        self._world = world
        self._untold: list[tuple[Known, RequestContext]] = []
        self._is_open = not any(map(plugins.has, STATEFUL))

    @property
    def generation(self) -> int:
        """What was learnt under another one is of no use any more."""
        return self._world.generation

    def learn(self, context: RequestContext, bearer: str | None) -> Known | None:
        """What there is to know of a request that has just had a kept answer; None where the next can't be short."""
        use, stages = context.cache, self._stages
        if not self._is_open or use is None or not self._is_plain(context, use):
            return None
        assert use.answer is not None
        caller = context.known_caller
        judged_in = stages.screen.judged_by(caller, Direction.INPUT)
        judged_out = None
        windows: list[str] = []
        if self._plugins.has("check_output"):
            judged_out = stages.screen.judged_by(caller, Direction.OUTPUT)
            for part in use.answer.parts:
                windows += stages.screen.windows(caller, part.text)
        return Known(
            generation=self._world.generation,
            until_ns=until_ns(stages, context, bearer),
            context=known_of(context),
            answer=use.answer,
            usage=use.answer.usage(),
            sought=stages.cached.sought(context),
            policy=self._cache.learner.policy(_signature(use)),
            answer_bytes=answer_bytes(use.answer),
            size=size_of(context),
            candidates=stages.resolve.candidates(caller),
            judged_in=judged_in,
            judged_out=judged_out,
            windows=tuple(windows),
        )

    def _is_plain(self, context: RequestContext, use: CacheUse) -> bool:
        """It was a kept answer and nothing else, as it is, for a prompt in which nothing was found."""
        return (
            use.status is Status.HIT
            and use.answer is not None
            and context.outcome is Outcome.ANSWERED
            and not context.is_touched
            and context.verdict is None
            and context.deferral is None
            and context.held_by is None
            and not context.has_files
            and context.reading is None
            and context.grammar is None
            and not context.request.include_cost
            and not context.request.stream
            and all(isinstance(prompt, str) for prompt in context.request.prompts)
            and self._stages.screen.is_light(context.known_caller)
            and self._stages.resolve.is_named(context)
        )

    def answer(self, known: Known, request_id: str) -> RequestContext | None:
        """Answer a request that is the same; None, and nothing is taken, for one that has to take the long way."""
        clock, stages = self._clock, self._stages
        arrived_ns, utc_ns = clock.monotonic_ns(), clock.utc_ns()
        if known.generation != self._world.generation or utc_ns >= known.until_ns:
            return None
        if stages.limit.is_draining or not self._is_there(known) or not is_of_now(known.context):
            return None
        token = named.set(request_id)
        try:
            context = self._context(known, request_id, arrived_ns, utc_ns)
            if not self._goes_on(known, context):
                return None
        finally:
            named.reset(token)  # where a connection asks, its next request is none of this one
        self._untold.append((known, context))
        if len(self._untold) == 1:
            asyncio.get_running_loop().call_soon(self._tell)
        return context

    def _goes_on(self, known: Known, context: RequestContext) -> bool:
        """Hold, book and count it, unless somebody has anything against it."""
        stages = self._stages
        try:
            is_plain = (
                is_routed_here(self._plugins, known.candidates, context)
                and stages.bill.quote_hit_now(context)
                and self._passes(known, context)
            )
        except NotNow:
            return False
        if not (is_plain and stages.bill.has_room(context)):
            return False
        slot = stages.bill.slot_of_hit()
        if slot is None:
            return False
        if not stages.limit.pass_through(context, known.size, known.usage):
            slot.close()
            return False
        self._settle(known, context, slot)
        return True

    def _is_there(self, known: Known) -> bool:
        """Whether the answer is still kept, and young enough."""
        use = known.context.cache
        assert use is not None
        found = self._cache.peek(use.key, known.sought)
        return (
            found is not None
            and found.answer is known.answer
            and not found.is_stale
            and self._cache.learner.policy(_signature(use)) is known.policy
        )

    def _context(
        self, known: Known, request_id: str, arrived_ns: int, utc_ns: int
    ) -> RequestContext:
        use = known.context.cache
        assert use is not None
        mine = CacheUse(
            Status.HIT,
            key=use.key,
            kind=use.kind,
            answer=known.answer,
            age_s=int(known.answer.age_s(utc_ns)),
        )
        return again(known.context, request_id, arrived_ns, utc_ns, mine)

    def _passes(self, known: Known, context: RequestContext) -> bool:
        """Whether plugins have nothing against the prompt and the answer. Raises NotNow."""
        plugins = self._plugins
        facts = context.request, context.caller
        if plugins.has("check_input") and ask_now(plugins, "check_input", *facts):
            return False
        return not any(ask_now(plugins, "check_output", text, *facts) for text in known.windows)

    def _settle(self, known: Known, context: RequestContext, slot: Slot) -> None:
        """Do all that the stages do of an answer that ends, but for what `_tell` does."""
        stages, now_ns = self._stages, self._clock.monotonic_ns
        self._processor.heard_ns = context.arrived_ns
        stages.bill.take_part(context)
        context.usage = known.usage
        context.outcome, context.finish_reason = Outcome.ANSWERED, known.answer.finish_reason
        context.submitted_ns = context.first_token_ns = context.ended_ns = now_ns()
        stages.bill.settle_hit(context, slot)

    def _tell(self) -> None:
        """Have all counted and written down that nobody's answer waits for: while clients read theirs, and before
        anything else that they send is looked at."""
        untold, self._untold = self._untold, []
        tell_of_each(self._tell_of, untold, _id_of)

    def _tell_of(self, answered: tuple[Known, RequestContext]) -> None:
        known, context = answered
        self._note_judged(known, context)
        self._stages.store.count(context, known.answer_bytes)
        self._stages.log(context)

    def _note_judged(self, known: Known, context: RequestContext) -> None:
        screen = self._stages.screen
        try:
            if known.judged_in is not None:
                screen.note_passed(context, Direction.INPUT, known.judged_in)
            if known.judged_out is not None:
                for _ in known.answer.parts:
                    screen.note_passed(context, Direction.OUTPUT, known.judged_out)
        except SafetyUnavailable as error:  # it passed before, and nothing was found in it
            log.error("audit.not_noted request=%s why=%s", context.request.request_id, error)


def until_ns(stages: Stages, context: RequestContext, bearer: str | None) -> int:
    """UTC: the key, its secret or the price may be another one from then on."""
    name, org = context.known_deployment.entry.name, context.known_caller.org
    ends_ns = (
        stages.authenticate.ends_ns(bearer),
        stages.bill.next_price_ns(name, org, context.arrived_utc_ns),
    )
    return min((end for end in ends_ns if end is not None), default=EVER_NS)


def known_of(context: RequestContext) -> RequestContext:
    """What is known of a request that was answered, and of all that are the same."""
    known = again(context, "", 0, context.arrived_utc_ns, context.cache)
    known.request, known.headers = context.request, {}
    return known


def again(
    before: RequestContext,
    request_id: str,
    arrived_ns: int,
    utc_ns: int,
    use: CacheUse | None,
    request: GenerationRequest | None = None,
) -> RequestContext:
    """What is known of a request that is the same, once it has come; or of one that says something else, but for what
    rests on its words."""
    if request is None:
        request = before.request.again(request_id, before.request.client_request_id)
    return RequestContext(
        request,
        None,
        before.headers,
        arrived_ns,
        utc_ns,
        caller=before.caller,
        run_id=before.run_id,
        deployment=before.deployment,
        tokenizer=before.tokenizer,
        terms=before.terms,
        reading=before.reading,
        max_new_tokens=before.max_new_tokens,
        longest_tokens=before.longest_tokens,
        adapter=before.adapter,
        cache=use,
        replica=before.replica,
    )


def is_routed_here(plugins: Plugins, candidates: tuple[str, ...], context: RequestContext) -> bool:
    """Whether plugins leave a request the model that it names. Raises NotNow."""
    if not plugins.has("route_request"):
        return True
    said = ask_now(plugins, "route_request", context.request, candidates)
    return said is None or said.opinion == context.request.model


def routed_here(
    plugins: Plugins, candidates: tuple[str, ...], contexts: Sequence[RequestContext]
) -> Sequence[RequestContext]:
    """Those that plugins, which need not be waited for, leave the model that they name."""
    if not plugins.has("route_request"):
        return contexts
    facts = ((context.request, candidates) for context in each_named(contexts))
    said = ask_each_now(plugins, "route_request", facts)
    return [
        context
        for context, answer in zip(contexts, said, strict=True)
        if answer is None
        or (isinstance(answer, Opinion) and answer.opinion == context.request.model)
    ]


def is_of_now(before: RequestContext) -> bool:
    """Whether its prompt would be the same tokens now."""
    tokenizer = before.tokenizer
    return tokenizer is not None and before.known_terms.still_hold(tokenizer)


def _id_of(answered: tuple[Known, RequestContext]) -> str:
    return answered[1].request.request_id


def _signature(use: CacheUse) -> str:
    return "" if use.kind is None else use.kind.signature
