"""What a budget without room says: whose it is, how it stands, and what helps. Pure."""

from collections.abc import Mapping

from llmhost.core.errors import (
    CreditsExhausted,
    OrgBudgetExhausted,
    QuotaExhausted,
    TeamBudgetExhausted,
)
from llmhost.core.units import nano_to_dollars
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import show_time
from llmhost.tenants.pots import Pot, Run, Standing, standing_of


def refusal(pot: Pot, nano: int, utc_ns: int) -> QuotaExhausted:
    """Whose budget it is, how it stands, and whether it comes back."""
    budget, now = pot.account.budget, standing_of(pot, utc_ns)
    held = f" and ${nano_to_dollars(now.held)} is held by requests that run" if now.held else ""
    return _kind_of(budget)(
        f"{_name(budget, pot.run)} {_may(budget, now.limit)}; ${nano_to_dollars(now.spent)} is spent{held}."
        f" This request needs ${nano_to_dollars(nano)} to begin. {_cure(budget, now, utc_ns)}",
        level=budget.level,
        budget_id=budget.id,
        remaining_nano=max(pot.room(utc_ns), 0),
    )


def _kind_of(budget: Budget) -> type[QuotaExhausted]:
    """Each has a code of its own, by which clients tell what to ask for."""
    if budget.is_balance:
        return CreditsExhausted
    kinds = {"team": TeamBudgetExhausted, "org": OrgBudgetExhausted}
    return QuotaExhausted if budget.is_per_run else kinds.get(budget.holder, QuotaExhausted)


def _name(budget: Budget, run: Run | None) -> str:
    if budget.is_per_run:
        return "A request without a run" if run is None else f"The run {run[2]!r}"
    names: Mapping[str, str] = {
        "key": "This key",
        "team": f"The team {budget.team!r}",
        "org": f"The organisation {budget.org!r}",
    }
    return names[budget.holder]


def _may(budget: Budget, limit: int) -> str:
    if budget.is_balance:
        return f"has been given credits of ${nano_to_dollars(limit)}"
    per = {"day": " per day", "month": " per month"}.get(budget.period.value, " in all")
    return f"may spend ${nano_to_dollars(limit)}{per}"


def _cure(budget: Budget, now: Standing, utc_ns: int) -> str:
    if budget.is_balance:
        return "It goes on when more credits are added."
    if budget.until_ns is not None and utc_ns >= budget.until_ns:
        return f"The budget was good until {show_time(budget.until_ns, budget.zone)}."
    if now.resets_ns is not None:
        return f"The budget begins anew at {show_time(now.resets_ns, budget.zone)}."
    return "The budget does not begin anew: ask for a higher one."
