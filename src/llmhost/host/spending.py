"""What budgets ask of the ledger: tenants don't know how it is kept, and it doesn't know them."""

from llmhost.storage.connect import Connection
from llmhost.tenants.budget_store import Spending, Sums
from llmhost.tenants.budgets import Budget, Credit
from llmhost.tenants.periods import Span

_SPENT = """
    SELECT ifnull(sum(amount_nano), 0) FROM entries
    WHERE org = :org AND (:team IS NULL OR team = :team) AND (:key_id IS NULL OR key_id = :key_id)
        AND utc_ns >= :since AND utc_ns < :until
"""


def spent_nano(connection: Connection, budget: Budget, span: Span) -> int:
    """By requests that arrived in the span."""
    nano: int = connection.execute(_SPENT, _asked(budget, span)).fetchone()[0]
    return nano


def spent_by_run(connection: Connection, budget: Budget, span: Span, most: int) -> Sums:
    """Nothing yet: entries don't say of which run they are."""
    return {}


def book_credit(connection: Connection, credit: Credit) -> None:
    """Nothing yet: the ledger has charges only."""


SPENDING = Spending(spent_nano, spent_by_run)


def _asked(budget: Budget, span: Span) -> dict[str, object]:
    return {
        "org": budget.org,
        "team": budget.team,
        "key_id": budget.key_id,
        "since": span.since_ns,
        "until": span.until_ns,
    }
