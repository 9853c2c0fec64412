"""What a token costs between the engine's thread and the socket: `python -m tests.bench.bench_delivery`.

A real server with the fake engine at a fixed pace, and streams that are all read by another process. CPU time is read
per thread while all streams run, so neither the beginning of a request nor its end is in the figure. Beside it, how
fast the same engine is in this process when nobody is told what it says. With another checkout's `src` first in
PYTHONPATH that one is measured.
"""

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import uvloop
from msgspec import structs

sys.path.append(str(Path(__file__).parents[1] / "http"))  # for server_process.py

from server_process import Node, http_bytes

from llmhost.config.schema.models import ModelSpec
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.testing import make_host

SETTINGS = """
[models.echo]
engine = "fake"
max_batch_size = {streams}
max_tokens_per_batch = 8192
prefix_cache = false
[models.echo.options]
token_delay_ms = {step_ms}
"""
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


def lags(node: Node) -> dict[float, float]:
    """How often the loop was late by no more than so many seconds. Empty for servers that don't say."""
    found = {}
    for line in node.get("/metrics").text.splitlines():
        if line.startswith("llmhost_loop_lag_seconds_bucket"):
            label, count = line.rsplit(" ", 1)
            found[float(label.split('"')[1])] = float(count)
    return found


def lag_p99_ms(before: dict[float, float], after: dict[float, float]) -> str:
    fresh = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    most = max(fresh.values(), default=0.0)
    bound = next((b for b, count in sorted(fresh.items()) if count >= 0.99 * most), None)
    return "not told" if bound is None else f"up to {1e3 * bound:g} ms"


def measure(args: argparse.Namespace) -> None:
    alone = asyncio.run(in_process(args))
    sys.stdout.write(f"in process: {alone:.0f} tokens/s\n")
    settings = SETTINGS.format(streams=args.streams, step_ms=args.step_ms)
    if args.write_share is not None:
        settings += f"[server]\nwrite_share = {args.write_share}\n"
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder), settings).start()
        try:
            _measure(node, args, alone)
        finally:
            node.close()


async def in_process(args: argparse.Namespace) -> float:
    """Tokens/s of the engine alone."""
    options = {"token_delay_ms": args.step_ms}
    batch = {"max_batch_size": args.streams, "max_tokens_per_batch": 8192}
    model = ModelSpec(engine="fake", prefix_cache=False, options=options, **batch)
    spec = SequenceSpec(
        request_id="req",
        index=0,
        model=ModelRef("fake", 1),
        prompt=tuple(range(10)),
        sampling=Sampling(temperature=0.0),
        seed=0,
        max_new_tokens=10**5,
        arrival_ns=0,
    )
    async with make_host(models={"fake": model}) as host:
        [deployment] = host.host.deployments.all()
        engine, told = deployment.replicas[0].engine, 0

        def count(_: object) -> None:
            nonlocal told
            told += 1

        for index in range(args.streams):
            engine.submit(structs.replace(spec, arrival_ns=index), count)
        await asyncio.sleep(1)
        before, began = told, time.perf_counter()
        await asyncio.sleep(args.seconds / 2)
        rate = (told - before) / (time.perf_counter() - began)
        await engine.stop()
    return rate


def _measure(node: Node, args: argparse.Namespace, alone: float) -> None:
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
    late, fed = lags(node), node.metric("llmhost_step_tokens_total")
    cpu, began = thread_s(node.pid), time.perf_counter()
    time.sleep(args.seconds)
    made = node.metric("llmhost_step_tokens_total") - fed
    spent = {tid: used - cpu.get(tid, 0.0) for tid, used in thread_s(node.pid).items()}
    rate, lag = made / (time.perf_counter() - began), lag_p99_ms(late, lags(node))
    loop_us = 1e6 * spent.pop(node.pid) / made
    engine_us = 1e6 * max(spent.values()) / made
    whole, _, events = told.get(timeout=300)
    child.join()
    sys.stdout.write(
        f"{args.streams} streams, {args.step_ms:g} ms a step: {rate:.0f} tokens/s"
        f" ({rate / alone:.0%} of the engine alone);"
        f" CPU a token: HTTP loop {loop_us:.1f} us, engine thread {engine_us:.1f} us;"
        f" {tokens * args.streams / events:.2f} tokens an event; the loop is late by {lag} (p99);"
        f" {whole} of {args.streams} whole\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=12)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument(
        "--write-share", type=float, help="of [server]; 1 joins as little as can be"
    )
    measure(parser.parse_args())
