"""What can be seen and done of budgets and credits, by the operator or by a key of the organisation, and the routes.

An organisation's own budgets and its money are the operator's to change. Its admins may limit their teams and keys
further: they change and end what was made by keys, and nothing that the operator made.
"""

import asyncio
import logging
from dataclasses import replace

from litestar import delete, get, patch, post
from litestar.types import Guard
from msgspec import UNSET

from llmhost.api.admin_access import Visitor
from llmhost.api.admin_tenants import PAGE_ROWS, page_of
from llmhost.api.budget_wire import (
    MOST_RUNS,
    BudgetChange,
    BudgetDetail,
    BudgetPage,
    BudgetRow,
    CreditPage,
    CreditRow,
    NewBudget,
    NewCredit,
    budget_detail,
    budget_row,
    credit_row,
    time_ns,
)
from llmhost.api.params import FromPath, FromQuery, JSONBody
from llmhost.api.router import Router
from llmhost.core.errors import Forbidden, InvalidValue, MissingParameter
from llmhost.observe.logs import log_event
from llmhost.tenants.budget_store import BudgetStore
from llmhost.tenants.budgets import Budget, Credit, nano_of
from llmhost.tenants.keys import KeyStore
from llmhost.tenants.periods import Period
from llmhost.tenants.pots import dearest
from llmhost.tenants.roles import OPERATOR, Access, Right
from llmhost.tenants.teams import no_org

log = logging.getLogger("llmhost.budgets")


