"""Statements of a real process: the same over HTTP and offline, kept over a kill, checked from files alone."""

import csv
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Node, chat_body, cli

SETTINGS = """
[models.echo]
engine = "fake"
[models.echo.price]
input = "0.1500001"
output = "0.6000001"
request = "0.000001"
[models.free]
engine = "fake"
"""


@dataclass
class Shop:
    """A server that two organisations have used."""

    node: Node
    keys: dict[str, str]
    month: str

    def ask(self, who: str, path: str, **query: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        return self.node.http.get(f"{self.node.url}{path}", params=query, headers=headers)

    def files(self, folder: Path) -> tuple[Path, Path]:
        """The statement of `own`, and its entries."""
        whole = self.node.cli("invoice", "own", "--month", self.month, "--json")
        entries = self.node.cli("ledger", "entries", "--org", "own", "--month", self.month)
        assert (whole.returncode, entries.returncode) == (0, 0), whole.stderr + entries.stderr
        (folder / "own.json").write_text(whole.stdout)
        (folder / "own.jsonl").write_text(entries.stdout)
        return folder / "own.json", folder / "own.jsonl"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    node = Node(tmp_path_factory.mktemp("shop"), SETTINGS).start()
    try:
        keys = {role: node.create_key("own", role=role)["key"] for role in ("billing", "member")}
        keys["admin"] = node.create_key("own", team="red", role="admin")["key"]
        keys["other"] = node.create_key("zq-foreign", role="admin")["key"]
        month = f"{datetime.now(UTC):%Y-%m}"
        made = Shop(node, keys, month)
        for who in ("member", "admin", "other", "admin", "other"):
            assert _chat(made, who, "echo").status_code == 200
        assert _chat(made, "member", "free").status_code == 200
        assert _chat(made, "member", "nothing").status_code == 404
        yield made
        assert "Traceback" not in node.log()
    finally:
        node.close()


def _chat(shop: Shop, who: str, model: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {shop.keys[who]}"}
    body = chat_body(model=model, max_tokens=7)
    return shop.node.post("/v1/chat/completions", body, headers=headers)


def verify(*args: object) -> subprocess.CompletedProcess[str]:
    """Without a node, and without its data dir."""
    return cli("invoice", "verify", *map(str, args))


def charged(node: Node, org: str) -> int:
    rows = node.admin("GET", "/usage", by="org", org=org).json()["data"]
    return sum(row["amount_nano"] for row in rows)


def test_a_statement_is_what_was_charged_and_can_be_checked_from_files(
    shop: Shop, tmp_path: Path
) -> None:
    whole, entries = shop.files(tmp_path)
    key = shop.node.http.get(f"{shop.node.url}/v1/billing/public-key").json()["public_key"]

    done = verify(whole, "--entries", entries, "--public-key", key)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "The statement holds: signature, sums, entries, hashes, amounts, lines.\n"
    )
    totals = json.loads(whole.read_text())["statement"]["totals"]
    assert totals["charged_nano"] == charged(shop.node, "own") > 0
    assert totals["requests"] == 5
    assert shop.node.cli("invoice", "key").stdout == f"{key}\n"


@pytest.mark.parametrize("file", ["own.json", "own.jsonl"])
def test_a_changed_file_exits_with_1_and_says_why(shop: Shop, tmp_path: Path, file: str) -> None:
    whole, entries = shop.files(tmp_path)
    changed = tmp_path / file
    text = changed.read_text()
    changed.write_text(
        text.replace('"answered"', '"failed"', 1).replace('"sort": "use"', '"sort": "free"', 1)
    )

    done = verify(whole, "--entries", entries)

    assert done.returncode == 1
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_what_is_no_statement_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)

    done = verify(tmp_path / "x.json")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_an_organisation_gets_its_own_statement_and_no_other(shop: Shop) -> None:
    own, month = "/admin/v1/invoices/own", shop.month

    answers = {who: shop.ask(who, own, month=month).status_code for who in shop.keys}

    assert answers == {"billing": 200, "admin": 200, "member": 403, "other": 404}
    text = shop.ask("billing", own, month=month).text
    entries = shop.ask("billing", "/admin/v1/ledger/entries", month=month).text
    assert "zq-foreign" not in text + entries
    assert len(entries.splitlines()) == 5
    assert shop.ask("billing", "/admin/v1/ledger/entries", org="zq-foreign").text == ""
    assert shop.ask("billing", "/admin/v1/invoices/nobody", month=month).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"month": "2026-13"},
        {"month": "9999-01"},
        {"month": "2026-11", "timezone": "../../etc/passwd"},
        {"month": "2255-01"},
        {"month": "'; DROP TABLE entries"},
    ],
)
def test_a_month_that_cannot_be_is_refused(shop: Shop, query: dict[str, str]) -> None:
    answer = shop.ask("billing", "/admin/v1/invoices/own", **query)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_killed_node_s_statement_is_the_same_and_signed_with_the_same_key(
    shop: Shop, tmp_path: Path
) -> None:
    running, _ = shop.files(tmp_path)
    before = json.loads(running.read_text())
    shop.node.kill()

    stopped, entries = shop.files(tmp_path)

    after = json.loads(stopped.read_text())
    assert verify(stopped, "--entries", entries, "--previous", running).returncode == 1
    assert verify(stopped, "--entries", entries).returncode == 0
    for whole in (before, after):
        whole["statement"].pop("issued_at")
        whole["signature"].pop("value")
    assert before == after
    mode = (shop.node.data_dir / "statement_key").stat().st_mode
    assert mode & 0o777 == 0o600
    shop.node.start()


