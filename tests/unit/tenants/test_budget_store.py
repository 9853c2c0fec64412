import asyncio
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from llmhost.core.caller import Caller
from llmhost.core.errors import ConfigError, Conflict, InvalidValue, NotFound, QuotaExhausted
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer
from llmhost.tenants import budget_rows, keys
from llmhost.tenants.accounts import Accounts, run_of
from llmhost.tenants.budget_store import BudgetStore, Spending
from llmhost.tenants.budgets import MOST_NANO, Budget, Credit
from llmhost.tenants.keys import KeyStore
from llmhost.tenants.periods import Period, Span
from llmhost.tenants.pots import Run, Standing

HOUR_NS = 3_600 * 10**9
ACME = Caller(key_id=None, org="acme")

LEDGER = Schema(
    "ledger",
    {
        "charges": (
            "CREATE TABLE charges (org TEXT, key_id TEXT, team TEXT, run TEXT, utc_ns INTEGER, nano INTEGER)",
            "CREATE TABLE booked (id TEXT, nano INTEGER)",
        )
    },
)


def spent(connection: Connection, budget: Budget, span: Span) -> int:
    (nano,) = connection.execute(
        "SELECT ifnull(sum(nano), 0) FROM charges WHERE org = ? AND utc_ns >= ? AND utc_ns < ?",
        (budget.org, *span),
    ).fetchone()
    return int(nano)


def by_run(
    connection: Connection, budget: Budget, span: Span, most: int
) -> Mapping[Run | None, int]:
    rows = connection.execute(
        "SELECT key_id, team, run, sum(nano) FROM charges WHERE org = ? AND utc_ns >= ? AND utc_ns < ?"
        " AND run IS NOT NULL GROUP BY 1, 2, 3 LIMIT ?",
        (budget.org, *span, most),
    )
    return {(key, team, run): nano for key, team, run, nano in rows}


def book(connection: Connection, credit: Credit) -> None:
    connection.execute("INSERT INTO booked VALUES (?, ?)", (credit.id, credit.amount_nano))


@dataclass
class ManualClock:
    now_ns: int = 1_800_000_000 * 10**9

    def monotonic_ns(self) -> int:
        return self.now_ns

    def utc_ns(self) -> int:
        return self.now_ns


@dataclass
class Desk:
    """A store on a file, a ledger beside it, and the means to open both again."""

    path: Path
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.writer = Writer(self.path, migrations=[keys.SCHEMA, budget_rows.SCHEMA, LEDGER])
        self.reader = Reader(self.path)
        self.store = self.opened()

    def opened(self) -> BudgetStore:
        self.writer.submit(lambda _: None).result()  # what was handed over before is on disk
        return BudgetStore(
            self.writer,
            self.reader,
            node_id="node-1",
            clock=self.clock,
            spending=Spending(spent, by_run),
            book_credit=book,
        )

    @property
    def accounts(self) -> Accounts:
        return self.store.accounts

    def record(self, caller: Caller, nano: int, utc_ns: int, run: str | None = None) -> None:
        """What the ledger does with an entry."""
        row = (caller.org, caller.key_id, caller.team, run, utc_ns, nano)
        self.writer.submit(
            lambda c: c.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?)", row) and None
        )

    def use(self, nano: int, caller: Caller = ACME, run: str | None = None) -> None:
        """A request that held what it used."""
        hold = self.accounts.hold(caller, run, nano, self.clock.now_ns)
        if hold is None:
            self.accounts.charge(caller, run, nano, self.clock.now_ns)
        else:
            hold.settle(nano)
        self.record(caller, nano, self.clock.now_ns, run)

    def standing(self, budget: Budget, store: BudgetStore | None = None) -> Standing:
        account = (store or self.store).accounts.account(budget)
        assert account is not None
        return account.standing(self.clock.now_ns)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture
async def desk(tmp_path: Path) -> Iterator[Desk]:  # type: ignore[misc]
    desk = Desk(tmp_path / "money.db")
    store = KeyStore(desk.writer, desk.reader, pepper=b"p" * 32, node_id="node-1", clock=desk.clock)
    await store.create_org("acme")
    await store.create_org("beta")
    yield desk
    desk.close()


