"""POST /v1/embeddings, rerank, score and classify: the same door and stages as generation, with other answers."""

import asyncio
import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from litestar import asgi
from litestar.types import ControllerRouterHandler, Send

from llmhost.api.bill_facts import bill_headers
from llmhost.api.door import send_whole
from llmhost.api.loose import read_body
from llmhost.api.openai import Parse, generation_route, shown_cost
from llmhost.api.pooling_wire import (
    ClassifyBody,
    EmbeddingBody,
    RerankBody,
    ScoreBody,
    classify_request,
    embedding_request,
    rerank_request,
    score_request,
)
from llmhost.api.visit import Visit
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.pool import Vector, scores, vectors
from llmhost.pipeline.processor import Processor

INLINE_NUMBERS = 16_384
"""Answers with more are written in a thread: their JSON takes milliseconds."""

Shape = Callable[[RequestContext, list[Sequence[float]]], dict[str, Any]]
"""What was pooled of each text, in order -> the answer's body."""

B = TypeVar("B", bound=msgspec.Struct)
_encode = msgspec.json.encode


class PoolingRoute(NamedTuple):
    """One route under every name that clients know it by."""

    paths: tuple[str, ...]
    kind: Kind
    parse: Parse


def pooling_routes(processor: Processor, **limits: Any) -> list[ControllerRouterHandler]:
    """Handlers of all routes."""
    return [
        asgi(path, copy_scope=False)(
            generation_route(processor, route.kind, route.parse, respond=respond_pooled, **limits)
        )
        for route in POOLING
        for path in route.paths
    ]


def _parser(
    shape: type[B],
    request_of: Callable[[B, str, str | None], GenerationRequest],
    answer_of: Callable[[B], Shape],
) -> Parse:
    def parse(raw: bytes, request_id: str, client_id: str | None) -> tuple[GenerationRequest, Any]:
        body = read_body(raw, shape)
        return request_of(body, request_id, client_id), answer_of(body)

    return parse


async def respond_pooled(visit: Visit, send: Send, _: float | None, shape: Shape) -> None:
    """Answer a request for vectors or scores."""
    assert visit.exchange is not None
    exchange = visit.exchange
    body = await pooled_body(exchange, shape)
    if visit.is_gone:
        return
    headers = {**visit.headers(), **bill_headers(exchange.context)}
    await send_whole(send, 200, body, headers, line=visit.line)


async def pooled_body(exchange: Exchange, shape: Shape) -> bytes:
    """The answer, once it has ended. Raises the error that ended it."""
    deltas = await exchange.read_whole()
    pooled = [d.pooled for d in sorted(deltas, key=lambda d: d.index) if d.pooled is not None]
    context = exchange.context

    def write() -> bytes:
        return _encode(shape(context, pooled), enc_hook=_list)

    is_large = sum(map(len, pooled)) > INLINE_NUMBERS
    return await asyncio.to_thread(write) if is_large else write()


def _list(array: Any) -> list[float]:
    numbers: list[float] = array.tolist()
    return numbers


def _embeddings(body: EmbeddingBody) -> Shape:
    as_text = body.encoding_format == "base64"

    def shape(context: RequestContext, pooled: list[Sequence[float]]) -> dict[str, Any]:
        assert context.request.pooled is not None
        made = vectors(pooled, context.request.pooled)
        data = [
            {"object": "embedding", "index": i, "embedding": _base64(v) if as_text else v}
            for i, v in enumerate(made)
        ]
        return {
            "object": "list",
            "data": data,
            "model": context.request.model,
            "usage": _usage(context),
        }

    return shape


def _base64(vector: Vector) -> str:
    """Little-endian float32, which openai's own clients ask for when nobody says otherwise."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _ranked(body: RerankBody) -> Shape:
    most, is_bare = body.top_n or None, body.return_documents is False

    def shape(context: RequestContext, pooled: list[Sequence[float]]) -> dict[str, Any]:
        found = scores(pooled, context)
        order = sorted(range(len(found)), key=lambda i: -found[i])
        documents = context.request.prompts[1:]
        results = [
            {
                "index": i,
                **({} if is_bare else {"document": {"text": documents[i]}}),
                "relevance_score": found[i],
            }
            for i in order[:most]
        ]
        return {
            "id": _id("rerank", context),
            "model": context.request.model,
            "results": results,
            "usage": _usage(context),
        }

    return shape


def _scored(body: ScoreBody) -> Shape:
    def shape(context: RequestContext, pooled: list[Sequence[float]]) -> dict[str, Any]:
        data = [
            {"index": i, "object": "score", "score": score}
            for i, score in enumerate(scores(pooled, context))
        ]
        return _listed("score", context, data)

    return shape


def _classes(body: ClassifyBody) -> Shape:
    def shape(context: RequestContext, pooled: list[Sequence[float]]) -> dict[str, Any]:
        assert context.replica is not None
        labels = context.replica.facts.labels
        return _listed("classify", context, list(_classified(labels, pooled)))

    return shape


def _classified(labels: tuple[str, ...], pooled: list[Sequence[float]]) -> Iterator[dict[str, Any]]:
    for i, numbers in enumerate(pooled):
        best = max(range(len(numbers)), key=numbers.__getitem__)
        yield {
            "index": i,
            "label": labels[best],
            "probs": list(numbers),
            "num_classes": len(labels),
        }


def _listed(prefix: str, context: RequestContext, data: list[dict[str, Any]]) -> dict[str, Any]:
    """vLLM's envelope of these answers."""
    return {
        "id": _id(prefix, context),
        "object": "list",
        "created": context.arrived_utc_ns // 1_000_000_000,
        "model": context.request.model,
        "data": data,
        "usage": _usage(context),
    }


def _id(prefix: str, context: RequestContext) -> str:
    return f"{prefix}-{context.request.request_id.removeprefix('req_')}"


def _usage(context: RequestContext) -> dict[str, Any]:
    tokens = context.usage.prompt_tokens
    cost = shown_cost(context)
    asked = {} if cost is None else {"cost": cost}
    return {"prompt_tokens": tokens, "total_tokens": tokens, **asked}


POOLING = (
    PoolingRoute(
        ("/v1/embeddings",), Kind.EMBEDDING, _parser(EmbeddingBody, embedding_request, _embeddings)
    ),
    PoolingRoute(
        ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking"),
        Kind.SCORE,
        _parser(RerankBody, rerank_request, _ranked),
    ),
    PoolingRoute(("/v1/score", "/score"), Kind.SCORE, _parser(ScoreBody, score_request, _scored)),
    PoolingRoute(
        ("/v1/classify", "/classify"),
        Kind.CLASSIFY,
        _parser(ClassifyBody, classify_request, _classes),
    ),
)
"""All of them."""
