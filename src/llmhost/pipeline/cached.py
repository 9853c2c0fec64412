"""Stage 5: has this been answered before, or is it being answered now. A kept answer ends the story here.

`look` comes early, so that budgets hold what a hit costs and nothing is compiled for it; `replay` comes after the
prompt was screened. Of identical requests that come at the same time one runs, and the others have its answer.

    who shares          the scope of [models.X.cache], with the request's own `cache_salt`
    what is the same    the model's files, the prompt's tokens, and all that decides what is drawn and said
    what else           the safety policy and its rules, the price
"""

import asyncio
from collections.abc import Awaitable, Callable

from llmhost.cache.answer import Answer
from llmhost.cache.keys import Asked, Place, is_deterministic
from llmhost.cache.learner import Kind
from llmhost.cache.response_cache import ResponseCache, Rules, Sought
from llmhost.cache.wish import HEADER, NO_WISH, Wish, wish_of
from llmhost.core.errors import CacheMiss, InvalidValue
from llmhost.core.ports import Clock
from llmhost.core.request import GenerationRequest
from llmhost.core.request import Kind as RequestKind
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.pipeline.cache_use import AlikeSearch, CacheUse, Flight, Status
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.generation import Generation, Settle
from llmhost.pipeline.replay import Replay
from llmhost.pipeline.screen import ScreenStage
from llmhost.pipeline.semantic import Semantic
from llmhost.pipeline.stream import Outbox

EpochOf = Callable[[RequestContext], str]
"""What else is in force for a request: an answer that was made under something else is none."""
MarkOf = Callable[[RequestContext], Awaitable[str]]
"""What the files of a request's model and adapter hold."""
BEGINNING = 24
"""Characters of a prompt without roles that tell its template."""
_TEXTS = (RequestKind.CHAT, RequestKind.COMPLETION, RequestKind.RESPONSE)
_SYSTEM = ("system", "developer")


