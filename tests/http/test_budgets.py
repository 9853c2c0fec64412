"""Budgets of a real process: made while it runs and while it doesn't, and kept over a kill."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server_process import Node, eventually

from llmhost.core.units import dollars_to_nano

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
    key = node.create_key("acme", budget_usd="1")
    assert ask(node, key["key"]).status_code == 200
    for more in ({"usd": "5"}, {"usd": "2", "per_run": True}):
        node.admin("POST", "/budgets", {"org": "acme", **more}).raise_for_status()
    assert ask(node, key["key"]).status_code == 200

    def standing() -> list[tuple[str, str | None]]:
        rows = said(node, "budgets", "list")
        return [(row["level"], row["spent_usd"]) for row in rows]

    expected = [("key", "0.00002"), ("org", "0.00002"), ("run", None)]
    node.kill()
    assert standing() == expected  # the files say the same
    node.start()
    _, _, per_run = node.admin("GET", "/budgets").json()["data"]
    (run,) = node.admin("GET", f"/budgets/{per_run['id']}").json()["runs"]
    assert (run["run"], run["key"], run["spent_usd"]) == ("r", key["id"], "0.00002")
    assert 2 * COST == 20_000


def test_a_stopped_node_takes_budgets_and_credits(new_node: Callable[..., Node]) -> None:
    node = new_node(PRICED)
    said(node, "orgs", "create", "acme", "--budget-usd", "9", "--budget-period", "total")
    balance = said(node, "budgets", "create", "--org", "acme", "--period", "balance")
    paid = said(node, "credits", "add", "acme", "--usd", "3", "--reference", "inv-1")
    again = said(node, "credits", "add", "acme", "--usd", "3", "--reference", "inv-1")
    refused = node.cli("credits", "add", "acme", "--usd", "4", "--reference", "inv-1")
    assert again == paid
    assert (refused.returncode, "inv-1" in refused.stderr) == (1, True)
    node.start()
    key = node.create_key("acme")
    assert ask(node, key["key"]).status_code == 200
    total, known = node.admin("GET", "/budgets").json()["data"]

    assert (total["usd"], total["spent_usd"]) == ("9.00", "0.00001")
    assert (known["id"], known["usd"], known["remaining_usd"]) == (
        *(balance["id"], "3.00", "2.99999"),
    )
    (credit,) = node.admin("GET", "/orgs/acme/credits").json()["data"]
    assert (credit["left_usd"], credit["reference"]) == ("2.99999", "inv-1")
    assert said(node, "budgets", "update", total["id"], "--usd", "4")["usd"] == "4.00"
    assert node.stop() == 0
    assert said(node, "budgets", "end", total["id"])["state"] == "ended"
    assert [row["state"] for row in said(node, "budgets", "list", "--all")] == ["ended", "active"]
    assert said(node, "ledger", "verify")["ok"]


def test_metrics_say_how_organisations_budgets_stand(new_node: Callable[..., Node]) -> None:
    node = new_node(PRICED + "[billing]\nbudget_metrics = true\n").start()
    key = node.create_key("acme", budget_usd="1")
    node.admin("POST", "/budgets", {"org": "acme", "usd": "5"}).raise_for_status()
    assert ask(node, key["key"]).status_code == 200

    labels = {"org": "acme", "period": "total"}
    assert node.metric("llmhost_budget_limit_nano", **labels) == 5 * 10**9
    assert node.metric("llmhost_budget_spent_nano", **labels) == COST
    assert node.metric("llmhost_budget_held_nano") == 0
    assert node.metric("llmhost_budget_refusals_total", level="key") == 0


def test_metrics_need_no_key_and_name_no_organisation(new_node: Callable[..., Node]) -> None:
    node = new_node(PRICED).start()
    key = node.create_key("acme-secret", budget_usd="1")
    node.admin("POST", "/budgets", {"org": "acme-secret", "usd": "5"}).raise_for_status()
    assert ask(node, key["key"]).status_code == 200

    text = node.get("/metrics").text
    assert "llmhost_budget_refusals_total" in text
    assert "acme-secret" not in text


def test_a_budget_that_is_made_under_load_counts_every_request_once(
    new_node: Callable[..., Node],
) -> None:
    node = new_node(PRICED).start()
    made = node.create_key("acme")
    key = made["key"]
    is_enough = threading.Event()

    def work() -> int:
        asked = 0
        while not is_enough.is_set():
            assert ask(node, key).status_code == 200
            asked += 1
        return asked

    with ThreadPoolExecutor(4) as crowd:
        working = [crowd.submit(work) for _ in range(4)]
        eventually(lambda: len(node.entries()) > 20, "nothing is recorded")
        for whose in ({"org": "acme"}, {"key": made["id"]}):
            node.admin("POST", "/budgets", {**whose, "usd": "1000"}).raise_for_status()
        was = len(node.entries())
        eventually(lambda: len(node.entries()) > was + 20, "nothing more is recorded")
        is_enough.set()
        asked = sum(done.result() for done in working)

    rows = node.admin("GET", "/budgets").json()["data"]
    spent = [dollars_to_nano(row["spent_usd"]) for row in rows]
    assert spent == [asked * COST] * 2
    assert [row["held_usd"] for row in rows] == ["0.00"] * 2


def test_a_budget_without_room_refuses_and_says_so(new_node: Callable[..., Node]) -> None:
    node = new_node(PRICED).start()
    key = node.create_key("acme", budget_usd="0.00001")["key"]
    assert ask(node, key).status_code == 200

    refused = ask(node, key)

    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (
        *(429, "insufficient_quota", "insufficient_quota"),
    )
    assert error["message"].startswith("This key may spend $0.00001 in all; $0.00001 is spent.")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert node.metric("llmhost_budget_refusals_total", level="key") == 1
