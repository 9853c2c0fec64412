"""What the admin API takes and gives of budgets and credits. Money is dollars as text, times are UTC seconds."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from llmhost.api.admin_wire import LAST_S
from llmhost.core.errors import InvalidValue
from llmhost.core.units import nano_to_dollars
from llmhost.tenants.accounts import BudgetHold
from llmhost.tenants.budget_rows import BudgetEvent
from llmhost.tenants.budgets import Budget, Credit
from llmhost.tenants.periods import Period
from llmhost.tenants.pots import Account, Run, Standing

MOST_RUNS = 20
"""Of a budget per run, so many are shown: those that have used most."""
MOST_HOLDS = 20
"""Of requests that hold something of a budget, so many are shown: those that hold most."""


class NewBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that makes a budget: of an organisation, of one of its teams, or of a key, or of each run of one.

    A balance has no `usd`: it is what is paid in. `timezone` is whose midnights days and months begin at; from
    `until` on nothing of a total may be spent.
    """

    org: str | None = None
    team: str | None = None
    key: str | None = None
    per_run: bool = False
    period: Period = Period.TOTAL
    usd: str | None = None
    timezone: str = "UTC"
    until: int | None = None


class BudgetChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that changes a budget. What is absent stays as it is."""

    usd: str | UnsetType = UNSET
    until: int | UnsetType | None = UNSET


class BudgetRow(msgspec.Struct, frozen=True, kw_only=True):
    """A budget. `level` is org, team, key or run, `state` active or ended.

    Of a balance, `usd` is what was paid in. What is spent, held and remains is null where each run has its own, and
    where the budget has ended. A null `resets_at` is never.
    """

    id: str
    level: str
    org: str
    team: str | None
    key: str | None
    per_run: bool
    period: Period
    timezone: str
    usd: str
    spent_usd: str | None
    held_usd: str | None
    remaining_usd: str | None
    resets_at: int | None
    until: int | None
    state: str
    created_at: int
    ended_at: int | None
    made_by: str


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a key, as a budget per run sees it."""

    run: str
    key: str | None
    team: str | None
    spent_usd: str
    held_usd: str
    remaining_usd: str


class HoldRow(msgspec.Struct, frozen=True, kw_only=True):
    """A request that runs, and what it has set aside."""

    request_id: str
    key: str | None
    team: str | None
    run: str | None
    held_usd: str
    since: int


class ChangeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a budget, and its amount from then on. `what` is created, changed or ended."""

    at: int
    what: str
    by: str
    usd: str
    until: int | None


class BudgetDetail(BudgetRow, frozen=True, kw_only=True):
    """The same with the runs that have used most, the requests that hold most, and who changed it when."""

    runs: list[RunRow]
    holds: list[HoldRow]
    history: list[ChangeRow]


class BudgetPage(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets, oldest first. The next page comes `after` `last_id`."""

    data: list[BudgetRow]
    has_more: bool
    last_id: str | None


class NewCredit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that pays into a balance: the organisation's own, or the one that `budget` names.

    A `reference` is booked once: sent again, it is answered with what was booked.
    """

    usd: str
    kind: Literal["payment", "grant"] = "payment"
    budget: str | None = None
    reference: str | None = None
    note: str | None = None
    expires_at: int | None = None


class CreditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One payment or grant. `left_usd` is what of it is neither used nor held nor expired."""

    id: str
    budget: str
    org: str
    kind: str
    usd: str
    left_usd: str
    reference: str
    note: str | None
    created_at: int
    expires_at: int | None


class CreditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Credits, oldest first. The next page comes `after` `last_id`."""

    data: list[CreditRow]
    has_more: bool
    last_id: str | None


def budget_row(budget: Budget, account: Account | None, utc_ns: int) -> BudgetRow:
    return BudgetRow(**_facts(budget, account, utc_ns))


def budget_detail(
    budget: Budget,
    account: Account | None,
    utc_ns: int,
    runs: Iterable[tuple[Run, Standing]],
    holds: Iterable[BudgetHold],
    history: Sequence[BudgetEvent],
) -> BudgetDetail:
    most = sorted(holds, key=lambda hold: hold.held_nano, reverse=True)[:MOST_HOLDS]
    return BudgetDetail(
        **_facts(budget, account, utc_ns),
        runs=[_run_row(run, standing) for run, standing in runs],
        holds=[_hold_row(hold) for hold in most],
        history=[_change_row(event) for event in history],
    )


def credit_row(credit: Credit, left_nano: int) -> CreditRow:
    return CreditRow(
        id=credit.id,
        budget=credit.budget_id,
        org=credit.org,
        kind=credit.kind,
        usd=nano_to_dollars(credit.amount_nano),
        left_usd=nano_to_dollars(left_nano),
        reference=credit.reference,
        note=credit.note,
        created_at=credit.created_ns // 10**9,
        expires_at=_s(credit.expires_ns),
    )


def time_ns(seconds: int | None, param: str, now_ns: int) -> int | None:
    """Raises InvalidValue for a time that is over, or that 64 bits can't hold."""
    if seconds is None:
        return None
    if not now_ns // 10**9 < seconds <= LAST_S:
        raise InvalidValue(
            f"{param!r} is {seconds}; it may be a time to come, in UTC seconds, up to {LAST_S}.",
            param=param,
        )
    return seconds * 10**9


def _facts(budget: Budget, account: Account | None, utc_ns: int) -> dict[str, Any]:
    now = None if account is None or budget.is_per_run else account.standing(utc_ns)
    limit_nano = now.limit if now is not None and budget.is_balance else budget.limit_nano
    return {
        "id": budget.id,
        "level": budget.level,
        "org": budget.org,
        "team": budget.team,
        "key": budget.key_id,
        "per_run": budget.is_per_run,
        "period": budget.period,
        "timezone": budget.zone,
        "usd": nano_to_dollars(limit_nano),
        "spent_usd": None if now is None else nano_to_dollars(now.spent),
        "held_usd": None if now is None else nano_to_dollars(now.held),
        "remaining_usd": None if now is None else nano_to_dollars(now.remaining),
        "resets_at": None if account is None else _s(account.pot(None, utc_ns).resets_ns),
        "until": _s(budget.until_ns),
        "state": budget.state,
        "created_at": budget.created_ns // 10**9,
        "ended_at": _s(budget.ended_ns),
        "made_by": budget.made_by,
    }


def _run_row(run: Run, standing: Standing) -> RunRow:
    key, team, name = run
    return RunRow(
        run=name,
        key=key,
        team=team,
        spent_usd=nano_to_dollars(standing.spent),
        held_usd=nano_to_dollars(standing.held),
        remaining_usd=nano_to_dollars(standing.remaining),
    )


def _hold_row(hold: BudgetHold) -> HoldRow:
    return HoldRow(
        request_id=hold.request_id,
        key=hold.caller.key_id,
        team=hold.caller.team,
        run=hold.run_id,
        held_usd=nano_to_dollars(hold.held_nano),
        since=hold.utc_ns // 10**9,
    )


def _change_row(event: BudgetEvent) -> ChangeRow:
    return ChangeRow(
        at=event.utc_ns // 10**9,
        what=event.what,
        by=event.who,
        usd=nano_to_dollars(event.limit_nano),
        until=_s(event.until_ns),
    )


def _s(ns: int | None) -> int | None:
    return None if ns is None else ns // 10**9