def wanted(limit_nano: int = 100, period: Period = Period.TOTAL, **facts: object) -> Budget:
    given = {"id": "", "org": "acme", **facts}
    return Budget(limit_nano=limit_nano, period=period, **given)  # type: ignore[arg-type]


BALANCE = wanted(0, Period.BALANCE)


async def test_a_budget_is_in_force_when_it_is_answered(desk: Desk):
    budget = await desk.store.create(wanted(100), who="operator")

    desk.use(100)

    with pytest.raises(QuotaExhausted):
        desk.accounts.hold(ACME, None, 1, desk.clock.now_ns)
    assert budget.id.startswith("bud_")
    assert desk.store.budgets() == (budget,)


async def test_a_restart_finds_budgets_and_what_was_used(desk: Desk):
    total = await desk.store.create(wanted(100), who="operator")
    day = await desk.store.create(wanted(100, Period.DAY, zone="Asia/Kathmandu"), who="operator")
    gone = await desk.store.create(wanted(5, Period.MONTH), who="operator")
    await desk.store.end(gone.id, who="operator")
    desk.use(10)
    desk.clock.now_ns += 24 * HOUR_NS
    desk.use(3)
    await desk.store.update(total.id, lambda b: replace(b, limit_nano=50), who="key-1")

    again = desk.opened()

    assert again.budgets() == desk.store.budgets()
    assert again.accounts.account(gone) is None
    assert desk.standing(total, again) == desk.standing(total) == Standing(50, 13, 0, 37, None)
    assert desk.standing(day, again) == desk.standing(day)
    assert desk.standing(day).spent == 3


async def test_a_new_budget_counts_what_was_used_before_in_its_span(desk: Desk):
    desk.use(10)
    desk.clock.now_ns += 40 * 24 * HOUR_NS
    desk.use(7)

    total = await desk.store.create(wanted(100), who="operator")
    month = await desk.store.create(wanted(100, Period.MONTH), who="operator")

    assert desk.standing(total).spent == 17
    assert desk.standing(month).spent == 7


