"""POST /v1/chat/completions and /v1/completions as plain ASGI: the hot routes.

A stranger is refused before the body is read. The order on a stream: everything that can be refused is refused before
the headers; headers go out once the request is running, not with the first token; silence is filled with comments;
the end is sent when it has been recorded.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from llmhost.api.bill_facts import bill_facts, bill_headers
from llmhost.api.bodies import ChatBody, CompletionBody, StreamOptions
from llmhost.api.chats.wire import NOTHING_BESIDE, ChatBeside, Wish, beside_of
from llmhost.api.door import (
    ClientGone,
    DisconnectWatch,
    Line,
    SentHeaders,
    Wire,
    is_small,
    read_all,
    send_whole,
    start,
)
from llmhost.api.errors import forget_frames
from llmhost.api.frames import Frames, frames_of, whole_answer
from llmhost.api.gatekeeper import vouch
from llmhost.api.idempotency import HEADER as IDEMPOTENCY_KEY
from llmhost.api.idempotency import Idempotency, call_of, looked_at, pour, start_of
from llmhost.api.known_bodies import KnownBodies
from llmhost.api.loose import read_body
from llmhost.api.moulded_streams import MouldedStreams
from llmhost.api.recording import Playback
from llmhost.api.report import Report, report_of
from llmhost.api.reviews.held import hold_answer, hold_call, read_answer, say_held
from llmhost.api.visit import Visit
from llmhost.api.wire import chat_request, completion_request
from llmhost.core.caller import Caller
from llmhost.core.errors import HeldForReview, LlmhostError, MethodNotAllowed
from llmhost.core.output import Delta, Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.cost.breakdown import NOTHING, cost_object
from llmhost.observe.logs import request_id
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.held import Holds
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.stream import Take
from llmhost.storage.keyed_calls import Call

EVENT_STREAM = "text/event-stream; charset=utf-8"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

INLINE_BYTES = 256 * 1024
"""Larger bodies are decoded and checked in a thread: a few megabytes of token ids take a tenth of a second."""

Parse = Callable[[bytes, str, str | None], tuple[GenerationRequest, Any]]
"""Body, our id, the client's id -> the request, and what its answer must know beside: of generation, what a stream
shall report of usage."""
Respond = Callable[[Visit, Send, float | None, Any], Awaitable[None]]
"""Answers a request that runs, filling silences of so many seconds; its last argument is what `Parse` gave."""
Prepare = Callable[[GenerationRequest, Any, Caller], Awaitable[tuple[GenerationRequest, Any]]]
"""What `Parse` gave, and who asks -> the same, with what the request goes on with."""
Blank = Callable[[], GenerationRequest]
"""A request that says nothing but its ids, to meter by what never became one."""
Asked = tuple[Blank, Mapping[str, str], Caller]
"""What is known before the body: what there is of a request, the headers, and who asks."""


CanHold = Callable[[Any], bool]
"""What `Prepare` or `Parse` gave beside a request -> whether its answer may wait for a reviewer."""
Keep = Callable[[Wish, RequestContext, bytes], Awaitable[None]]
"""Stores a chat with its whole answer."""
Kept = Callable[[RequestContext, bytes], Awaitable[None]]
"""The same for one wish."""
Learn = Callable[[Visit, bytes], None]
"""Told of each whole answer that has gone out."""


def parse_chat(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, ChatBeside]:
    body = read_body(raw, ChatBody)
    return chat_request(body, request_id, client_id), beside_of(body)


def parse_completion(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, ChatBeside]:
    body = read_body(raw, CompletionBody)
    options = body.stream_options
    beside = NOTHING_BESIDE if options is None else ChatBeside(options)
    return completion_request(body, request_id, client_id), beside


def generation_route(  # noqa: PLR0913 - all that a route may do in its own way
    processor: Processor,
    kind: Kind,
    parse: Parse,
    *,
    max_body_bytes: int,
    heartbeat_s: float,
    idempotency: Idempotency,
    respond: Respond | None = None,
    prepare: Prepare | None = None,
    keep: Keep | None = None,
    holds: Holds | None = None,
    can_hold: CanHold | None = None,
    learn: Learn | None = None,
    streams: MouldedStreams | None = None,
) -> ASGIApp:
    """An ASGI app for one route. `respond` answers in another way than generation does; what it writes goes out at
    once, so that only prompts can wait for a reviewer, unless `can_hold` says of which requests answers can."""
    if can_hold is None and respond is None:
        can_hold = _always
    respond = respond or _responder(keep, holds, learn, streams)
    return _Route(
        *(processor, kind, parse, max_body_bytes, heartbeat_s, idempotency, respond, prepare),
        holds=holds,
        can_hold=None if holds is None else can_hold,
        known=None if learn is None else KnownBodies(),
        streams=streams,
    ).call


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class _Route:
    processor: Processor
    kind: Kind
    parse: Parse
    max_body_bytes: int
    heartbeat_s: float
    idempotency: Idempotency
    respond: Respond
    prepare: Prepare | None = None
    holds: Holds | None = None
    can_hold: CanHold | None = None
    """Of which requests answers can wait, too, and not only prompts."""
    known: KnownBodies | None = None
    """What came before; None where a body alone does not say what is asked."""
    streams: MouldedStreams | None = None

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP
        visit = Visit(scope)
        await self._bounded(visit, send, self._serve(visit, receive, send))

    async def _bounded(self, visit: Visit, send: Send, serving: Awaitable[None]) -> None:
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

    async def _serve(self, visit: Visit, receive: Receive, send: Send) -> None:
        scope, blank = visit.scope, partial(visit.blank, self.kind)
        if scope["method"] != "POST":
            refusal = MethodNotAllowed(f"{scope['method']} is not allowed here; use POST.")
            self.processor.turn_away(blank(), refusal)
            raise refusal
        respond = partial(self.respond, visit, send, self.heartbeat_s)
        if self.streams is not None and await self.streams.answers(visit, receive, respond):
            return
        headers = SentHeaders(scope)
        try:
            caller = await self.processor.identify(blank, visit.secret, headers)
            visit.org = caller.org
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

    async def _run(self, visit: Visit, asked: Asked, receive: Receive, send: Send) -> None:
        blank, headers, caller = asked
        request, beside, fault = await self._parsed(visit, receive, blank, caller)
        with DisconnectWatch(receive, visit.leave, visit.line) as is_there:
            if not is_there:
                self.processor.lose(request, caller)
                return
            visit.opening = asyncio.current_task()
            try:
                visit.exchange = await self.processor.open(
                    request, visit.secret, headers, caller=caller, fault=fault
                )
            except HeldForReview as held:
                if self.holds is None:
                    raise
                await hold_call(self.holds, visit, held, caller, headers)
                await say_held(self.holds, visit, send, held.review_id)
                return
            visit.opening = None
            if visit.is_gone:  # at the very moment of acceptance, too late to cancel the opening
                return
            silence_s = None if visit.is_recorded else self.heartbeat_s
            await self.respond(visit, send, silence_s, beside)

    async def _serve_once(self, visit: Visit, asked: Asked, receive: Receive, send: Send) -> None:
        """Answer a call that has an Idempotency-Key, which may have been made before."""
        call, playback = await self._joined(visit, asked, receive)
        try:
            with DisconnectWatch(receive, playback.close, visit.line) as is_there:
                head = await playback.begun() if is_there else None
                if head is not None:
                    self.idempotency.note(playback, call, asked[-1])
                    await send(start_of(playback, call, visit.headers()))
                    visit.has_started = True
                    await pour(playback, send, self.heartbeat_s, visit.dialect.heartbeat)
        finally:
            playback.close()

    async def _joined(self, visit: Visit, asked: Asked, receive: Receive) -> tuple[Call, Playback]:
        blank, _, caller = asked

        async def perform(receive: Receive, send: Send, wire: Wire) -> bool:
            mine = visit.recorded_by(wire)
            await self._bounded(mine, send, self._run(mine, asked, receive, send))
            return not mine.has_failed

        try:
            raw = await read_all(visit.scope, receive, self.max_body_bytes, visit.line)
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

    async def _read(
        self, visit: Visit, raw: bytes, caller: Caller
    ) -> tuple[GenerationRequest, Any]:
        given = (raw, visit.request_id, visit.client_id)
        if len(raw) > INLINE_BYTES:
            return await asyncio.to_thread(self.parse, *given)
        key = None if self.known is None else self.known.key(caller, raw)
        if self.known is None or key is None:
            return self.parse(*given)
        known = self.known.get(key, visit.request_id, visit.client_id)
        if known is None:
            known = self.parse(*given)
            self.known.put(key, raw, *known)
        return known

    async def _parsed(
        self, visit: Visit, receive: Receive, blank: Blank, caller: Caller
    ) -> tuple[GenerationRequest, Any, LlmhostError | None]:
        """The request; or what is wrong with it, and a blank one to meter that by."""
        try:
            raw = await read_all(visit.scope, receive, self.max_body_bytes, visit.line)
            if self.holds is not None:
                visit.raw = raw
            request, beside = await self._read(visit, raw, caller)
            if self.prepare is not None:
                request, beside = await self.prepare(request, beside, caller)
            if self.can_hold is not None and self.can_hold(beside):
                request.let_be_held()
            return visit.wished(request), beside, None
        except LlmhostError as fault:
            return blank(), NOTHING_BESIDE, fault
        except (ClientGone, asyncio.CancelledError):
            self.processor.lose(blank(), caller)
            raise


class Framing(Protocol):
    """Writes one stream."""

    def is_large(self, deltas: Sequence[Delta]) -> bool:
        """Writing the events of these takes so long that others should not wait for it."""
        ...

    def events(self, deltas: Sequence[Delta]) -> bytes: ...

    def last(
        self, usage: Usage, cost: dict[str, Any] | None, facts: dict[str, str] | None
    ) -> bytes: ...


def _responder(
    keep: Keep | None,
    holds: Holds | None,
    learn: Learn | None = None,
    streams: MouldedStreams | None = None,
) -> Respond:
    async def respond(
        visit: Visit, send: Send, heartbeat_s: float | None, beside: ChatBeside
    ) -> None:
        assert visit.exchange is not None
        kept = None if keep is None or beside.wish is None else partial(keep, beside.wish)
        if visit.exchange.context.request.stream:
            await _stream(visit, send, heartbeat_s, beside.options, kept)
            if streams is not None and kept is None:
                streams.learn(visit, beside)
        else:
            await _answer(visit, send, kept, holds, learn)

    return respond


async def _answer(
    visit: Visit, send: Send, keep: Kept | None, holds: Holds | None, learn: Learn | None
) -> None:
    assert visit.exchange is not None
    exchange = visit.exchange
    deltas = await read_answer(visit)
    if deltas is None:
        return
    context = exchange.context
    body = await _whole(context, deltas)
    if await hold_answer(holds, visit, send, body):
        return
    if keep is not None:
        await keep(context, body)
    headers = {**visit.headers(), **bill_headers(context)}
    await send_whole(send, 200, body, headers, line=visit.line)
    if learn is not None and keep is None:
        learn(visit, body)


async def whole_body(exchange: Exchange, _: object) -> bytes:
    """An answer that is not streamed, once it has ended. Raises the error that ended it."""
    return await _whole(exchange.context, await exchange.read_whole())


async def _whole(context: RequestContext, deltas: list[Delta]) -> bytes:
    created_s = context.arrived_utc_ns // 1_000_000_000
    report, cost = _report(context), shown_cost(context)
    facts = (context.request, created_s, deltas, context.usage, report, cost, context.reading)
    if report is not None and report.is_large(deltas):
        return await asyncio.to_thread(whole_answer, *facts)
    return whole_answer(*facts)


async def _stream(
    visit: Visit,
    send: Send,
    heartbeat_s: float | None,
    options: StreamOptions,
    keep: Kept | None,
) -> None:
    assert visit.exchange is not None
    exchange, context = visit.exchange, visit.exchange.context

    async def store() -> None:
        assert keep is not None
        await keep(context, await _whole(context, exchange.told()))

    created_s = context.arrived_utc_ns // 1_000_000_000
    frames = frames_of(
        context.request,
        created_s,
        include_usage=bool(options.include_usage) or context.request.include_cost,
        report=_report(context),
        reading=context.reading,
        prompt_tokens=sum(map(len, context.prompts)) if options.continuous_usage_stats else None,
    )
    await stream_by(frames, visit, send, heartbeat_s, before_last=store if keep else None)


async def stream_by(
    frames: Framing,
    visit: Visit,
    send: Send,
    heartbeat_s: float | None,
    beginning: bytes = b"",
    before_last: Callable[[], Awaitable[None]] | None = None,
    content_type: str = EVENT_STREAM,
) -> None:
    """Stream an answer, with what stands before all of it, and what has to be done before its end is shown."""
    assert visit.exchange is not None
    exchange, context = visit.exchange, visit.exchange.context
    begun = {**STREAM_HEADERS, **visit.headers(), **bill_headers(context, with_cost=False)}
    await start(send, 200, content_type, begun)
    visit.has_started = True
    if beginning:
        await send({"type": "http.response.body", "body": beginning, "more_body": True})
    take = None if visit.wire is None else _taking(visit.wire, visit.line, frames)
    while (deltas := await exchange.read(heartbeat_s, take)) != []:
        if deltas is None:
            body = visit.dialect.heartbeat
        elif frames.is_large(deltas):
            body = await asyncio.to_thread(frames.events, deltas)
        else:
            body = frames.events(deltas)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
    if not visit.is_gone:
        if before_last is not None:
            await before_last()
        last = frames.last(context.usage, shown_cost(context), bill_facts(context))
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _taking(wire: Wire, line: Line | None, frames: Framing) -> Take:
    """What writes events to a wire as they come, past what a whole line can do without."""
    write = partial(_write, wire, frames)
    return write if line is None or type(frames) is not Frames else frames.taking(line, write)


def _write(wire: Wire, frames: Framing, deltas: list[Delta]) -> bool:
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
    return report_of(context.request, context.known_terms, context.tokenizer, context.shown)
