"""The shortcut past ASGI's `send`: chunks of the same response, for as long as its client takes them."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import pytest
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from llmhost.api.door import Line, Outflow, line_of
from llmhost.host.connection import Connection
from llmhost.host.serving import Server
from llmhost.host.web_socket import WebSocket

ASK = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
START = {"type": "http.response.start", "status": 200}
HEAD = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n"
ASK_MORE = HEAD + b"hello"
END = {"type": "http.response.body", "body": b"end", "more_body": False}

App = Callable[[Any, Any, Any], Awaitable[None]]
Client = Callable[[socket.socket], Awaitable[None]]


@pytest.fixture
def client_socket() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        listener.setblocking(False)
        client.setblocking(False)
        yield listener, client


def serve(
    sockets: tuple[socket.socket, socket.socket],
    app: App,
    client: Client,
    first: bytes = ASK,
    *,
    ws: Literal["none"] | type[WebSocket] = "none",
) -> None:
    """Serve `app` until `client` is done."""
    listener, connection = sockets

    async def run() -> None:
        config = uvicorn.Config(app, http=Connection, ws=ws, lifespan="off", log_config=None)
        server = Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, first)
        await client(connection)
        server.hang_up_at(loop.time())
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def read_all(connection: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while piece := await loop.sock_recv(connection, 65536):
        data += piece
    return data


def wire(scope: Any) -> Line:
    found = line_of(scope)
    assert found is not None
    return found


def test_what_goes_over_the_wire_is_part_of_the_response(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        wire(scope).write(b"two " * 5)
        await send(END)

    async def client(connection: socket.socket) -> None:
        got.append(await read_all(connection))

    serve(client_socket, app, client)

    body = got[0].partition(b"\r\n\r\n")[2]
    assert body == b"3\r\none\r\n14\r\ntwo two two two two \r\n3\r\nend\r\n0\r\n\r\n"


def test_a_wire_is_free_between_the_beginning_and_the_end(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    free: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        free.append(wire(scope).is_free())
        await send(START)
        free.append(wire(scope).is_free())
        await send(END)
        free.append(wire(scope).is_free())

    async def client(connection: socket.socket) -> None:
        await read_all(connection)

    serve(client_socket, app, client)

    assert free == [False, True, False]


def test_a_pen_writes_what_is_between_and_counts_it_until_the_answer_ends(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    got: list[bytes] = []
    late: list[bytes | None] = []
    outflow = Outflow()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert wire(scope).pen(b"<", b">", str.encode) is None
        await send(START)
        pen = wire(scope).pen(b"<", b">", str.encode, outflow)
        assert pen is not None
        for text in ("one", "", "x" * 2000):
            piece = pen(text)
            assert piece is not None
            wire(scope).write_raw(piece)
        await send(END)
        late.append(pen("late"))

    async def client(connection: socket.socket) -> None:
        got.append(await read_all(connection))

    serve(client_socket, app, client)

    body = got[0].partition(b"\r\n\r\n")[2]
    large = b"7d2\r\n<" + b"x" * 2000 + b">\r\n"
    assert body == b"5\r\n<one>\r\n" + large + b"3\r\nend\r\n0\r\n\r\n"
    assert late == [None]
    assert outflow.sent_bytes == 5 + 2002


def test_a_wire_is_not_free_for_an_answer_of_known_length(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    free: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"content-length", b"3")]})
        free.append(wire(scope).is_free())
        await send(END)

    async def client(connection: socket.socket) -> None:
        await read_all(connection)

    serve(client_socket, app, client)

    assert free == [False]


def test_a_wire_is_not_free_while_its_client_does_not_read_and_bounds_what_waits(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    written: list[int] = []
    blocked = asyncio.Event()
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        pieces = 0
        while wire(scope).is_free():
            wire(scope).write(b"x" * 10_000)
            pieces += 1
            await asyncio.sleep(0)
        written.append(pieces)
        blocked.set()
        await send(END)  # waits for the client

    async def client(connection: socket.socket) -> None:
        await blocked.wait()
        got.append(await read_all(connection))

    serve(client_socket, app, client)

    assert written[0] * 10_000 < 16 * 2**20
    assert got[0].count(b"x" * 10_000) == written[0]
    assert got[0].endswith(b"3\r\nend\r\n0\r\n\r\n")


def test_a_wire_is_not_free_when_its_client_has_left(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    free: list[bool] = []
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        while (await receive())["type"] != "http.disconnect":
            pass
        free.append(wire(scope).is_free())
        ended.set()

    async def client(connection: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(connection, 1)
        connection.close()
        await ended.wait()

    serve(client_socket, app, client)

    assert free == [False]


def test_a_whole_answer_is_written_at_once_and_the_connection_goes_on(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    bodies: list[bytes | None] = []
    written: list[bool] = []
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append(wire(scope).take_body())
        headers = [(b"content-length", b"3")]
        written.append(wire(scope).answer(200, headers, b"one"))
        written.append(wire(scope).answer(200, headers, b"two"))

    async def client(connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            await loop.sock_sendall(connection, ASK_MORE)
            got.append(await loop.sock_recv(connection, 65536))

    serve(client_socket, app, client, first=b"")

    assert bodies == [b"hello", b"hello"]
    assert written == [True, False] * 2
    assert [answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in got] == [True, True]
    assert [answer.endswith(b"\r\ncontent-length: 3\r\n\r\none") for answer in got] == [True, True]


@pytest.mark.parametrize("part", [b"hel", b"hello"])
def test_a_body_is_there_at_once_if_all_of_it_has_come(
    client_socket: tuple[socket.socket, socket.socket], part: bytes
) -> None:
    bodies: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append(wire(scope).take_body())
        await send(START)
        await send(END)

    async def client(connection: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(connection, 65536)

    serve(client_socket, app, client, first=HEAD + part)

    assert bodies == [part if part == b"hello" else None]


@pytest.mark.parametrize("is_watched", [True, False])
def test_who_watches_hears_once_that_the_client_has_left(
    client_socket: tuple[socket.socket, socket.socket], is_watched: bool
) -> None:
    heard: list[str] = []
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert wire(scope).on_gone(lambda: heard.append("gone"))
        if not is_watched:
            wire(scope).on_gone(None)
        await send(START)
        while (await receive())["type"] != "http.disconnect":
            pass
        assert not wire(scope).on_gone(None)
        ended.set()

    async def client(connection: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(connection, 1)
        connection.close()
        await ended.wait()

    serve(client_socket, app, client)

    assert heard == ["gone"] * is_watched


def test_nothing_of_a_response_is_left_when_its_connection_is_closed(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        wire(scope).write(b"one")
        await send(END)

    async def client(connection: socket.socket) -> None:
        await read_all(connection)

    gc.collect()
    gc.disable()
    try:
        serve(client_socket, app, client)
        left = [each for each in gc.get_objects() if type(each) is RequestResponseCycle]
    finally:
        gc.enable()

    assert left == []


def test_a_client_whose_large_body_paused_the_reading_is_seen_to_leave(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    heard = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        wire(scope)._flow.pause_reading()  # type: ignore[attr-defined] - as a last piece of 64 KiB does
        assert wire(scope).on_gone(heard.set)
        await asyncio.wait_for(heard.wait(), 60)

    async def client(connection: socket.socket) -> None:
        await asyncio.sleep(0)
        connection.close()
        await asyncio.wait_for(heard.wait(), 60)

    serve(client_socket, app, client, first=ASK_MORE)


# ------------------------------------------------------------ who takes his time

POST = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"


async def say_ok(scope: Any, receive: Any, send: Any) -> None:
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({**START, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})


@pytest.mark.parametrize(
    ("first", "status"),
    [(b"", None), (b"GET / HT", b"408"), (ASK[:-2], b"408"), (POST + b"x", b"408")],
    ids=["nothing", "line", "headers", "body"],
)
def test_who_sends_too_slowly_is_ended(
    client_socket: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    first: bytes,
    status: bytes | None,
) -> None:
    monkeypatch.setattr("llmhost.host.connection.HEAD_TIMEOUT_S", 0.01)
    monkeypatch.setattr("llmhost.host.connection.BODY_CHECK_S", 0.01)
    got: list[bytes] = []

    async def client(connection: socket.socket) -> None:
        got.append(await read_all(connection))

    serve(client_socket, say_ok, client, first=first)

    assert got[0].split(b" ")[1:2] == ([] if status is None else [status])
    assert (b'"request_timeout"' in got[0]) is (status is not None)


def rings(patch: pytest.MonkeyPatch, name: str) -> "asyncio.Queue[None]":
    """Where each ring of a connection's alarm is told."""
    told: asyncio.Queue[None] = asyncio.Queue()
    ring = getattr(Connection, name)

    def tell(self: Connection) -> None:
        ring(self)
        told.put_nowait(None)

    patch.setattr(Connection, name, tell)
    return told


