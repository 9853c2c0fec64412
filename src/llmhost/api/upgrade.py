"""WebSockets on the way through the application: a handshake is a GET like any other until a route accepts it.

So whoever may ask, from which pages and by which names, is checked where it is for every request, and a route that
knows nothing of sockets answers as it always does.
"""

from typing import Any, cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Message, Receive, Scope, Send

from llmhost.api.door import JSON
from llmhost.api.errors import error_body
from llmhost.core.errors import BadRequest

LARGEST_BYTES = 2**20
"""Of an answer to a handshake that is not accepted."""
TOO_LARGE = BadRequest(
    f"This has an answer of more than {LARGEST_BYTES} bytes, and is no place for a WebSocket. Leave out 'Upgrade'."
)
SOCKET = "llmhost.socket"
"""Where a handshake's scope has its `Socket`, among the extensions."""


class Socket:
    """What a route may do with a handshake: accept it, and then speak. One task reads, and one writes."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def accept(self, headers: dict[str, str]) -> None:
        raw = [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()
        ]
        await self._send({"type": "websocket.accept", "subprotocol": None, "headers": raw})

    async def read(self) -> str | bytes | None:
        """The next message; None when the socket is closed."""
        message: Any = await self._receive()
        while message["type"] == "websocket.connect":
            message = await self._receive()
        if message["type"] != "websocket.receive":
            return None
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def write(self, text: bytes) -> None:
        """One message, of text."""
        await self._send({"type": "websocket.send", "text": text.decode(), "bytes": None})

    async def close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


def socket_of(scope: Scope) -> Socket | None:
    extensions: dict[str, Any] = scope.get("extensions") or {}
    return extensions.get(SOCKET)


def with_sockets(app: ASGIApp) -> ASGIApp:
    """`app`, which is asked HTTP only, for handshakes as well."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.WEBSOCKET:
            await app(scope, receive, send)
            return
        extensions: dict[str, Any] = {SOCKET: Socket(receive, send)}
        plain: dict[str, Any] = {**scope, "type": "http", "method": "GET", "extensions": extensions}
        plain["scheme"] = plain["scheme"].replace("ws", "http")
        answer = _Plain(receive, send)
        await app(cast(HTTPScope, plain), answer.receive, answer.send)

    return asked


class _Plain:
    """The answer to a handshake that was not accepted. Servers put it together piece by piece, so they get it whole."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_asked = False
        self._start: dict[str, Any] = {}
        self._body = bytearray()
        self._is_told = False

    async def receive(self) -> HTTPReceiveMessage:
        """No body, once; then the end, when it has come: whoever streams asks for that again and again."""
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while True:
            message: Any = await self._receive()
            if message["type"] == "websocket.disconnect":
                return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._is_told:
            return
        told: dict[str, Any] = {**message}
        if told["type"] == "http.response.start":
            self._start = told
            return
        self._body += told.get("body", b"")
        if len(self._body) > LARGEST_BYTES:
            await self._tell(
                TOO_LARGE.status, [(b"content-type", JSON.encode())], error_body(TOO_LARGE)
            )
        elif not told.get("more_body"):
            await self._tell(self._start["status"], self._start["headers"], bytes(self._body))

    async def _tell(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._is_told = True
        self._body.clear()
        start: Any = {"type": f"{_TOLD}.start", "status": status, "headers": headers}
        rest: Any = {"type": f"{_TOLD}.body", "body": body, "more_body": False}
        await self._send(start)
        await self._send(rest)


_TOLD = "websocket.http.response"
