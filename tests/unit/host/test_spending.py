"""What budgets and the ledger say of each other, on the real files."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cost.settling import settle_by

from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, Overloaded
from llmhost.cost.entries import Entry
from llmhost.cost.pricing import Price
from llmhost.cost.rerate import Rerating
from llmhost.cost.under_way import UnderWay
from llmhost.host.books import Books, open_books
from llmhost.storage.connect import StorageFailed
from llmhost.storage.node import DataDir
from llmhost.tenants import pots
from llmhost.tenants.budgets import MOST_NANO, Budget
from llmhost.tenants.periods import Period
from llmhost.testing import ManualClock, at

LAPTOP = Caller(key_id="laptop", org="acme", team="search")


class Node:
    def __init__(self, path: Path) -> None:
        self.clock: ManualClock = at("2026-05-10T12:00Z")
        self.data_dir = DataDir(path)
        self.closing = AsyncExitStack()
        self.books: Books
        self.requests = 0
        self.open()

    def open(self) -> None:
        self.books = open_books(self.data_dir, self.clock, self.closing)

    async def restart(self) -> None:
        await self.closing.aclose()
        self.closing = AsyncExitStack()
        self.open()

    def use(
        self, nano: int, caller: Caller = LAPTOP, run_id: str | None = None, tokens: int = 0
    ) -> None:
        """A request that settles what it held, and whose entry is handed over in the same turn."""
        self.requests += 1
        utc_ns = self.clock.utc_ns()
        hold = self.books.budgets.accounts.hold(caller, run_id, nano, utc_ns)
        if hold is None:
            self.books.budgets.accounts.charge(caller, run_id, nano, utc_ns)
        else:
            hold.settle(nano)
        self.books.ledger.record(
            Entry(
                request_id=f"req_{self.requests}",
                utc_ns=utc_ns,
                key_id=caller.key_id,
                org=caller.org,
                team=caller.team,
                model="tiny@1",
                outcome="answered",
                output_tokens=tokens,
                amount_nano=nano,
                run_id=run_id,
            )
        )

    def spent(self, budget: Budget) -> int:
        account = self.books.budgets.accounts.account(budget)
        assert account is not None
        return account.standing(self.clock.utc_ns()).spent


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.books.keys.create_org("acme")
    yield node
    await node.closing.aclose()


def wanted(period: Period, **facts: object) -> Budget:
    return Budget(id="", org="acme", limit_nano=10**9, period=period, **facts)  # type: ignore[arg-type]


async def test_levels_and_periods_find_what_is_theirs_in_the_ledger(node: Node):
    record, _ = await node.books.keys.create(org="acme", team="search")
    mine = Caller(key_id=record.id, org="acme", team="search")
    node.use(1, mine)
    node.clock.advance(86_400)
    node.use(10, mine)
    node.use(100, LAPTOP)
    node.use(1_000, Caller(key_id="ads", org="acme", team="ads"))
    node.use(10_000, Caller(key_id="x", org="other"))

    made = [
        await node.books.budgets.create(wanted(period, **whose), who="operator")
        for period, whose in (
            (Period.TOTAL, {}),
            (Period.DAY, {}),
            (Period.MONTH, {"team": "search", "zone": "Asia/Kathmandu"}),
            (Period.TOTAL, {"key_id": record.id}),
        )
    ]

    assert [node.spent(budget) for budget in made] == [1_111, 1_110, 111, 11]
    await node.restart()
    assert [node.spent(budget) for budget in made] == [1_111, 1_110, 111, 11]


async def test_runs_are_found_in_the_ledger(node: Node):
    node.use(5, run_id="r")
    node.use(7)
    budget = await node.books.budgets.create(wanted(Period.TOTAL, is_per_run=True), who="operator")
    node.use(2, run_id="r")

    for _ in range(2):
        account = node.books.budgets.accounts.account(budget)
        assert account is not None
        ((run, standing),) = account.runs(node.clock.utc_ns())
        assert run == ("laptop", "search", "r")
        assert standing.spent == 7
        await node.restart()


async def test_a_credit_is_an_entry_of_the_ledger_and_no_use(node: Node):
    balance = await node.books.budgets.create(
        Budget(id="", org="acme", period=Period.BALANCE), who="operator"
    )
    node.clock.advance(1)
    paid = await node.books.budgets.add_credit(balance, 500, who="operator", reference="a")
    await node.books.budgets.add_credit(balance, 500, who="operator", reference="a")
    await node.books.budgets.add_credit(balance, 70, who="operator", kind="grant")
    node.clock.advance(1)
    node.use(100)
    await node.restart()

    entries = list(node.books.ledger.export())
    assert [(e["kind"], e["debit"], e["credit"], e["amount_nano"]) for e in entries] == [
        ("credit", "cash", "org:acme", 500),
        ("credit", "grants", "org:acme", 70),
        ("request", "org:acme", "revenue", 100),
    ]
    assert entries[0]["request_id"] == paid.id
    assert node.books.ledger.verify().is_intact
    assert node.spent(balance) == 100
    assert node.books.ledger.spent_nano("org", "acme") == 100


async def test_a_budget_that_is_made_amid_a_rerating_counts_it_once(node: Node):
    node.use(100, tokens=20)
    writer, made = node.books.ledger._writer, []
    run = writer.run
    await run(lambda _: None)  # what was handed over before is on disk

    async def while_it_is_committed(job: Any) -> Any:
        writer.run = run  # type: ignore[method-assign]
        done = await run(job)
        create = node.books.budgets.create(wanted(Period.TOTAL), who="operator")
        made.append(asyncio.create_task(create))
        for _ in range(1_000):
            await asyncio.sleep(0)
        return done

    writer.run = while_it_is_committed  # type: ignore[method-assign]
    cheap = Price(version="x", input_nano=0, cached_input_nano=0, output_nano=1_000_000)
    period = {"since_ns": 0, "until_ns": node.clock.utc_ns() + 1}
    rerating = Rerating(rerate_id="r", model="tiny", price=cheap, **period)
    await node.books.rerater.apply(rerating)
    budget = await made[0]
    assert node.spent(budget) == 20
    await node.restart()
    assert node.spent(budget) == 20


async def test_credits_are_never_more_than_the_ledger_can_add_up(node: Node):
    store = node.books.budgets
    balance = await store.create(Budget(id="", org="acme", period=Period.BALANCE), who="operator")
    await store.add_credit(balance, MOST_NANO, who="operator")
    with pytest.raises(InvalidValue, match="can be counted"):
        await store.add_credit(balance, MOST_NANO, who="operator")
    balances = {each.account: each.balance_nano for each in node.books.ledger.accounts()}
    assert balances == {"cash": MOST_NANO, "org:acme": -MOST_NANO}


async def test_no_budget_begins_while_the_ledger_lacks_what_was_spent(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    def refused(entry: Entry) -> Any:
        raise StorageFailed(Path("money.db"), OSError("disk full"))

    settlements = node.books.settlements
    said = {"request_id": "r", "utc_ns": node.clock.utc_ns(), "key_id": "laptop", "org": "acme"}
    entry = Entry(**said, model="tiny@1", outcome="answered", amount_nano=70)
    request = UnderWay(
        **said, team=None, run_id=None, model="t", adapter=None, price_version=None, rates=None
    )
    settle_by(monkeypatch, node.books.ledger, refused)
    await settlements.settle(entry, settlements.begin(request))
    with pytest.raises(Overloaded):
        await node.books.budgets.create(wanted(Period.TOTAL), who="operator")
    monkeypatch.undo()
    assert await settlements._try("r")
    budget = await node.books.budgets.create(wanted(Period.TOTAL), who="operator")
    assert node.spent(budget) == 70


async def test_after_a_restart_the_run_that_was_heard_of_first_is_forgotten_first(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    budget = await node.books.budgets.create(wanted(Period.TOTAL, is_per_run=True), who="operator")
    for run in ("old", "new"):
        node.use(5, run_id=run)
        node.clock.advance(3_600)
    await node.restart()
    monkeypatch.setattr(pots, "KEPT_RUNS", 2)
    node.use(1, run_id="another")

    account = node.books.budgets.accounts.account(budget)
    assert account is not None
    assert [run[-1] for run, _ in account.runs(node.clock.utc_ns())] == ["new", "another"]