class BudgetAdmin:
    """Acts and lists on budgets and credits."""

    def __init__(self, store: BudgetStore, keys: KeyStore) -> None:
        self._store = store
        self._keys = keys

    # ------------------------------------------------------------ budgets

    def list(
        self,
        access: Access = OPERATOR,
        *,
        org: str | None = None,
        team: str | None = None,
        key: str | None = None,
        active: bool | None = None,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> BudgetPage:
        key_id = None if key is None else self._keys.named(key, access.org).id
        found = [
            budget
            for budget in self._store.budgets(org=self._seen(org, access), team=team, key_id=key_id)
            if active in (None, budget.ended_ns is None)
        ]
        rows, has_more = page_of(found, lambda budget: budget.id, limit, after)
        return BudgetPage(
            data=[self._row(budget) for budget in rows],
            has_more=has_more,
            last_id=rows[-1].id if rows else None,
        )

    async def show(self, budget_id: str, access: Access = OPERATOR) -> BudgetDetail:
        budget = self._store.budget(budget_id, access.org)
        history = await self._store.history(budget.id)
        accounts, now_ns = self._store.accounts, self._store.utc_ns()
        account = accounts.account(budget)
        if account is None:
            return budget_detail(budget, None, now_ns, (), (), history)
        pots = account.run_pots(now_ns)
        runs = await asyncio.to_thread(dearest, pots, now_ns, MOST_RUNS)  # 100,000 take a while
        return budget_detail(budget, account, now_ns, runs, accounts.holds_of(account), history)

    async def create(self, new: NewBudget, access: Access = OPERATOR) -> BudgetRow:
        wanted = self._wanted(new, access)
        if not access.is_operator and wanted.holder == "org":
            raise Forbidden(
                "What an organisation may spend is said with the node's admin token. Its admins may make budgets of"
                " its teams and keys."
            )
        budget = await self._store.create(wanted, who=access.who)
        self._log("created", budget, access)
        return self._row(budget)

    async def update(
        self, budget_id: str, change: BudgetChange, access: Access = OPERATOR
    ) -> BudgetRow:
        known = self._changeable(budget_id, access)
        nano = None if change.usd is UNSET else nano_of(change.usd, "usd")
        until_ns = (
            known.until_ns
            if change.until is UNSET
            else time_ns(change.until, "until", self._store.utc_ns())
        )
        if nano is None and change.until is UNSET:
            raise MissingParameter("usd")

        def changed(budget: Budget) -> Budget:
            limit_nano = budget.limit_nano if nano is None else nano
            return replace(budget, limit_nano=limit_nano, until_ns=until_ns)

        budget = await self._store.update(known.id, changed, who=access.who)
        self._log("updated", budget, access)
        return self._row(budget)

    async def end(self, budget_id: str, access: Access = OPERATOR) -> BudgetRow:
        known = self._changeable(budget_id, access)
        budget = await self._store.end(known.id, who=access.who)
        self._log("ended", budget, access)
        return self._row(budget)

    # ------------------------------------------------------------ credits

    def list_credits(
        self,
        org: str,
        access: Access = OPERATOR,
        *,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> CreditPage:
        seen = self._seen(org, access)
        assert seen is not None, "one organisation was asked for"
        rows, has_more = page_of(self._store.credits(org=seen), lambda one: one.id, limit, after)
        left = {
            id_: nano
            for budget_id in {credit.budget_id for credit in rows}
            for id_, nano in self._left(self._store.budget(budget_id)).items()
        }
        return CreditPage(
            data=[self._credit(credit, left.get(credit.id, 0), access) for credit in rows],
            has_more=has_more,
            last_id=rows[-1].id if rows else None,
        )

    async def add_credit(self, org: str, new: NewCredit) -> CreditRow:
        name = self._keys.directory.org(org).name
        id_ = new.budget
        budget = self._store.balance_of(name) if id_ is None else self._store.budget(id_, name)
        credit = await self._store.add_credit(
            budget,
            nano_of(new.usd, "usd"),
            who=OPERATOR.who,
            kind=new.kind,
            reference=new.reference,
            note=new.note,
            expires_ns=time_ns(new.expires_at, "expires_at", self._store.utc_ns()),
        )
        log_event(
            log,
            "credit.added",
            credit=credit.id,
            budget=budget.id,
            org=name,
            kind=credit.kind,
            amount_nano=credit.amount_nano,
            by=OPERATOR.who,
        )
        return self._credit(credit, self._left(budget).get(credit.id, 0), OPERATOR)

    # ------------------------------------------------------------ the rest

    def _wanted(self, new: NewBudget, access: Access) -> Budget:
        org, team, key_id = self._whose(new, access)
        if new.period is Period.BALANCE and new.usd is not None:
            raise InvalidValue(
                "A balance has no amount of its own: it is what is paid in, as credits.",
                param="usd",
            )
        if new.period is not Period.BALANCE and new.usd is None:
            raise MissingParameter("usd")
        return Budget(
            id="",
            org=org,
            team=team,
            key_id=key_id,
            is_per_run=new.per_run,
            period=new.period,
            zone=new.timezone,
            limit_nano=0 if new.usd is None else nano_of(new.usd, "usd"),
            until_ns=time_ns(new.until, "until", self._store.utc_ns()),
        )

    def _whose(self, new: NewBudget, access: Access) -> tuple[str, str | None, str | None]:
        """Organisation, team and key. Raises NotFound, MissingParameter, InvalidValue."""
        org = self._seen(new.org, access)
        if new.key is not None:
            if new.team is not None:
                raise InvalidValue("A budget is of a team or of a key, not of both.", param="team")
            record = self._keys.named(new.key, org)
            return record.org, None, record.id
        if org is None:
            raise MissingParameter("org")
        team = None if new.team is None else self._keys.directory.team(org, new.team).name
        return org, team, None

    def _changeable(self, budget_id: str, access: Access) -> Budget:
        budget = self._store.budget(budget_id, access.org)
        is_theirs = budget.holder != "org" and budget.made_by != OPERATOR.who
        if not access.is_operator and not is_theirs:
            raise Forbidden(
                "This budget was made by the operator, and changing it takes the node's admin token."
            )
        return budget

    def _seen(self, org: str | None, access: Access) -> str | None:
        """The organisation that a list is of; None for all."""
        if org is None:
            return access.org
        return self._keys.directory.org(self._own(org, access)).name

    def _own(self, org: str, access: Access) -> str:
        if access.org not in (None, org):
            raise no_org(org)
        return org

    def _row(self, budget: Budget) -> BudgetRow:
        return budget_row(budget, self._store.accounts.account(budget), self._store.utc_ns())

    def _credit(self, credit: Credit, left_nano: int, access: Access) -> CreditRow:
        row = replace(credit, note=credit.note if access.is_operator else None)
        return credit_row(row, left_nano)

    def _left(self, budget: Budget) -> dict[str, int]:
        account = self._store.accounts.account(budget)
        return {} if account is None else account.balance.left(self._store.utc_ns())

    def _log(self, what: str, budget: Budget, access: Access) -> None:
        log_event(
            log,
            f"budget.{what}",
            budget=budget.id,
            org=budget.org,
            team=budget.team,
            key=budget.key_id,
            period=budget.period.value,
            limit_nano=budget.limit_nano,
            by=access.who,
        )


def budget_router(budgets: BudgetAdmin, guard: Guard) -> Router:
    """The routes: money of an organisation is the operator's, budgets of teams and keys its admins' as well."""

    @get("/budgets", sync_to_thread=False, needs=Right.ORG_USAGE)
    def list_budgets(
        request: Visitor,
        org: FromQuery[str | None] = None,
        team: FromQuery[str | None] = None,
        key: FromQuery[str | None] = None,
        active: FromQuery[bool | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> BudgetPage:
        """Budgets and how they stand, oldest first."""
        return budgets.list(
            request.user, org=org, team=team, key=key, active=active, limit=limit, after=after
        )

    @post("/budgets", needs=Right.MANAGE)
    async def create_budget(request: Visitor, data: JSONBody[NewBudget]) -> BudgetRow:
        """Make a budget. It is in force when this answers."""
        return await budgets.create(data, request.user)

    @get("/budgets/{budget:str}", needs=Right.ORG_USAGE)
    async def show_budget(request: Visitor, budget: FromPath[str]) -> BudgetDetail:
        """One budget, its dearest runs, what requests hold of it, and its changes."""
        return await budgets.show(budget, request.user)

    @patch("/budgets/{budget:str}", needs=Right.MANAGE)
    async def update_budget(
        request: Visitor, budget: FromPath[str], data: JSONBody[BudgetChange]
    ) -> BudgetRow:
        """Change a budget's amount or end date."""
        return await budgets.update(budget, data, request.user)

    @delete("/budgets/{budget:str}", status_code=200, needs=Right.MANAGE)
    async def end_budget(request: Visitor, budget: FromPath[str]) -> BudgetRow:
        """End a budget: it limits nobody any more."""
        return await budgets.end(budget, request.user)

    @get("/orgs/{org:str}/credits", sync_to_thread=False, needs=Right.ORG_USAGE)
    def list_credits(
        request: Visitor,
        org: FromPath[str],
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> CreditPage:
        """What was paid into an organisation's balances, oldest first."""
        return budgets.list_credits(org, request.user, limit=limit, after=after)

    @post("/orgs/{org:str}/credits")
    async def add_credit(org: FromPath[str], data: JSONBody[NewCredit]) -> CreditRow:
        """Pay into an organisation's balance, once for each reference."""
        return await budgets.add_credit(org, data)

    return Router(
        "/admin/v1",
        guards=[guard],
        tags=["admin"],
        route_handlers=[
            *(list_budgets, create_budget, show_budget, update_budget, end_budget),
            *(list_credits, add_credit),
        ],
    )
