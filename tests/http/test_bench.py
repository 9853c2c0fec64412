"""The load generator against a real server whose pace is known."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from server_process import Node, environment, eventually

STEP_MS = 20
"""`slow` takes at least so long for each token; a sleep is never shorter."""


def bench(node: Node, *args: str) -> dict[str, Any]:
    done = node.cli("bench", "--json", *args)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_a_closed_loop_measures_no_less_than_the_engine_takes(open_node: Node, route: str) -> None:
    data = bench(
        open_node,
        *("--model", "slow", "--requests", "6", "--concurrency", "3", "--output-tokens", "8"),
        *("--prompt-tokens", "uniform:5-30", "--route", route, "--slo", "ttft:1"),
    )

    assert data["requests"] == {"answered": 6, "failed": 0, "cut": 0}
    assert data["output_tokens"] == 6 * 8
    assert data["ttft_ms"]["p50"] >= STEP_MS
    assert data["tpot_ms"]["p50"] >= STEP_MS - 1  # a first piece that was late shortens the rest
    assert data["e2e_ms"]["p50"] >= 8 * STEP_MS
    assert data["goodput"]["share"] == 0
    # Three at a time, two rounds of eight tokens each.
    assert data["seconds"] >= 2 * 8 * STEP_MS / 1e3
    assert data["output_tokens_per_s"] == pytest.approx(48 / data["seconds"])
    if route == "completions":
        assert 6 * 5 <= data["prompt_tokens"] <= 6 * 30


def test_an_open_loop_sends_on_schedule_whatever_the_server_does(open_node: Node) -> None:
    data = bench(
        open_node,
        *("--model", "single", "--rate", "200", "--requests", "10", "--output-tokens", "10"),
        *("--seed", "1"),
    )

    # One runs and one may wait; a closed loop would have been let in again and again.
    assert data["requests"]["failed"] >= 1
    assert list(data["errors"]) == ["503 server_is_overloaded"]
    assert data["requests"]["answered"] + data["requests"]["failed"] == 10
    assert data["late_ms"]["max"] >= 0


def test_tokens_are_those_of_the_ledger(open_node: Node) -> None:
    before = len(open_node.entries())

    data = bench(
        open_node, "--model", "echo", "--requests", "5", "--output-tokens", "7", "--warm-up", "0"
    )

    entries = open_node.entries()[before:]
    assert data["output_tokens"] == sum(entry["tokens"]["output"] for entry in entries)
    assert data["prompt_tokens"] == 5 * 128


def test_ctrl_c_prints_what_was_measured_so_far(open_node: Node) -> None:
    words = ("bench", "--url", open_node.url, "--model", "slow", "--concurrency", "2")
    before = len(open_node.entries())
    process = subprocess.Popen(
        [sys.executable, "-m", "llmhost", *words, "--requests", "1000", "--output-tokens", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        eventually(lambda: len(open_node.entries()) > before + 4, "no request was answered")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "answered" in out
    assert "2 cut" in out
    assert "TTFT" in out
    assert "Traceback" not in err
