"""Prices of a real process: set while it runs and while it doesn't, and kept over a kill."""

import json
from collections.abc import Callable
from typing import Any

from server_process import Node

PRICED = """
[models.echo]
engine = "fake"
[models.echo.price]
input = "1"
output = "2"
"""


def prices(node: Node, *args: str) -> list[dict[str, Any]]:
    done = node.cli("prices", "list", *args, "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def set_price(node: Node, *args: str) -> str:
    done = node.cli("prices", "set", "echo", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def charged(node: Node) -> list[tuple[str, int]]:
    """(version, nano-dollars) of all that was asked."""
    lines = node.cli("ledger", "export").stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    return [(e["price_version"], e["amount_nano"]) for e in entries if e["kind"] == "request"]


def test_a_price_is_charged_once_it_is_set_and_is_there_after_a_kill(
    new_node: Callable[..., Node],
) -> None:
    node = new_node(PRICED).start()
    tokens = node.chat(max_tokens=4).json()["usage"]["prompt_tokens"]
    said = set_price(node, "--input", "3", "--output", "4", "--note", "more")
    node.chat(max_tokens=4)
    node.kill()
    node.start()
    node.chat(max_tokens=4)

    assert said == "Price echo/2 for everybody: 3.00 / 3.00 / 4.00 per million tokens, from now\n"
    old, new = 1000 * tokens + 2000 * 4, 3000 * tokens + 4000 * 4
    assert charged(node) == [("echo/1", old), ("echo/2", new), ("echo/2", new)]


def test_a_stopped_node_takes_prices_and_the_file_has_the_next_word(
    new_node: Callable[..., Node],
) -> None:
    node = new_node(PRICED).start()
    assert node.stop() == 0
    set_price(node, "--input", "3", "--output", "4")
    refused = node.cli("prices", "set", "echo", "--input", "300", "--output", "4")
    assert refused.returncode == 1
    assert "input from 3.00 to 300.00" in refused.stderr
    node.start()
    node.chat(max_tokens=1)
    assert node.stop() == 0
    node.settings_path.write_text(PRICED.replace('output = "2"', 'output = "5"'))
    node.start()
    node.chat(max_tokens=1)

    assert [version for version, _ in charged(node)] == ["echo/2", "echo/3"]
    assert [(row["version"], row["origin"], row["output"]) for row in prices(node)] == [
        ("echo/1", "file", "2.00"),
        ("echo/2", "api", "4.00"),
        ("echo/3", "file", "5.00"),
    ]
    assert [row["version"] for row in prices(node, "--in-force")] == ["echo/3"]
    shown = json.loads(node.cli("prices", "show", "echo", "--json").stdout)
    assert (shown["version"], shown["in_force"]) == ("echo/3", True)
