"""The short way of a request that repeats one which ran, word for word or but for what it says: admitted and given to
its engine at once.

As on the way of `short_way`, what the stages found out about the first is remembered and holds while nothing has
changed that it rests on. Limits, budgets, plugins, the journal and the engine are asked anew each time, by the stages'
own parts, and what ends it, settles it, judges its answer and writes it down is what does so for all that run.

Those that come in one turn of the loop are let in together before the next one, stage by stage: what is done for one
request after the other takes less time, since its code and its data are at hand, and what is the same for all is asked
once, of limits and of budgets as of so many. Of one that says something else all that rests on its words is found out
first, by the functions that the stages use: its texts are judged by rules, and become tokens.

Whoever has to wait before he runs takes the long way, and nothing has been taken for him by then. So does whoever a
limit or a plugin refuses. What refuses him later (a budget, a full engine, a ledger that can't be written) is metered
here as it is there, and raised.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from llmhost.core.output import Outcome
from llmhost.core.ports import Clock
from llmhost.core.request import GenerationRequest
from llmhost.core.sequence import SequenceSpec
from llmhost.core.world import World
from llmhost.cost.pricing import Price
from llmhost.deploy.deployment import State
from llmhost.deploy.replica import Replica
from llmhost.hooks.now import ask_each_now
from llmhost.hooks.registry import Plugins
from llmhost.observe.logs import request_id
from llmhost.pipeline.asked import Asked, Ran
from llmhost.pipeline.cache_use import CacheUse, Status
from llmhost.pipeline.context import RequestContext, each_named
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.execute import spec_of
from llmhost.pipeline.generation import Generation
from llmhost.pipeline.limit import size_of
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.reading import reading_of
from llmhost.pipeline.short_way import (
    STATEFUL,
    again,
    is_of_now,
    known_of,
    routed_here,
    until_ns,
)
from llmhost.pipeline.stages import Stages
from llmhost.pipeline.terms import is_short, terms_anew
from llmhost.safety.verdict import Direction
from llmhost.tenants.limiter import Size

log = logging.getLogger("llmhost.request")

Read = Callable[[], GenerationRequest | None]

AT_ONCE = 128
"""So many are let in at once, which takes some milliseconds."""
HEAVY_BYTES = 256
"""Words to read, judge and make tokens of take as long as one that is the same."""

FEW = 8
"""So many that are the same are let in at once where others come with them."""


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
    has_ended: bool = False
    """It is not so any more."""

    def without_words(self) -> "KnownRun":
        """The same of all requests that are as this one, but for what they say."""
        known = known_of(self.context)
        known.request = known.request.without_words()
        known.terms = replace(known.known_terms, prompts=())
        return replace(self, context=known, spec=msgspec.structs.replace(self.spec, prompt=()))


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
        self._asked: list[Asked[KnownRun]] = []
        self.ran = 0
        """Requests that were let in, or refused, by this way, and are the same as one before."""
        self.ran_alike = 0
        """Those that say something else."""
        self.streamed = 0
        """Those of them that are streamed."""

    @property
    def generation(self) -> int:
        """What was learnt under another one is of no use any more."""
        return self._world.generation

    def learn(
        self, context: RequestContext, bearer: str | None, *, is_stream: bool = False
    ) -> KnownRun | None:
        """What there is to know of a request that has just been answered; None where the next can't be short."""
        if not self._is_open or context.request.stream is not is_stream:
            return None
        if not self._is_plain(context):
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
        """It has one answer, which is text, be it thoughts in part, and nothing was to be waited for before it ran."""
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
            and not (request.tools or request.may_call)
            and context.grammar is None
            and context.adapter is None
            and len(context.prompts) * request.runs == 1
            and isinstance(next(iter(request.prompts), ""), str)
            and request.batch is None
            and request.timeout_ms is None
            and not (request.include_cost or request.only_loads)
            and self._stages.screen.is_light(context.known_caller)
            and self._stages.resolve.is_named(context)
        )

    def holds(self, known: KnownRun) -> bool:
        """Whether it is still so; else it is to be learnt anew."""
        context = known.context
        is_old = known.generation != self._world.generation
        return not is_old and _is_in_time(known, self._clock.utc_ns()) and is_of_now(context)

    def ask(
        self,
        known: KnownRun,
        named: str,
        then: Callable[[Ran], None],
        read: Read | None = None,
        size_bytes: int = 0,
        *,
        is_stream: bool = False,
    ) -> Asked[KnownRun]:
        """Have a request run that is the same, or what is `read`, whose words are so many bytes, where the one that is
        known is `without_words`. `then` is told once: of what ran when it has ended, why it is refused, after that has
        been metered, or nothing for one that has to take the long way, and of which nothing is taken. Of an answer
        that is read as a stream it is told when that runs."""
        clock, weight = self._clock, 1 + size_bytes // HEAVY_BYTES
        times = clock.monotonic_ns(), clock.utc_ns()
        asked = Asked(known, named, *times, then, read, weight, is_stream)
        self._asked.append(asked)
        self._processor.coming += 1
        if len(self._asked) == 1:
            asyncio.get_running_loop().call_soon(self._let_in, context=Context())
        return asked

    async def begin(
        self, known: KnownRun, named: str, read: Read, size_bytes: int
    ) -> Exchange | None:
        """Have a request run whose answer is read while it is made; None, and nothing is taken for it, where it has to
        take the long way. Raises why it is refused, after that has been metered."""
        telling: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        then = partial(self._resolve, telling, known, named)
        asked = self.ask(known, named, then, read, size_bytes, is_stream=True)
        try:
            ran = await telling
        except BaseException:
            asked.leave()
            if telling.done() and not telling.cancelled():
                self._lose(known, named, telling.result())
            raise
        if isinstance(ran, Exception):
            raise ran
        return None if ran is None else self._processor.exchange(ran)

    def _resolve(
        self, telling: "asyncio.Future[Ran]", known: KnownRun, named: str, ran: Ran
    ) -> None:
        if not telling.done():
            telling.set_result(ran)
        else:  # whoever asked is gone, and has said so
            self._lose(known, named, ran)

    def _lose(self, known: KnownRun, named: str, ran: Ran) -> None:
        """Meter one whose client left while it was tried here, and that takes no long way any more."""
        if ran is None:
            context = known.context
            self._processor.lose(context.request.again(named, None), context.known_caller)

    def _let_in(self) -> None:
        """All that asked in this turn of the loop; a crowd in several, since streams wait meanwhile."""
        count = _fit(self._asked)
        asked, self._asked = self._asked[:count], self._asked[count:]
        self._processor.coming -= len(asked)
        if self._asked:
            asyncio.get_running_loop().call_soon(self._let_in, context=Context())
        for group in _in_turns(asked):
            try:
                self._let_in_alike(group[0].known, group)
            except Exception as error:  # boundary: as around a route
                log.error("request.bug", exc_info=error)
                for each in group:
                    if each.context is not None and each.ran is None:
                        each.ran = self._processor.give_up(each.context, error)
        for each in asked:
            self._tell(each)

    def _tell(self, asked: Asked[KnownRun]) -> None:
        ran = asked.ran
        if asked.is_stream:
            self.streamed += ran is not None
        elif asked.read is None:
            self.ran += ran is not None
        else:
            self.ran_alike += ran is not None
        if isinstance(ran, Generation) and asked.is_gone:
            ran.leave()
        elif asked.is_stream or not isinstance(ran, Generation):
            asked.then(ran)

    def _let_in_alike(self, known: KnownRun, group: list[Asked[KnownRun]]) -> None:
        if not self.holds(known):
            known.has_ended = True
            return
        if self._stages.limit.is_draining or not _is_ready(known):
            return
        left = []
        for each in group:
            if _is_in_time(known, each.utc_ns):  # the price and the key hold for its arrival
                each.context = self._context(known, each)
            if each.context is not None:
                left.append(each)
        left = self._plain_now(known, left)
        if not left:
            return
        # Asked last: it has counted those whom it lets in.
        contexts, limit = [each.known_context for each in left], self._stages.limit
        are_in = limit.enter_all(contexts, known.size if left[0].read is None else None)
        for each, is_in in zip(left, are_in, strict=True):
            if not is_in:
                each.context = None
        left = [each for each in left if each.context is not None]
        if left:
            self._processor.run_again(left, known.spec, known.judged_in)

    def _context(self, known: KnownRun, asked: Asked[KnownRun]) -> RequestContext | None:
        """What is known of it; None for one that has to take the long way."""
        before = known.context
        use = None if before.cache is None else CacheUse(Status.BYPASS)
        if asked.read is None:
            return again(before, asked.request_id, asked.arrived_ns, asked.utc_ns, use)
        request_id.set(asked.request_id)
        try:
            if (request := asked.read()) is None or not is_short(request):
                return None
            context = again(before, asked.request_id, asked.arrived_ns, asked.utc_ns, use, request)
            return context if self._is_read(known, context) else None
        except Exception:  # noqa: BLE001 - it breaks once more on the long way, and is told of it there
            return None

    def _is_read(self, known: KnownRun, context: RequestContext) -> bool:
        """Whether its words can be run as they are, once they are tokens. Raises BadRequest."""
        request, tokenizer, stages = context.request, context.tokenizer, self._stages
        assert tokenizer is not None
        stages.screen.check_length(context)
        if known.judged_in is not None and not stages.screen.is_clean(context):
            return False
        context.terms = terms = terms_anew(known.context.known_terms, request, tokenizer)
        if context.reading is not None:  # where all is content that rests on no prompt
            spec = context.known_deployment.entry.spec
            if reading_of(request, spec, tokenizer, terms.prompts[0]) != context.reading:
                return False
        context.max_new_tokens = stages.resolve.room(context, context.longest_tokens)
        return True

    def _plain_now(self, known: KnownRun, asked: list[Asked[KnownRun]]) -> list[Asked[KnownRun]]:
        """Those that plugins, and who makes prices, need not be waited for and have nothing against; the others have no
        context any more. Each plugin is asked for one after the other."""
        contexts: Sequence[RequestContext] = [each.known_context for each in asked]
        contexts = routed_here(self._plugins, known.candidates, contexts)
        contexts = self._stages.bill.priced_now(contexts, known.listed)
        contexts = self._passed(contexts)
        if len(contexts) == len(asked):
            return asked
        left = {id(context) for context in contexts}
        for each in asked:
            if id(each.context) not in left:
                each.context = None
        return [each for each in asked if each.context is not None]

    def _passed(self, contexts: Sequence[RequestContext]) -> Sequence[RequestContext]:
        """Those against whose prompts plugins have nothing."""
        if not self._plugins.has("check_input"):
            return contexts
        facts = ((context.request, context.caller) for context in each_named(contexts))
        said = ask_each_now(self._plugins, "check_input", facts)
        return [c for c, answer in zip(contexts, said, strict=True) if answer is None]


