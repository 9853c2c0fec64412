"""POST /v1/chat/completions and /v1/completions as plain ASGI: the hot routes.

A stranger is refused before the body is read. The order on a stream: everything that can be refused is refused before
the headers; headers go out once the request is running, not with the first token; silence is filled with comments;
the end is sent when it has been recorded.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from llmhost.api.bill_facts import bill_facts, bill_headers
from llmhost.api.bodies import ChatBody, CompletionBody, StreamOptions
from llmhost.api.door import (
    ClientGone,
    DisconnectWatch,
    Wire,
    bearer,
    client_id,
    header,
    is_small,
    line_of,
    read_all,
    send_last,
    send_whole,
    start,
)
from llmhost.api.errors import error_body, error_headers, forget_frames, known_error
from llmhost.api.frames import HEARTBEAT, Frames, frames_of, whole_answer
from llmhost.api.gatekeeper import vouch
from llmhost.api.idempotency import HEADER as IDEMPOTENCY_KEY
from llmhost.api.idempotency import Call, Idempotency, call_of, looked_at, pour, start_of
from llmhost.api.limit_headers import limit_headers
from llmhost.api.loose import read_body
from llmhost.api.recording import Playback
from llmhost.api.report import Report, report_of
from llmhost.api.wire import chat_request, completion_request
from llmhost.core.errors import LlmhostError, MethodNotAllowed, RequestTimeout
from llmhost.core.ids import new_request_id
from llmhost.core.output import Delta
from llmhost.core.request import Caller, GenerationRequest, Kind
from llmhost.cost.breakdown import NOTHING, cost_object
from llmhost.observe.logs import request_id
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.processor import Exchange, Processor
from llmhost.tenants.refusals import LimitReached

log = logging.getLogger("llmhost.api")

EVENT_STREAM = "text/event-stream; charset=utf-8"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

INLINE_BYTES = 256 * 1024
"""Larger bodies are decoded and checked in a thread: a few megabytes of token ids take a tenth of a second."""

Parse = Callable[[bytes, str, str | None], tuple[GenerationRequest, Any]]
"""Body, our id, the client's id -> the request, and what its answer must know beside: of generation, what a stream
shall report of usage."""
Respond = Callable[["Visit", Send, Any], Awaitable[None]]
"""Answers a request that runs; its last argument is what `Parse` gave."""
Blank = Callable[[], GenerationRequest]
"""A request that says nothing but its ids, to meter by what never became one."""
Asked = tuple[Blank, dict[str, str], Caller]
"""What is known before the body: what there is of a request, the headers, and who asks."""


NO_OPTIONS = StreamOptions()


def parse_chat(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, StreamOptions]:
    body = read_body(raw, ChatBody)
    return chat_request(body, request_id, client_id), body.stream_options or NO_OPTIONS


def parse_completion(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, StreamOptions]:
    body = read_body(raw, CompletionBody)
    return completion_request(body, request_id, client_id), body.stream_options or NO_OPTIONS


def generation_route(
    processor: Processor,
    kind: Kind,
    parse: Parse,
    *,
    max_body_bytes: int,
    heartbeat_s: float,
    idempotency: Idempotency,
    respond: Respond | None = None,
) -> ASGIApp:
    """An ASGI app for one route. `respond` answers in another way than generation does."""
    return _Route(processor, kind, parse, max_body_bytes, heartbeat_s, idempotency, respond).call


@dataclass(frozen=True, slots=True)
class _Route:
    processor: Processor
    kind: Kind
    parse: Parse
    max_body_bytes: int
    heartbeat_s: float
    idempotency: Idempotency
    respond: Respond | None = None

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP
        visit = Visit(scope)
        await self._bounded(visit, send, self._serve(visit, receive, send))

    async def _bounded(self, visit: "Visit", send: Send, serving: Awaitable[None]) -> None:
        named = request_id.set(visit.request_id)
        try:
            await serving
        except (ClientGone, asyncio.CancelledError) as left:
            is_ours = visit.is_gone or isinstance(left, ClientGone)  # nobody is left to answer
            if not is_ours:
                raise
        except Exception as error:  # noqa: BLE001 - boundary: nothing may leave without a body
            await visit.fail(send, error)
            forget_frames(error)
        finally:
            visit.end()
            request_id.reset(named)  # the next request of a connection may run in the same context

    async def _serve(self, visit: "Visit", receive: Receive, send: Send) -> None:
        scope, blank = visit.scope, partial(visit.blank, self.kind)
        if scope["method"] != "POST":
            refusal = MethodNotAllowed(f"{scope['method']} is not allowed here; use POST.")
            self.processor.turn_away(blank(), refusal)
            raise refusal
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            caller = await self.processor.identify(blank, visit.secret, headers)
        except LlmhostError as error:
            await visit.dismiss(send, receive, error, is_small=is_small(scope))
            forget_frames(error)
            return
        vouch(scope)
        asked = (blank, headers, caller)
        if IDEMPOTENCY_KEY in headers:
            await self._serve_once(visit, asked, receive, send)
        else:
            await self._run(visit, asked, receive, send)

    async def _run(self, visit: "Visit", asked: Asked, receive: Receive, send: Send) -> None:
        blank, headers, caller = asked
        request, beside, fault = await self._parsed(visit, receive, blank, caller)
        with DisconnectWatch(receive, visit.leave, visit.line) as is_there:
            if not is_there:
                self.processor.lose(request, caller)
                return
            visit.opening = asyncio.current_task()
            visit.exchange = await self.processor.open(
                request, visit.secret, headers, caller=caller, fault=fault
            )
            visit.opening = None
            if visit.is_gone:  # at the very moment of acceptance, too late to cancel the opening
                return
            if self.respond is not None:
                await self.respond(visit, send, beside)
            elif request.stream:
                await _stream(visit, send, None if visit.is_recorded else self.heartbeat_s, beside)
            else:
                await _answer(visit, send)

    async def _serve_once(self, visit: "Visit", asked: Asked, receive: Receive, send: Send) -> None:
        """Answer a call that has an Idempotency-Key, which may have been made before."""
        call, playback = await self._joined(visit, asked, receive)
        try:
            with DisconnectWatch(receive, playback.close, visit.line) as is_there:
                head = await playback.begun() if is_there else None
                if head is not None:
                    self.idempotency.note(playback, call, asked[-1])
                    await send(start_of(playback, call, visit.headers()))
                    visit.has_started = True
                    await pour(playback, send, self.heartbeat_s)
        finally:
            playback.close()

    async def _joined(
        self, visit: "Visit", asked: Asked, receive: Receive
    ) -> tuple[Call, Playback]:
        blank, _, caller = asked

        async def perform(receive: Receive, send: Send, wire: Wire) -> bool:
            mine = visit.recorded_by(wire)
            await self._bounded(mine, send, self._run(mine, asked, receive, send))
            return not mine.has_failed

        try:
            raw = await read_all(receive, self.max_body_bytes, visit.line)
            is_large = len(raw) > INLINE_BYTES
            looked = await asyncio.to_thread(looked_at, raw) if is_large else looked_at(raw)
            body_hash, model = looked
            self.processor.check_still(blank(), visit.secret, caller, model)
            call = call_of(visit.scope, caller, body_hash, visit.request_id)
            return call, await self.idempotency.join(call, raw, perform, visit.wire)
        except LlmhostError as error:
            self.processor.turn_away(blank(), error, caller)
            raise
        except (ClientGone, asyncio.CancelledError):
            self.processor.lose(blank(), caller)
            raise

    async def _parsed(
        self, visit: "Visit", receive: Receive, blank: Blank, caller: Caller
    ) -> tuple[GenerationRequest, Any, LlmhostError | None]:
        """The request; or what is wrong with it, and a blank one to meter that by."""
        try:
            raw = await read_all(receive, self.max_body_bytes, visit.line)
            given = (raw, visit.request_id, visit.client_id)
            if len(raw) > INLINE_BYTES:
                request, beside = await asyncio.to_thread(self.parse, *given)
            else:
                request, beside = self.parse(*given)
            if visit.wants_cost:
                request = replace(request, include_cost=True)
            return request, beside, None
        except LlmhostError as fault:
            return blank(), NO_OPTIONS, fault
        except (ClientGone, asyncio.CancelledError):
            self.processor.lose(blank(), caller)
            raise


class Visit:
    """One call of a route, from the connection's side."""

    def __init__(self, scope: HTTPScope) -> None:
        self.scope = scope
        self.started = time.perf_counter()
        self.request_id = new_request_id()
        self.client_id = client_id(scope)
        self.secret = bearer(scope)
        self.line = line_of(scope)
        self.wire: Wire | None = self.line
        self.wants_cost = header(scope, b"x-llmhost-cost") == "breakdown"
        self.exchange: Exchange | None = None
        self.opening: asyncio.Task[Any] | None = None
        """The visit's own task, while it waits to be let in."""
        self.is_gone = False
        self.has_started = False
        self.has_failed = False
        self.is_recorded = False
        """Its answer goes to a recording, which every reader plays with silences and heartbeats of its own."""

    def blank(self, kind: Kind) -> GenerationRequest:
        return GenerationRequest(
            request_id=self.request_id, kind=kind, model="-", client_request_id=self.client_id
        )

    def recorded_by(self, wire: Wire) -> "Visit":
        """The same call, as it is made on nobody's connection."""
        twin = copy(self)
        twin.wire, twin.line, twin.is_recorded = wire, None, True
        return twin

    def leave(self) -> None:
        """The client is gone: nothing more is done for it. Idempotent."""
        self.is_gone = True
        if self.opening is not None:
            self.opening.cancel()
            self.opening = None
        self.end()

    def end(self) -> None:
        """The client has got everything, or is gone. Idempotent."""
        if self.exchange is not None:
            self.exchange.leave()

    def headers(self) -> dict[str, str]:
        elapsed_ms = int((time.perf_counter() - self.started) * 1000)
        headers = {"x-request-id": self.request_id, "openai-processing-ms": str(elapsed_ms)}
        if self.client_id is not None:
            headers["x-client-request-id"] = self.client_id
        if self.exchange is not None:
            headers.update(limit_headers(self.exchange.context.allowances))
        return headers

    async def fail(self, send: Send, error: Exception) -> None:
        """Say what went wrong: as a body, or, once a stream has begun, as its last event without [DONE]."""
        known = known_error(error)
        self.has_failed = True
        if not isinstance(error, LlmhostError):
            log.error("api.failed request=%s", self.request_id, exc_info=error)
        if self.has_started:
            event = b"data: " + error_body(known) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            headers = {**self.headers(), **error_headers(known)}
            if isinstance(known, RequestTimeout):
                headers["connection"] = "close"  # the rest of its body may never come
            if isinstance(known, LimitReached):
                headers.update(limit_headers(known.allowances))
            await send_whole(send, known.status, error_body(known), headers)

    async def dismiss(
        self, send: Send, receive: Receive, error: LlmhostError, *, is_small: bool
    ) -> None:
        """Refuse a request whose body was not read. A large one costs the client its connection."""
        if is_small:
            await self.fail(send, error)
            return
        headers = {**self.headers(), **error_headers(error)}
        await send_last(send, receive, error.status, error_body(error), headers)


