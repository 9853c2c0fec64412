"""What stands beside the entries: changed by whoever has the file, and found."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.cost.test_ledger import Books, entry
from tests.unit.cost.test_rows import Books as CostBooks
from tests.unit.cost.test_sums import ENTRIES, ledger_of
from tests.unit.cost.told import used

from llmhost.cost.accounts import accounts
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.entries import Entry
from llmhost.cost.query import Query
from llmhost.cost.reports import Reports
from llmhost.testing import at

COSTS = Breakdown(gpu_compute_nano=9, input_nano=3, infrastructure_nano=2, load_id="load_1")


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path / "money.db")
    books.record(*(entry(i, costs=COSTS if i % 2 else None) for i in range(1, 21)))
    yield books
    books.close()


def change(books: Books, *statements: str) -> None:
    """As somebody could who has the file."""

    def job(connection: Any) -> None:
        for table in ("request_costs", "entries"):
            for verb in ("UPDATE", "DELETE"):
                connection.execute(f"DROP TRIGGER IF EXISTS {table}_no_{verb}")
        for statement in statements:
            connection.execute(statement)

    books.writer.submit(job).result(10)


def test_a_whole_ledger_is_whole(books: Books) -> None:
    audit = books.ledger.audit()
    assert (audit.is_intact, audit.problem, audit.chain.rows) == (True, None, 20)
    assert books.ledger.drift() == {"sums": 0, "run_sums": 0}


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE request_costs SET gpu_compute_nano = 8 WHERE request_id = 'req_7'", "entry 7"),
        ("UPDATE request_costs SET load_id = NULL WHERE request_id = 'req_7'", "entry 7"),
        ("UPDATE request_costs SET org = 'beta' WHERE request_id = 'req_7'", "entry 7"),
        ("UPDATE request_costs SET key_id = NULL WHERE request_id = 'req_9'", "entry 9"),
        ("DELETE FROM request_costs WHERE request_id = 'req_7'", "entry 7"),
        ("UPDATE entries SET cost_digest = NULL WHERE seq = 7", "not what was recorded"),
        ("UPDATE request_costs SET salt = 'x' WHERE request_id = 'req_7'", "entry 7"),
        (
            "INSERT INTO request_costs SELECT 99, node_id, utc_ns, kind, 'req_99', key_id, org, team, model,"
            " load_id, 1, 1, 1, 1, 1, '' FROM request_costs LIMIT 1",
            "row 99 of true cost, req_99: it belongs to no entry",
        ),
        ("UPDATE sums SET amount_nano = amount_nano - 1", "1 rows of sums"),
        ("DELETE FROM sums", "1 rows of sums"),
        (
            "INSERT INTO sums SELECT 'beta', quarter, team, key_id, model, 1, 1, 1, 1, 1, 1, 1, 1 FROM sums",
            "1 rows of sums",
        ),
    ],
)
def test_what_was_changed_is_found(books: Books, statement: str, problem: str) -> None:
    change(books, statement)
    audit = books.ledger.audit()
    assert not audit.is_intact
    assert problem in str(audit.problem)


async def test_sums_are_made_anew_from_the_entries(books: Books) -> None:
    change(books, "UPDATE sums SET amount_nano = 1, requests = 7")
    assert books.ledger.drift() == {"sums": 1, "run_sums": 0}
    await books.ledger.rebuild_sums()
    assert books.ledger.audit().is_intact
    assert books.ledger.spent_nano("org", "acme") == 20 * 70


def test_what_makes_up_for_a_load_has_entries_too(tmp_path: Path) -> None:
    books = CostBooks(tmp_path / "money.db", at("2026-01-10T12:00Z"))
    books.load("load_1", cost=1_000)
    books.load("load_2", cost=50)
    books.record("a", amount=5, model_loading_nano=10, load_id="load_1")
    for load_id in ("load_1", "load_2"):
        asyncio.run(books.costs.end_load(load_id))
    rows = [(r["kind"], r["org"], r["amount_nano"]) for r in books.ledger.export()]
    assert rows == [("request", "acme", 5), ("load_true_up", "acme", 0), ("load_unused", "-", 0)]
    assert all(row["cost_digest"] for row in books.ledger.export())
    assert books.ledger.audit().is_intact
    assert list(used(books.reader)) == ["acme"], "they are no use"
    held = {row.account: row.balance_nano for row in books.ledger.accounts()}
    assert held == {"org:acme": 5, "revenue": -5, "costs": 1_000, "loss": 50, "machine": -1_050}
    books.close()


def test_what_makes_up_for_a_load_is_on_no_bill(tmp_path: Path) -> None:
    books = CostBooks(tmp_path / "money.db", at("2026-01-10T12:00Z"))
    books.load("load_1", cost=1_000)
    books.record("a", amount=5, model_loading_nano=10, load_id="load_1")
    asyncio.run(books.costs.end_load("load_1"))
    charges = Reports(books.reader).charges(Query(by=("org",)))
    assert [(charge.sort, charge.kind, charge.amount_nano) for charge in charges] == [
        ("use", "request", 5)
    ]
    books.close()


# Accounts


@given(st.lists(ENTRIES, max_size=30))
def test_all_accounts_together_hold_nothing(entries: list[Entry]) -> None:
    with ledger_of(entries) as ledger:
        assert sum(row.balance_nano for row in accounts(ledger)) == 0


def test_a_grant_is_taken_from_grants_and_given_to_the_organisation(books: Books) -> None:
    grant = Entry.transfer(
        "grant_1",
        kind="grant",
        utc_ns=5,
        org="acme",
        debit="grants",
        credit="org:acme",
        amount_nano=1_000,
    )
    books.record(grant, replace(entry(21), outcome="failed", amount_nano=0, costs=COSTS))
    held = {row.account: row.balance_nano for row in books.ledger.accounts()}
    assert held == {
        "costs": 110,
        "grants": 1_000,
        "loss": 11,
        "machine": -121,
        "org:acme": 20 * 70 - 1_000,
        "revenue": -20 * 70,
    }
