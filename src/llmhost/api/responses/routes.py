"""POST /v1/responses: the same door and stages as OpenAI's other routes."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import msgspec
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from llmhost.api.bill_facts import bill_headers
from llmhost.api.door import Outflow, send_whole, start
from llmhost.api.errors import forget_frames, known_error
from llmhost.api.estimate import counting_route
from llmhost.api.gatekeeper import Identify
from llmhost.api.openai import EVENT_STREAM, STREAM_HEADERS, generation_route, stream_by
from llmhost.api.responses.desk import Desk, Order
from llmhost.api.responses.events import DONE, Events, Silence
from llmhost.api.responses.frames import ResponseFrames
from llmhost.api.responses.prepare import prepare, prepare_to_run
from llmhost.api.responses.resource import QUEUED
from llmhost.api.responses.runs import Run
from llmhost.api.responses.socket import Sockets
from llmhost.api.responses.wire import Asked, parse_response
from llmhost.api.reviews.held import hold_answer
from llmhost.api.upgrade import socket_of
from llmhost.api.visit import Visit
from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.held import Holds
from llmhost.pipeline.processor import Processor
from llmhost.tenants.refusals import Allowances

log = logging.getLogger("llmhost.responses")

PATH = "/v1/responses"
TOKENS_PATH = f"{PATH}/input_tokens"

_encode = msgspec.json.encode


def responses_route(
    processor: Processor,
    desk: Desk,
    outflow: Outflow | None = None,
    *,
    holds: Holds | None = None,
    **limits: Any,
) -> ASGIApp:
    """An ASGI app for answers, over a WebSocket as well."""
    answer = generation_route(
        processor,
        Kind.RESPONSE,
        parse_response,
        prepare=partial(prepare_to_run, processor, desk),
        respond=_Answer(desk, holds).respond,
        holds=holds,
        can_hold=_can_hold,
        **limits,
    )
    sockets = Sockets(processor, desk, outflow)

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        socket = socket_of(scope)
        if socket is None:
            try:
                await answer(scope, receive, send)
            finally:
                desk.floor.let_go_of_mine()
        else:
            await sockets.answer(cast(HTTPScope, scope), send, socket)

    return route


def input_tokens_route(
    processor: Processor, desk: Desk, identify: Identify, max_body_bytes: int
) -> ASGIApp:
    """An ASGI app that counts what an input is in the model's tokens, with all that it goes on with."""

    async def count(
        request: GenerationRequest, asked: Asked, headers: Mapping[str, str], caller: Caller
    ) -> tuple[dict[str, Any], Allowances]:
        whole, _ = await prepare(processor, desk, request, asked, caller)
        context = await processor.inquiries.count_tokens(whole, headers, caller)
        told = {"object": "response.input_tokens", "input_tokens": context.prompt_tokens}
        return told, context.allowances

    return counting_route(identify, parse_response, count, max_body_bytes)


def _can_hold(order: Any) -> bool:
    """Not what runs on nobody's connection, nor what would have to be in a conversation once it goes out."""
    return isinstance(order, Order) and not (
        order.asked.is_background or order.asked.conversation is not None
    )


class _Answer:
    def __init__(self, desk: Desk, holds: Holds | None) -> None:
        self._desk = desk
        self._holds = holds

    async def respond(
        self, visit: Visit, send: Send, heartbeat_s: float | None, order: Order
    ) -> None:
        assert visit.exchange is not None
        if order.asked.is_background:
            await self._background(visit, send, heartbeat_s, order)
        elif visit.exchange.context.request.stream:
            await self._stream(visit, send, heartbeat_s, order)
        else:
            await self._whole(visit, send, order)

    async def _background(
        self, visit: Visit, send: Send, heartbeat_s: float | None, order: Order
    ) -> None:
        """The visit lets go of what runs, so that its end ends nothing."""
        assert visit.exchange is not None
        headers = {**visit.headers(), **bill_headers(visit.exchange.context, with_cost=False)}
        exchange, visit.exchange = visit.exchange, None
        frames = ResponseFrames(order.asked, exchange.context, Events(), order.sealer)
        run = Run(order, exchange, frames)
        try:
            await self._desk.begin(run)
        except BaseException:
            exchange.leave()
            raise
        if not exchange.context.request.stream:
            queued = {**frames.begun, "status": QUEUED}
            await send_whole(send, 200, _encode(queued), headers, line=visit.line)
            return
        await start(send, 200, EVENT_STREAM, {**STREAM_HEADERS, **headers})
        visit.has_started = True
        async for body in run.read(-1, heartbeat_s):
            if visit.is_gone:
                return
            piece, has_more = body or visit.dialect.heartbeat, body != DONE
            await send({"type": "http.response.body", "body": piece, "more_body": has_more})

    async def _whole(self, visit: Visit, send: Send, order: Order) -> None:
        assert visit.exchange is not None
        context = visit.exchange.context
        said = await visit.exchange.read_whole()
        left = await visit.exchange.read_left() if visit.is_gone else None
        frames = ResponseFrames(order.asked, context, Silence(), order.sealer)
        frames.take(said if left is None else left)
        if visit.is_gone and left is None:
            if not context.can_wait:  # else nobody knows yet what a reviewer would have to let out
                await self._desk.keep_cut(order, frames, visit.exchange)
            return
        resource = frames.end(context.usage, frames.extras(with_facts=False))
        # Nobody may fetch what a reviewer has not let out.
        unkept = b"" if context.held_by is None else _encode({**resource, "store": False})
        if await hold_answer(self._holds, visit, send, unkept):
            return
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
            resource = frames.end(context.usage, frames.extras())
            await self._desk.keep(order, resource)

        try:
            await stream_by(frames, visit, send, heartbeat_s, frames.beginning(), keep)
            if visit.is_gone:
                await self._desk.keep_cut(order, frames, visit.exchange)
        except Exception as error:  # boundary: what breaks an answer off is its last event
            if visit.has_started and visit.is_gone:
                await self._desk.keep_cut(order, frames, visit.exchange)
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
