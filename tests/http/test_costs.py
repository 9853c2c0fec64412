"""True cost of a real process: told in the answer and by commands, kept over a kill, and made good after it."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import httpx
from server_process import Node, chat_body, events

from llmhost.core.units import dollars_to_nano

COSTLY = """
[costs]
cpu_per_hour = "36000"
host_per_hour = "36"
egress_per_gib = "90"
requests_per_load = 10
[models.echo]
engine = "fake"
options = { token_delay_ms = 2.0 }
[models.echo.price]
output = "50"
"""


def costs(node: Node, by: str = "org") -> dict[str, dict[str, Any]]:
    done = node.cli("usage", "--costs", "--by", by, "--json")
    assert done.returncode == 0, done.stderr
    return {row[by]: row for row in json.loads(done.stdout)}


def test_a_command_shows_what_answers_were_told(new_node: Callable[..., Node]) -> None:
    node = new_node(COSTLY).start()
    whole = node.chat(max_tokens=5, include_cost=True).json()["usage"]["cost"]
    stream = node.chat(max_tokens=5, include_cost=True, stream=True)
    streamed = list(events(stream))[-2]["usage"]["cost"]
    told = sum(dollars_to_nano(cost["total_cost_usd"]) for cost in (whole, streamed))

    running = costs(node)["local"]
    assert running["cost_nano"] == told
    assert running["requests"] == 2
    assert running["margin_nano"] == 10 * 50_000 - told
    assert costs(node, "model")["echo@1"]["cost_nano"] == told

    assert node.stop() == 0
    stopped = costs(node)["local"]
    assert stopped["gpu_compute_nano"] == running["gpu_compute_nano"]
    assert stopped["provisional_nano"] == 0, "the load is made good when the model is unloaded"
    devices = json.loads(node.cli("usage", "--devices", "--json").stdout)
    assert {row["device"] for row in devices} >= {"cpu:0", "none"}
    assert all(row["error_nano"] == 0 for row in devices)
    assert node.cli("ledger", "verify").returncode == 0


def test_after_a_kill_costs_are_whole_and_the_load_is_borne(new_node: Callable[..., Node]) -> None:
    node = new_node(COSTLY).start()
    told = [node.chat(max_tokens=3, include_cost=True) for _ in range(3)]
    with (
        suppress(httpx.HTTPError),
        node.http.stream(
            "POST",
            f"{node.url}/v1/chat/completions",
            json=chat_body(max_tokens=5_000, stream=True),
        ) as running,
    ):
        next(running.iter_bytes())
        node.kill()
    node.start()
    row = costs(node)["local"]

    compute = [
        dollars_to_nano(answer.json()["usage"]["cost"]["breakdown"]["gpu_compute"])
        for answer in told
    ]
    assert row["gpu_compute_nano"] == sum(compute)
    assert row["requests"] == 4, "the one that was cut is booked, and nobody knows what it cost"
    [load, _] = loads(node)
    assert row["model_loading_nano"] == load["cost_nano"]
    assert row["provisional_nano"] == 0


def loads(node: Node) -> list[dict[str, Any]]:
    """The loads of the process that was killed, and of the one after it."""
    uri = f"file:{node.data_dir / 'money.db'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM loads ORDER BY seq")]


def test_without_costs_the_report_has_charges_only(new_node: Callable[..., Node]) -> None:
    node = new_node("[models.echo]\nengine = 'fake'\nprice = { output = '1' }\n").start()
    answer = node.chat(max_tokens=2, include_cost=True).json()

    assert answer["usage"]["cost"]["total_cost_usd"] == "0.00"
    row = costs(node)["local"]
    assert (row["requests"], row["cost_nano"], row["amount_nano"]) == (1, 0, 2_000)
    assert "CHARGED" in node.cli("usage", "--costs").stdout


def test_both_reports_at_once_are_refused(new_node: Callable[..., Node]) -> None:
    done = new_node().cli("usage", "--costs", "--devices")

    assert done.returncode == 2
    assert "--devices" in done.stderr


def test_a_rate_that_is_no_amount_is_an_error_at_the_start(new_node: Callable[..., Node]) -> None:
    node = new_node('[costs]\ngpu_per_hour = "2,50"\n').spawn()

    assert node.wait() == 1
    assert "[costs] gpu_per_hour is '2,50', not dollars such as '0.10'" in node.log()
