"""A real `llmhost serve` process, and `llmhost bench` in front of it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1] / "http"))
from server_process import Node, environment, eventually

START_S = 90.0
MODEL = "random"


def settings(folder: Path, device: str, *, batch: int, kv_memory: str, options: str = "") -> str:
    return f"""
[models.{MODEL}]
source = "{folder}"
max_batch_size = {batch}
max_tokens_per_batch = 4096
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


def first_token_s(node: Node, began: float) -> tuple[float, float]:
    """Seconds from `began` until the server is ready, and until a first answer's first token."""
    node.wait_announced()
    eventually(node.is_ready, "the server did not become ready", START_S)
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
