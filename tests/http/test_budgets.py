"""Budgets of a real process: made while it runs and while it doesn't, and kept over a kill."""

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


def said(node: Node, *args: str) -> Any:
    done = node.cli(*args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(node: Node, key: str, **body: Any) -> Any:
    headers = {"authorization": f"Bearer {key}", "x-llmhost-run": "r"}
    wish = {"model": "echo", "prompt": "hello there", "max_tokens": 4, **body}
    return node.post("/v1/completions", wish, headers=headers)


COST = 2 * 1000 + 4 * 2000
"""Of such a request, in nano-dollars."""


def test_what_was_spent_is_counted_and_known_after_a_kill(new_node: Callable[..., Node]) -> None:
    node = new_node(PRICED).start()
    said(node, "orgs", "create", "acme")
    key = said(node, "keys", "create", "--org", "acme", "--budget-usd", "1")
    assert ask(node, key["key"]).status_code == 200
    said(node, "budgets", "create", "--org", "acme", "--usd", "5", "--period", "month")
    said(node, "budgets", "create", "--org", "acme", "--usd", "2", "--per-run")
    assert ask(node, key["key"]).status_code == 200

    def standing() -> list[tuple[str, str | None]]:
        rows = said(node, "budgets", "list")
        return [(row["level"], row["spent_usd"]) for row in rows]

    expected = [("key", "0.00002"), ("org", "0.00002"), ("run", None)]
    assert standing() == expected
    node.kill()
    assert standing() == expected  # the files say the same
    node.start()
    assert standing() == expected
    (_, _, per_run) = said(node, "budgets", "list")
    (run,) = said(node, "budgets", "show", per_run["id"])["runs"]
    assert (run["run"], run["key"], run["spent_usd"]) == ("r", key["id"], "0.00002")
    assert 2 * COST == 20_000


def test_a_stopped_node_takes_budgets_and_credits(new_node: Callable[..., Node]) -> None:
    node = new_node(PRICED)
    said(node, "orgs", "create", "acme", "--budget-usd", "9", "--budget-period", "day")
    balance = said(node, "budgets", "create", "--org", "acme", "--period", "balance")
    paid = said(node, "credits", "add", "acme", "--usd", "3", "--reference", "inv-1")
    again = said(node, "credits", "add", "acme", "--usd", "3", "--reference", "inv-1")
    refused = node.cli("credits", "add", "acme", "--usd", "4", "--reference", "inv-1")
    assert again == paid
    assert (refused.returncode, "inv-1" in refused.stderr) == (1, True)
    key = said(node, "keys", "create", "--org", "acme")
    node.start()
    assert ask(node, key["key"]).status_code == 200
    day, known = said(node, "budgets", "list")

    assert (day["usd"], day["spent_usd"]) == ("9.00", "0.00001")
    assert (known["id"], known["usd"], known["remaining_usd"]) == (
        *(balance["id"], "3.00", "2.99999"),
    )
    (credit,) = said(node, "credits", "list", "acme")
    assert (credit["left_usd"], credit["reference"]) == ("2.99999", "inv-1")
    assert said(node, "budgets", "update", day["id"], "--usd", "4")["usd"] == "4.00"
    assert said(node, "budgets", "end", day["id"])["state"] == "ended"
    assert node.stop() == 0
    assert [row["id"] for row in said(node, "budgets", "list")] == [balance["id"]]
    assert [row["state"] for row in said(node, "budgets", "list", "--all")] == ["ended", "active"]
    assert said(node, "ledger", "verify")["ok"]


def test_metrics_say_how_organisations_budgets_stand(new_node: Callable[..., Node]) -> None:
    node = new_node(PRICED).start()
    key = node.create_key("acme", budget_usd="1")
    node.admin("POST", "/budgets", {"org": "acme", "usd": "5", "period": "day"}).raise_for_status()
    assert ask(node, key["key"]).status_code == 200

    labels = {"org": "acme", "period": "day"}
    assert node.metric("llmhost_budget_limit_nano", **labels) == 5 * 10**9
    assert node.metric("llmhost_budget_spent_nano", **labels) == COST
    assert node.metric("llmhost_budget_held_nano") == 0
    assert node.metric("llmhost_budget_refusals_total", level="key") == 0
