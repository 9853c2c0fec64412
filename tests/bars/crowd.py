"""Many streams at once, read with as little work as can be: bytes are kept and looked at afterwards."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from server_process import http_bytes

LINE_LIMIT = 2**24


@dataclass
class Told:
    """What one stream sent, and when."""

    raw: bytes = b""
    status: int = 0
    request_id: str = ""
    first_s: float = 0.0
    took_s: float = 0.0
    broke: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def events(self) -> list[Any]:
        pieces = b"".join(self.chunks).split(b"\n\n")
        data = [p.removeprefix(b"data: ") for p in pieces if p.startswith(b"data: ")]
        return [d.decode() if d == b"[DONE]" else json.loads(d) for d in data]

    @property
    def is_done(self) -> bool:
        return b"".join(self.chunks[-2:]).endswith(b"data: [DONE]\n\n")

    @property
    def text(self) -> str:
        said = []
        for event in self.events:
            if event != "[DONE]":
                for choice in event["choices"]:
                    said.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
        return "".join(said)

    @property
    def usage(self) -> dict[str, Any]:
        found: dict[str, Any] = self.events[-2]["usage"]
        return found


async def listen(
    port: int, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Told:
    """One stream to its end, or to where the server breaks it off."""
    told, began = Told(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LINE_LIMIT)
    except OSError:
        told.broke = True
        return told
    try:
        writer.write(http_bytes(path, {**body, "stream": True}, headers=headers))
        head = await reader.readuntil(b"\r\n\r\n")
        told.status = int(head.split()[1])
        lines = head.decode("latin-1").split("\r\n")[1:-2]
        told.headers = dict(line.split(": ", 1) for line in lines)
        told.request_id = told.headers.get("x-request-id", "")
        if (length := told.headers.get("content-length")) is not None:  # no stream: a refusal
            told.chunks.append(await reader.readexactly(int(length)))
            return told
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunk = await reader.readexactly(size + 2)
            if not told.chunks:
                told.first_s = time.perf_counter() - began
            told.chunks.append(chunk[:-2])
    except (OSError, asyncio.IncompleteReadError, ValueError):
        told.broke = True
    finally:
        told.took_s = time.perf_counter() - began
        writer.close()
    return told


async def listen_all(
    port: int,
    path: str,
    bodies: Sequence[dict[str, Any]],
    headers: Mapping[str, str] | None = None,
) -> list[Told]:
    return list(await asyncio.gather(*(listen(port, path, body, headers) for body in bodies)))


def crowd(
    port: int,
    path: str,
    bodies: Sequence[dict[str, Any]],
    headers: Mapping[str, str] | None = None,
) -> list[Told]:
    """All of these at once."""
    return asyncio.run(listen_all(port, path, bodies, headers))


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def rss_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def mapped_libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()
