"""Stage 2: which model at which version, and what the request is in its tokens. It only reads."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

from llmhost.core.caller import Caller
from llmhost.core.errors import (
    BadRequest,
    ContextTooLong,
    InvalidValue,
    ModelNotAllowed,
    UnknownModel,
)
from llmhost.core.ports import RunnerFacts, Tokenizer
from llmhost.core.request import GenerationRequest, Kind
from llmhost.deploy.manager import Deployments
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.pipeline.attach import Attach
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.decide import decision_terms
from llmhost.pipeline.moderate import moderation_terms
from llmhost.pipeline.pool import check_purpose, pooled_terms
from llmhost.pipeline.reading import reading_of
from llmhost.pipeline.rendered import Rendered
from llmhost.pipeline.terms import NO_TERMS, Terms, is_short, terms_of

COMPILERS = ThreadPoolExecutor(4, "grammar")
"""Threads of their own: what takes long to compile keeps nobody's prompt waiting. They are more than the children
that read grammars, so that a grammar that is known waits for none of them."""


class Resolve:
    """Alias, `route_request` hook, template, token count, context length."""

    def __init__(
        self,
        deployments: Deployments,
        plugins: Plugins,
        rendered: Rendered | None = None,
        attach: Attach | None = None,
    ) -> None:
        """`rendered` remembers prompts; without it each is rendered and tokenised. `attach` has the callers' files."""
        self._deployments = deployments
        self._plugins = plugins
        self._rendered = rendered
        self._attach = attach

    async def __call__(self, context: RequestContext) -> None:
        await self.read(context, await self.find(context))

    async def read(self, context: RequestContext, tokenizer: Tokenizer) -> None:
        """What a request says, in the tokens of the model that was found."""
        if self._attach is not None:
            await self._attach(context)
        request = context.request
        deployment = context.known_deployment
        facts = await self._deployments.facts(deployment)
        if request.kind is Kind.MODERATION:
            await self._moderate(context, tokenizer, facts)
            return
        if not request.only_loads:
            check_purpose(request, facts)
        if request.pooled is not None:
            await self._pool(context, tokenizer, facts)
            return
        context.longest_tokens = await self._deployments.longest_tokens(deployment)
        if request.only_loads:
            context.terms = NO_TERMS
            return
        if request.questions:
            work = partial(decision_terms, request, tokenizer, context.longest_tokens)
            context.terms = await asyncio.to_thread(work)
            return
        context.terms = await self._known_terms(context, tokenizer)
        spec = deployment.entry.spec
        context.reading = reading_of(request, spec, tokenizer, context.terms.prompts[0])
        if request.context_tokens is not None:
            context.longest_tokens = min(context.longest_tokens, request.context_tokens)
        context.max_new_tokens = self.room(context, context.longest_tokens)

    async def find(self, context: RequestContext) -> Tokenizer:
        """The model that is asked for, if its caller may use it, and its tokenizer."""
        request = context.request
        served = self._deployments.catalogue.locate(await self._chosen(context))
        deployment = self._deployments.find(served.entry.name)
        context.deployment = deployment
        context.adapter = served if served.adapter is not None else None
        if not served.may_be_used_by(context.known_caller):
            raise ModelNotAllowed(request.model)
        tokenizer = await self._deployments.tokenizer(deployment)
        context.tokenizer = tokenizer
        return tokenizer

    async def find_only(self, context: RequestContext) -> Tokenizer:
        """As `find`, with what a model holds, for a request that wants no more of it than its tokenizer."""
        tokenizer = await self.find(context)
        if self._attach is not None:
            await self._attach(context)
        context.terms = NO_TERMS
        context.longest_tokens = await self._deployments.longest_tokens(context.known_deployment)
        return tokenizer

    def candidates(self, caller: Caller) -> tuple[str, ...]:
        """All models that a plugin may choose of."""
        return self._deployments.catalogue.names_for(caller)

    def is_named(self, context: RequestContext) -> bool:
        """Whether a request has the model that it names, and no plugin has chosen another."""
        with suppress(UnknownModel):
            served = self._deployments.catalogue.locate(context.request.model)
            adapter = None if context.adapter is None else context.adapter.adapter
            deployment = context.known_deployment
            return served.entry is deployment.entry and served.adapter == adapter
        return False

    def check_allowed(self, caller: Caller, model: str) -> None:
        """Raises ModelNotAllowed for what would be refused here, unless plugins say what a name means."""
        if self._plugins.has("route_request"):
            return
        with suppress(UnknownModel):
            if not self._deployments.catalogue.locate(model).may_be_used_by(caller):
                raise ModelNotAllowed(model)

    async def _pool(
        self, context: RequestContext, tokenizer: Tokenizer, facts: RunnerFacts
    ) -> None:
        request, deployment = context.request, context.known_deployment
        context.longest_tokens = await self._deployments.longest_tokens(deployment)
        work = partial(pooled_terms, request, tokenizer, facts, context.longest_tokens)
        context.terms = work() if is_short(request) else await asyncio.to_thread(work)

    async def _moderate(
        self, context: RequestContext, tokenizer: Tokenizer, facts: RunnerFacts
    ) -> None:
        request, deployment = context.request, context.known_deployment
        context.longest_tokens = await self._deployments.longest_tokens(deployment)
        spec = deployment.entry.spec
        work = partial(moderation_terms, request, spec, facts, tokenizer, context.longest_tokens)
        context.terms = terms = work() if is_short(request) else await asyncio.to_thread(work)
        if not terms.poolings:
            assert terms.sitting is not None
            context.max_new_tokens = terms.sitting.max_tokens
            context.request = replace(request, max_tokens=terms.sitting.max_tokens)

    async def compile_grammar(self, context: RequestContext) -> None:
        """Raises BadRequest for a form that this model can't be held to. Not for callers beyond their limits.

        Calls that nobody asked to be strict are free where a vocabulary can't be held to them.
        """
        spec, tokenizer = context.grammar, context.tokenizer
        if spec is not None and tokenizer is not None:
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(COMPILERS, tokenizer.compile_grammar, spec)
            except BadRequest:
                if spec.kind != "auto_calls" or spec.is_strict or context.reading is None:
                    raise
                context.reading = replace(context.reading, grammar=None)

    async def _chosen(self, context: RequestContext) -> str:
        """The model's name: what the caller asked for, unless a plugin routes it elsewhere."""
        if not self._plugins.has("route_request"):
            return context.request.model
        candidates = self._deployments.catalogue.names_for(context.known_caller)
        answer = await ask(
            self._plugins, "route_request", request=context.request, candidates=candidates
        )
        return context.request.model if answer is None else str(answer.opinion)

    async def _known_terms(self, context: RequestContext, tokenizer: Tokenizer) -> Terms:
        known: Terms | None = context.request.noted(tokenizer)
        if known is not None and known.still_hold(tokenizer):
            return known
        terms = await self._rendered_terms(context, tokenizer)
        context.request.note(tokenizer, terms)
        return terms

    async def _rendered_terms(self, context: RequestContext, tokenizer: Tokenizer) -> Terms:
        rendered = self._rendered
        key = None if rendered is None else rendered.key(context)
        if rendered is None or key is None:
            return await self._terms(context.request, tokenizer)
        terms = rendered.get(key, tokenizer)
        if terms is None:
            terms = await self._terms(context.request, tokenizer)
            rendered.put(key, tokenizer, terms)
        return terms

    async def _terms(self, request: GenerationRequest, tokenizer: Tokenizer) -> Terms:
        if is_short(request):
            return terms_of(request, tokenizer)
        return await asyncio.to_thread(terms_of, request, tokenizer)

    @staticmethod
    def room(context: RequestContext, longest_tokens: int) -> int:
        """Tokens that each choice may have. Raises ContextTooLong when the prompt leaves too little."""
        request = context.request
        if request.only_loads:
            return 0
        prompt_tokens = max(len(prompt) for prompt in context.prompts)
        room = longest_tokens - prompt_tokens
        wanted = None if request.takes_less else request.max_tokens
        if room < (1 if wanted is None else wanted):
            raise ContextTooLong(
                prompt_tokens=prompt_tokens,
                max_tokens=wanted,
                limit_tokens=longest_tokens,
                param=request.kind.prompt_field,
            )
        if request.min_tokens > room:
            raise InvalidValue(
                f"'min_tokens' is {request.min_tokens}, and this prompt leaves room for {room}.",
                param="min_tokens",
            )
        return room if request.max_tokens is None else min(room, request.max_tokens)
