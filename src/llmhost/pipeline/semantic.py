"""Answers to questions that are only alike, for requests that say they will do, and how often those are false.

    partition   all of the exact key but the last message's text, the organisation, and the embedder
    vector      of that text, compared within the partition alone
    verifier    numbers, names, negations and their like have to agree (`cache/verify.py`)
    check       a share of such hits is answered by the model, too; the operator bears it, nobody waits for it

What is found is an exact answer's key, and nothing that was given so is kept under a key.
"""

import asyncio
import logging
import random
from dataclasses import replace

from msgspec import structs

from llmhost.cache.alike import Kept
from llmhost.cache.keys import Asked, Place
from llmhost.cache.response_cache import ResponseCache, Rules, Sought
from llmhost.cache.trust import Check, Trust
from llmhost.cache.verify import are_equal, facts_of, say_the_same
from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, LlmhostError
from llmhost.core.output import FinishReason
from llmhost.core.ports import Clock
from llmhost.core.request import Kind
from llmhost.core.sequence import Purpose
from llmhost.observe.logs import log_event
from llmhost.pipeline.cache_use import CacheUse, Meaning, Status
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.embed import Embedder, sequence_of
from llmhost.pipeline.execute import spec_of
from llmhost.pipeline.tabs import Bear

log = logging.getLogger("llmhost.cache")

EMBED_S = 2.0
"""So long a request waits for its vector; then it runs. An embedder that is not loaded yet loads meanwhile."""
MOST_CHECKS = 4
"""At the same time; more hits are not checked, and not given where they would have to be."""
CHECK_S = 600.0
LAST_PRIORITY = 1_000
"""After callers' own sequences."""
AGREES_AT = 0.9
"""The least cosine of two answers that say the same in other words, with the same numbers and negations."""

_CHATS = (Kind.CHAT, Kind.RESPONSE)


