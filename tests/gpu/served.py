"""A real `llmhost serve` process, and `llmhost bench` in front of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

sys.path.append(str(Path(__file__).parents[1] / "http"))
from server_process import Node, environment, eventually
from tests.gpu.budget import Budget
from tests.gpu.report import Figure, Report
from tests.gpu.sizes import Sizes

START_S = 90.0
MODEL = "random"
TOKENS_PER_STEP = 4096
FEW, FEW_TOKENS = 4, 32
RATE = 16
CLIENTS = 4
ROUNDS = 4

FIRST_TOKEN = "process to first token"
TTFT, ITL = (f"HTTP, {FEW} streams, short prompts: {what} p50" for what in ("TTFT", "ITL"))
CROWD = "HTTP, full batch"
"""What the figures are called whose floors are found elsewhere; that of the last is the engine without HTTP."""


def measure(
    folder: Path,
    place: Path,
    device: str,
    *,
    vocab: int,
    sizes: Sizes,
    report: Report,
    budget: Budget,
) -> list[Exception]:
    """A server of the model in `folder`, which keeps its data in `place`, from its start to its full load. Returns
    what became of loads that failed; a server that does not start raises."""
    text = _settings_of(folder, device, sizes)
    began = time.perf_counter()
    failures: list[Exception] = []
    with serving(place, text) as node:
        try:
            ready_s, first_s = first_token_s(node, began, budget.within(START_S))
            report.add(Figure(what="process to ready", unit="s", ours=ready_s))
            report.add(Figure(what=FIRST_TOKEN, unit="s", ours=first_s))
            for load in (_few, _arrivals, _crowd):
                try:
                    load(node, vocab, sizes, report, budget)
                except Exception as error:  # noqa: BLE001 - the other loads are worth having
                    report.say(f"  {load.__name__.strip('_')} failed: {str(error)[-900:]}")
                    failures.append(error)
        except BaseException:
            report.say(f"  the server's last words:\n{node.log()[-2000:]}")
            raise
        if failures:
            report.say(f"  the server's last words:\n{node.log()[-2000:]}")
    return failures


def measure_first_start(
    folder: Path, place: Path, device: str, *, sizes: Sizes, report: Report, budget: Budget
) -> None:
    """A server where nothing was ever compiled."""
    began = time.perf_counter()
    nothing = {"TRITON_CACHE_DIR": str(place / "kernels")}
    with (
        mock.patch.dict(os.environ, nothing),
        serving(place, _settings_of(folder, device, sizes)) as node,
    ):
        _, first_s = first_token_s(node, began, budget.within(START_S))
    report.add(Figure(what=f"{FIRST_TOKEN}, kernels compiled too", unit="s", ours=first_s))


def _settings_of(folder: Path, device: str, sizes: Sizes) -> str:
    device = "cuda:0" if device == "cuda" else device
    return settings(folder, device, batch=sizes.crowd, kv_memory=sizes.kv_memory)


def _always(vocab: int) -> tuple[str, ...]:
    return ("--vocab", str(min(2000, vocab)), "--temperature", "1")


def _few(node: Node, vocab: int, sizes: Sizes, report: Report, budget: Budget) -> None:
    few = load_test(
        node,
        *("--concurrency", str(FEW), "--requests", str(sizes.requests), "--warm-up", str(FEW)),
        *("--output-tokens", str(FEW_TOKENS), "--prompt-tokens", str(sizes.short_prompt)),
        *_always(vocab),
        most_s=budget.within(60),
    )
    _latency(report, TTFT, few["ttft_ms"]["p50"], few)
    _latency(report, ITL, few["itl_ms"]["p50"], few)


def _arrivals(node: Node, vocab: int, sizes: Sizes, report: Report, budget: Budget) -> None:
    coming = load_test(
        node,
        *("--rate", str(RATE), "--duration-s", str(sizes.rate_s), *_always(vocab)),
        *("--output-tokens", str(sizes.rate_output), "--prompt-tokens", str(sizes.short_prompt)),
        most_s=budget.within(60),
    )
    p50, p99 = (coming["itl_ms"][share] for share in ("p50", "p99"))
    _latency(report, f"HTTP, {RATE} arrivals/s: ITL p50", p50, coming)
    _latency(report, f"HTTP, {RATE} arrivals/s: ITL p99", p99, coming, f"{p99 / p50:.2f} x p50")


def _crowd(node: Node, vocab: int, sizes: Sizes, report: Report, budget: Budget) -> None:
    most_s = budget.within(90)
    with ThreadPoolExecutor(CLIENTS) as clients:
        parts = clients.map(
            lambda _: _part_of_crowd(node, sizes, _always(vocab), most_s), range(CLIENTS)
        )
        full = list(parts)
    slowest = max(full, key=lambda load: load["seconds"])
    _latency(report, f"{CROWD}: ITL p50", slowest["itl_ms"]["p50"], slowest)
    tokens = sum(load["output_tokens"] for load in full)
    report.add(Figure(what=CROWD, unit="tokens/s", ours=tokens / slowest["seconds"]))


def _part_of_crowd(
    node: Node, sizes: Sizes, always: Sequence[str], most_s: float
) -> dict[str, Any]:
    """One client's share of a full batch, `ROUNDS` times: a single client would be what is measured."""
    share = sizes.crowd // CLIENTS
    return load_test(
        node,
        *("--concurrency", str(share), "--requests", str(ROUNDS * share), *always),
        *("--prompt-tokens", str(sizes.crowd_prompt), "--output-tokens", str(sizes.crowd_output)),
        most_s=most_s,
    )


def _latency(report: Report, what: str, ms: float, load: dict[str, Any], note: str = "") -> None:
    notes = (note, f"{load['requests']}", *load["client"]["notes"])
    report.add(Figure(what=what, unit="ms", ours=ms, note="; ".join(filter(None, notes))))


def settings(folder: Path, device: str, *, batch: int, kv_memory: str, options: str = "") -> str:
    return f"""
[models.{MODEL}]
source = "{folder}"
max_batch_size = {batch}
max_tokens_per_batch = {TOKENS_PER_STEP}
kv_memory = "{kv_memory}"
[models.{MODEL}.options]
device = "{device}"
{options}
[models.{MODEL}.speculation]
method = "off"
"""


@contextmanager
def serving(place: Path, text: str) -> Iterator[Node]:
    """A server process, whether it is ready or not."""
    node = Node(place, text)
    node.http.timeout = httpx.Timeout(START_S)
    try:
        node.spawn()
        yield node
    finally:
        node.close()


def first_token_s(node: Node, began: float, most_s: float) -> tuple[float, float]:
    """Seconds from `began` until the server is ready, and until a first answer's first token."""
    node.wait_announced()
    eventually(node.is_ready, "the server did not become ready", most_s)
    ready_s = time.perf_counter() - began
    body = {
        "model": MODEL,
        "prompt": [300, 301, 302],
        "max_tokens": 4,
        "stream": True,
        "ignore_eos": True,
    }
    with node.http.stream("POST", f"{node.url}/v1/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: "):
                break
    return ready_s, time.perf_counter() - began


def load_test(node: Node, *words: str, most_s: float) -> dict[str, Any]:
    """The report of `llmhost bench`."""
    command = [sys.executable, "-m", "llmhost", "bench", "--json", "--model", MODEL]
    done = subprocess.run(
        [*command, "--ignore-eos", "--data-dir", str(node.data_dir), *words],
        capture_output=True,
        text=True,
        timeout=most_s,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report