async def test_what_is_settled_while_a_budget_is_made_counts_once(desk: Desk):
    """Before, during and after: the writer is kept busy so that all of them wait in its queue together."""
    release = asyncio.Event()
    loop = asyncio.get_running_loop()
    started = asyncio.Event()

    def block(_: Connection) -> None:
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    desk.writer.submit(block)
    await started.wait()
    desk.use(1)
    making = asyncio.create_task(desk.store.create(wanted(1_000), who="operator"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    desk.use(10)
    desk.use(100)
    release.set()
    budget = await making

    assert desk.standing(budget).spent == 111
    await desk.writer.run(lambda _: None)
    assert desk.standing(budget, desk.opened()).spent == 111


async def test_many_budgets_made_under_load_are_all_exact(desk: Desk):
    async def work() -> None:
        for nano in range(1, 200):
            desk.use(nano, ACME, "r" if nano % 3 else None)
            if nano % 5 == 0:
                await asyncio.sleep(0)

    async def make() -> list[Budget]:
        made = []
        for period in (Period.DAY, Period.MONTH, Period.TOTAL):
            made.append(await desk.store.create(wanted(10**6, period), who="operator"))
            made.append(
                await desk.store.create(wanted(10**6, period, is_per_run=True), who="operator")
            )
        return made

    _, budgets, _ = await asyncio.gather(work(), make(), work())
    await desk.writer.run(lambda _: None)
    again = desk.opened()

    for budget in budgets:
        account, anew = (store.accounts.account(budget) for store in (desk.store, again))
        assert account is not None
        assert anew is not None
        if budget.is_per_run:
            assert account.runs(desk.clock.now_ns) == anew.runs(desk.clock.now_ns)
            ((run, standing),) = account.runs(desk.clock.now_ns)
            assert run == run_of(ACME, "r")
            assert standing.spent == 2 * sum(nano for nano in range(1, 200) if nano % 3)
        else:
            assert desk.standing(budget) == desk.standing(budget, again)
            assert desk.standing(budget).spent == 2 * sum(range(1, 200))


async def test_a_budget_that_can_not_be_stored_limits_nobody(desk: Desk):
    with pytest.raises(sqlite3.IntegrityError):
        await desk.store.create(wanted(0, org="nobody"), who="operator")

    assert desk.accounts.hold(Caller(key_id=None, org="nobody"), None, 5, 0) is None
    assert desk.store.budgets() == ()


async def test_a_change_is_carried_out_when_nobody_waits_for_it_any_more(desk: Desk):
    making = asyncio.create_task(desk.store.create(wanted(5), who="operator"))
    await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await desk.writer.run(lambda _: None)
    await desk.store.create(wanted(5, Period.DAY), who="operator")  # waits for its turn

    assert len(desk.store.budgets()) == 2
    assert desk.store.budgets() == desk.opened().budgets()
    with pytest.raises(QuotaExhausted):
        desk.accounts.hold(ACME, None, 6, desk.clock.now_ns)


async def test_there_is_one_budget_of_a_kind(desk: Desk):
    first = await desk.store.create(wanted(5), who="operator")
    await desk.store.create(wanted(5, Period.DAY), who="operator")
    await desk.store.create(wanted(5, is_per_run=True), who="operator")
    await desk.store.create(wanted(5, org="beta"), who="operator")

    with pytest.raises(Conflict, match=first.id):
        await desk.store.create(wanted(9), who="operator")
    await desk.store.end(first.id, who="operator")
    assert await desk.store.create(wanted(9), who="operator")


@pytest.mark.parametrize(
    ("facts", "param"),
    [
        ({"limit_nano": -1}, "usd"),
        ({"limit_nano": MOST_NANO + 1}, "usd"),
        ({"zone": "Mars/Olympus"}, "timezone"),
        ({"period": Period.BALANCE, "is_per_run": True}, "period"),
        ({"period": Period.DAY, "until_ns": 5}, "until"),
    ],
)
async def test_what_can_not_be_a_budget_is_refused(
    desk: Desk, facts: dict[str, object], param: str
):
    with pytest.raises(InvalidValue) as refusal:
        await desk.store.create(wanted(**facts), who="operator")  # type: ignore[arg-type]

    assert refusal.value.param == param
    assert desk.store.budgets() == ()


async def test_the_largest_budget_can_be_stored(desk: Desk):
    budget = await desk.store.create(wanted(MOST_NANO), who="operator")

    assert desk.opened().budget(budget.id).limit_nano == MOST_NANO


async def test_every_change_says_who_made_it(desk: Desk):
    budget = await desk.store.create(wanted(5), who="operator")
    desk.clock.now_ns += 1
    await desk.store.update(budget.id, lambda b: replace(b, limit_nano=7), who="key-1")
    desk.clock.now_ns += 1
    await desk.store.end(budget.id, who="operator")
    await desk.store.end(budget.id, who="operator")

    history = await desk.store.history(budget.id)

    assert [(one.what, one.who, one.limit_nano) for one in history] == [
        ("created", "operator", 5),
        ("changed", "key-1", 7),
        ("ended", "operator", 7),
    ]
    assert [one.utc_ns - history[0].utc_ns for one in history] == [0, 1, 2]


async def test_a_budget_that_ended_stays_ended(desk: Desk):
    budget = await desk.store.create(wanted(5), who="operator")
    await desk.store.end(budget.id, who="operator")

    with pytest.raises(Conflict, match="has ended"):
        await desk.store.update(budget.id, lambda b: replace(b, limit_nano=7), who="operator")


async def test_another_organisations_budget_is_not_found(desk: Desk):
    budget = await desk.store.create(wanted(5), who="operator")

    assert desk.store.budget(budget.id, "acme") == budget
    with pytest.raises(NotFound):
        desk.store.budget(budget.id, "beta")


async def test_nothing_that_was_written_can_be_changed(desk: Desk):
    await desk.store.create(wanted(5), who="operator")

    for statement in ("UPDATE budget_events SET limit_nano = 9", "DELETE FROM budget_events"):
        with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
            await desk.writer.run(lambda c, text=statement: c.execute(text) and None)  # type: ignore[misc]


# -- balances


async def test_a_balance_is_what_was_paid_in_less_what_was_used(desk: Desk):
    budget = await desk.store.create(BALANCE, who="operator")
    desk.clock.now_ns += 1
    await desk.store.add_credit(budget, 100, who="operator")
    desk.clock.now_ns += 1
    desk.use(60)

    assert desk.standing(budget) == Standing(100, 60, 0, 40, None)
    assert desk.standing(budget, desk.opened()) == desk.standing(budget)


async def test_what_was_used_before_is_not_taken_from_a_balance(desk: Desk):
    desk.use(60)
    desk.clock.now_ns += 1
    budget = await desk.store.create(BALANCE, who="operator")

    assert desk.standing(budget, desk.opened()).spent == desk.standing(budget).spent == 0


async def test_a_payment_is_booked_once(desk: Desk):
    budget = await desk.store.create(BALANCE, who="operator")
    first = await desk.store.add_credit(budget, 100, who="operator", reference="invoice-7")
    again = await desk.store.add_credit(budget, 100, who="operator", reference="invoice-7")

    assert again == first
    assert desk.standing(budget).limit == 100
    assert await desk.reader.read(lambda c: c.execute("SELECT * FROM booked").fetchall()) == [
        (first.id, 100)
    ]
    with pytest.raises(Conflict, match="invoice-7"):
        await desk.store.add_credit(budget, 101, who="operator", reference="invoice-7")


async def test_payments_at_once_with_one_reference_are_booked_once(desk: Desk):
    budget = await desk.store.create(BALANCE, who="operator")
    paid = await asyncio.gather(
        *(desk.store.add_credit(budget, 100, who="operator", reference="twice") for _ in range(5))
    )

    assert len({credit.id for credit in paid}) == 1
    assert desk.standing(budget).limit == 100


async def test_credits_expire_the_first_ones_first_and_a_restart_knows(desk: Desk):
    budget = await desk.store.create(BALANCE, who="operator")
    soon = desk.clock.now_ns + 10 * HOUR_NS
    await desk.store.add_credit(budget, 100, who="operator")
    await desk.store.add_credit(budget, 50, who="operator", expires_ns=soon)
    desk.clock.now_ns += HOUR_NS
    desk.use(30)
    assert desk.standing(budget).remaining == 120
    desk.clock.now_ns = soon
    desk.use(10)

    assert desk.standing(budget).remaining == 90
    assert desk.standing(budget, desk.opened()).remaining == 90
    assert [credit.amount_nano for credit in desk.store.credits(org="acme")] == [100, 50]


@pytest.mark.parametrize(
    ("nano", "more", "param"),
    [
        (-1, {}, "usd"),
        (MOST_NANO + 1, {}, "usd"),
        (5, {"expires_ns": 1}, "expires_at"),
        (5, {"reference": ""}, "reference"),
        (5, {"reference": "a\nb"}, "reference"),
        (5, {"note": "n" * 201}, "note"),
    ],
)
async def test_what_can_not_be_a_credit_is_refused(
    desk: Desk, nano: int, more: dict[str, object], param: str
):
    budget = await desk.store.create(BALANCE, who="operator")

    with pytest.raises(InvalidValue) as refusal:
        await desk.store.add_credit(budget, nano, who="operator", **more)  # type: ignore[arg-type]

    assert refusal.value.param == param
    assert desk.standing(budget).limit == 0


async def test_only_balances_are_paid_into(desk: Desk):
    budget = await desk.store.create(wanted(5), who="operator")

    with pytest.raises(InvalidValue, match="only a balance"):
        await desk.store.add_credit(budget, 5, who="operator")
    with pytest.raises(NotFound, match="no balance"):
        desk.store.balance_of("acme")
    balance = await desk.store.create(BALANCE, who="operator")
    assert desk.store.balance_of("acme") == balance
    with pytest.raises(InvalidValue, match="no amount"):
        await desk.store.update(balance.id, lambda b: replace(b, limit_nano=7), who="operator")


async def test_a_zone_that_is_not_known_any_more_is_said_at_the_start(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    await desk.store.create(wanted(5, Period.DAY, zone="Europe/Berlin"), who="operator")

    def gone(name: str) -> None:
        raise ValueError(f"{name!r} is no time zone that this machine knows")

    monkeypatch.setattr("llmhost.tenants.budget_store.zone_of", gone)
    with pytest.raises(ConfigError, match="tzdata"):
        desk.opened()