class Semantic:
    def __init__(
        self,
        cache: ResponseCache,
        embedder: Embedder,
        clock: Clock,
        bear: Bear,
        draw: random.Random | None = None,
    ) -> None:
        """`bear` has what checks cost."""
        self._cache = cache
        self._embedder = embedder
        self._clock = clock
        self._bear = bear
        self._draw = draw or random.Random()
        self._checks: set[asyncio.Task[None]] = set()

    async def read(
        self, context: RequestContext, place: Place, asked: Asked, rules: Rules
    ) -> Meaning | None:
        """What the request means; None where it is not to be compared with others, or can't be."""
        text = _text_of(context)
        facts = None if text is None else facts_of(text)
        trust = self._trust(context, rules)
        if text is None or facts is None or trust is None or trust.is_stopped:
            return None
        caller, embedder = context.known_caller, rules.embedder
        assert embedder is not None
        try:
            async with asyncio.timeout(EMBED_S):
                mark = await self._embedder.mark(embedder)
                partition = self._partition(context, place, asked, mark)
                if partition is None:
                    return None
                request_id = context.request.request_id
                vector = await self._embedder.vector(text, embedder, caller, request_id)
                if await self._embedder.mark(embedder) != mark:
                    return None  # it was loaded meanwhile, from other files
        except (LlmhostError, TimeoutError) as error:
            log_event(log, "cache.not_embedded", embedder=embedder, why=type(error).__name__)
            return None
        return Meaning(partition, facts, vector)

    async def find(
        self, context: RequestContext, use: CacheUse, sought: Sought, rules: Rules
    ) -> bool:
        """Whether there is an answer to a question that is alike; then `use` has it."""
        meaning, trust = use.meaning, self._trust(context, rules)
        if meaning is None or trust is None or trust.is_stopped:
            return False
        if trust.is_new and not self._can_check(context, trust):
            return False
        near = self._cache.alike.find(
            meaning.partition,
            meaning.vector,
            meaning.facts,
            least=trust.threshold,
            now_ns=self._clock.utc_ns(),
        )
        for one in near:
            found = await self._cache.find(one.kept.key, sought)
            if found is None or found.is_stale or not found.answer.suits_alike:
                continue
            if found.answer.stored_ns != one.kept.stored_ns:
                continue
            meaning.similarity = one.similarity
            use.status, use.age_s = Status.SEMANTIC, int(found.age_s)
            use.answer = found.answer.of_prompt(context.prompt_tokens)
            return True
        return False

    def keep(self, context: RequestContext, use: CacheUse, stored_ns: int) -> None:
        """The request has been answered by the model, and its answer is kept under its own key."""
        if use.meaning is None or context.finish_reason is not FinishReason.STOP:
            return
        now_ns = self._clock.utc_ns()
        expires_ns = now_ns + int(use.ttl_s * 1e9)
        kept = Kept(use.key, use.meaning.facts, expires_ns, use.tag, stored_ns)
        self._cache.alike.put(use.meaning.partition, use.meaning.vector, kept, now_ns)

    def may_give(self, context: RequestContext, use: CacheUse) -> bool:
        """Whether what was found may still be given: other answers may have been found false meanwhile, and other hits
        have taken the places of the checks."""
        rules = self._cache.rules(context.known_deployment.entry.name)
        trust = self._trust(context, rules)
        if use.meaning is None or trust is None or use.meaning.similarity < trust.threshold:
            return False
        return not trust.is_new or self._can_check(context, trust)

    def given(self, context: RequestContext, use: CacheUse) -> None:
        """An answer to an alike question is given: have the model answer this one, too, if it is drawn."""
        rules = self._cache.rules(context.known_deployment.entry.name)
        trust = self._trust(context, rules)
        if trust is None or not trust.wants_check(self._draw.random()):
            return
        if not self._can_check(context, trust):
            return
        check = asyncio.create_task(self._check(context, use, trust, rules))
        self._checks.add(check)  # asyncio itself keeps no task alive
        check.add_done_callback(self._checks.discard)

    def _can_check(self, context: RequestContext, trust: Trust) -> bool:
        """A check wakes no model, there are only so many at the same time, and none soon after one that failed."""
        return (
            bool(context.known_deployment.replicas)
            and len(self._checks) < MOST_CHECKS
            and trust.can_check(self._clock.monotonic_ns())
        )

    def close(self) -> None:
        """Let go of the checks that run."""
        for check in self._checks:
            check.cancel()

    async def _check(
        self, context: RequestContext, use: CacheUse, trust: Trust, rules: Rules
    ) -> None:
        assert use.answer is not None and use.meaning is not None
        [given] = use.answer.parts
        try:
            async with asyncio.timeout(CHECK_S):
                made = await self._made(context)
                agrees = made is not None and await self._agree(
                    given.text, made, rules, context.known_caller
                )
        except (LlmhostError, TimeoutError) as error:
            log_event(log, "cache.not_checked", model=context.model, why=type(error).__name__)
            trust.fail(self._clock.monotonic_ns())
            return
        if made is None:
            return
        org, model = context.known_caller.org, context.model
        counts = self._cache.stats.of(org, model)
        counts.semantic_checks += 1
        counts.semantic_false += not agrees
        if self._cache.trusts.note(org, model, Check(use.meaning.similarity, agrees)):
            log_event(
                log,
                "cache.threshold_raised",
                org=org,
                model=model,
                threshold=round(trust.threshold, 4),
                is_stopped=trust.is_stopped,
            )

    async def _made(self, context: RequestContext) -> str | None:
        """What the model says; None where it is not loaded any more."""
        deployment = context.known_deployment
        if not deployment.replicas:
            return None
        replica = deployment.least_busy()
        hold = None if context.adapter is None else await replica.hold_adapter(context.adapter)
        try:
            longest = min(context.longest_tokens, replica.plan.max_sequence_length)
            shadow = structs.replace(
                context,
                replica=replica,
                adapter_hold=hold,
                spending=None,
                longest_tokens=longest,
            )
            spec = structs.replace(
                spec_of(shadow, 0),
                priority=LAST_PRIORITY,
                deadline_ns=None,
                tenant="",
                purpose=Purpose.OPTIMISE,
                arrival_ns=self._clock.monotonic_ns(),
            )
            device = replica.facts.device
            deltas, usage = await sequence_of(replica.engine, spec, self._bear, device)
            self._bear(device, usage)
        finally:
            if hold is not None:
                hold.let_go()
        return "".join(delta.text for delta in deltas)

    async def _agree(self, one: str, other: str, rules: Rules, caller: Caller) -> bool:
        if are_equal(one, other):
            return True
        if not one.strip() or not other.strip():
            return False
        if not await asyncio.to_thread(say_the_same, one, other):  # of long texts it takes long
            return False
        embedder = rules.embedder
        assert embedder is not None
        try:
            vectors = [
                await self._embedder.vector(text, embedder, caller, None) for text in (one, other)
            ]
        except InvalidValue:  # too long for its vectors: nothing says that they agree
            return False
        return float(vectors[0] @ vectors[1]) >= AGREES_AT

    def _trust(self, context: RequestContext, rules: Rules) -> Trust | None:
        assert rules.embedder is not None
        embedder = self._embedder.ref(rules.embedder)
        return self._cache.trusts.of(context.known_caller.org, context.model, rules.alike, embedder)

    def _partition(
        self, context: RequestContext, place: Place, asked: Asked, mark: str
    ) -> str | None:
        request, keys = context.request, self._cache.keys
        most = -1 if request.max_tokens is None else request.max_tokens
        words = keys.of_words(place, replace(request, messages=request.messages[:-1]))
        if words is None:
            return None
        rest = keys.of_tokens(place, replace(asked, prompts=(), most_tokens=most))
        org = context.known_caller.org
        sizes = f"{request.context_tokens} {request.takes_less}"
        return keys.of_partition((rest, words.hex(), org, mark, request.opening, sizes))


def _text_of(context: RequestContext) -> str | None:
    """What a chat asks last, in plain words; None where an answer is more than a text, or the question is."""
    request, sampling = context.request, context.known_terms.sampling
    if (
        request.kind not in _CHATS
        or not request.messages
        or request.tools
        or request.may_call
        or context.grammar is not None
        or request.n != 1
        or request.best_of is not None
        or request.continue_final_message
        or request.echo
        or request.return_token_ids
        or sampling.logprobs is not None
        or sampling.prompt_logprobs is not None
    ):
        return None
    last = request.messages[-1]
    if last.get("role") != "user" or any(
        v for k, v in last.items() if k not in ("role", "content")
    ):
        return None
    text = last.get("content")
    return text if isinstance(text, str) else None
