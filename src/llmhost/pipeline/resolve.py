"""Stage 2: which model at which version, and what the prompt is in its tokens. It only reads."""

import asyncio
from functools import partial

from llmhost.core.errors import ContextTooLong, InvalidValue, ModelNotAllowed
from llmhost.core.ports import Tokenizer
from llmhost.core.request import GenerationRequest, Kind
from llmhost.deploy.manager import Deployments
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.pipeline.context import RequestContext

INLINE_CHARS = 4096
INLINE_MESSAGES = 64
"""Longer prompts, and all with tool calls, are rendered and tokenised in a thread: the HTTP loop waits for none."""


class Resolve:
    """Alias, `route_request` hook, template, token count, context length."""

    def __init__(self, deployments: Deployments, plugins: Plugins) -> None:
        self._deployments = deployments
        self._plugins = plugins

    async def __call__(self, context: RequestContext) -> None:
        request = context.request
        deployment = self._deployments.find(await self._chosen(context))
        context.deployment = deployment
        if not deployment.entry.may_be_used_by(context.known_caller):
            raise ModelNotAllowed(request.model)
        tokenizer = await self._deployments.tokenizer(deployment)
        context.tokenizer = tokenizer
        context.prompts = await self._tokenise(request, tokenizer)
        context.longest_tokens = await self._deployments.longest_tokens(deployment)
        context.max_new_tokens = self.room(context, context.longest_tokens)

    async def _chosen(self, context: RequestContext) -> str:
        """The model's name: what the caller asked for, unless a plugin routes it elsewhere."""
        if not self._plugins.has("route_request"):
            return context.request.model
        candidates = tuple(
            entry.name
            for entry in self._deployments.catalogue.entries()
            if entry.may_be_used_by(context.known_caller)
        )
        answer = await ask(
            self._plugins, "route_request", request=context.request, candidates=candidates
        )
        return context.request.model if answer is None else str(answer.opinion)

    async def _tokenise(
        self, request: GenerationRequest, tokenizer: Tokenizer
    ) -> tuple[tuple[int, ...], ...]:
        work = partial(_prompt_tokens, request, tokenizer)
        if _is_short(request):
            return work()
        return await asyncio.to_thread(work)

    @staticmethod
    def room(context: RequestContext, longest_tokens: int) -> int:
        """Tokens that each choice may have. Raises ContextTooLong when the prompt leaves too little."""
        request = context.request
        prompt_tokens = max(len(prompt) for prompt in context.prompts)
        room = longest_tokens - prompt_tokens
        if room < (request.max_tokens or 1):
            raise ContextTooLong(
                prompt_tokens=prompt_tokens,
                max_tokens=request.max_tokens,
                limit_tokens=longest_tokens,
                param="messages" if request.kind is Kind.CHAT else "prompt",
            )
        return request.max_tokens or room


def _is_short(request: GenerationRequest) -> bool:
    """Everything that is rendered counts: messages without text too, and what has no bound is never short."""
    if request.tools or len(request.messages) > INLINE_MESSAGES:
        return False
    if any("tool_calls" in message for message in request.messages):
        return False
    if any(isinstance(value, (dict, list)) for value in request.template_kwargs.values()):
        return False
    return request.size <= INLINE_CHARS


def _prompt_tokens(request: GenerationRequest, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    if request.kind is Kind.CHAT:
        text = tokenizer.render_chat(
            request.messages, tools=request.tools, **request.template_kwargs
        )
        return (_not_empty(tokenizer.encode(text, add_special_tokens=False), "messages"),)
    return tuple(
        _not_empty(tokenizer.encode(prompt), "prompt")
        if isinstance(prompt, str)
        else _known_ids(prompt, tokenizer.vocab_size)
        for prompt in request.prompts
    )


def _not_empty(tokens: list[int], param: str) -> tuple[int, ...]:
    if not tokens:
        raise InvalidValue("The prompt is empty: it has no tokens.", param=param)
    return tuple(tokens)


def _known_ids(prompt: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise InvalidValue(
                f"Token id {token} is outside this model's vocabulary of {vocab_size}.",
                param="prompt",
            )
    return _not_empty(list(prompt), "prompt")