class Cached:
    """Owns the flights: by key, the request that runs."""

    def __init__(
        self,
        cache: ResponseCache,
        screen: ScreenStage,
        plugins: Plugins,
        clock: Clock,
        epoch_of: EpochOf,
        mark_of: MarkOf,
        semantic: Semantic,
    ) -> None:
        self._cache = cache
        self._screen = screen
        self._plugins = plugins
        self._clock = clock
        self._epoch_of = epoch_of
        self._mark_of = mark_of
        self.semantic = semantic
        self._flights: dict[str, Flight] = {}
        self._refreshing: set[str] = set()
        """Keys for which a fresh answer is being made."""

    async def look(self, context: RequestContext, outbox: Outbox) -> None:
        """Find out what the request has to do with the cache. Raises CacheMiss, InvalidValue."""
        if not _is_answered_in_text(context):
            return
        wish = wish_of(context.headers)
        rules = self._cache.rules(context.known_deployment.entry.name)
        if wish.is_semantic and rules.embedder is None:
            raise InvalidValue(
                f"The header {HEADER} is 'semantic', and the model {context.request.model!r} has no embedder in"
                " [models.NAME.cache]; 'on' takes the answers to the same questions.",
                param=HEADER,
            )
        if not await self._takes_part(context, wish, rules):
            if wish.is_only:
                raise CacheMiss
            if wish is not NO_WISH:
                context.cache = CacheUse(Status.BYPASS)
            return
        files = await self._mark_of(context)
        place = self._place(context, rules, files)
        use = context.cache = self._use(context, place, wish, rules)
        use.files = files
        if wish.is_semantic:
            use.alike = AlikeSearch(place, wish, rules)
        if wish.reads:
            await self._find(context, use, wish, outbox)

    async def look_alike(self, context: RequestContext) -> bool:
        """Whether the answer to an alike question is what it gets, where it has none of the same one's.

        Comes once its budgets hold what running it costs: a vector takes time of a device. Raises CacheMiss.
        """
        use = context.cache
        if use is None or use.alike is None or use.is_hit:
            return False
        place, wish, rules = use.alike.place, use.alike.wish, use.alike.rules
        use.meaning = await self.semantic.read(context, place, _asked(context), rules)
        if wish.reads and await self.semantic.find(context, use, _sought(use, wish), rules):
            self._end_flight(use)
            return True
        if wish.is_only:
            raise CacheMiss
        return False

    def sought(self, context: RequestContext) -> Sought:
        """What the kept answer of a request had to be like that has one."""
        assert context.cache is not None
        return _sought(context.cache, wish_of(context.headers))

    async def may_replay(self, context: RequestContext) -> bool:
        """Whether the answer that was found may be said to this caller, whose prompt has been screened by now.

        Plugins that judge answers are asked again: what they say may depend on who asks, and when.
        """
        use = context.cache
        assert use is not None
        if context.verdict is not None:
            await context.verdict  # raises why the prompt is refused
        if context.is_touched:
            return False
        is_judged = use.answer is not None and self._plugins.has("check_output")
        if is_judged and not await self._passes(context, use.answer):
            return False
        return use.status is not Status.SEMANTIC or self.semantic.may_give(context, use)

    async def _passes(self, context: RequestContext, answer: Answer | None) -> bool:
        assert answer is not None
        for part in answer.parts:
            screen = self._screen.output(context)
            if screen is None:
                return True
            text = await screen.push(part.text) + await screen.finish()
            if screen.is_refused or screen.held_by is not None or text != part.text:
                return False
        return True

    def replay(self, context: RequestContext, settle: Settle) -> Replay:
        use = context.cache
        assert use is not None
        replay = Replay(context, self._clock, settle)
        if use.answer is not None:
            if use.status is Status.SEMANTIC:
                self.semantic.given(context, use)
            replay.play(use.answer)
        else:
            assert use.reader is not None and use.follows is not None
            replay.follow(use.reader, use.follows)
        return replay

    def may_refresh(self, context: RequestContext) -> bool:
        """Whether it was given an answer beyond its time, and is the one to have a fresh one made; once each time."""
        use = context.cache
        if use is None or use.status is not Status.STALE or use.key in self._refreshing:
            return False
        self._refreshing.add(use.key)
        return True

    def refreshed(self, context: RequestContext) -> None:
        """It was made, or could not be."""
        assert context.cache is not None
        self._refreshing.discard(context.cache.key)

    def give_up(self, context: RequestContext) -> None:
        """The answer that was found is not for this request, which runs by itself.

        Raises CacheMiss for one that may not.
        """
        assert context.cache is not None
        context.cache.let_go()
        if context.cache.is_only:
            raise CacheMiss
        context.cache = CacheUse(Status.BYPASS)

    def began(self, context: RequestContext, generation: Generation) -> None:
        """It runs: identical requests may read along, unless something of its own may end its answer early."""
        use = context.cache
        if use is None or use.leads is None:
            return
        if context.is_touched:  # it will not be kept, so nobody need wait for it
            self._end_flight(use)
            return
        may_be_joined = (
            context.deadline_ns is None
            and (context.spending is None or context.spending.is_final)
            and context.verdict is None
            and not generation.is_screened
        )
        use.leads.begin(context, generation.stream, may_be_joined=may_be_joined)

    def landed(self, context: RequestContext) -> None:
        """It has ended, in whatever way, and what is to be kept of it is. Idempotent."""
        use = context.cache
        if use is None:
            return
        use.let_go()
        self._end_flight(use)

    def _end_flight(self, use: CacheUse) -> None:
        """Those who wait for it go on."""
        if use.leads is not None:
            if self._flights.get(use.key) is use.leads:
                del self._flights[use.key]
            use.leads.end()
            use.leads = None

    def is_outside(self, context: RequestContext) -> bool:
        """Whether a request has nothing to do with the cache, where no plugin decides on that."""
        wish = wish_of(context.headers)
        rules = self._cache.rules(context.known_deployment.entry.name)
        return not (
            wish.is_only
            or (_may_take_part(context, wish, rules) and _is_repeatable(context, rules))
        )

    async def _takes_part(self, context: RequestContext, wish: Wish, rules: Rules) -> bool:
        if not _may_take_part(context, wish, rules):
            return False
        may = _is_repeatable(context, rules)
        if self._plugins.has("may_cache"):
            answer = await ask(self._plugins, "may_cache", request=context.request)
            return may if answer is None else bool(answer.opinion)
        return may

    def _place(self, context: RequestContext, rules: Rules, files: str) -> Place:
        request, caller = context.request, context.known_caller
        scope = caller.scope(rules.scope)
        if request.cache_salt:
            scope = f"{scope}\0{request.cache_salt}"
        return Place(
            scope=scope,
            org=caller.org,
            model=f"{context.model} {files}",
            epoch=self._epoch_of(context),
        )

    def _use(self, context: RequestContext, place: Place, wish: Wish, rules: Rules) -> CacheUse:
        kind = self._kind(context, place.scope)
        policy = self._cache.learner.policy(kind.signature)
        return CacheUse(
            Status.MISS,
            key=self._cache.keys.of_tokens(place, _asked(context)),
            stores=wish.stores,
            is_only=wish.is_only,
            ttl_s=rules.ttl_s if policy is None else policy.ttl_s,
            priority=0 if policy is None else policy.priority,
            kind=kind,
            stale_s=rules.stale_s,
            model=context.model,
            scope=place.scope,
            tag=wish.tag,
        )

    def _kind(self, context: RequestContext, scope: str) -> Kind:
        """By model, tenants, form and system prompt, or the beginning of a bare one."""
        request = context.request
        facts = (context.model, scope, request.kind.value, _beginning(request))
        return Kind(
            signature=self._cache.keys.of_pattern(facts),
            model=context.model,
            org=context.known_caller.org,
            form=request.kind.value,
        )

    async def _find(
        self, context: RequestContext, use: CacheUse, wish: Wish, outbox: Outbox
    ) -> None:
        """A kept answer, a request to read along with, or the part of the one that others wait for."""
        sought = _sought(use, wish)
        has_waited = False
        while True:
            found = self._cache.peek(use.key, sought)
            flight = self._flights.get(use.key)
            if found is None and flight is None:
                found = await self._cache.find(use.key, sought)
                if found is None and use.key in self._flights:
                    continue
            if found is not None:
                use.answer, use.age_s = found.answer, int(found.age_s)
                use.status = Status.STALE if found.is_stale else Status.HIT
                return
            if flight is None or has_waited or flight.priority > context.request.priority:
                break
            if await self._joins(use, flight, outbox):
                return
            has_waited = flight.context is not None  # in vain, and once is enough
            if flight.stream is not None and flight.stream.is_abandoned:
                break  # it is being stopped
        if wish.is_only and use.alike is None:
            raise CacheMiss
        if use.stores and (use.key not in self._flights or not has_waited):
            use.leads = self._flights[use.key] = Flight(context.request.priority)

    async def _joins(self, use: CacheUse, flight: Flight, outbox: Outbox) -> bool:
        """Read along with a request that runs; False once it has ended, or will without an answer for others."""
        if not await asyncio.shield(flight.began):
            await asyncio.shield(flight.ended)
            return False
        if not flight.is_joinable:
            if not (flight.stream is not None and flight.stream.is_abandoned):
                await asyncio.shield(flight.ended)
            return False
        assert flight.stream is not None
        use.follows, use.reader = flight, flight.stream.reader(outbox=outbox)
        use.status = Status.JOINED
        return True


