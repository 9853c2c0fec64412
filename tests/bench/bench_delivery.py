"""What a token costs between the engine's thread and the socket: `python -m tests.bench.bench_delivery`.

A real server with the fake engine at a fixed pace, and streams that are all read by another process. CPU time is read
per thread while all streams run, so neither the beginning of a request nor its end is in the figure.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import httpx
import uvloop

sys.path.append(str(Path(__file__).parents[1] / "http"))  # for server_process.py

from server_process import Node, http_bytes

SETTINGS = """
[models.echo]
engine = "fake"
max_batch_size = {streams}
max_tokens_per_batch = 8192
prefix_cache = false
[models.echo.options]
token_delay_ms = {step_ms}
"""
PROBE_S = 0.25
START_S = 1.5
"""Left out: the beginnings of the streams."""
WORD = b'"delta":{"content":'


class Reader(asyncio.Protocol):
    """Keeps nothing but counts: whoever measures a server must not need more CPU than it."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.writes = 0
        self.events = 0
        self.tail = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.writes += 1
        self.events += data.count(WORD)
        self.tail = data[-40:]
        if b"[DONE]" in self.tail:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self.transport.close()


async def _read(port: int, requests: Sequence[bytes]) -> list[Reader]:
    loop = asyncio.get_running_loop()
    readers = []
    for request in requests:
        _, reader = await loop.create_connection(lambda r=request: Reader(r), "127.0.0.1", port)
        readers.append(reader)
    await asyncio.gather(*(reader.done for reader in readers))
    return readers


def crowd(port: int, requests: list[bytes], ready: Barrier, told: Any) -> None:
    ready.wait()
    readers = uvloop.run(_read(port, requests))
    whole = sum(b"[DONE]" in reader.tail for reader in readers)
    told.put((whole, sum(r.writes for r in readers), sum(r.events for r in readers)))


def thread_s(pid: int) -> dict[int, float]:
    """CPU seconds of each thread so far."""
    spent = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent


def fed(node: Node) -> float:
    return node.metric("llmhost_step_tokens_total")


def measure(args: argparse.Namespace) -> None:
    settings = SETTINGS.format(streams=args.streams, step_ms=args.step_ms)
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder), settings).start()
        try:
            _measure(node, args)
        finally:
            node.close()


def _measure(node: Node, args: argparse.Namespace) -> None:
    tokens = int((args.seconds + START_S + 1) * 1000 / args.step_ms)
    body = {"model": "echo", "max_tokens": tokens, "stream": True}
    requests = []
    for i in range(args.streams):
        asked = {"messages": [{"role": "user", "content": f"voice {i}"}]}
        requests.append(http_bytes("/v1/chat/completions", {**body, **asked}))
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Barrier(2), spawn.Queue()
    child = spawn.Process(target=crowd, args=(node.port, requests, ready, told))
    child.start()
    ready.wait()
    time.sleep(START_S)
    probe = httpx.Client(verify=False)
    fed_before, cpu_before, began = fed(node), thread_s(node.pid), time.perf_counter()
    waits = []
    while time.perf_counter() - began < args.seconds:
        asked_at = time.perf_counter()
        probe.get(f"{node.url}/health")
        waits.append(time.perf_counter() - asked_at)
        time.sleep(PROBE_S)
    cpu, took_s = thread_s(node.pid), time.perf_counter() - began
    made = fed(node) - fed_before
    spent = {tid: cpu[tid] - cpu_before.get(tid, 0.0) for tid in cpu}
    loop_us = 1e6 * spent.pop(node.pid) / made
    engine_us = 1e6 * max(spent.values()) / made
    whole, _, events = told.get(timeout=120)
    child.join()
    p99 = statistics.quantiles(waits, n=100)[98]
    sys.stdout.write(
        f"{args.streams} streams, {args.step_ms} ms a step: {made / took_s:.0f} tokens/s;"
        f" CPU a token: HTTP loop {loop_us:.1f} us, engine thread {engine_us:.1f} us;"
        f" {whole} of {args.streams} whole, {tokens * args.streams / events:.2f} tokens an event;"
        f" /health p50 {1e3 * statistics.median(waits):.1f} ms, p99 {1e3 * p99:.1f} ms\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=12)
    parser.add_argument("--seconds", type=float, default=6)
    measure(parser.parse_args())
