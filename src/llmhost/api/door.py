"""Small ASGI pieces for the hot routes: read a body, write a response, notice that the client is gone."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from llmhost.core.errors import RequestTimeout, RequestTooLarge
from llmhost.pipeline.stream import Piece

JSON = "application/json"
BODY_TIMEOUT_S = 120.0
"""In which a whole body must come: a client that sends a byte now and then holds what it sent no longer."""
LINGER_S = 2.0
"""So long what a refused client still sends is thrown away: closing at once could cost it the answer."""
SMALL_BYTES = 64 * 1024
"""What is left of a body this small is not worth a connection."""

Headers = list[tuple[bytes, bytes]]
Begun = blake2b
"""A hash that more is added to."""

Came = tuple[Begun, bytes]
"""A request as it came, and what its connection has in common with others."""

_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,128}")


WIRE = "llmhost.wire"
"""Where a server that can do it puts a `Line` among a scope's extensions."""


class Wire(Protocol):
    """A shortcut to the socket for the pieces of an answer: without a task, and so without waiting."""

    def is_free(self) -> bool:
        """Whether a piece may be written now: the answer has begun, and its client keeps up."""

    def write(self, body: bytes) -> None:
        """One piece of the body, when `is_free`."""

    def offer(self, body: bytes) -> bool:
        """`write` if `is_free`, in one call: this is done for every token. False, and nothing is written, if not."""


class Line(Wire, Protocol):
    """A whole connection, past ASGI's messages."""

    def take_body(self) -> bytes | None:
        """The request's whole body if all of it has come, which is most often so; once."""

    def peek_body(self) -> bytes | None:
        """The same for one look, and without taking it."""

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """A whole answer in one write; False, and nothing is written, where it has to be sent."""

    write_raw: Callable[[bytes], None]
    """Takes what a pen has made, at once: it is counted as sent."""

    def pen(
        self,
        before: bytes,
        behind: bytes,
        encode: Callable[[str], bytes],
        tally: "Outflow | None" = None,
    ) -> Piece | None:
        """Makes the bytes of pieces that have this before and behind their text. None while the answer has not begun,
        and where it is not sent in pieces."""

    def on_gone(self, leave: Callable[[], None] | None) -> bool:
        """Have `leave` called when the client closes the connection, until this is called with None. False when it
        has done so already."""


class Lines:
    """Headers as text that goes out as it is, for answers that go out in one piece. Nobody asks for one of them."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        """Each of the text's lines has a header and ends."""
        self.text = text

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Lines":
        return cls("".join([f"{name}: {value}\r\n" for name, value in headers.items()]))

    def __setitem__(self, name: str, value: str) -> None:
        """Add one that is not there."""
        self.text += f"{name}: {value}\r\n"

    def items(self) -> list[tuple[str, str]]:
        lines = [line.partition(": ") for line in self.text.split("\r\n")[:-1]]
        return [(name, value) for name, _, value in lines]


Told = tuple[int, Lines, bytes]
"""A whole answer: status, headers, body."""
Tell = Callable[[Told | None], None]
"""Told once; None is of a request that has to take its usual way."""
Leave = Callable[[], None]
"""Called when a client is gone: nothing more is done for it."""


class Shortcut(Protocol):
    """Answers requests that come again byte for byte, or but for what they say, before anything else of them is read. A
    server that has a request whole, as it came, asks with a key of its bytes; whatever is not answered goes on to the
    application."""

    def begun(self, client: str | None, *, is_unix: bool) -> Begun:
        """What the keys of all requests of a connection have in common."""

    def key(self, begun: Begun, data: bytes) -> bytes | None:
        """Of a request; None for one that is never answered."""

    def answer_of(
        self, key: bytes, came: Came, defaults: Headers, tell: Tell
    ) -> bytes | Leave | None:
        """All of the answer's bytes, with the headers that each answer of the server has. Or what ends a request that
        may run: its answer is given to `tell`, later and once, whether or not it was ended; or None, where it goes on
        to the application."""

    def bytes_of(self, told: Told, defaults: Headers) -> bytes:
        """All of such an answer's bytes."""

    def note(self, state: dict[str, Any], key: bytes, came: Came) -> None:
        """The request goes on as a scope with this state, and may be learnt from."""


