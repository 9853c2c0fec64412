"""Requests that come again byte for byte on real connections: answered before they are read, and no differently."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
import uvicorn
from tests.unit.api import test_repeated_runs as runs
from tests.unit.api.test_repeats import (
    SETTINGS,
    Answer,
    Asked,
    Plugin,
    audited,
    chat,
    mix,
    node,
    rows,
    short,
)
from tests.unit.pipeline.node import Held, until
from uvicorn.server import ServerState

from llmhost.config.schema.cache import CacheSettings
from llmhost.host.connection import Connection, connection_with
from llmhost.testing import TestHost

KEEP_ALIVE_S = 75


class Pipe(asyncio.Transport):
    """A transport that remembers what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 80)})
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


class Client:
    """One connection to a host."""

    def __init__(self, host: TestHost) -> None:
        config = uvicorn.Config(
            host.host.app.asgi, lifespan="off", log_config=None, timeout_keep_alive=KEEP_ALIVE_S
        )
        config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"now")]
        self.pipe = Pipe()
        self.connection: Connection = connection_with(host.host.repeats)(
            config, self.state, {}, asyncio.get_running_loop()
        )
        self.connection.connection_made(self.pipe)

    async def ask(self, *pieces: bytes) -> Answer:
        self.pipe.written = b""
        for piece in pieces:
            self.connection.data_received(piece)
        await until(lambda: self.answer() is not None)
        answer = self.answer()
        assert answer is not None
        return answer

    def answer(self) -> Answer | None:
        """What was written; None while it is not whole."""
        head, end, body = self.pipe.written.partition(b"\r\n\r\n")
        if not end:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = dict(pair for pair in pairs if pair[0] != "transfer-encoding")
        assert len(headers) == len(set(headers)) and headers.pop("date") == "now"
        length = headers.get("content-length")
        if len(body) < int(length) if length else not body.endswith(b"\r\n0\r\n\r\n"):
            return None
        return Answer(int(first.split()[1]), headers, body)


def raw(asked: Asked) -> bytes:
    body = json.dumps(asked.body).encode()
    sent = {
        "host": "localhost",
        **({"x-llmhost-cache": "on"} if asked.headers is None else asked.headers),
    }
    if asked.key is not None:
        sent["authorization"] = f"Bearer {asked.key}"
    sent["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST {asked.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@pytest.mark.parametrize("factor", ["0", "0.5"])
async def test_a_connection_says_and_writes_down_the_same_as_all_stages(
    factor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(SETTINGS, cache=CacheSettings(price_factor=factor))
    seen = []
    for is_on in (True, False):
        async with node(Plugin(), settings=settings) as host:
            host.host.repeats.is_on = is_on
            client, read = Client(host), list[bytes]()

            async def of(asked: Asked, _: TestHost, client: Client = client) -> Answer:
                return await client.ask(raw(asked))

            def parse(data: bytes, client: Client = client, read: list[bytes] = read) -> None:
                read.append(data)
                Connection._parse(client.connection, data)

            monkeypatch.setattr(Asked, "of", of)
            monkeypatch.setattr(client.connection, "_parse", parse)
            answers = await mix(host)
            said = [each.said for each in answers]
            seen.append((said, rows(host), await audited(host), len(answers) - len(read)))
            assert short(host) == seen[-1][-1]
    (said, written, audit, unread), (said_long, written_long, audit_long, none) = seen

    assert unread > 15 and none == 0
    for one, other in zip(said, said_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long


async def test_a_request_in_pieces_is_another_one_and_takes_the_short_way_as_well() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        assert short(host) == 1
        for _ in range(3):
            await client.ask(data[:40], data[40:])
        assert short(host) == 3
        other = await client.ask(data)
        assert other.cache == "hit" and short(host) == 4


async def test_two_requests_at_once_are_both_answered_in_their_order() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        client.pipe.written = b""
        client.connection.data_received(data + data)
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 2)
        assert client.state.total_requests == 5


async def test_nothing_is_answered_past_a_request_that_is_under_way() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        client.pipe.written = b""
        running = raw(Asked(chat("something else", max_tokens=64), headers={}))
        client.connection.data_received(running)
        client.connection.data_received(data)
        assert client.pipe.written == b""
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 2)
        first, _, second = client.pipe.written[1:].partition(b"HTTP/1.1 200 OK")
        assert b"x-llmhost-cache" not in first and b"x-llmhost-cache: hit" in second


async def test_a_first_request_of_a_connection_is_answered_at_once_and_the_next_head_is_waited_for() -> (
    None
):
    async with node() as host:
        before, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await before.ask(data)
        client = Client(host)
        client.connection.data_received(data)
        answer = client.answer()
        assert answer is not None and answer.cache == "hit"
        assert client.connection._alarm is None
        assert client.connection.timeout_keep_alive_task is not None
        client.connection.data_received(data[:40])
        assert client.connection._alarm is not None
        assert client.connection.timeout_keep_alive_task is None
        assert (await client.ask(data[40:])).cache == "hit"


async def test_a_connection_ends_when_nothing_has_come_since_its_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        late_s = asyncio.get_running_loop().time() + KEEP_ALIVE_S
        monkeypatch.setattr(client.connection, "loop", Later(late_s - 5))
        client.connection.timeout_keep_alive_handler()
        assert not client.pipe.is_closed
        assert 0 < Later.waited_s <= 5
        monkeypatch.setattr(client.connection, "loop", Later(late_s + 5))
        client.connection.timeout_keep_alive_handler()
        assert client.pipe.is_closed


class Later:
    """A loop at a time of its own."""

    waited_s = 0.0

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def time(self) -> float:
        return self._now_s

    def call_later(self, after_s: float, _: object) -> None:
        Later.waited_s = after_s


async def test_a_client_that_does_not_read_is_written_nothing_at_once() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        client.pipe.written = b""
        client.connection.pause_writing()
        client.connection.data_received(data)
        for _ in range(5):
            await asyncio.sleep(0)
        assert client.pipe.written == b""
        client.connection.resume_writing()
        assert (await client.ask()).cache == "hit"


async def test_a_request_that_ends_its_connection_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node() as host:
        closing = Asked(chat(), headers={"x-llmhost-cache": "on", "connection": "close"})
        for _ in range(4):
            client = Client(host)
            answer = await client.ask(raw(closing))
            assert answer.headers["connection"] == "close"
            assert client.pipe.is_closed


async def test_a_shortcut_that_fails_is_told_as_any_failure_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)

        def fail(*_: object) -> None:
            raise ValueError("broken")

        monkeypatch.setattr(host.host.repeats, "_said", fail)
        client.state.default_headers = [(b"date", b"then")]
        client.pipe.written = b""
        client.connection.data_received(data)
        assert client.pipe.written.startswith(b"HTTP/1.1 500 ")
        assert client.pipe.is_closed and "broken" in caplog.text


