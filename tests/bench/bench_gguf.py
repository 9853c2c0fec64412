"""GGUF through HTTP, ours against llama-server's: `python tests/bench/bench_gguf.py --llama-server PATH`.

Build llama-server from the source archive of the llama-cpp-python release that is installed. Both get the same file,
threads and requests, in turn, and pairs are compared: what else runs on the machine hits both. CPU seconds per 1,000
tokens are shown beside, which it hits less. One load alone: `--only-shared --types Q8_0 --pairs 1`. A signal ends the
servers, too.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
from gguf_model import bench_model

sys.path.append(str(Path(__file__).parents[1] / "http"))  # for server_process.py

from server_process import Node, eventually

OUT_TOKENS, PROMPT_LETTERS, SHARED_LETTERS = 32, 80, 1000
"""A token is about two letters."""
LONG_LETTERS, TALK_LETTERS = 4000, 3000
AMID_STREAMS, AMID_TOKENS, LONG_PROMPTS = 8, 64, 2
ROOM_TOKENS = 1024
"""For one stream."""
LONG_ROOM_TOKENS, LONG_ROWS = 4096, 12
"""For long prompts amid streams, and conversations."""


@dataclass(frozen=True)
class Measured:
    tokens_per_s: float
    ttft_ms: float
    itl_p99_ms: float
    cpu_s: float
    """For 1,000 tokens."""


@contextmanager
def ours(
    folder: Path, model: Path, threads: int, streams: int, room_tokens: int = ROOM_TOKENS
) -> Iterator[tuple[str, psutil.Process]]:
    settings = f"""
[models.bench]
source = "{model}"
max_batch_size = {streams}
max_tokens_per_batch = 2048
max_sequence_length = {room_tokens}
options = {{ threads = {threads} }}
"""
    node = Node(folder / "ours", settings)
    try:
        node.start()
        assert node.process is not None
        yield node.url, psutil.Process(node.process.pid)
    finally:
        node.close()


@contextmanager
def theirs(
    program: str,
    folder: Path,
    model: Path,
    threads: int,
    streams: int,
    room_tokens: int = ROOM_TOKENS,
) -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    flags = [
        "-m",
        model,
        "--port",
        port,
        "-t",
        threads,
        "-tb",
        threads,
        "-np",
        streams,
        "-c",
        streams * room_tokens,
    ]
    process: subprocess.Popen[bytes] | None = None
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        with (folder / "theirs.log").open("wb") as log:
            process = subprocess.Popen([program, *map(str, flags)], stdout=log, stderr=log)
        eventually(is_ready, "llama-server did not become ready", within_s=120)
        yield url, psutil.Process(process.pid)
    finally:
        if process is not None:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_servers_when_stopped() -> None:
    """A signal ends this program by way of every `finally`, so that no server is left running."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


def letters(source: random.Random, length: int) -> str:
    return "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=length))


def prompts(count: int, shared: bool, seed: int) -> list[str]:
    source = random.Random(seed)
    before = letters(source, SHARED_LETTERS) if shared else ""
    return [before + letters(source, PROMPT_LETTERS) for _ in range(count)]


