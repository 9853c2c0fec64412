"""/v1/responses over a WebSocket: `response.create` goes in, the events of a stream come out, one response at a time.

Each message is a request of its own, metered as over HTTP. The last response is held in memory, so that one can go on
with it that is stored nowhere.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from litestar.types import HTTPScope, Send

from llmhost.api.door import Outflow
from llmhost.api.errors import forget_frames, known_error
from llmhost.api.gatekeeper import vouch
from llmhost.api.loose import NULL, Raw, loose, read_body
from llmhost.api.responses.desk import Desk, Order, scope_of
from llmhost.api.responses.events import Events
from llmhost.api.responses.frames import ResponseFrames
from llmhost.api.responses.prepare import prepare_to_run
from llmhost.api.responses.wire import Asked, parse_response, warming
from llmhost.api.upgrade import Socket
from llmhost.api.visit import Visit
from llmhost.core.caller import Caller
from llmhost.core.errors import BadRequest, InvalidValue, LlmhostError, UnsupportedParameter
from llmhost.core.request import GenerationRequest, Kind
from llmhost.observe.logs import request_id
from llmhost.pipeline.processor import Processor

log = logging.getLogger("llmhost.responses")

LONGEST_S = 3600.0
"""Of one socket, as OpenAI's."""
MOST_WAITING = 4
"""Messages that are read while a response runs; then its client is read no further."""
CREATE, STEER = "response.create", "response.steer"
LONGEST_STEER_BYTES = 2**18
GOING_AWAY = 1001
LIMIT = "websocket_connection_limit_reached"

_encode = msgspec.json.encode


class _Message(msgspec.Struct, frozen=True):
    type: str | None = None
    background: bool | None = None
    generate: bool | None = None


class _Steer(msgspec.Struct, frozen=True):
    type: str | None = None
    input: Raw = NULL
    previous_response_id: str | None = None


_UNSTEERED = {
    "type": f"{STEER}.failed",
    "sequence_number": 0,
    "error": {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "A response is not changed while it runs. Send the input with the next 'response.create'.",
    },
}


class Sockets:
    """Answers handshakes."""

    def __init__(self, processor: Processor, desk: Desk, outflow: Outflow | None) -> None:
        self.processor = processor
        self.desk = desk
        self.outflow = outflow

    async def answer(self, scope: HTTPScope, send: Send, socket: Socket) -> None:
        visit = Visit(scope)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            blank = partial(visit.blank, Kind.RESPONSE)
            caller = await self.processor.identify(blank, visit.secret, headers)
            vouch(scope)
        except Exception as error:  # noqa: BLE001 - boundary: nothing may leave without an answer
            await visit.fail(send, error)
            forget_frames(error)
            return
        await socket.accept(visit.headers())
        session = _Session(self, socket, scope, headers, caller)
        with suppress(_Closed):
            await session.run()


class _Closed(Exception):
    """The client is gone."""