def test_who_sends_steadily_is_waited_for_however_long_it_takes(
    client_socket: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.host.connection.LEAST_BODY_BYTES", 1)
    monkeypatch.setattr("llmhost.host.connection.BODY_CHECK_S", 0.02)
    looks = rings(monkeypatch, "_look_at_body")
    got: list[bytes] = []

    async def client(connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for left in (3, 2, 1, 0):
            await loop.sock_sendall(connection, b"x" * 25_000)
            if left:
                await looks.get()
        got.append(await loop.sock_recv(connection, 65536))

    serve(client_socket, say_ok, client, first=POST)

    assert got[0].endswith(b"\r\n\r\nok")


def test_a_slow_head_behind_a_running_answer_does_not_end_it(
    client_socket: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.host.connection.HEAD_TIMEOUT_S", 0.01)
    looks = rings(monkeypatch, "_give_up_on_head")
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await looks.get()
        await looks.get()
        await send(END)

    async def client(connection: socket.socket) -> None:
        got.append(await read_all(connection))

    ask = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
    serve(client_socket, app, client, first=ask + b"GET / HT")

    assert b"3\r\nend\r\n0\r\n\r\n" in got[0]
    assert got[0].endswith(b"}")  # and then it hears that it was too slow


def test_a_refusal_is_not_written_into_another_answer(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    got: list[bytes] = []
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def client(connection: socket.socket) -> None:
        await begun.wait()
        await asyncio.get_running_loop().sock_sendall(connection, b"nonsense\r\n\r\n")
        got.append(await read_all(connection))

    serve(client_socket, app, client, first=b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")

    assert got[0].count(b"HTTP/1.1") == 1
    assert b"error" not in got[0]


def test_a_client_that_sends_empty_lines_is_idle(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    idle: list[bool] = []

    async def client(connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        assert (await loop.sock_recv(connection, 65536)).endswith(b"ok")
        (one,) = connections
        await loop.sock_sendall(connection, b"\r\n")
        while one.timeout_keep_alive_task is timers[0]:  # noqa: ASYNC110 - a turn of the loop or two
            await asyncio.sleep(0)
        idle.append(one.timeout_keep_alive_task is not None)

    connections: list[Connection] = []
    timers: list[asyncio.TimerHandle | None] = []
    answered = Connection.on_response_complete

    def note(self: Connection) -> None:
        answered(self)
        connections.append(self)
        timers.append(self.timeout_keep_alive_task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "on_response_complete", note)
        serve(client_socket, say_ok, client, first=b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")

    assert idle == [True]


UPGRADE = b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nUPGRADE: h2c\r\n"
SMUGGLED = b"GET /hidden HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "length", [b"content-length: %d\r\n" % len(SMUGGLED), b"transfer-encoding: chunked\r\n"]
)
def test_the_body_of_a_request_that_offers_another_protocol_is_never_read_as_a_request(
    client_socket: tuple[socket.socket, socket.socket], length: bytes
) -> None:
    """In capitals, or cut in the middle of the name, the offer is not taken out of the head."""
    got: list[bytes] = []
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send(START)
        await send(END)

    async def client(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(connection, SMUGGLED)
        with contextlib.suppress(OSError):
            got.append(await read_all(connection))

    serve(client_socket, app, client, UPGRADE + length + b"\r\n")

    assert "/hidden" not in asked
    assert got[0].startswith(b"HTTP/1.1 400")


def test_an_offer_of_another_protocol_without_a_body_is_answered_as_if_there_were_none(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(END)

    async def client(connection: socket.socket) -> None:
        got.append(await read_all(connection))

    offer = UPGRADE.replace(b"POST", b"GET").replace(b": upgrade", b": upgrade, close")
    serve(client_socket, app, client, offer + b"\r\n")

    assert got[0].startswith(b"HTTP/1.1 200")


def test_what_comes_behind_an_offer_of_another_protocol_is_answered_too(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send(START)
        await send(END)

    async def client(connection: socket.socket) -> None:
        await read_all(connection)

    plain = b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n"
    offers = UPGRADE.replace(b"POST /", b"GET /offer") + b"\r\n"
    serve(client_socket, app, client, plain % b"first" + offers * 3 + SMUGGLED)

    assert asked == ["/first", "/offer", "/offer", "/offer", "/hidden"]


def test_a_socket_does_not_begin_amid_an_answer(
    client_socket: tuple[socket.socket, socket.socket],
) -> None:
    """Its frames would be read as parts of the answer, whose request would not hear that its client is gone."""
    kinds: list[str] = []
    begun = asyncio.Event()
    heard = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kinds.append(scope["type"])
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        begun.set()
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass
        heard.set()

    async def client(connection: socket.socket) -> None:
        await begun.wait()
        await asyncio.get_running_loop().sock_sendall(connection, HANDSHAKE)
        async with asyncio.timeout(60):
            await heard.wait()

    first = ASK.replace(b"connection: close\r\n", b"")
    serve(client_socket, app, client, first, ws=WebSocket)

    assert kinds == ["http"]


HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


@pytest.mark.parametrize(
    "handshake",
    [
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n{}"),
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\n" + b"x-a: b\r\n" * 200 + b"\r\n"),
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\nx-a: " + b"b" * 9_000 + b"\r\n\r\n"),
    ],
    ids=["body", "chunks", "headers", "long"],
)
def test_a_handshake_that_cannot_be_read_is_refused_and_not_waited_for(
    client_socket: tuple[socket.socket, socket.socket], handshake: bytes
) -> None:
    answer = b""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nobody asked")

    async def client(connection: socket.socket) -> None:
        nonlocal answer
        async with asyncio.timeout(60):
            answer = await read_all(connection)

    serve(client_socket, app, client, handshake, ws=WebSocket)

    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert b"WebSocket" in answer


def test_a_handshake_that_is_refused_is_no_error(
    client_socket: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    answer = b""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told = "websocket.http.response"
        await send({"type": f"{told}.start", "status": 404, "headers": []})
        await send({"type": f"{told}.body", "body": b"no", "more_body": False})

    async def client(connection: socket.socket) -> None:
        nonlocal answer
        answer = await read_all(connection)

    serve(client_socket, app, client, HANDSHAKE, ws=WebSocket)

    assert answer.startswith(b"HTTP/1.1 404 ") and answer.endswith(b"no")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
