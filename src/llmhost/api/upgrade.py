"""WebSockets on the way through the application: a handshake is a GET like any other until a route accepts it.

So whoever may ask, from which pages and by which names, is checked where it is for every request, and a route that
knows nothing of sockets answers as it always does.
"""

from typing import Any, cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Message, Receive, Scope, Send

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
        await app(cast(HTTPScope, plain), _nothing, _refusing(send))

    return asked


async def _nothing() -> HTTPReceiveMessage:
    """A handshake has no body."""
    return {"type": "http.request", "body": b"", "more_body": False}


def _refusing(send: Send) -> Send:
    """An answer to a handshake that was not accepted."""

    async def refuse(message: Message) -> None:
        told: Any = {**message, "type": f"websocket.{message['type']}"}
        await send(told)

    return refuse
