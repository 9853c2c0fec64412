"""Making, changing and ending budgets and paying into them, while requests spend.

A change is committed before it is answered. A budget that is made counts what is settled from that very moment on in
memory, and what was handed to the ledger before is summed by a job behind it in the ledger's own queue: nothing is
missed and nothing counted twice, as long as a request is settled and its entry handed over in one go.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llmhost.core.errors import ConfigError, Conflict, InvalidValue, NotFound, Overloaded
from llmhost.core.ports import Clock
from llmhost.core.units import nano_to_dollars
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.tenants import budget_rows as rows
from llmhost.tenants.accounts import Accounts
from llmhost.tenants.balance import Grant
from llmhost.tenants.budget_rows import BudgetEvent
from llmhost.tenants.budgets import (
    MOST_NANO,
    Budget,
    Credit,
    check_amount,
    check_budget,
    check_text,
    new_budget_id,
    new_credit_id,
)
from llmhost.tenants.periods import EVER_NS, Period, Span, zone_of
from llmhost.tenants.pots import KEPT_RUNS, Account, Run

AT_ONCE = 500
"""Runs that are counted in one turn of the loop: of 100,000 at once all requests would wait for a second."""

T = TypeVar("T")
Sums = Mapping[Run | None, int]
"""Nano-dollars by run, or of all under None."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What the ledger says was spent on what a budget is for, in a span of requests' arrivals."""

    of_all: Callable[[Connection, Budget, Span], int]
    by_run: Callable[[Connection, Budget, Span, int], Sums]
    """Of each run; of at most so many, those that were heard of last."""


BookCredit = Callable[[Connection, Credit], None]
"""Enters a credit in the ledger, within whatever transaction runs."""


