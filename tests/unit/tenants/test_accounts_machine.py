"""Whatever requests and operators do: what was granted was there, and a new start finds the same figures."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmhost.core.caller import Caller
from llmhost.core.errors import QuotaExhausted
from llmhost.tenants.accounts import Accounts, BudgetHold, run_of
from llmhost.tenants.balance import Grant
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import EVER_NS, Period, Span
from llmhost.tenants.pots import Account, Run

HOUR_NS = 3_600 * 10**9
START_NS = 1_790_000_000 * 10**9

CALLERS = [
    Caller(key_id=key, org=org, team=team)
    for org, team, key in (("a", "x", "k1"), ("a", "x", "k2"), ("a", None, "k3"), ("b", None, "k4"))
]
SCOPES = [
    {"org": "a"},
    {"org": "a", "team": "x"},
    {"org": "a", "team": "x", "key_id": "k1"},
    {"org": "a", "is_per_run": True},
    {"org": "a", "key_id": "k1", "is_per_run": True},
    {"org": "b"},
]
NANO = st.integers(0, 60)


class Spending(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ns = START_NS
        self.accounts = Accounts()
        self.ledger: list[tuple[Caller, str | None, int, int]] = []
        """Who, run, arrival, amount."""
        self.holds: list[BudgetHold] = []
        self.unheld: list[tuple[Caller, int]] = []
        self.budgets: dict[str, Budget] = {}
        self.counting: dict[str, dict[Run | None, int]] = {}
        self.grants: dict[str, list[Grant]] = {}
        self.made = 0

    # -- requests

    @rule(caller=st.sampled_from(CALLERS), run=st.sampled_from([None, "r", "s"]), nano=NANO)
    def arrive(self, caller: Caller, run: str | None, nano: int) -> None:
        before = self.figures()
        try:
            hold = self.accounts.hold(caller, run, nano, self.now_ns)
        except QuotaExhausted:
            assert set(self.figures()) <= set(before)  # days that are over may have been forgotten
            return
        if hold is None:
            self.unheld.append((caller, self.now_ns))
            return
        self.holds.append(hold)
        self.check_room(hold)

    @precondition(lambda self: self.holds)
    @rule(place=st.integers(0, 99), nano=NANO, least=st.integers(1, 20))
    def grow(self, place: int, nano: int, least: int) -> None:
        hold = self.holds[place % len(self.holds)]
        before = hold.held_nano
        granted = hold.raise_by(nano, least=least)
        assert granted == 0 or least <= granted <= nano
        assert hold.held_nano == before + granted
        if granted:
            self.check_room(hold)

    @precondition(lambda self: self.holds)
    @rule(place=st.integers(0, 99), share=st.integers(0, 100))
    def settle(self, place: int, share: int) -> None:
        hold = self.holds.pop(place % len(self.holds))
        nano = hold.held_nano * share // 100
        assert hold.settle(nano) == hold.remaining_nano
        self.ledger.append((hold.caller, hold.run_id, hold.utc_ns, nano))
        assert hold.settle(nano) == hold.remaining_nano, "it has ended, and its budgets go on"

    @precondition(lambda self: self.holds)
    @rule(place=st.integers(0, 99))
    def void(self, place: int) -> None:
        hold = self.holds.pop(place % len(self.holds))
        hold.void()
        hold.settle(7)

    @precondition(lambda self: self.unheld)
    @rule(nano=NANO)
    def end_unheld(self, nano: int) -> None:
        caller, utc_ns = self.unheld.pop()
        self.accounts.charge(caller, None, nano, utc_ns)
        self.ledger.append((caller, None, utc_ns, nano))

    # -- time and operators

    @rule(hours=st.integers(0, 40))
    def wait(self, hours: int) -> None:
        self.now_ns += hours * HOUR_NS + 1

    @rule(
        scope=st.sampled_from(SCOPES),
        period=st.sampled_from([Period.DAY, Period.MONTH, Period.TOTAL]),
        limit=st.integers(0, 200),
        zone=st.sampled_from(["UTC", "America/Havana"]),
    )
    def create(self, scope: dict[str, object], period: Period, limit: int, zone: str) -> None:
        budget = self.new(Budget(limit_nano=limit, period=period, zone=zone, id="", **scope))  # type: ignore[arg-type]
        account = self.accounts.install(budget, self.now_ns, is_counting=True)
        self.counting[budget.id] = self.summed(account)

    @rule()
    def count(self) -> None:
        for budget_id, sums in self.counting.items():
            self.account(budget_id).counted(sums)
        self.counting.clear()

    @rule(org=st.sampled_from(["a", "b"]))
    def create_balance(self, org: str) -> None:
        self.now_ns += 1
        budget = self.new(Budget(id="", org=org, period=Period.BALANCE))
        self.accounts.install(budget, self.now_ns)
        self.grants[budget.id] = []

    @precondition(lambda self: self.grants)
    @rule(nano=st.integers(0, 200), lasts_h=st.none() | st.integers(1, 60))
    def pay_in(self, nano: int, lasts_h: int | None) -> None:
        for budget_id, grants in self.grants.items():
            account = self.account(budget_id)
            self.now_ns = since_ns = account.balance.cut(self.now_ns)
            until_ns = EVER_NS if lasts_h is None else since_ns + lasts_h * HOUR_NS
            grants.append(Grant(f"{budget_id}/{len(grants)}", nano, since_ns, until_ns))
            account.grant(grants[-1:])

    @precondition(lambda self: self.budgets)
    @rule(place=st.integers(0, 99), limit=st.integers(0, 300))
    def change(self, place: int, limit: int) -> None:
        budget_id = list(self.budgets)[place % len(self.budgets)]
        changed = replace(self.budgets[budget_id], limit_nano=limit)
        account = self.account(budget_id)
        self.budgets[budget_id] = changed
        account.change(changed)

    @precondition(lambda self: self.budgets)
    @rule(place=st.integers(0, 99))
    def end(self, place: int) -> None:
        budget_id = list(self.budgets)[place % len(self.budgets)]
        self.accounts.remove(self.budgets.pop(budget_id))
        self.counting.pop(budget_id, None)
        self.grants.pop(budget_id, None)

    # -- what must hold

    @invariant()
    def holds_add_up(self) -> None:
        assert self.accounts.audit() == 0
        assert set(self.accounts.live_holds()) == set(self.holds)

    @precondition(lambda self: not self.counting)
    @invariant()
    def a_new_start_finds_the_same(self) -> None:
        again = Accounts()
        for budget in self.budgets.values():
            account = again.install(budget, self.now_ns)
            if budget.is_balance:
                self.recall(account)
            else:
                account.counted(self.summed(account))
        for budget in self.budgets.values():
            known, new = self.account(budget.id), again.account(budget)
            assert new is not None
            assert self.spent_now(known) == self.spent_now(new)
            if budget.is_balance and not self.holds:
                assert known.standing(self.now_ns) == new.standing(self.now_ns)

    # -- the model

    def new(self, budget: Budget) -> Budget:
        self.made += 1
        budget = replace(budget, id=f"bud_{self.made}", created_ns=self.now_ns)
        self.budgets[budget.id] = budget
        return budget

    def account(self, budget_id: str) -> Account:
        account = self.accounts.account(self.budgets[budget_id])
        assert account is not None
        return account

    def summed(self, account: Account, span: Span | None = None) -> dict[Run | None, int]:
        """As the ledger would."""
        budget, sums = account.budget, dict[Run | None, int]()
        since_ns, until_ns = span or account.first_span
        for caller, run_id, utc_ns, nano in self.ledger:
            is_theirs = caller.org == budget.org and budget.is_over(caller.key_id, caller.team)
            run = run_of(caller, run_id) if budget.is_per_run else None
            if is_theirs and since_ns <= utc_ns < until_ns and (run or not budget.is_per_run):
                sums[run] = sums.get(run, 0) + nano
        return sums

    def recall(self, account: Account) -> None:
        account.grant(self.grants[account.budget.id])
        for stretch in account.balance.stretches:
            nano = self.summed(account, Span(*stretch)).get(None, 0)
            account.pot(None, stretch[0]).spend(nano, stretch[0])

    def spent_now(self, account: Account) -> dict[Run | None, int]:
        if not account.budget.is_per_run:
            return {None: account.standing(self.now_ns).spent}
        return {run: now.spent for run, now in account.runs(self.now_ns) if now.spent}

    def check_room(self, hold: BudgetHold) -> None:
        """What was granted last was there: no budget that it counts against is overdrawn."""
        assert all(pot.room(hold.utc_ns) >= 0 for pot in hold.pots)
        for pot in hold.pots:
            if not pot.account.is_counting and not pot.account.budget.is_balance:
                assert pot.spent + pot.held <= pot.limit

    def figures(self) -> list[tuple[str, int, int]]:
        return [
            (budget_id, pot.spent, pot.held)
            for budget_id in self.budgets
            for pot in self.account(budget_id).pots()
            if pot.spent or pot.held
        ]


Spending.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSpending = Spending.TestCase
