"""POST /api/chat, /api/generate, /api/embed and /api/embeddings: the door and stages of OpenAI's routes."""

from collections.abc import Sequence
from typing import Any

from litestar import asgi
from litestar.types import ControllerRouterHandler, Send

from llmhost.api.bill_facts import bill_headers
from llmhost.api.calls import calls_of
from llmhost.api.door import send_whole
from llmhost.api.loose import read_body
from llmhost.api.ollama.bodies import OllamaEmbed, OllamaEmbeddings
from llmhost.api.ollama.frames import OllamaFrames, durations
from llmhost.api.ollama.wire import Asked, embed_request, parse_chat, parse_generate
from llmhost.api.openai import Parse, generation_route, shown_cost, stream_by
from llmhost.api.pooling import Shape, respond_pooled
from llmhost.api.visit import Visit
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.pool import vectors
from llmhost.pipeline.processor import Processor

LINES = "application/x-ndjson"
Table = dict[str, Any]


def parse_embed(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, Shape]:
    """Raises BadRequest."""
    body = read_body(raw, OllamaEmbed)
    model = body.model

    def shape(context: RequestContext, pooled: list[Sequence[float]]) -> Table:
        took = durations(context)
        return {
            "model": model,
            "embeddings": _vectors(context, pooled),
            "total_duration": took["total_duration"],
            "load_duration": took["load_duration"],
            "prompt_eval_count": context.usage.prompt_tokens,
            **_cost(context),
        }

    return embed_request(body, request_id, client_id), shape


def parse_embeddings(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, Shape]:
    """Raises BadRequest."""
    body = read_body(raw, OllamaEmbeddings)

    def shape(context: RequestContext, pooled: list[Sequence[float]]) -> Table:
        return {"embedding": _vectors(context, pooled)[0], **_cost(context)}

    return embed_request(body, request_id, client_id), shape


PARSERS: dict[str, tuple[Kind, Parse]] = {
    "/api/chat": (Kind.CHAT, parse_chat),
    "/api/generate": (Kind.CHAT, parse_generate),
    "/api/embed": (Kind.EMBEDDING, parse_embed),
    "/api/embeddings": (Kind.EMBEDDING, parse_embeddings),
}
"""By path."""


def asking_routes(processor: Processor, **limits: Any) -> list[ControllerRouterHandler]:
    """Handlers of the routes that ask models."""
    return [
        asgi(path, copy_scope=False)(
            generation_route(
                processor,
                kind,
                parse,
                respond=respond_pooled if kind is Kind.EMBEDDING else _respond,
                **limits,
            )
        )
        for path, (kind, parse) in PARSERS.items()
    ]


async def _respond(visit: Visit, send: Send, heartbeat_s: float | None, asked: Asked) -> None:
    assert visit.exchange is not None
    context = visit.exchange.context
    calls = None if context.request.only_loads else calls_of(context.request, context.reading)
    frames = OllamaFrames(asked, context, calls)
    if context.request.stream:
        await stream_by(frames, visit, send, heartbeat_s, content_type=LINES)
        return
    deltas = await visit.exchange.read_whole()
    if visit.is_gone:
        return
    body = frames.whole(deltas, context.usage, shown_cost(context))
    await send_whole(send, 200, body, {**visit.headers(), **bill_headers(context)}, line=visit.line)


def _vectors(context: RequestContext, pooled: list[Sequence[float]]) -> list[Any]:
    assert context.request.pooled is not None
    return list(vectors(pooled, context.request.pooled))


def _cost(context: RequestContext) -> Table:
    cost = shown_cost(context)
    return {} if cost is None else {"cost": cost}
