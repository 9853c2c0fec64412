"""One connection: uvicorn's, and what it lacks. It knows bytes and requests, and nothing of what is asked.

Pipelined requests all hear that their client is gone (uvicorn tells the newest only, so that the one before would go
on for nobody). A head has a size, a number of headers, and a time in which it must come; a body may not trickle. What
isn't HTTP is refused in OpenAI's form.

A request that came at once and alone is shown to a `Shortcut` before it is read. What a parser made of its bytes once
it makes of them each time, as long as nothing of another request is under way: so what that answers is never read.
Where it has the request run, what comes meanwhile waits for its answer.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from llmhost.api.door import WIRE, Begun, Leave, Shortcut, Told
from llmhost.api.errors import INTERNAL, error_body
from llmhost.core.errors import BadRequest, HeadersTooLarge, LlmhostError, RequestTimeout
from llmhost.core.ids import new_request_id
from llmhost.host.line import Line

log = logging.getLogger("llmhost.api")

MAX_HEAD_BYTES = 128 * 1024
MAX_HEADERS = 256
HEAD_TIMEOUT_S = 60.0
"""Without these, a client could hold a connection for ever, or any amount of memory, with one unending head."""
BODY_CHECK_S = 60.0
LEAST_BODY_BYTES = 16 * 1024
"""So much of a body that is not complete has to come in that time, or the rest is not waited for."""

GOODBYE_S = 0.1


class Connection(HttpToolsProtocol):
    """A protocol class for uvicorn's `http` setting."""

    shortcut: Shortcut | None = None

    _cycles: tuple[tuple[RequestResponseCycle, Line], ...] = ()
    _head_bytes = 0
    _body_bytes = 0
    """Since the body alarm was set."""
    _is_in_head = True
    _is_in_body = False
    _is_upgraded = False
    """Another protocol has the connection from here on."""
    _fault: LlmhostError | None = None
    _alarm: asyncio.TimerHandle | None = None
    """While a head or a body is incomplete."""
    _begun: Begun | None = None
    _answered_s = float("-inf")
    """When the shortcut has answered, on the loop's clock."""
    _leave: Leave | None = None
    """Of a request that the shortcut has run, or will if it can."""
    _asked: tuple[bytes, bytes] | None = None
    """Its key, and its bytes."""
    _early = b""
    """What has come since that."""
    _is_last = False
    """Nothing is read behind it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_alarm(HEAD_TIMEOUT_S, self._give_up_on_head)
        if self.shortcut is not None:
            is_unix = self.server is not None and self.server[1] is None
            client = None if self.client is None else self.client[0]
            self._begun = self.shortcut.begun(client, is_unix=is_unix)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence()
        self._stop_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._leave is not None:
            self._early += data
            if len(self._early) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            return
        key = self._key(data)
        if key is None:
            self._read(data)
        elif not self._is_answered(key, data):
            self._read_whole(key, data)

    def _read_whole(self, key: bytes, data: bytes) -> None:
        """What may be one whole request, and be learnt from."""
        before = self.cycle
        self._read(data)
        if self.cycle is not before:
            self._note(key, data)

    def _read(self, data: bytes) -> None:
        if not self._is_in_body and b"pgrade:" in data:
            data = _without_upgrade(data)
        self._parse(data)
        if self._is_upgraded or self.transport.is_closing():
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_HEAD_TOO_LARGE)
            elif self._alarm is None:
                self._set_alarm(HEAD_TIMEOUT_S, self._give_up_on_head)
        elif self._is_in_body:
            self._body_bytes += len(data)
            if self._alarm is None:
                self._set_alarm(BODY_CHECK_S, self._look_at_body)
        elif self._is_idle() and self.timeout_keep_alive_task is None:
            # It sent an empty line, which is no request.
            self._wait_for_next(self.timeout_keep_alive)

    def _key(self, data: bytes) -> bytes | None:
        """Of what may be one whole request, where nothing of another one is under way."""
        if (
            self.shortcut is None
            or self._begun is None
            or self._is_in_body
            or (self._is_in_head and self._head_bytes)
            or not self._is_idle()
            or self.flow.write_paused
        ):
            return None
        return self.shortcut.key(self._begun, data)

    def _is_answered(self, key: bytes, data: bytes) -> bool:
        assert self.shortcut is not None and self._begun is not None
        try:
            came, defaults = (self._begun, data), self.server_state.default_headers
            answer = self.shortcut.answer_of(key, came, defaults, self._tell)
        except Exception as error:  # boundary: the API edge, as around a route
            log.error("api.failed why=shortcut", exc_info=error)
            self._refuse(INTERNAL)
            return True
        if answer is None:
            return False
        if isinstance(answer, bytes):
            self._write(answer)
        else:
            self._leave, self._asked = answer, (key, data)
        self._is_in_head = False
        if self._alarm is not None:
            self._stop_alarm()
        if self.timeout_keep_alive_task is None:
            self._wait_for_next(self.timeout_keep_alive)
        return True

    def _write(self, answer: bytes) -> None:
        """Of the shortcut."""
        self.transport.write(answer)
        self.server_state.total_requests += 1
        self._answered_s = self.loop.time()

    def _tell(self, told: Told | None) -> None:
        """What ran has ended, or is to be read; then what came meanwhile is looked at."""
        self._leave, asked, self._asked = None, self._asked, None
        if self.transport.is_closing():
            return
        assert self.shortcut is not None and asked is not None
        if told is None:
            self._read_whole(*asked)
            if self._is_last:
                self.shutdown()
            self._look_at_early()
            return
        if self._is_last:
            told[1]["connection"] = "close"
        self._write(self.shortcut.bytes_of(told, self.server_state.default_headers))
        if self._is_last:
            self.transport.close()
        else:
            self._look_at_early()

    def _look_at_early(self) -> None:
        if self._early:
            early, self._early = self._early, b""
            self.flow.resume_reading()
            self.data_received(early)

    def _note(self, key: bytes, data: bytes) -> None:
        """What came was one whole request, and no more: it may be learnt from what is answered."""
        cycle = self.cycle
        is_whole = not (self._is_in_head or self._is_in_body or self.pipeline or cycle.more_body)
        if is_whole and cycle.keep_alive and self.shortcut is not None and self._begun is not None:
            self.shortcut.note(self.scope["state"], key, (self._begun, data))

    def _wait_for_next(self, for_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(for_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Setting it anew for each answer would cost as much as the answer's writing, so it looks when it rings."""
        self.timeout_keep_alive_task = None
        left_s = self._answered_s + self.timeout_keep_alive - self.loop.time()
        if self._leave is not None:
            self._wait_for_next(self.timeout_keep_alive)
        elif left_s > 0:
            self._wait_for_next(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _parse(self, data: bytes) -> None:
        """As uvicorn does it, but that behind an offer of another protocol that was not taken there are requests."""
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
            except HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            except HttpParserUpgrade as offer:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                data = data[offer.args[0] :]
            else:
                return

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        spoken = getattr(self.transport.get_protocol(), "conn", None)
        if getattr(spoken, "handshake_exc", None) is not None and not self.transport.is_closing():
            # Whoever has the connection now says nothing of it, and would wait for ever.
            self._refuse(_NO_HANDSHAKE)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            self._fault = _TOO_MANY_HEADERS
            raise ValueError("too many headers")  # the parser ends, and so to `send_400_response`
        if [name for name, _ in self.headers].count(b"host") > 1:
            self._fault = (
                _TWO_HOSTS  # whoever stands before this server may have read the other one
            )
            raise ValueError("two hosts")
        if self.parser.should_upgrade() and not self._may_upgrade():
            self._fault = _NO_UPGRADE
            raise ValueError("no upgrade")
        self._stop_alarm()
        if self.url.startswith(b"//"):  # else its first part would be taken for a host
            self.url = b"/" + self.url.lstrip(b"/")
        before = self.cycle
        super().on_headers_complete()  # which raises for a target that is none, and it is a head then still
        self._is_in_head, self._is_in_body = False, True
        if self.cycle is before:
            self._is_upgraded = True
            return
        open_ones = tuple(one for one in self._cycles if not one[0].response_complete)
        line = Line(self.cycle)
        self._cycles = (*open_ones, (self.cycle, line))
        # Its task has not begun, so this is there when the app looks.
        extensions: dict[str, Any] = {WIRE: line}
        self.scope["extensions"] = extensions

    def _may_upgrade(self) -> bool:
        """The parser ends a request that would change the protocol with its head: what comes next would be read as
        another request, and a socket's frames would come amid an answer that is under way."""
        if self._should_upgrade():
            return all(cycle.response_complete for cycle, _ in self._cycles)
        return all(
            name != b"transfer-encoding"
            and (name != b"content-length" or value.strip(b"0 ") == b"")
            for name, value in self.headers
        )

    def on_response_complete(self) -> None:
        for cycle, line in self._cycles:
            line.is_over = line.is_over or cycle.response_complete
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._is_in_body, self._body_bytes = False, 0
        self._stop_alarm()
        super().on_message_complete()

    def shutdown(self) -> None:
        if self._leave is not None:
            self._is_last = True
            return
        super().shutdown()
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            # All is said. Over TLS a client that reads nothing more would be waited for.
            self.loop.call_later(GOODBYE_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._fault or BadRequest(msg))

    def _refuse(self, error: LlmhostError) -> None:
        """The last thing that this connection says."""
        begun = any(c.response_started and not c.response_complete for c, _ in self._cycles)
        begun = begun or (self._is_in_body and self.cycle.response_started)
        self._silence()
        self._stop_alarm()
        if not begun:  # amid another answer it would be read as a part of that
            body = error_body(error)
            head = b"content-type: application/json\r\nconnection: close\r\n"
            ids = f"x-request-id: {new_request_id()}\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(STATUS_LINE[error.status] + head + ids.encode() + body)
        self.transport.close()

    def _silence(self) -> None:
        """Nothing may be written from here on, and whoever runs for this client hears that it is gone."""
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave()
        for cycle, line in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                line.tell_gone()

    def _give_up_on_head(self) -> None:
        self._alarm = None
        if self._is_upgraded or not self._is_in_head or self.transport.is_closing():
            return
        if any(not cycle.response_complete for cycle, _ in self._cycles):
            # An answer is under way, and reading may have paused for it.
            self._set_alarm(HEAD_TIMEOUT_S, self._give_up_on_head)
        elif self._head_bytes:
            self._refuse(_HEAD_TOO_SLOW)
        else:
            self.transport.close()

    def _look_at_body(self) -> None:
        self._alarm = None
        if self.transport.is_closing() or not self._is_in_body:
            return
        is_ours = (
            self.flow.read_paused or len(self._cycles) > 1
        )  # we don't read, or it waits for its turn
        if is_ours or self._body_bytes >= LEAST_BODY_BYTES:
            self._body_bytes = 0
            self._set_alarm(BODY_CHECK_S, self._look_at_body)
        else:
            self._refuse(_BODY_TOO_SLOW)

    def _is_idle(self) -> bool:
        # uvicorn's begins as None, whatever it says of it.
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]

    def _set_alarm(self, after_s: float, ring: Callable[[], None]) -> None:
        self._alarm = self.loop.call_later(after_s, ring)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