async def _answer(visit: Visit, send: Send) -> None:
    assert visit.exchange is not None
    exchange = visit.exchange
    deltas = await exchange.read_whole()
    if visit.is_gone:
        return
    context = exchange.context
    created_s = context.arrived_utc_ns // 1_000_000_000
    report, cost = _report(context), shown_cost(context)
    facts = (context.request, created_s, deltas, context.usage, report, cost, context.reading)
    if report is not None and report.is_large(deltas):
        body = await asyncio.to_thread(whole_answer, *facts)
    else:
        body = whole_answer(*facts)
    headers = {**visit.headers(), **bill_headers(context)}
    await send_whole(send, 200, body, headers, line=visit.line)


async def _stream(
    visit: Visit, send: Send, heartbeat_s: float | None, options: StreamOptions
) -> None:
    assert visit.exchange is not None
    exchange, context = visit.exchange, visit.exchange.context
    created_s = context.arrived_utc_ns // 1_000_000_000
    frames = frames_of(
        context.request,
        created_s,
        include_usage=bool(options.include_usage) or context.request.include_cost,
        report=_report(context),
        reading=context.reading,
        prompt_tokens=sum(map(len, context.prompts)) if options.continuous_usage_stats else None,
    )
    begun = {**STREAM_HEADERS, **visit.headers(), **bill_headers(context, with_cost=False)}
    await start(send, 200, EVENT_STREAM, begun)
    visit.has_started = True
    take = None if visit.wire is None else partial(_write, visit.wire, frames)
    while (deltas := await exchange.read(heartbeat_s, take)) != []:
        if deltas is None:
            body = HEARTBEAT
        elif frames.is_large(deltas):
            body = await asyncio.to_thread(frames.events, deltas)
        else:
            body = frames.events(deltas)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
    if not visit.is_gone:
        last = frames.last(context.usage, shown_cost(context), bill_facts(context))
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _write(wire: Wire, frames: Frames, deltas: list[Delta]) -> bool:
    """Write what came, unless it has to wait for the client or takes so long that others would."""
    if not wire.is_free() or frames.is_large(deltas):
        return False
    if body := frames.events(deltas):
        wire.write(body)
    return True


def shown_cost(context: RequestContext) -> dict[str, Any] | None:
    """What an answer's usage says of its cost: to those who asked, if the operator lets them see it."""
    if not context.request.include_cost or not context.may_see_costs:
        return None
    return cost_object(context.costs or NOTHING, context.usage)


def _report(context: RequestContext) -> Report | None:
    assert context.tokenizer is not None, "a request that runs was resolved"
    shown = () if context.reading is None else context.reading.shown
    return report_of(context.request, context.known_terms, context.tokenizer, shown)