def _may_take_part(context: RequestContext, wish: Wish, rules: Rules) -> bool:
    if context.request.warms:  # whose use is that its prompt is computed
        return False
    if rules.use == "off" or not (wish.reads or wish.stores):
        return False
    return rules.use != "asked" or wish.is_asked


def _is_repeatable(context: RequestContext, rules: Rules) -> bool:
    """Whether another one's answer will do, unless a plugin says otherwise."""
    return rules.use == "all" or is_deterministic(context.known_terms.sampling)


def _is_answered_in_text(context: RequestContext) -> bool:
    request = context.request
    return request.kind in _TEXTS and not (request.only_loads or request.batch is not None)


def _sought(use: CacheUse, wish: Wish) -> Sought:
    return Sought(scope=use.scope, wish=wish, ttl_s=use.ttl_s, stale_s=use.stale_s)


def _beginning(request: GenerationRequest) -> str:
    """What a template has in common: the system prompt and the names of tools, or a few words."""
    if not request.kind.is_chat:
        return "".join(
            prompt[:BEGINNING] for prompt in request.prompts[:1] if isinstance(prompt, str)
        )
    system = [str(m.get("content")) for m in request.messages if m.get("role") in _SYSTEM]
    tools = [str(tool.get("function", {}).get("name")) for tool in request.tools or ()]
    return "\0".join((*system, *tools))


def _asked(context: RequestContext) -> Asked:
    terms, reading = context.known_terms, context.reading
    return Asked(
        prompts=terms.prompts,
        sampling=terms.sampling,
        most_tokens=context.max_new_tokens,
        stop_ids=terms.stop_ids,
        shown=context.shown,
        grammar=context.grammar,
        begins_with_thoughts=reading is not None and reading.begun,
        request=context.request,
    )