class BudgetStore:
    """Owns budgets and credits, on disk and, as `accounts`, in memory. Loads them when made, which waits for the disk.

    Changes are made from one event loop, one at a time. What was begun is carried out, whoever stops waiting for it.
    """

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        *,
        node_id: str,
        clock: Clock,
        spending: Spending,
        book_credit: BookCredit,
        is_settled: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_settled` says whether all that has ended was handed to the ledger, and it took it or may yet."""
        self._writer = writer
        self._reader = reader
        self._node_id = node_id
        self._clock = clock
        self._spending = spending
        self._book_credit = book_credit
        self._is_settled = is_settled
        self.turn = asyncio.Lock()
        """Held while budgets change, and by what else may not change meanwhile."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.accounts = Accounts()
        self._budgets: dict[str, Budget] = {}
        self._active: dict[Hashable, str] = {}
        """Of each kind the one that has not ended."""
        self._credits: dict[str, list[Credit]] = {}
        reader.read_now(self._load)

    # ------------------------------------------------------------ what there is

    def budgets(
        self, *, org: str | None = None, team: str | None = None, key_id: str | None = None
    ) -> tuple[Budget, ...]:
        """All of them, ended ones too, oldest first; of one organisation, team or key if given."""
        return tuple(
            budget
            for budget in self._budgets.values()
            if org in (None, budget.org)
            and team in (None, budget.team)
            and key_id in (None, budget.key_id)
        )

    def budget(self, budget_id: str, org: str | None = None) -> Budget:
        """By its id, among those of one organisation if given. Raises NotFound."""
        budget = self._budgets.get(budget_id)
        if budget is None or org not in (None, budget.org):
            raise NotFound(
                f"There is no budget {budget_id[:80]!r}. `llmhost budgets list` lists them.",
                param="budget",
            )
        return budget

    def balance_of(self, org: str) -> Budget:
        """The balance that credits to an organisation go to. Raises NotFound."""
        known = self._active.get(Budget(id="", org=org, period=Period.BALANCE).kind)
        if known is not None:
            return self._budgets[known]
        raise NotFound(
            f"The organisation {org!r} has no balance to pay into."
            f" `llmhost budgets create --org {org} --period balance` makes one:"
            " from then on it can only spend what was paid in.",
            param="budget",
        )

    def credits(self, *, org: str, budget_id: str | None = None) -> tuple[Credit, ...]:
        """What was paid in, oldest first."""
        found = [
            credit
            for budget in self.budgets(org=org)
            if budget_id in (None, budget.id)
            for credit in self._credits.get(budget.id, ())
        ]
        return tuple(sorted(found, key=lambda credit: credit.created_ns))

    async def history(self, budget_id: str) -> list[BudgetEvent]:
        """Who changed a budget, when and to what, oldest first."""
        return await self._reader.read(lambda c: rows.load_events(c, budget_id))

    def utc_ns(self) -> int:
        return self._clock.utc_ns()

    # ------------------------------------------------------------ changes

    async def create(self, budget: Budget, *, who: str) -> Budget:
        """Make a budget like this one, and put it in force; what was used before in its span counts.

        Raises InvalidValue for what it can't be, Conflict where there is one like it, and Overloaded while the ledger
        lacks entries.
        """
        check_budget(budget)
        return await self._carry_out(self._create(budget, who))

    async def update(
        self, budget_id: str, change: Callable[[Budget], Budget], *, who: str
    ) -> Budget:
        """Change the amount of a budget, or its end. Raises NotFound, InvalidValue, and Conflict for one that ended."""
        return await self._carry_out(self._update(budget_id, change, who))

    async def end(self, budget_id: str, *, who: str) -> Budget:
        """Have a budget limit nobody any more. Repeating it changes nothing. Raises NotFound."""
        return await self._carry_out(self._end(budget_id, who))

    async def add_credit(
        self,
        budget: Budget,
        nano: int,
        *,
        who: str,
        kind: str = "payment",
        reference: str | None = None,
        note: str | None = None,
        expires_ns: int | None = None,
    ) -> Credit:
        """Pay into a balance, once for each reference of an organisation: a second time changes nothing.

        Raises InvalidValue, and Conflict for a reference that was booked with other facts.
        """
        check_amount(nano, "usd")
        check_text(reference, "reference")
        check_text(note, "note")
        credit = Credit(
            id=(new_id := new_credit_id()),
            budget_id=budget.id,
            org=budget.org,
            amount_nano=nano,
            kind=kind,
            reference=reference or new_id,
            note=note,
            created_ns=self.utc_ns(),
            expires_ns=expires_ns,
        )
        return await self._carry_out(self._add_credit(credit, who))

    async def _create(self, wanted: Budget, who: str) -> Budget:
        async with self.turn:
            budget = replace(wanted, id=new_budget_id(), created_ns=self.utc_ns(), made_by=who)
            self._check_alone(budget)
            if (
                not self._is_settled()
            ):  # it would be in no sum, and was said before there was this budget
                raise Overloaded(
                    "The ledger lacks requests that have ended, so nobody can say what was spent. Try again.",
                    retry_after_s=1.0,
                )
            account = self.accounts.install(
                budget, budget.created_ns, is_counting=not budget.is_balance
            )
            try:
                sums = await self._writer.run(lambda c: self._begin(c, account, who))
            except BaseException:
                self.accounts.remove(budget)
                raise
            await self._count(account, sums)
            self._budgets[budget.id] = budget
            self._active[budget.kind] = budget.id
            return budget

    async def _update(self, budget_id: str, change: Callable[[Budget], Budget], who: str) -> Budget:
        async with self.turn:
            before = self._unended(budget_id)
            after = change(before)
            check_budget(after)
            if after.is_balance and after != before:
                raise InvalidValue(
                    "A balance has no amount of its own: it is what was paid in. `llmhost credits add` pays in.",
                    param="usd",
                )
            await self._writer.run(lambda c: self._insert(c, after, "changed", who))
            account = self.accounts.account(before)
            assert account is not None, "it has not ended"
            self._budgets[budget_id] = after
            account.change(after)
            return after

    async def _end(self, budget_id: str, who: str) -> Budget:
        async with self.turn:
            budget = self.budget(budget_id)
            if budget.ended_ns is None:
                budget = replace(budget, ended_ns=self.utc_ns())
                await self._writer.run(lambda c: self._insert(c, budget, "ended", who))
                self._budgets[budget_id] = budget
                del self._active[budget.kind]
                self.accounts.remove(budget)
            return budget

    async def _add_credit(self, credit: Credit, who: str) -> Credit:
        async with self.turn:
            budget = self._unended(credit.budget_id)
            account = self.accounts.account(budget)
            if not budget.is_balance or account is None:
                raise InvalidValue(
                    f"The budget {budget.id} is per {budget.period.value}; only a balance can be paid into.",
                    param="budget",
                )
            self._check_expiry(credit)
            self._check_countable(credit)
            credit = replace(credit, created_ns=account.balance.cut(self.utc_ns()))
            booked = await self._writer.run(lambda c: self._book(c, credit, who))
            if booked.id == credit.id:
                self._credits.setdefault(budget.id, []).append(credit)
                account.balance.grant(_grant(credit))
            elif not booked.is_same_as(credit):
                raise Conflict(
                    f"The reference {credit.reference!r} was booked already, as another credit.",
                    param="reference",
                )
            return booked

    async def _count(self, account: Account, sums: Sums) -> None:
        runs = list(sums)
        for at in range(0, len(runs), AT_ONCE):
            account.count({run: sums[run] for run in runs[at : at + AT_ONCE]})
            await asyncio.sleep(0)
        account.counted({})

    # ------------------------------------------------------------ on the writer's thread

    def _begin(self, connection: Connection, account: Account, who: str) -> Sums:
        self._insert(connection, account.budget, "created", who)
        return self._sums(connection, account)

    def _insert(self, connection: Connection, budget: Budget, what: str, who: str) -> None:
        utc_ns = budget.created_ns if what == "created" else budget.ended_ns or self.utc_ns()
        rows.insert_event(
            connection, budget, node_id=self._node_id, utc_ns=utc_ns, what=what, who=who
        )

    def _book(self, connection: Connection, credit: Credit, who: str) -> Credit:
        """The credit, or the one that was booked before with its reference."""
        known = rows.find_credit(connection, credit.org, credit.reference)
        if known is not None:
            return known
        rows.insert_credit(connection, credit, node_id=self._node_id, who=who)
        self._book_credit(connection, credit)
        return credit

    def _sums(self, connection: Connection, account: Account) -> Sums:
        budget, span = account.budget, account.first_span
        if budget.is_balance:
            return {}
        if budget.is_per_run:
            return self._spending.by_run(connection, budget, span, KEPT_RUNS)
        return {None: self._spending.of_all(connection, budget, span)}

    # ------------------------------------------------------------ the rest

    def _load(self, connection: Connection) -> None:
        self._budgets = rows.load_budgets(connection)
        for credit in rows.load_credits(connection):
            self._credits.setdefault(credit.budget_id, []).append(credit)
        now_ns = self.utc_ns()
        for budget in self._budgets.values():
            if budget.ended_ns is not None:
                continue
            try:
                zone_of(budget.zone)
            except ValueError as error:
                raise ConfigError(
                    f"The budget {budget.id}: {error}. Install the operating system's or Python's tzdata."
                ) from None
            self._active[budget.kind] = budget.id
            account = self.accounts.install(budget, now_ns, is_counting=not budget.is_balance)
            if budget.is_balance:
                self._recall_balance(connection, account)
            else:
                account.counted(self._sums(connection, account))

    def _recall_balance(self, connection: Connection, account: Account) -> None:
        """As if all that was paid in and used were paid in and used again."""
        balance, budget = account.balance, account.budget
        for credit in self._credits.get(budget.id, ()):
            balance.grant(_grant(credit))
        for stretch in balance.stretches:
            span = Span(*stretch)
            if nano := self._spending.of_all(connection, budget, span):
                account.pot(None, span.since_ns).spend(nano, span.since_ns)

    def _check_alone(self, budget: Budget) -> None:
        """Several budgets may hold at once, but of one kind: else nobody would know which one to change."""
        known = self._active.get(budget.kind)
        if known is not None:
            raise Conflict(
                f"There is such a budget already: {known}. `llmhost budgets update {known} --usd D`"
                " changes its amount.",
                param="period",
            )

    def _unended(self, budget_id: str) -> Budget:
        budget = self.budget(budget_id)
        if budget.ended_ns is not None:
            raise Conflict(
                f"The budget {budget_id} has ended. `llmhost budgets create` makes another."
            )
        return budget

    def _check_expiry(self, credit: Credit) -> None:
        if credit.expires_ns is not None and credit.expires_ns <= self.utc_ns():
            raise InvalidValue("A credit can't expire before it is paid in.", param="expires_at")

    def _check_countable(self, credit: Credit) -> None:
        """All credits together are one sum of the ledger, which 64 bits must hold."""
        paid_nano = sum(known.amount_nano for row in self._credits.values() for known in row)
        if paid_nano + credit.amount_nano > MOST_NANO:
            raise InvalidValue(
                f"'usd' is ${nano_to_dollars(credit.amount_nano)}; with it all credits of this node would be more than"
                f" ${nano_to_dollars(MOST_NANO)}, which is the most that can be counted.",
                param="usd",
            )

    async def _carry_out(self, change: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


def _grant(credit: Credit) -> Grant:
    until_ns = EVER_NS if credit.expires_ns is None else credit.expires_ns
    return Grant(credit.id, credit.amount_nano, credit.created_ns, until_ns)
