"""Handshakes for a WebSocket that meet a route which knows nothing of sockets."""

import asyncio
from typing import Any

from litestar import Litestar, get
from litestar.response import Stream

from llmhost.api import upgrade
from llmhost.api.upgrade import with_sockets

SCOPE: Any = {
    "type": "websocket",
    "path": "/pieces",
    "raw_path": b"/pieces",
    "root_path": "",
    "query_string": b"",
    "scheme": "ws",
    "headers": [],
    "state": {},
}


class Handshake:
    """What a server has for a handshake, which ends with the answer to it."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self._heard: asyncio.Queue[Any] = asyncio.Queue()
        self._heard.put_nowait({"type": "websocket.connect"})

    async def receive(self) -> Any:
        return await self._heard.get()

    async def send(self, message: Any) -> None:
        self.told.append(message)
        if message["type"] == "websocket.http.response.body" and not message["more_body"]:
            self._heard.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def of(self, pieces: int, piece: bytes = b"abc") -> tuple[int, bytes]:
        @get("/pieces")
        async def route() -> Stream:
            async def said() -> Any:
                for _ in range(pieces):
                    yield piece
                    await asyncio.sleep(0)

            return Stream(said())

        async with asyncio.timeout(60):
            await with_sockets(Litestar([route]))(SCOPE, self.receive, self.send)
        assert [message["type"] for message in self.told] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        return self.told[0]["status"], self.told[1]["body"]


async def test_an_answer_that_comes_in_pieces_is_given_whole() -> None:
    assert await Handshake().of(3) == (200, b"abcabcabc")


async def test_an_answer_that_is_too_large_for_a_handshake_is_refused() -> None:
    status, body = await Handshake().of(3, b"a" * (upgrade.LARGEST_BYTES // 2))
    assert status == 400
    assert b"WebSocket" in body
