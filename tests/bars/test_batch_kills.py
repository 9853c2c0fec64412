"""A batch of 5,000 lines is killed twice on its way, and others hardly notice that it runs."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from server_process import PATIENCE_S, Node, eventually

pytestmark = pytest.mark.bars

LINES = 5_000
KILL_AT = (1_200, 3_100)
"""Lines that have ended when the process is killed."""
TURNS = 300
"""Interactive requests, one after the other, with the batch and as many without it."""
ROUND = 50
BOUND = 1.2

FAKE = """
[files]
keep_free_bytes = 0
[models.echo]
engine = "fake"
[models.echo.price]
input = "1.00"
output = "2.00"
[models.echo.options]
prefill_delay_ms = 20
token_delay_ms = 8
"""
TINY = """
[files]
keep_free_bytes = 0
[models.echo]
engine = "torch"
source = "builtin:tiny"
[models.echo.price]
input = "1.00"
output = "2.00"
"""


def _input(lines: int, max_tokens: int) -> bytes:
    return b"".join(
        json.dumps(
            {
                "custom_id": f"line-{n}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {
                    "model": "echo",
                    "prompt": f"this is line number {n} of many",
                    "max_tokens": 1 + (n % max_tokens),
                    "temperature": 1.0,
                },
            }
        ).encode()
        + b"\n"
        for n in range(lines)
    )


def _begin(node: Node, lines: int, max_tokens: int = 12) -> str:
    content = _input(lines, max_tokens)
    sent = node.http.post(
        f"{node.url}/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}
    )
    body = {
        "input_file_id": sent.json()["id"],
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    return str(node.post("/v1/batches", body).json()["id"])


def _now(node: Node, batch: str) -> dict[str, Any]:
    found: dict[str, Any] = node.get(f"/v1/batches/{batch}").json()
    return found


def _wait(node: Node, batch: str, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    return eventually(
        lambda: now if is_there(now := _now(node, batch)) else None, "the batch stands", 600
    )


def test_a_batch_killed_twice_has_every_result_once_and_each_is_billed_once(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(FAKE).start()
    batch = _begin(node, LINES)
    began = time.monotonic()
    for count in KILL_AT:
        _wait(node, batch, lambda now, most=count: now["request_counts"]["completed"] >= most)
        node.kill()
        node.start()
    done = _wait(node, batch, lambda now: now["status"] in ("completed", "failed"))
    took_s = time.monotonic() - began

    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    text = node.get(f"/v1/files/{done['output_file_id']}/content", timeout=PATIENCE_S).text
    found = [json.loads(line) for line in text.splitlines()]
    assert [line["custom_id"] for line in found] == [f"line-{n}" for n in range(LINES)]

    entries = [entry for entry in node.entries() if entry["run_id"] == batch]
    paid = {entry["request_id"]: entry for entry in entries if entry["amount_nano"]}
    assert Counter(entry["outcome"] for entry in entries) == {"answered": LINES}
    assert len(paid) == len(entries) == LINES
    for line in found:
        usage, tokens = (
            line["response"]["body"]["usage"],
            paid[line["response"]["request_id"]]["tokens"],
        )
        assert tokens["output"] == usage["completion_tokens"]
        assert tokens["fresh_input"] + tokens["cached_input"] == usage["prompt_tokens"]
    assert node.verified()["ok"]
    late = node.log().count("batch.line_booked_late")
    bar(
        f"a batch of {LINES} lines, killed at {KILL_AT[0]} and {KILL_AT[1]}: {len(found)} results, each once,"
        f" {len(paid)} entries, each once and of the result's usage; {late} booked by the process after; {took_s:.0f} s"
    )


def _ttft_s(client: httpx.Client, url: str, turn: int) -> float:
    """Of one short streamed request."""
    body = {"model": "echo", "prompt": f"turn {turn}", "max_tokens": 4, "stream": True}
    began = time.perf_counter()
    with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        took_s = time.perf_counter() - began
        for _ in pieces:
            pass
    return took_s


def _compared(node: Node, lines: int, turns: int, max_tokens: int) -> tuple[float, float, int]:
    """p50 of TTFT in seconds without a batch and with one, in rounds of both; and lines that ended meanwhile."""
    alone: list[float] = []
    beside: list[float] = []
    ended = 0
    with httpx.Client(timeout=PATIENCE_S) as client:
        for turn in range(2 * ROUND):  # whatever is slow at first only
            _ttft_s(client, node.url, turn)
        for begun in range(0, turns, ROUND):
            alone += [_ttft_s(client, node.url, begun + n) for n in range(ROUND)]
            batch = _begin(node, lines, max_tokens)
            _wait(node, batch, lambda now: now["request_counts"]["completed"] > 10)
            beside += [_ttft_s(client, node.url, begun + n) for n in range(ROUND)]
            now = node.post(f"/v1/batches/{batch}/cancel").json()
            assert now["status"] == "cancelling", "the batch has ended too early"
            ended += _wait(node, batch, lambda now: now["status"] == "cancelled")["request_counts"][
                "completed"
            ]
    return statistics.median(alone), statistics.median(beside), ended


@pytest.mark.parametrize(
    ("engine", "settings", "lines", "turns", "max_tokens"),
    [("fake", FAKE, 5_000, TURNS, 12), ("tiny", TINY, 2_000, TURNS // 6, 12)],
)
def test_who_waits_for_an_answer_hardly_notices_a_batch(
    engine: str,
    settings: str,
    lines: int,
    turns: int,
    max_tokens: int,
    new_node: Callable[..., Node],
    bar: Callable[[str], None],
) -> None:
    node = new_node(settings).spawn()
    node.wait_announced()
    eventually(node.is_ready, "the server did not become ready", 180)
    alone_s, beside_s, ended = _compared(node, lines, turns, max_tokens)
    bar(
        f"interactive TTFT p50 ({engine}): {alone_s * 1e3:.1f} ms without a batch, {beside_s * 1e3:.1f} ms beside one,"
        f" which is {beside_s / alone_s:.2f} times as much; {ended} lines ended meanwhile"
    )
    assert beside_s <= BOUND * alone_s