# ------------------------------------------------------------ requests that run


async def test_what_runs_past_the_parser_says_and_writes_down_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    for is_on in (True, False):
        async with node(runs.Judge(), settings=runs.CHECKED) as host:
            host.host.repeats.is_on = is_on
            client, read = Client(host), list[bytes]()

            async def of(asked: Asked, _: TestHost, client: Client = client) -> Answer:
                return await client.ask(raw(asked))

            def parse(data: bytes, client: Client = client, read: list[bytes] = read) -> None:
                read.append(data)
                Connection._parse(client.connection, data)

            monkeypatch.setattr(Asked, "of", of)
            monkeypatch.setattr(client.connection, "_parse", parse)
            answers = await runs.mix(host)
            said = [each.said for each in answers]
            seen.append((said, rows(host), await audited(host), len(answers) - len(read)))
            assert runs.short(host) + short(host) == seen[-1][-1]
    (said, written, audit, unread), (said_long, written_long, audit_long, none) = seen

    assert unread > 15 and none == 0
    for one, other in zip(said, said_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long


async def held_client(held: Held, host: TestHost) -> tuple[Client, bytes]:
    """A connection whose next request of these bytes runs past the parser, when steps are let go."""
    client, data = Client(host), raw(runs.run())
    held.go()
    for _ in range(2):
        await client.ask(data)
    await runs.settled(host)
    held.stop()
    client.pipe.written = b""
    return client, data


async def test_what_comes_while_one_runs_is_answered_behind_it() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        assert runs.short(host) == 1 and client.connection.timeout_keep_alive_task is not None
        client.connection.timeout_keep_alive_handler()
        assert not client.pipe.is_closed
        client.connection.data_received(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + data)
        assert client.pipe.written == b""
        held.go()
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 3)
        first, second, third = client.pipe.written.split(b"HTTP/1.1 200 OK")[1:]
        assert b"chatcmpl" in first and b"chatcmpl" not in second and b"chatcmpl" in third
        assert runs.short(host) == 1


async def test_a_client_that_sends_much_meanwhile_is_not_read() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        client.connection.data_received(b"\r\n" * 40_000)
        assert client.connection.flow.read_paused
        held.go()
        await until(lambda: b"HTTP/1.1 200 OK" in client.pipe.written)
        assert not client.connection.flow.read_paused


async def test_a_client_that_hangs_up_ends_what_runs_for_it() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        client.pipe.is_closed = True
        client.connection.connection_lost(None)
        await asyncio.sleep(0)
        held.go()
        await runs.settled(host)
        assert client.pipe.written == b""
        assert host.entries()[-1]["outcome"] == "cancelled"


async def test_a_server_that_stops_lets_it_end_and_closes_behind_it() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        client.connection.shutdown()
        assert not client.pipe.is_closed
        held.go()
        await until(lambda: client.pipe.is_closed)
        answer = client.answer()
        assert answer is not None and answer.status == 200
        assert answer.headers["connection"] == "close"
