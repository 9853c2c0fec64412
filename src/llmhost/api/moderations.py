"""POST /v1/moderations: what a classifier or a guard model finds in texts, in OpenAI's shape."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from litestar import asgi
from litestar.types import ControllerRouterHandler, Send

from llmhost.api.bill_facts import bill_headers
from llmhost.api.door import send_whole
from llmhost.api.moderation_wire import MODERATIONS_PATH, parse_moderation
from llmhost.api.openai import generation_route, shown_cost
from llmhost.api.visit import Visit
from llmhost.core.caller import Caller
from llmhost.core.errors import NoGuardModel
from llmhost.core.output import Delta
from llmhost.core.request import GenerationRequest, Kind
from llmhost.deploy.catalogue import Catalogue
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.moderate import categories, scores
from llmhost.pipeline.processor import Processor
from llmhost.safety.guards.labels import OPENAI

INLINE_DELTAS = 500
"""Answers with more are put together in a thread."""
FLAGGED = 0.5
"""From this score on a category is true."""


def moderation_routes(
    processor: Processor, catalogue: Catalogue, **limits: Any
) -> list[ControllerRouterHandler]:
    """The handler, in a list as others' are."""
    route = generation_route(
        processor,
        Kind.MODERATION,
        parse_moderation,
        respond=_respond,
        prepare=partial(with_guard, catalogue),
        **limits,
    )
    return [asgi(MODERATIONS_PATH, copy_scope=False)(route)]


async def with_guard(
    catalogue: Catalogue, request: GenerationRequest, beside: Any, caller: Caller
) -> tuple[GenerationRequest, Any]:
    """The request with a model: its own, or the first in models.toml that is declared a guard and that the caller may
    use. Raises NoGuardModel."""
    if request.model:
        return request, beside
    for entry in catalogue.entries():
        if entry.spec.guard is not None and entry.may_be_used_by(caller):
            return replace(request, model=entry.name), beside
    raise NoGuardModel


async def _respond(visit: Visit, send: Send, _: float | None, beside: None) -> None:
    assert visit.exchange is not None
    exchange = visit.exchange
    body = await moderation_body(exchange, beside)
    if visit.is_gone:
        return
    headers = {**visit.headers(), **bill_headers(exchange.context)}
    await send_whole(send, 200, body, headers, line=visit.line)


async def moderation_body(exchange: Exchange, _: None) -> bytes:
    """The answer, once it has ended. Raises the error that ended it."""
    deltas = await exchange.read_whole()
    context = exchange.context
    if len(deltas) > INLINE_DELTAS:
        return await asyncio.to_thread(_written, context, deltas)
    return _written(context, deltas)


def _written(context: RequestContext, deltas: list[Delta]) -> bytes:
    judged = categories(context)
    answer: dict[str, Any] = {
        "id": f"modr-{context.request.request_id.removeprefix('req_')}",
        "model": context.request.model,
        "results": [_result(found, judged) for found in scores(context, deltas)],
    }
    if (cost := shown_cost(context)) is not None:
        tokens = context.usage.prompt_tokens
        answer["usage"] = {
            "prompt_tokens": tokens,
            "total_tokens": context.usage.total_tokens,
            "cost": cost,
        }
    return msgspec.json.encode(answer)


def _result(found: Mapping[str, float], judged: frozenset[str]) -> dict[str, Any]:
    """All of OpenAI's categories, whether the model knows them or not, and those that it knows beside."""
    names = (*OPENAI, *sorted(judged.difference(OPENAI)))
    sure = {name: found.get(name, 0.0) for name in names}
    flags = {name: score >= FLAGGED for name, score in sure.items()}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": sure,
        "category_applied_input_types": {
            name: ["text"] if name in judged else [] for name in names
        },
    }
