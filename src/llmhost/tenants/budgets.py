"""What is known of budgets and of what was paid into them, and what they may be. Nothing in here is counted."""

import secrets
from collections.abc import Hashable
from dataclasses import dataclass, replace

from llmhost.core.errors import InvalidValue
from llmhost.core.units import dollars_to_nano, nano_to_dollars
from llmhost.tenants.periods import Period, zone_of

MOST_NANO = 2**62
"""Of any amount."""
LEVELS = ("run", "key", "team", "org")
"""Whose money it is, the narrowest first."""
_TEXT_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much an organisation, a team or a key may spend, or each run of one. Times are UTC nanoseconds."""

    id: str
    org: str
    team: str | None = None
    key_id: str | None = None
    is_per_run: bool = False
    period: Period
    zone: str = "UTC"
    """Whose midnights days and months begin at."""
    limit_nano: int = 0
    """Means nothing where the period is a balance."""
    until_ns: int | None = None
    """Nothing can be spent from then on; for a total only."""
    created_ns: int = 0
    made_by: str = "operator"
    """Or the id of a key."""
    ended_ns: int | None = None
    """Since then it limits nothing."""

    @property
    def level(self) -> str:
        """One of LEVELS."""
        return "run" if self.is_per_run else self.holder

    @property
    def holder(self) -> str:
        """key, team or org: whose it is, or whose runs'."""
        if self.key_id is not None:
            return "key"
        return "org" if self.team is None else "team"

    @property
    def is_balance(self) -> bool:
        return self.period is Period.BALANCE

    @property
    def state(self) -> str:
        """`active` or `ended`."""
        return "active" if self.ended_ns is None else "ended"

    def is_over(self, key_id: str | None, team: str | None) -> bool:
        """Whether it holds for a caller of its organisation."""
        return self.key_id in (None, key_id) and self.team in (None, team)

    @property
    def kind(self) -> Hashable:
        """What it limits, and how: two of a kind would be one too many."""
        return self.org, self.team, self.key_id, self.is_per_run, self.period


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Money that was paid into a balance."""

    id: str
    budget_id: str
    org: str
    amount_nano: int
    kind: str = "payment"
    """payment or grant: of money, or of goodwill."""
    reference: str
    """Of the payer: the same one is not booked twice."""
    note: str | None = None
    created_ns: int
    expires_ns: int | None = None

    def is_same_as(self, other: "Credit") -> bool:
        """Whether it says the same, but for when it was said and what was noted."""
        return replace(self, id=other.id, created_ns=other.created_ns, note=other.note) == other


def new_budget_id() -> str:
    return f"bud_{secrets.token_hex(8)}"


def new_credit_id() -> str:
    return f"cred_{secrets.token_hex(8)}"


def nano_of(text: str, param: str) -> int:
    """An amount as callers write it, `"12.50"`. Raises InvalidValue."""
    try:
        nano = dollars_to_nano(text)
    except ValueError:
        raise InvalidValue(
            f"{param!r} is {text[:40]!r}; give dollars as text, such as '12.50', with at most nine decimals.",
            param=param,
        ) from None
    check_amount(nano, param)
    return nano


def check_amount(nano: int, param: str) -> None:
    """Raises InvalidValue for a negative amount, and one that could not be counted."""
    if not 0 <= nano <= MOST_NANO:
        raise InvalidValue(
            f"{param!r} is ${nano_to_dollars(nano)}; it may be 0 to {nano_to_dollars(MOST_NANO)}.",
            param=param,
        )


def check_budget(budget: Budget) -> None:
    """Raises InvalidValue for what can't be a budget, whatever else there is."""
    check_amount(budget.limit_nano, "usd")
    try:
        zone_of(budget.zone)
    except ValueError as error:
        raise InvalidValue(
            f"{error}. Give a name of the IANA database, such as 'Europe/Berlin'.", param="timezone"
        ) from None
    if budget.is_per_run and budget.is_balance:
        raise InvalidValue(
            "Runs have no balances: nobody pays money in for each. Give a period of day, month or total.",
            param="period",
        )
    if budget.until_ns is not None and budget.period is not Period.TOTAL:
        raise InvalidValue(
            f"Only a total can end on a date; this budget is per {budget.period.value}.",
            param="until",
        )


def check_text(text: str | None, param: str) -> None:
    """Raises InvalidValue for what no reference and no note may be."""
    if text is not None and not (text.isprintable() and 1 <= len(text) <= _TEXT_CHARS):
        raise InvalidValue(
            f"{param!r} may be 1 to {_TEXT_CHARS} printable characters.", param=param
        )