def line_of(scope: Scope) -> Line | None:
    """None with servers that have none; then all goes through `send`."""
    extensions: dict[str, Any] = scope.get("extensions") or {}
    return extensions.get(WIRE)


def _set_line(scope: Scope, line: Line) -> None:
    extensions: dict[str, Any] = {**(scope.get("extensions") or {}), WIRE: line}
    scope["extensions"] = extensions


def add_by_sending(scope: Scope) -> None:
    """Somebody on the way adds headers to what is sent: a whole answer may not go past it."""
    line = line_of(scope)
    if line is not None:
        _set_line(scope, _PiecesOnly(line))


class _PiecesOnly:
    """A line by which no answer may begin."""

    __slots__ = (
        *("is_free", "offer", "on_gone", "peek_body", "pen"),
        *("take_body", "write", "write_raw"),
    )

    def __init__(self, line: Line) -> None:
        self.is_free, self.write, self.peek_body = line.is_free, line.write, line.peek_body
        self.offer, self.pen, self.write_raw = line.offer, line.pen, line.write_raw
        self.take_body, self.on_gone = line.take_body, line.on_gone

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        return False


class SentHeaders(Mapping[str, str]):
    """A request's headers as text. Each is read when it is asked for, since most requests are asked for hardly any."""

    __slots__ = ("_raw",)

    def __init__(self, scope: Scope) -> None:
        self._raw: dict[bytes, bytes] = dict(scope["headers"])

    def __getitem__(self, name: str) -> str:
        return self._raw[name.encode("latin-1", "replace")].decode("latin-1")

    def get(self, name: str, default: Any = None) -> Any:
        found = self._raw.get(_encoded_name(name))
        return default if found is None else found.decode("latin-1")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.encode("latin-1", "replace") in self._raw

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)


