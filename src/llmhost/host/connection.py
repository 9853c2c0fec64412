"""One connection: uvicorn's, and what it lacks. It knows bytes and requests, and nothing of what is asked.

Pipelined requests all hear that their client is gone (uvicorn tells the newest only, so that the one before would go
on for nobody). A head has a size and a time in which it must come. What isn't HTTP is refused in OpenAI's form.
"""

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from llmhost.api.door import WIRE
from llmhost.api.errors import error_body
from llmhost.core.errors import BadRequest
from llmhost.core.ids import new_request_id

MAX_HEAD_BYTES = 128 * 1024
HEAD_TIMEOUT_S = 60.0
"""Without these two, a client could hold a connection for ever, or any amount of memory, with one unending head."""


class Line:
    """The shortcut of `door.Line` past ASGI's `send` and `receive`, which make messages and await for every piece."""

    __slots__ = ("_cycle", "_flow", "_leave", "_write")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = weakref.ref(cycle)  # it has the scope that has this
        self._flow = cycle.flow
        self._write = cycle.transport.write
        self._leave: Callable[[], None] | None = None

    def is_free(self) -> bool:
        cycle = self._cycle()
        return not (
            cycle is None
            or self._flow.write_paused
            or cycle.disconnected
            or cycle.response_complete
            or not cycle.response_started
            or not cycle.chunked_encoding
        )

    def write(self, body: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(body), body))

    def take_body(self) -> bytes | None:
        cycle = self._cycle()
        if cycle is None or cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        self._flow.resume_reading()
        return body

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        cycle = self._cycle()
        if (
            cycle is None
            or self._flow.write_paused
            or cycle.disconnected
            or cycle.response_started
            or not cycle.keep_alive
        ):
            return False
        lines = [b"%b: %b\r\n" % each for each in (*cycle.default_headers, *headers)]
        self._write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return True

    def on_gone(self, leave: Callable[[], None] | None) -> bool:
        self._leave = leave
        # A large body's last piece may have paused the reading, and a paused connection is never seen to close.
        self._flow.resume_reading()
        cycle = self._cycle()
        return cycle is not None and not cycle.disconnected

    def tell_gone(self) -> None:
        if self._leave is not None:
            self._leave()


class Connection(HttpToolsProtocol):
    """A protocol class for uvicorn's `http` setting."""

    _cycles: tuple[tuple[RequestResponseCycle, Line], ...] = ()
    _head_bytes = 0
    _is_in_head = True
    _head_alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_alarm = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_on_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence()
        self._stop_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(
                    f"The request's headers are larger than {MAX_HEAD_BYTES} bytes."
                )
            elif self._head_alarm is None:
                self._head_alarm = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_on_head)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_alarm()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:  # another protocol has the connection from here on
            return
        open_ones = tuple(one for one in self._cycles if not one[0].response_complete)
        line = Line(self.cycle)
        self._cycles = (*open_ones, (self.cycle, line))
        # Its task has not begun, so this is there when the app looks.
        extensions: dict[str, Any] = {WIRE: line}
        self.scope["extensions"] = extensions

    def send_400_response(self, msg: str) -> None:
        """The last thing that this connection says."""
        self._silence()
        body = error_body(BadRequest(msg))
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"x-request-id: {new_request_id()}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _silence(self) -> None:
        """Nothing may be written from here on, and whoever runs for this client hears that it is gone."""
        for cycle, line in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                line.tell_gone()

    def _give_up_on_head(self) -> None:
        self._head_alarm = None
        if self._is_in_head and not self.transport.is_closing():
            self.transport.close()

    def _stop_alarm(self) -> None:
        if self._head_alarm is not None:
            self._head_alarm.cancel()
            self._head_alarm = None
