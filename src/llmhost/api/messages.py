"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's: the same door and stages as OpenAI's routes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from litestar.types import ASGIApp, Send

from llmhost.api.bill_facts import bill_headers
from llmhost.api.calls import calls_of
from llmhost.api.dialect import ANTHROPIC, ANTHROPIC_PATH
from llmhost.api.door import send_whole
from llmhost.api.estimate import counting_route
from llmhost.api.gatekeeper import Identify
from llmhost.api.messages_frames import MessageFrames, whole_message
from llmhost.api.messages_wire import parse_count, parse_messages
from llmhost.api.openai import generation_route, shown_cost, stream_by
from llmhost.api.reviews.held import hold_answer, read_answer
from llmhost.api.visit import Visit
from llmhost.core.caller import Caller
from llmhost.core.output import Delta
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.batches.attempt import LineRoute
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.held import Holds
from llmhost.pipeline.processor import Processor
from llmhost.tenants.refusals import Allowances

COUNT_PATH = f"{ANTHROPIC_PATH}/count_tokens"


def messages_route(processor: Processor, *, holds: Holds | None = None, **limits: Any) -> ASGIApp:
    """An ASGI app for answers."""
    return generation_route(
        processor,
        Kind.CHAT,
        parse_messages,
        respond=partial(_respond, holds),
        holds=holds,
        can_hold=lambda _: True,
        **limits,
    )


def count_route(processor: Processor, identify: Identify, max_body_bytes: int) -> ASGIApp:
    """An ASGI app that counts what a prompt is in the model's tokens."""

    async def count(
        request: GenerationRequest, _: None, headers: Mapping[str, str], caller: Caller
    ) -> tuple[dict[str, Any], Allowances]:
        context = await processor.inquiries.count_tokens(request, headers, caller)
        return {"input_tokens": context.prompt_tokens}, context.allowances

    return counting_route(identify, parse_count, count, max_body_bytes)


async def message_body(exchange: Exchange, _: None) -> bytes:
    """An answer that is not streamed, once it has ended. Raises the error that ended it."""
    return _whole(exchange.context, await exchange.read_whole())


MESSAGES = LineRoute(Kind.CHAT, parse_messages, message_body, error_body=ANTHROPIC.error_body)
"""For calls that wait for a reviewer, and for lines of batches."""


async def _respond(
    holds: Holds | None, visit: Visit, send: Send, heartbeat_s: float | None, _: None
) -> None:
    assert visit.exchange is not None
    context = visit.exchange.context
    request, calls = context.request, calls_of(context.request, context.reading)
    if request.stream:
        frames = MessageFrames(
            request, context.prompt_tokens, calls, is_cramped=_is_cramped(context)
        )
        await stream_by(frames, visit, send, heartbeat_s, frames.beginning())
        return
    deltas = await read_answer(visit)
    if deltas is None:
        return
    body = _whole(context, deltas)
    if await hold_answer(holds, visit, send, body):
        return
    headers = {**visit.headers(), **bill_headers(context)}
    await send_whole(send, 200, body, headers, line=visit.line)


def _whole(context: RequestContext, deltas: list[Delta]) -> bytes:
    return whole_message(
        context.request,
        deltas,
        context.usage,
        calls_of(context.request, context.reading),
        is_cramped=_is_cramped(context),
        cost=shown_cost(context),
    )


def _is_cramped(context: RequestContext) -> bool:
    """The prompt left less room than was asked for."""
    asked = context.request.max_tokens
    return asked is not None and context.max_new_tokens < asked
