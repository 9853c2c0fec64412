"""POST /v1/decisions: how likely each of the fixed answers to questions about one input is."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import asgi
from litestar.types import ControllerRouterHandler, Send

from llmhost.api.bill_facts import bill_headers
from llmhost.api.decision_wire import DECISIONS_PATH, DecisionQuestion, parse_decision, values
from llmhost.api.door import send_whole
from llmhost.api.openai import generation_route, shown_cost
from llmhost.api.visit import Visit
from llmhost.core.output import Delta
from llmhost.core.request import Kind
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.decide import probabilities
from llmhost.pipeline.processor import Processor

INLINE_DELTAS = 500
"""Answers with more are put together in a thread."""

Table = dict[str, Any]


def decision_routes(processor: Processor, **limits: Any) -> list[ControllerRouterHandler]:
    """The handler, in a list as others' are."""
    route = generation_route(processor, Kind.DECISION, parse_decision, respond=_respond, **limits)
    return [asgi(DECISIONS_PATH, copy_scope=False)(route)]


async def _respond(
    visit: Visit, send: Send, _: float | None, questions: list[DecisionQuestion]
) -> None:
    assert visit.exchange is not None
    context = visit.exchange.context
    deltas = await visit.exchange.read_whole()
    if visit.is_gone:
        return
    given = (questions, deltas, context)
    is_large = len(deltas) > INLINE_DELTAS
    body = await asyncio.to_thread(_written, *given) if is_large else _written(*given)
    headers = {**visit.headers(), **bill_headers(context)}
    await send_whole(send, 200, body, headers, line=visit.line)


def _written(
    questions: Sequence[DecisionQuestion], deltas: Sequence[Delta], context: RequestContext
) -> bytes:
    found = zip(questions, probabilities(deltas, context), strict=True)
    answers = [answer_object(question, shares) for question, shares in found]
    usage = usage_object(context)
    return msgspec.json.encode({"model": context.request.model, "answers": answers, "usage": usage})


def answer_object(question: DecisionQuestion, shares: Sequence[float]) -> Table:
    """OpenAI's shape. A score is the mean of its levels, which count from 0, weighted by how likely they are."""
    named: Table = {"type": question.type, "name": question.name}
    if question.type == "predicate":
        return {**named, "probability": shares[0]}
    options, confidence = values(question), max(shares)
    if question.type == "choice":
        rows = [
            {"value": value, "probability": share}
            for value, share in zip(options, shares, strict=True)
        ]
        choice = options[shares.index(confidence)]
        return {**named, "choice": choice, "confidence": confidence, "probabilities": rows}
    rows = [
        {"label": label, "value": value, "probability": share}
        for value, (label, share) in enumerate(zip(options, shares, strict=True))
    ]
    score = sum(value * share for value, share in enumerate(shares))
    return {**named, "score": score, "confidence": confidence, "probabilities": rows}


def usage_object(context: RequestContext) -> Table:
    """The input counts once, each question once, and each answer; nothing is said, so there is no output."""
    usage, cost = context.usage, shown_cost(context)
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens,
        **({} if cost is None else {"cost": cost}),
    }
