"""Budgets that first requests, sessions or other routes went past, and budgets that refused with money left."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from paid_models import INPUT_NANO, OUTPUT_NANO
from server_process import Node, events, eventually, http_bytes

NewNode = Callable[..., Node]

WHOLE_NANO = INPUT_NANO + 100 * OUTPUT_NANO
"""A prompt of one token and an answer of a hundred."""
BODY = {"model": "echo", "prompt": "x", "max_tokens": 100}


def dollars(nano: int) -> str:
    return f"{nano // 10**9}.{nano % 10**9:09d}"


def nano(text: str) -> int:
    whole, _, part = text.partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))


def make_budget(node: Node, limit_nano: int, **whose: Any) -> str:
    wish = {"period": "total", "usd": dollars(limit_nano), **whose}
    answer = node.admin("POST", "/budgets", wish)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def standing(node: Node, budget_id: str) -> tuple[int, int]:
    """(spent, held), in nano-dollars."""
    row = node.admin("GET", f"/budgets/{budget_id}").json()
    return nano(row["spent_usd"]), nano(row["held_usd"])


def ask(node: Node, made: dict[str, Any], run: str | None = None, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {made['key']}"}
    if run is not None:
        headers["x-llmhost-run"] = run
    return node.post("/v1/completions", {**BODY, **more}, headers=headers)


def at_once(count: int, act: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    found: list[httpx.Response] = []
    gate = threading.Barrier(count)

    def run(each: int) -> None:
        gate.wait()
        found.append(act(each))

    threads = [threading.Thread(target=run, args=(each,)) for each in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count
    return found


def paid(node: Node, org: str) -> int:
    return sum(entry["amount_nano"] for entry in node.entries() if entry["org"] == org)


# ------------------------------------------------------------ past them


def test_first_requests_of_a_new_budget_can_not_race_past_it(node: Node, org: str) -> None:
    """Its counter was made by the first request that ended, and those that began before were not asked."""
    made = node.create_key(org)
    budget = make_budget(node, 3 * WHOLE_NANO, org=org)

    answers = at_once(20, lambda _: ask(node, made, model="slow"))

    assert Counter(answer.status_code for answer in answers) == Counter({200: 3, 429: 17})
    assert standing(node, budget) == (3 * WHOLE_NANO, 0)
    assert paid(node, org) == 3 * WHOLE_NANO


def test_many_runs_of_one_key_share_its_budget(node: Node, org: str) -> None:
    """Each session had a counter of its own, and together they raced past the budget above them."""
    made = node.create_key(org)
    budget = make_budget(node, 3 * WHOLE_NANO, key=made["id"])

    answers = at_once(12, lambda each: ask(node, made, run=f"run-{each}", model="slow"))

    assert Counter(answer.status_code for answer in answers) == Counter({200: 3, 429: 9})
    assert standing(node, budget) == (3 * WHOLE_NANO, 0)


@pytest.mark.parametrize("level", ["org", "team"])
def test_a_key_without_a_budget_keeps_to_the_one_above_it(node: Node, org: str, level: str) -> None:
    one, two = (node.create_key(org, team="red") for _ in range(2))
    whose = {"org": org} if level == "org" else {"org": org, "team": "red"}
    make_budget(node, 2 * WHOLE_NANO, **whose)
    make_budget(node, 100 * WHOLE_NANO, key=two["id"])

    statuses = [ask(node, made).status_code for made in (one, two, one, two)]

    assert statuses == [200, 200, 429, 429]


def test_a_new_key_or_a_new_secret_is_no_new_budget(node: Node, org: str) -> None:
    made = node.create_key(org, team="red")
    make_budget(node, WHOLE_NANO, org=org, team="red")
    assert ask(node, made).status_code == 200

    rotated = node.admin("POST", f"/keys/{made['id']}/rotate", {"overlap_s": 0}).json()
    another = node.create_key(org, team="red")

    assert [ask(node, key).status_code for key in (rotated, another)] == [429, 429]


def test_every_way_of_asking_is_held_on_the_budget(node: Node, org: str) -> None:
    """Newer routes, batches of prompts, several choices and vectors went past it."""
    made = node.create_key(org)
    make_budget(node, 10 * INPUT_NANO, org=org)
    headers = {"authorization": f"Bearer {made['key']}"}
    messages = [{"role": "user", "content": "x"}]
    words = " ".join(["w"] * 20)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": "echo", "messages": messages, "max_tokens": 50}),
        ("/v1/completions", {"model": "echo", "prompt": ["x"] * 20, "max_tokens": 1}),
        ("/v1/completions", {"model": "echo", "prompt": "x", "n": 20, "max_tokens": 1}),
        ("/v1/completions", {"model": "echo", "prompt": "x", "best_of": 20, "max_tokens": 1}),
        ("/v1/completions", {"model": "echo", "prompt": words, "max_tokens": 1, "echo": True}),
        ("/v1/embeddings", {"model": "embedder", "input": [words, words]}),
        ("/v1/rerank", {"model": "judge", "query": words, "documents": [words]}),
        ("/score", {"model": "judge", "text_1": words, "text_2": words}),
        ("/classify", {"model": "judge", "input": words}),
    ]

    for path, body in ways:
        answer = node.post(path, body, headers=headers)
        assert answer.status_code == 429, (path, answer.text)
        assert answer.json()["error"]["code"] == "organization_spend_limit_exceeded"
        assert answer.headers["x-should-retry"] == "false"
    assert paid(node, org) == 0


def test_an_unpriced_model_is_not_free_on_a_budget(node: Node, org: str) -> None:
    """A model without a price cost nothing, so that a budget let it through for ever."""
    made = node.create_key(org)
    assert ask(node, made, model="gift").status_code == 200
    make_budget(node, 10**9, org=org)

    refused = ask(node, made, model="gift")

    assert refused.status_code in (400, 403), refused.text
    assert "price" in refused.json()["error"]["message"]
    assert ask(node, made).status_code == 200


def test_an_answer_ends_where_its_budget_does(node: Node, org: str) -> None:
    made = node.create_key(org)
    budget = make_budget(node, INPUT_NANO + 700 * OUTPUT_NANO + 1, org=org)

    response = ask(node, made, max_tokens=5000, stream=True, stream_options={"include_usage": True})

    *_, told, done = events(response)
    assert done == "[DONE]"
    assert told["usage"]["completion_tokens"] == 700
    assert told["usage"]["llmhost"]["stop"] == "budget"
    assert standing(node, budget) == (INPUT_NANO + 700 * OUTPUT_NANO, 0)


# ------------------------------------------------------------ refusals with money left


def test_a_hold_is_given_back_however_a_request_ends(node: Node, org: str) -> None:
    """Reservations of requests that failed, were refused or were left stayed for ever."""
    made = node.create_key(org)
    budget = make_budget(node, 20 * WHOLE_NANO, org=org)
    long = {**BODY, "model": "slow", "max_tokens": 1000, "stream": True}
    headers = {"authorization": f"Bearer {made['key']}"}

    ask(node, made)
    ask(node, made, model="fragile")
    ask(node, made, model="fragile", stream=True)
    ask(node, made, model="nobody")
    ask(node, made, n=0)
    ask(node, made, max_tokens=10**9)
    late = ask(node, made, model="slow", max_tokens=1000, timeout_ms=50)
    assert late.json()["error"]["code"] == "deadline_exceeded"
    for _ in range(3):
        with node.raw() as connection:
            connection.sendall(http_bytes("/v1/completions", long, headers=headers))
            eventually(lambda: node.loaded("slow")["running"], "nothing runs")
    eventually(lambda: node.is_idle("slow"), "something goes on")

    eventually(lambda: standing(node, budget)[1] == 0, "something is held for ever")
    assert standing(node, budget)[0] == paid(node, org)


def test_what_a_budget_refuses_by_is_what_the_ledger_says(node: Node, org: str) -> None:
    """A budget was enforced at twice what had been spent: its counter and the ledger had gone apart."""
    made = node.create_key(org)
    budget = make_budget(node, 50 * WHOLE_NANO, org=org)
    for each in range(30):
        ask(node, made, max_tokens=1 + each * 3, model="fragile" if each % 5 == 0 else "echo")

    spent, held = standing(node, budget)

    assert (spent, held) == (paid(node, org), 0)
    left = 50 * WHOLE_NANO - spent
    tokens = (left - INPUT_NANO) // OUTPUT_NANO
    last = ask(node, made, max_tokens=tokens)
    assert last.json()["usage"]["completion_tokens"] == tokens
    assert ask(node, made, max_tokens=1).status_code == 429


def test_without_a_budget_nothing_is_exceeded(node: Node, org: str) -> None:
    made = node.create_key(org)

    answer = ask(node, made)

    assert answer.status_code == 200
    assert "x-llmhost-budget-remaining-usd" not in answer.headers


def test_a_limit_is_not_multiplied_by_restarts(new_node: NewNode) -> None:
    """What was spent was kept in memory: each restart began at nothing."""
    node = new_node().start()
    made = node.create_key("acme")
    budget = make_budget(node, 3 * WHOLE_NANO, org="acme")
    statuses = []
    for kill in (True, False, True, False):
        statuses.append(ask(node, made).status_code)
        node.kill() if kill else node.stop()
        node.start()
        assert standing(node, budget) == (min(len(statuses), 3) * WHOLE_NANO, 0)

    assert statuses == [200, 200, 200, 429]


def test_a_restart_frees_what_was_held_and_charges_what_was_made(new_node: NewNode) -> None:
    """Holds of a process that had died stayed, and the budget was never whole again."""
    node = new_node().start()
    made = node.create_key("acme")
    budget = make_budget(node, 1000 * WHOLE_NANO, org="acme")
    headers = {"authorization": f"Bearer {made['key']}"}
    long = {**BODY, "model": "slow", "max_tokens": 5000, "stream": True}
    connections = [node.raw() for _ in range(5)]
    opened = [each.__enter__() for each in connections]
    for connection in opened:
        connection.sendall(http_bytes("/v1/completions", long, headers=headers))
    eventually(lambda: node.loaded("slow")["running"] == 5, "they do not run")
    assert standing(node, budget)[1] > 0

    node.kill()
    for each in connections:
        each.__exit__(None, None, None)
    node.start()

    spent, held = standing(node, budget)
    assert held == 0
    assert spent == paid(node, "acme")
    assert len([e for e in node.entries() if e["code"] == "process_ended"]) == 5
    assert node.verified()["ok"]


def test_a_budget_that_is_raised_lets_in_at_once(node: Node, org: str) -> None:
    made = node.create_key(org)
    budget = make_budget(node, WHOLE_NANO, org=org)
    assert [ask(node, made).status_code for _ in range(2)] == [200, 429]

    change = {"usd": dollars(2 * WHOLE_NANO)}
    node.admin("PATCH", f"/budgets/{budget}", change).raise_for_status()

    assert [ask(node, made).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("usd", ["-1", "1e9", "NaN", "0x10", "1.0000000001", "9" * 30, "", " 1"])
def test_a_budget_of_a_strange_amount_is_refused(node: Node, org: str, usd: str) -> None:
    node.create_key(org)

    answer = node.admin("POST", "/budgets", {"org": org, "period": "total", "usd": usd})

    assert answer.status_code == 400, answer.text
    assert node.admin("GET", "/budgets", org=org).json()["data"] == []


def test_a_wrong_price_can_be_undone_for_a_budget(new_node: NewNode) -> None:
    """A mistyped price ate budgets, and only deleting rows by hand gave them back."""
    node = new_node().start()
    made = node.create_key("acme")
    budget = make_budget(node, 10 * WHOLE_NANO, org="acme")
    since = time.time()
    wrong = {"model": "echo", "input": "1.00", "output": "19.00"}
    node.admin("POST", "/prices", wrong).raise_for_status()
    assert ask(node, made).status_code == 200
    assert standing(node, budget)[0] > 9 * WHOLE_NANO
    right = {"model": "echo", "input": "1.00", "cached_input": "0.10", "output": "2.00"}
    node.admin("POST", "/prices", right).raise_for_status()

    change = {"usd": dollars(30 * WHOLE_NANO)}
    node.admin("PATCH", f"/budgets/{budget}", change).raise_for_status()

    assert ask(node, made).status_code == 200
    assert node.verified()["ok"]
    assert since <= time.time()