def _fit(asked: Sequence[Asked[KnownRun]]) -> int:
    """How many are let in at once, and at least one."""
    weight = 0
    for count, each in enumerate(asked):
        weight += each.weight
        if weight > AT_ONCE:
            return max(count, 1)
    return len(asked)


def _in_turns(asked: Sequence[Asked[KnownRun]]) -> Iterator[list[Asked[KnownRun]]]:
    """Those that are the same, in the order of their coming. Where others ask in the same moment they take turns, a few
    at a time: whoever asks more often must not have all that limits, budgets and engines have room for."""
    groups: dict[int, list[Asked[KnownRun]]] = {}
    for each in asked:
        groups.setdefault(id(each.known), []).append(each)
    while groups:
        most = FEW if len(groups) > 1 else len(asked)
        for which, group in list(groups.items()):
            yield group[:most]
            if len(group) > most:
                groups[which] = group[most:]
            else:
                del groups[which]


def _is_in_time(known: KnownRun, utc_ns: int) -> bool:
    return known.context.arrived_utc_ns <= utc_ns < known.until_ns


def _is_ready(known: KnownRun) -> bool:
    """Whether its model is loaded, as it was."""
    deployment = known.context.known_deployment
    return deployment.state is State.READY and deployment.replicas == (known.replica,)
