"""Load on a server from a core of its own: wrk where it is installed, else connections of a Python process.

Both keep a number of connections busy: each asks again as soon as it has its answer. A body that holds `NUMBER` is
another one each time.
"""

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

NUMBER = "@number@@"
"""Stands for a number of as many digits."""

SCRIPT = """
wrk.method = "POST"
wrk.body = {body}
{headers}
{request}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{{"requests":%d,"us":%d,"bytes":%d,"errors":%d,"p50_us":%d,"p99_us":%d}}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


EACH = """
local n, before, behind = math.random(100000000), {before}, {behind}
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil, before .. string.format("%09d", n) .. behind)
end
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What a run of load has seen."""

    requests: int
    seconds: float
    received_bytes: int
    errors: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def load(
    url: str,
    headers: dict[str, str],
    body: dict[str, Any],
    *,
    connections: int,
    seconds: float,
    core: int | None,
    folder: Path,
) -> Told:
    """Keep a server busy for so long."""
    raw = json.dumps(body, separators=(",", ":"))
    sent = {"content-type": "application/json", **headers}
    if has_wrk():
        return _wrk(url, sent, raw, connections, seconds, core, folder)
    return _python(url, sent, raw, connections, seconds, core)


def _wrk(
    url: str,
    headers: dict[str, str],
    body: str,
    connections: int,
    seconds: float,
    core: int | None,
    folder: Path,
) -> Told:
    lines = "\n".join(f"wrk.headers[{_lua(k)}] = {_lua(v)}" for k, v in headers.items())
    script = folder / "load.lua"
    before, number, behind = body.partition(NUMBER)
    each = EACH.format(before=_lua(before), behind=_lua(behind)) if number else ""
    script.write_text(SCRIPT.format(body=_lua(body), headers=lines, request=each))
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    command = [*pinned, "wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s"]
    told = subprocess.run(
        [*command, "--timeout", "60s", "--latency", "-s", str(script), url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    said = json.loads(told[-1])
    return Told(
        said["requests"],
        said["us"] / 1e6,
        said["bytes"],
        said["errors"],
        said["p50_us"] / 1e3,
        said["p99_us"] / 1e3,
    )


def _lua(text: str) -> str:
    """A string of Lua, which has JSON's escapes for what is printable ASCII."""
    return json.dumps(text)


class _Asker(asyncio.Protocol):
    """One connection. An answer ends with its announced length, or with the chunk of no bytes."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request = request
        self._number = random.randrange(10**8)
        self._until = until
        self._left: int | None = None
        self._asked = 0.0
        self.times: list[float] = []
        self.received = 0
        self.errors = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._left, self._asked = None, time.perf_counter()
        self._number += 1
        mine = self._request.replace(NUMBER.encode(), b"%09d" % self._number)
        self._transport.write(mine)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._left is None:
            head, _, rest = data.partition(b"\r\n\r\n")
            self.errors += b" 200 " not in head[:16]
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._left = int(length) if length else -1
            data = rest
        if self._left >= 0:
            self._left -= len(data)
        if self._left == 0 or (self._left < 0 and data.endswith(b"\r\n0\r\n\r\n")):
            now = time.perf_counter()
            self.times.append(now - self._asked)
            if now < self._until:
                self._ask()
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _ask_all(port: int, request: bytes, connections: int, seconds: float) -> Told:
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    until = began + seconds
    pairs = [
        await loop.create_connection(lambda: _Asker(request, until), "127.0.0.1", port)
        for _ in range(connections)
    ]
    askers = [asker for _, asker in pairs]
    await asyncio.gather(*(asker.done for asker in askers))
    times = sorted(each for asker in askers for each in asker.times)
    return Told(
        len(times),
        time.perf_counter() - began,
        sum(asker.received for asker in askers),
        sum(asker.errors for asker in askers),
        1e3 * times[len(times) // 2],
        1e3 * times[int(0.99 * len(times))],
    )


def _child(
    told: Any, core: int | None, port: int, request: bytes, connections: int, seconds: float
) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    told.put(uvloop.run(_ask_all(port, request, connections, seconds)))


def _python(
    url: str,
    headers: dict[str, str],
    body: str,
    connections: int,
    seconds: float,
    core: int | None,
) -> Told:
    parts = urlsplit(url)
    lines = {"host": "127.0.0.1", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"POST {parts.path} HTTP/1.1\r\n{head}\r\n{body}".encode()
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    child = spawn.Process(
        target=_child, args=(told, core, parts.port, request, connections, seconds)
    )
    child.start()
    said: Told = told.get(timeout=seconds + 120)
    child.join()
    return said
