"""The ledger as operators meet it: on a running node, on a stopped one, and after somebody changed the file."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from server_process import Node, chat_body, eventually

MODELS = '[models.echo]\nengine = "fake"\nprice = { input = "1", output = "10" }\n'


@pytest.fixture
def node(new_node: Callable[..., Node]) -> Node:
    return new_node(MODELS).start()


def test_a_wrong_price_is_made_good_and_the_ledger_stays_whole(node: Node) -> None:
    for _ in range(3):
        node.chat(max_tokens=10)
    before = node.admin("GET", "/usage").json()["data"][0]["amount_nano"]
    asked = {"model": "echo", "since": "2020-01-01", "input": "1", "output": "1"}

    told = node.admin("POST", "/ledger/rerate", asked).json()
    assert (told["applied"], told["data"][0]["changed"]) == (False, 3)
    assert told["difference_nano"] == -3 * 10 * 9_000

    done = node.cli(
        *("ledger", "rerate", "--model", "echo", "--since", "1d"),
        *("--input", "1", "--output", "1", "--id", "typo-1", "--apply", "--json"),
    )
    assert json.loads(done.stdout)["difference_nano"] == told["difference_nano"], done.stderr
    after = node.admin("GET", "/usage").json()["data"][0]["amount_nano"]
    assert after == before - 3 * 10 * 9_000
    assert node.verified()["entries"] == 6
    node.stop()

    again = node.cli(
        *("ledger", "rerate", "--model", "echo", "--since", "1d"),
        *("--input", "1", "--output", "1", "--apply"),
    )
    assert "Applied as rr_" in again.stderr
    assert json.loads(node.cli("ledger", "verify", "--json").stdout)["entries"] == 6


def test_rating_again_at_the_price_that_was_charged_changes_nothing_for_anybody(
    new_node: Callable[..., Node],
) -> None:
    """A kept answer was free, and an organisation had a price of its own: both were charged everybody's."""
    node = new_node(MODELS + '[cache]\nuse = "all"\n').start()
    acme, zoo = (
        {"authorization": f"Bearer {node.create_key(org)['key']}"} for org in ("acme", "zoo")
    )
    contract = {"model": "echo", "org": "acme", "input": "1", "output": "5"}
    node.admin("POST", "/prices", contract).raise_for_status()
    for headers in (acme, zoo, zoo):
        node.post("/v1/chat/completions", chat_body(temperature=0, max_tokens=10), headers=headers)
    paid = [entry["amount_nano"] for entry in node.entries()]
    assert (paid[0] > 0, paid[1] > paid[0], paid[2]) == (True, True, 0)

    told = node.admin(
        "POST",
        "/ledger/rerate",
        {"model": "echo", "since": "2020-01-01", "price": "echo/1", "apply": True},
    ).json()

    assert [(row["org"], row["changed"]) for row in told["data"]] == [("acme", 0), ("zoo", 0)]
    asked = {"model": "echo", "since": "2020-01-01", "price": "echo/1", "was": "echo/2"}
    told = node.admin("POST", "/ledger/rerate", asked).json()
    assert told["difference_nano"] == 10 * 5_000


def test_accounts_add_up_to_nothing(node: Node) -> None:
    node.chat(max_tokens=10)
    page = node.admin("GET", "/ledger/accounts").json()
    held = {row["account"]: row["balance_nano"] for row in page["data"]}
    assert page["sum_nano"] == 0
    assert held["org:local"] == -held["revenue"] > 0
    first = node.admin("GET", "/ledger/accounts", limit="1").json()
    assert (first["has_more"], first["last_id"]) == (True, "org:local")
    table = node.cli("ledger", "accounts").stdout
    assert table.splitlines()[-1].split() == ["sum", "-", "-", "$0.00"]


def test_sums_that_were_changed_are_found_and_mended(node: Node) -> None:
    node.chat(max_tokens=10)
    assert node.admin("GET", "/ledger/check").json()["ok"]
    node.stop()
    with closing(sqlite3.connect(node.data_dir / "money.db")) as outsider:
        outsider.execute("UPDATE sums SET amount_nano = 1")
        outsider.commit()

    found = node.cli("ledger", "check")
    assert (found.returncode, "1 of sums" in found.stderr) == (1, True)
    assert "sums" in node.cli("ledger", "verify").stderr
    node.start()
    eventually(lambda: node.metric("llmhost_ledger_drift") == 1, "no check found them")

    mended = node.cli("ledger", "check", "--rebuild")
    assert (mended.returncode, mended.stdout) == (0, "The sums are what the entries add up to.\n")
    assert node.verified()["ok"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "1", "output": "1", "since": "yesterday"}, "since"),
        ({"input": "1", "output": "1", "since": "2999-01-01"}, "since"),
        ({"since": "2020-01-01", "until": "2019-01-01", "input": "1", "output": "1"}, "since"),
        ({"since": "2020-01-01"}, "price"),
        ({"since": "2020-01-01", "price": "echo/1", "input": "1"}, "price"),
        ({"since": "2020-01-01", "price": "other/1"}, "price"),
        ({"since": "2020-01-01", "input": "-1", "output": "1"}, "input"),
        ({"since": "2020-01-01", "input": "1"}, "output"),
        ({"since": "2020-01-01", "price": "echo/1", "id": "a b"}, "id"),
    ],
)
def test_what_makes_no_sense_is_refused(open_node: Node, body: dict, param: str) -> None:
    asked = {"model": "echo", **body}
    response = open_node.admin("POST", "/ledger/rerate", asked)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_version_of_the_price_is_as_good_as_amounts(node: Node) -> None:
    node.chat(max_tokens=10)
    body = {"model": "echo", "since": "2020-01-01", "price": "echo/1", "apply": True}
    told = node.admin("POST", "/ledger/rerate", body).json()
    assert (told["price"], told["difference_nano"], told["data"][0]["changed"]) == ("echo/1", 0, 0)