_UPGRADE = re.compile(rb"\r\nupgrade:(?![ \t]*websocket)", re.IGNORECASE)


def connection_with(shortcut: Shortcut) -> type[Connection]:
    """Connections that show their requests to a shortcut."""
    return type("Connection", (Connection,), {"shortcut": shortcut})


def _without_upgrade(data: bytes) -> bytes:
    """A head that offers to go on with HTTP/2, as Java's clients write it: the parser would take its body for that."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-upgrade:", head) + end + rest


_HEAD_TOO_LARGE = HeadersTooLarge(
    f"The request's line and headers are larger than {MAX_HEAD_BYTES} bytes, which is all this server takes."
)
_TOO_MANY_HEADERS = HeadersTooLarge(
    f"The request has more than {MAX_HEADERS} headers, which is all this server takes."
)
_TWO_HOSTS = BadRequest("The request has more than one 'Host' header. Send one.")
_NO_UPGRADE = BadRequest(
    "A request that offers another protocol has no body here, and a WebSocket begins when the answers before it have"
    " ended. Leave out 'Upgrade', or use a connection of its own."
)
_NO_HANDSHAKE = BadRequest(
    "A WebSocket begins with a GET that has no body, and at most 128 headers, each of at most 8,190 bytes."
)
_HEAD_TOO_SLOW = RequestTimeout(
    f"The request's headers were not complete after {HEAD_TIMEOUT_S:.0f} seconds. Send it again."
)
_BODY_TOO_SLOW = RequestTimeout(
    f"Of the request's body less than {LEAST_BODY_BYTES} bytes came in {BODY_CHECK_S:.0f} seconds. Send it again."
)