@pytest.mark.parametrize("form", ["text", "markdown", "csv"])
def test_every_form_has_every_line(shop: Shop, form: str) -> None:
    def text(*args: str) -> str:
        done = shop.node.cli("invoice", "own", "--month", shop.month, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    lines: list[dict[str, Any]] = json.loads(text("--json"))["statement"]["lines"]

    shown = text("--format", form)

    assert all(f"{line['amount_usd']}" in shown for line in lines)
    assert len([one for one in shown.splitlines() if "echo@1" in one or "free@1" in one]) == len(
        [line for line in lines if line["model"] in ("echo@1", "free@1")]
    )


def test_focus_rows_are_the_same_of_a_running_node_and_of_a_stopped_one(shop: Shop) -> None:
    def rows(*args: str) -> list[dict[str, str]]:
        done = shop.node.cli(*args, "--format", "focus")
        assert done.returncode == 0, done.stderr
        return list(csv.DictReader(done.stdout.splitlines()))

    running = rows("invoice", "own", "--month", shop.month)
    assert running == rows("usage", "--org", "own")
    assert rows("usage", "--since", "2001-01-01", "--until", "2001-02-01") == []
    shop.node.kill()
    assert running == rows("usage", "--org", "own")
    shop.node.start()

    billed = sum(Decimal(row["BilledCost"]) for row in running)
    assert billed * 10**9 == charged(shop.node, "own")
    own = [json.loads(line) for line in shop.ask("billing", "/admin/v1/usage/focus").iter_lines()]
    assert len(own) == len(running)
    assert shop.ask("member", "/admin/v1/usage/focus").status_code == 403


def test_what_was_rated_again_and_paid_in_has_lines_of_its_own(
    new_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = new_node(SETTINGS).start()
    key = node.create_key("own", role="admin")["key"]
    shop = Shop(node, {"admin": key}, f"{datetime.now(UTC):%Y-%m}")
    for command in (
        ("budgets", "create", "--org", "own", "--period", "balance"),
        ("credits", "add", "own", "--usd", "2.50"),
    ):
        done = node.cli(*command)
        assert done.returncode == 0, done.stderr
    assert _chat(shop, "admin", "echo").status_code == 200
    before = charged(node, "own")
    rated = ("ledger", "rerate", "--model", "echo", "--since", "2026-01-01", "--output", "0.1")
    assert node.cli(*rated, "--input", "0", "--apply").returncode == 0

    whole, entries = shop.files(tmp_path)

    assert verify(whole, "--entries", entries).returncode == 0
    said = json.loads(whole.read_text())["statement"]
    totals, sorts = said["totals"], {line["sort"] for line in said["lines"]}
    assert sorts == {"use", "correction", "credit"}
    assert totals["credits_nano"] == 2_500_000_000
    assert totals["use_nano"] == before
    assert totals["charged_nano"] == charged(node, "own") < before
    assert totals["corrections_nano"] == totals["charged_nano"] - before