class _Session:
    """One socket."""

    def __init__(
        self,
        sockets: Sockets,
        socket: Socket,
        scope: HTTPScope,
        headers: dict[str, str],
        caller: Caller,
    ) -> None:
        self._sockets = sockets
        self._socket = socket
        self._scope = scope
        self._headers = headers
        self._caller = caller
        self._inbox: asyncio.Queue[str | bytes | None] = asyncio.Queue(MOST_WAITING)
        self._visit: Visit | None = None
        """Of the request that runs."""
        self._last: dict[str, list[bytes]] = {}
        """Of the last response, where it is stored nowhere, by its id: all items up to its end."""

    async def run(self) -> None:
        reading = asyncio.create_task(self._read())
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + LONGEST_S
        try:
            while True:
                try:
                    async with asyncio.timeout_at(ends_s):
                        message = await self._inbox.get()
                except TimeoutError:
                    await self._refuse_more()
                    return
                if message is None:
                    return
                await self._answer(message)
        finally:
            reading.cancel()

    async def _read(self) -> None:
        """Messages wait here, so that a client that leaves is noticed while a response runs."""
        while True:
            message = await self._socket.read()
            if message is None and self._visit is not None:
                self._visit.leave()
            await self._inbox.put(message)
            if message is None:
                return

    async def _answer(self, message: str | bytes) -> None:
        if (unsteered := _unsteered(message)) is not None:
            await self._write(unsteered)
            return
        visit = self._visit = Visit(self._scope)
        named = request_id.set(visit.request_id)
        try:
            await self._respond(visit, message)
        except asyncio.CancelledError:
            if not visit.is_gone:
                raise
        except _Closed:
            raise
        except Exception as error:  # boundary: the socket goes on
            self._last.clear()
            known = known_error(error)
            if not isinstance(error, LlmhostError):
                log.error("api.failed request=%s", visit.request_id, exc_info=error)
            await self._write(_encode(_failure(known, visit.request_id)))
            forget_frames(error)
        finally:
            visit.end()
            self._visit = None
            self._sockets.desk.floor.let_go_of_mine()
            request_id.reset(named)

    async def _respond(self, visit: Visit, message: str | bytes) -> None:
        processor = self._sockets.processor
        order: Order | None = None
        fault: LlmhostError | None = None
        visit.opening = asyncio.current_task()
        await self._identify(visit)
        try:
            request, order = await self._read_order(visit, message)
        except LlmhostError as error:
            request, fault = visit.blank(Kind.RESPONSE), error
        exchange = visit.exchange = await processor.open(
            request, visit.secret, self._headers, caller=self._caller, fault=fault
        )
        visit.opening = None
        assert order is not None, "a fault is raised by now"
        frames = ResponseFrames(order.asked, exchange.context, Events(), order.sealer)
        frames.begin()
        await self._tell(frames)
        try:
            while deltas := await exchange.read():
                frames.take(deltas)
                await self._tell(frames)
        except _Closed:
            await self._sockets.desk.keep_cut(order, frames, exchange)
            raise
        except Exception as error:  # boundary: what breaks an answer off is its last event
            known = known_error(error)
            if not isinstance(error, LlmhostError):
                log.error("api.failed request=%s", visit.request_id, exc_info=error)
            frames.say_error(known)
            frames.fail(known)
            forget_frames(error)
        else:
            if visit.is_gone:
                await self._sockets.desk.keep_cut(order, frames, exchange)
                return
            frames.end(exchange.context.usage, frames.extras())
        await self._sockets.desk.keep(order, frames.resource)
        self._remember(order, frames)
        frames.say_end()
        await self._tell(frames)

    async def _identify(self, visit: Visit) -> None:
        """A socket is open for long: who asks may have ended since, or may do something else."""
        blank = partial(visit.blank, Kind.RESPONSE)
        caller = await self._sockets.processor.identify(blank, visit.secret, self._headers)
        if scope_of(caller) != scope_of(self._caller):
            self._last.clear()
        self._caller = caller

    async def _read_order(
        self, visit: Visit, message: str | bytes
    ) -> tuple[GenerationRequest, Order]:
        raw = message.encode() if isinstance(message, str) else message
        asked = (
            await asyncio.to_thread(_parse, raw, visit) if len(raw) > 2**18 else _parse(raw, visit)
        )
        request = replace(asked.request, stream=True)
        sockets = self._sockets
        return await prepare_to_run(
            sockets.processor, sockets.desk, request, asked, self._caller, self._last
        )

    def _remember(self, order: Order, frames: ResponseFrames) -> None:
        """Unless it failed: then the next one begins anew; or is stored, and found there."""
        self._last.clear()
        resource = frames.resource
        if resource["status"] in ("completed", "incomplete") and not resource["store"]:
            output = [_encode(item) for item in resource["output"]]
            said = [item for _, item in order.input]
            self._last[resource["id"]] = [*order.before, *said, *output]

    async def _tell(self, frames: ResponseFrames) -> None:
        for event in frames.fresh():
            await self._write(event.partition(b"\ndata: ")[2].rstrip(b"\n"))

    async def _refuse_more(self) -> None:
        error = InvalidValue(
            "This socket has been open for 60 minutes, which is the limit. Open another one."
        )
        told = _failure(error)
        told["error"]["code"] = LIMIT
        await self._write(_encode(told))
        await self._socket.close(GOING_AWAY, LIMIT)

    async def _write(self, text: bytes) -> None:
        if self._sockets.outflow is not None:
            self._sockets.outflow.sent_bytes += len(text)
        try:
            await self._socket.write(text)
        except Exception as error:  # the server's own, whatever it is called
            if self._visit is not None:
                self._visit.leave()
            raise _Closed from error


def _unsteered(message: str | bytes) -> bytes | None:
    """What tells a client that would change a response while it runs to send its words with the next one."""
    raw = message.encode() if isinstance(message, str) else message
    if STEER.encode() not in raw or len(raw) > LONGEST_STEER_BYTES:
        return None
    with suppress(BadRequest):
        asked = read_body(raw, _Steer)
        words = loose(asked.input, Any, "input")
        if asked.type == STEER and asked.previous_response_id and words:
            told = {"input": words, "previous_response_id": asked.previous_response_id}
            return _encode({**_UNSTEERED, "steer": told})
    return None


def _parse(raw: bytes, visit: Visit) -> Asked:
    """Raises BadRequest."""
    kind = read_body(raw, _Message)
    if kind.type != CREATE:
        raise InvalidValue(f"A message here is of type {CREATE!r}.", param="type")
    if kind.background:
        raise UnsupportedParameter(
            "A response over a socket is its socket's. Ask for one in the background over HTTP.",
            param="background",
        )
    asked = parse_response(raw, visit.request_id, visit.client_id)[1]
    return warming(asked) if kind.generate is False else asked


def _failure(error: LlmhostError, name: str | None = None) -> dict[str, Any]:
    facts = {"type": error.type, "code": error.code, "message": error.message, "param": error.param}
    told: dict[str, Any] = {"type": "error", "status": error.status, "error": facts}
    return told if name is None else {**told, "request_id": name}