async def ask(
    client: httpx.AsyncClient, url: str, text: str, times: list[list[float]], most: int = OUT_TOKENS
) -> dict[str, Any]:
    """Stream an answer; when its pieces came goes to `times`. Returns its usage."""
    body = {
        "model": "bench",
        "prompt": text,
        "max_tokens": most,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, seen, usage = time.perf_counter(), [], {}
    async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices") and event["choices"][0].get("text"):
                seen.append(time.perf_counter() - began)
            usage = event.get("usage") or usage
    times.append(seen)
    return usage


async def long_prompts_amid_streams(server: tuple[str, psutil.Process], seed: int) -> float:
    """The 99th percentile of milliseconds between tokens of streams, while long prompts arrive."""
    times: list[list[float]] = []
    source = random.Random(seed)
    texts = [letters(source, PROMPT_LETTERS) for _ in range(AMID_STREAMS)]
    long = [letters(source, LONG_LETTERS) for _ in range(LONG_PROMPTS)]
    async with httpx.AsyncClient(timeout=900) as client:
        running = [
            asyncio.create_task(ask(client, server[0], text, times, AMID_TOKENS)) for text in texts
        ]
        await asyncio.sleep(1.0)
        await asyncio.gather(*running, *(ask(client, server[0], text, [], 2) for text in long))
    gaps = sorted(b - a for seen in times for a, b in pairwise(seen))
    return 1e3 * gaps[int(0.99 * (len(gaps) - 1))]


async def next_turn(server: tuple[str, psutil.Process], seed: int) -> tuple[float, float, int]:
    """TTFT of a conversation and of its next turn in milliseconds, and that turn's cached tokens."""
    times: list[list[float]] = []
    source = random.Random(seed)
    talk, turn = letters(source, TALK_LETTERS), letters(source, PROMPT_LETTERS)
    async with httpx.AsyncClient(timeout=900) as client:
        await ask(client, server[0], talk, times, 2)
        usage = await ask(client, server[0], talk + turn, times, 2)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return 1e3 * times[0][0], 1e3 * times[1][0], cached


async def measure(server: tuple[str, psutil.Process], texts: list[str]) -> Measured:
    url, process = server
    times: list[list[float]] = []
    cpu, began = sum(process.cpu_times()[:2]), time.perf_counter()
    limits = httpx.Limits(max_connections=len(texts))
    async with httpx.AsyncClient(timeout=900, limits=limits) as client:
        usages = await asyncio.gather(*(ask(client, url, text, times) for text in texts))
    tokens = sum(usage["completion_tokens"] for usage in usages)
    took_s, used_s = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu
    gaps = sorted(b - a for seen in times for a, b in pairwise(seen)) or [0.0]
    return Measured(
        tokens / took_s,
        1e3 * statistics.median(seen[0] for seen in times if seen),
        1e3 * gaps[int(0.99 * (len(gaps) - 1))],
        1e3 * used_s / max(tokens, 1),
    )


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def show(name: str, pairs: list[tuple[Measured, Measured]]) -> None:
    for what in ("tokens_per_s", "ttft_ms", "itl_p99_ms", "cpu_s"):
        mine, other = ([getattr(pair[side], what) for pair in pairs] for side in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True) if b)
        say(
            f"{name:24} {what:13} ours {statistics.median(mine):9.1f}"
            f"   llama-server {statistics.median(other):9.1f}   ratio {ratio:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-server", default=shutil.which("llama-server"))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "llmhost-gguf-bench"
    )
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "Q8_0"])
    parser.add_argument("--streams", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--shared", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--long", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--only-shared", action="store_true", help="only streams that share a system prompt"
    )
    asked = parser.parse_args()
    end_servers_when_stopped()
    if asked.llama_server is None:
        say("There is no llama-server to compare with: --llama-server PATH.")
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    for kind in asked.types:
        model = bench_model(asked.folder, kind)
        if asked.streams:
            many_streams(kind, model, asked)
        if asked.long and not asked.only_shared:
            long_texts(kind, model, asked)


@contextmanager
def both(
    model: Path, asked: argparse.Namespace, streams: int, room_tokens: int
) -> Iterator[tuple[tuple[str, psutil.Process], tuple[str, psutil.Process]]]:
    with (
        tempfile.TemporaryDirectory() as place,
        ours(Path(place), model, asked.threads, streams, room_tokens) as mine,
        theirs(
            asked.llama_server, Path(place), model, asked.threads, streams, room_tokens
        ) as other,
    ):
        yield mine, other


def many_streams(kind: str, model: Path, asked: argparse.Namespace) -> None:
    most, alone = max(asked.streams), [] if asked.only_shared else asked.streams
    loads = [(f"{kind} {count} streams", count, False) for count in alone]
    if asked.shared or asked.only_shared:
        loads.append((f"{kind} {most} shared prefix", most, True))
    with both(model, asked, most, ROOM_TOKENS) as servers:
        for name, count, shared in loads:
            pairs = []
            for turn in range(asked.pairs):
                texts = prompts(count, shared, 1000 * turn + count)
                pairs.append(tuple(asyncio.run(measure(one, texts)) for one in servers))
            show(name, pairs)


def long_texts(kind: str, model: Path, asked: argparse.Namespace) -> None:
    with both(model, asked, LONG_ROWS, LONG_ROOM_TOKENS) as servers:
        for turn in range(asked.pairs):
            gaps = [asyncio.run(long_prompts_amid_streams(one, turn)) for one in servers]
            say(f"{kind} long prompts amid {AMID_STREAMS} streams: ITL p99 {gaps} ms")
            for name, one in zip(("ours", "llama-server"), servers, strict=True):
                cold, warm, cached = asyncio.run(next_turn(one, turn))
                say(
                    f"{kind} next turn of a conversation, {name}: TTFT {cold:.0f} then {warm:.0f} ms,"
                    f" {cached} cached tokens"
                )


if __name__ == "__main__":
    main()