class Outflow:
    """Bytes of answers' bodies that were sent, for those who pay for traffic. On the event loop's thread."""

    __slots__ = ("sent_bytes",)

    def __init__(self) -> None:
        self.sent_bytes = 0

    def around(self, app: ASGIApp) -> ASGIApp:
        """The same app, and what it sends is counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == ScopeType.HTTP:
                send = self._counted(scope, send)
            await app(scope, receive, send)

        return counted

    def _counted(self, scope: Scope, send: Send) -> Send:
        """A `send` that counts, and a scope whose wire, if it has one, does so too."""
        if (line := line_of(scope)) is not None:
            _set_line(scope, _CountedLine(line, self))

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.body":
                self.sent_bytes += len(message.get("body", b""))
            await send(message)

        return send_counted


class _CountedLine:
    """A line whose bytes are counted."""

    __slots__ = (
        *("_line", "_offer", "_outflow", "is_free", "on_gone"),
        *("peek_body", "take_body", "write_raw"),
    )

    def __init__(self, line: Line, outflow: Outflow) -> None:
        self._line = line
        self._offer = line.offer
        self._outflow = outflow
        self.is_free, self.take_body, self.on_gone = line.is_free, line.take_body, line.on_gone
        self.peek_body, self.write_raw = line.peek_body, line.write_raw

    def write(self, body: bytes) -> None:
        self._outflow.sent_bytes += len(body)
        self._line.write(body)

    def offer(self, body: bytes) -> bool:
        is_written = self._offer(body)
        if is_written:
            self._outflow.sent_bytes += len(body)
        return is_written

    def pen(
        self,
        before: bytes,
        behind: bytes,
        encode: Callable[[str], bytes],
        tally: Outflow | None = None,
    ) -> Piece | None:
        assert tally is None, "counted twice"
        return self._line.pen(before, behind, encode, self._outflow)

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        is_written = self._line.answer(status, headers, body)
        if is_written:
            self._outflow.sent_bytes += len(body)
        return is_written


class ClientGone(Exception):
    """The connection closed before the body was complete."""


async def read_all(
    scope: Scope, receive: Receive, limit_bytes: int, line: Line | None = None
) -> bytes:
    """The whole request body; one that is announced as too large is not waited for. Raises RequestTooLarge,
    RequestTimeout, ClientGone."""
    if line is not None and (body := line.take_body()) is not None:
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        return body
    if _announced_bytes(scope) > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_all(receive, limit_bytes)
    except TimeoutError:
        raise RequestTimeout(
            f"The request body was not complete after {BODY_TIMEOUT_S:.0f} seconds. Send it again."
        ) from None


async def _read_all(receive: Receive, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")  # type: ignore[assignment]
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(chunk)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The request body is larger than {limit_bytes} bytes, which is all this server takes."
    )


def is_small(scope: Scope) -> bool:
    """There is no body, or one that is announced as so small that reading past it is cheap."""
    length = header(scope, b"content-length")
    if length is None:
        return header(scope, b"transfer-encoding") is None
    return length.isdecimal() and int(length[:20]) <= SMALL_BYTES


def _announced_bytes(scope: Scope) -> int:
    """Of the body; 0 where nothing is said of it."""
    length = header(scope, b"content-length") or ""
    return int(length[:20]) if length.isdecimal() else 0


async def send_last(
    send: Send, receive: Receive, status: int, body: bytes, headers: Mapping[str, str]
) -> None:
    """Answer a request whose body was not read, and close its connection once the client had time to see why."""
    await start(send, status, JSON, {**headers, "connection": "close"}, len(body))
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


def client_id(scope: Scope) -> str | None:
    """The client's own `x-request-id`, if it is short and printable."""
    sent = header(scope, b"x-request-id")
    return sent if sent and _CLIENT_ID.fullmatch(sent) else None


def bearer(scope: Scope) -> str | None:
    """The secret of `Authorization: Bearer`, or of `x-api-key`."""
    value = header(scope, b"authorization")
    if value is not None:
        kind, _, secret = value.partition(" ")
        return secret.strip() if kind.lower() == "bearer" else value
    return header(scope, b"x-api-key")


async def start(
    send: Send,
    status: int,
    content_type: str,
    headers: Mapping[str, str],
    length: int | None = None,
) -> None:
    raw = _encoded(content_type, headers, length)
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_whole(
    send: Send,
    status: int,
    body: bytes,
    headers: Mapping[str, str] | Lines,
    content_type: str = JSON,
    line: Line | None = None,
) -> None:
    raw = _encoded(content_type, headers, len(body))
    if line is None or not line.answer(status, raw, body):
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _encoded(content_type: str, headers: Mapping[str, str] | Lines, length: int | None) -> Headers:
    raw = [(b"content-type", content_type.encode())]
    if length is not None:
        raw.append((b"content-length", b"%d" % length))
    raw += [
        (_encoded_name(name), value.encode("latin-1", "replace")) for name, value in headers.items()
    ]
    return raw


@lru_cache(256)
def _encoded_name(name: str) -> bytes:
    return name.encode("latin-1", "replace")


class DisconnectWatch:
    """Calls `leave` once when the client closes the connection; costs nothing while it stays."""

    def __init__(
        self, receive: Receive, leave: Callable[[], None], line: Line | None = None
    ) -> None:
        self._receive = receive
        self._leave = leave
        self._line = line
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> bool:
        """False when it is known that the client has left already."""
        if self._line is not None:
            return self._line.on_gone(self._leave)
        self._task = asyncio.create_task(self._watch())
        return True

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.on_gone(None)
        if self._task is not None:
            self._task.cancel()
            self._task = None  # its end refers to its frame, which refers to this

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()
