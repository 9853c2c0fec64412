"""The end of a server: whoever does not read does not hold it up."""

import asyncio
import logging
import socket
from typing import Any

import pytest
import uvicorn
import uvloop

from llmhost.host.connection import Connection
from llmhost.host.serving import Server


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_connection_that_takes_nothing_is_hung_up_on(
    is_finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = {"type": "http.response.body", "body": b"x" * 2**25, "more_body": not is_finished}
        await send({"type": "http.response.start", "status": 200})
        await send(more)
        if not is_finished:
            await send(more)
        ended.append("told")

    async def serve(listener: socket.socket, deaf: socket.socket) -> float:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
        server = Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await loop.sock_sendall(deaf, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await loop.sock_recv(deaf, 1)
        server.hang_up_at(loop.time())
        server.should_exit = True
        began = loop.time()
        await serving
        return loop.time() - began

    with (
        caplog.at_level(logging.WARNING),
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as deaf,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        listener.setblocking(False)
        deaf.setblocking(False)
        took_s = runner.run(serve(listener, deaf))

    assert ended == ["told"]
    assert caplog.records == []
    assert took_s < 3
