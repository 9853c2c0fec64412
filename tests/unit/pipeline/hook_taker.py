"""A server of one route that takes webhooks, or refuses them as it is told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Taker:
    url: str = ""
    statuses: list[str] = field(default_factory=list)
    """What is answered to the next posts; then 204."""
    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Headers and body of each that was answered with a 2xx."""
    seen: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")[1:-2]
        headers = dict(line.split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers["content-length"]))
        status = self.statuses.pop(0) if self.statuses else "204 No Content"
        self.seen += 1
        if status.startswith("2"):
            self.taken.append((headers, body))
        self.news.set()
        if status == "hang":
            await reader.read()  # until whoever asks has gone
        else:
            writer.write(f"HTTP/1.1 {status}\r\nlocation: {self.url}\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    async def until(self, count: int, *, tries: bool = False) -> None:
        """So many were taken, or tried."""
        async with asyncio.timeout(60):
            while (self.seen if tries else len(self.taken)) < count:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def taker(*statuses: str) -> AsyncIterator[Taker]:
    one = Taker(statuses=list(statuses))
    server = await asyncio.start_server(one.answer, "127.0.0.1", 0)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=b"
    try:
        yield one
    finally:
        server.close()
        await server.wait_closed()
