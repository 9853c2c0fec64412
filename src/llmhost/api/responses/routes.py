"""POST /v1/responses: the same door and stages as OpenAI's other routes."""

import logging
from typing import Any

import msgspec
from litestar.types import ASGIApp, Send

from llmhost.api.bill_facts import bill_facts, bill_headers
from llmhost.api.door import send_whole
from llmhost.api.errors import forget_frames, known_error
from llmhost.api.openai import generation_route, shown_cost, stream_by
from llmhost.api.responses.desk import Desk, Order
from llmhost.api.responses.events import Events, Silence
from llmhost.api.responses.frames import ResponseFrames
from llmhost.api.responses.wire import parse_response
from llmhost.api.visit import Visit
from llmhost.core.errors import LlmhostError
from llmhost.core.request import Kind
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.processor import Processor

log = logging.getLogger("llmhost.responses")

PATH = "/v1/responses"

_encode = msgspec.json.encode


def responses_route(processor: Processor, desk: Desk, **limits: Any) -> ASGIApp:
    """An ASGI app for answers."""
    return generation_route(
        processor,
        Kind.RESPONSE,
        parse_response,
        prepare=desk.prepare,
        respond=_Answer(desk).respond,
        **limits,
    )


class _Answer:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def respond(
        self, visit: Visit, send: Send, heartbeat_s: float | None, order: Order
    ) -> None:
        assert visit.exchange is not None
        if visit.exchange.context.request.stream:
            await self._stream(visit, send, heartbeat_s, order)
        else:
            await self._whole(visit, send, order)

    async def _whole(self, visit: Visit, send: Send, order: Order) -> None:
        assert visit.exchange is not None
        context = visit.exchange.context
        deltas = await visit.exchange.read_whole()
        if visit.is_gone:
            return
        frames = ResponseFrames(order.asked, context, Silence(), order.sealer)
        frames.take(deltas)
        resource = frames.end(context.usage, extras_of(context, with_facts=False))
        await self._desk.keep(order, resource)
        headers = {**visit.headers(), **bill_headers(context)}
        await send_whole(send, 200, _encode(resource), headers, line=visit.line)

    async def _stream(
        self, visit: Visit, send: Send, heartbeat_s: float | None, order: Order
    ) -> None:
        assert visit.exchange is not None
        context = visit.exchange.context
        frames = ResponseFrames(order.asked, context, Events(), order.sealer)

        async def keep() -> None:
            resource = frames.end(context.usage, extras_of(context))
            await self._desk.keep(order, resource)

        try:
            await stream_by(frames, visit, send, heartbeat_s, frames.beginning(), keep)
        except Exception as error:  # boundary: what breaks an answer off is its last event
            if not visit.has_started or visit.is_gone:
                raise
            known = known_error(error)
            if not isinstance(error, LlmhostError):
                log.error("api.failed request=%s", visit.request_id, exc_info=error)
            visit.has_failed = True
            last = frames.broken_off(known)
            await self._desk.keep(order, frames.resource)
            await send({"type": "http.response.body", "body": last, "more_body": False})
            forget_frames(error)


def extras_of(context: RequestContext, *, with_facts: bool = True) -> dict[str, Any]:
    """What a usage says of money."""
    cost, facts = shown_cost(context), bill_facts(context)
    extras: dict[str, Any] = {} if cost is None else {"cost": cost}
    return {**extras, "llmhost": facts} if with_facts and facts else extras
