"""What budgets ask of the ledger: tenants don't know how it is kept, and it doesn't know them."""

from collections.abc import Callable, Mapping

from llmhost.core.caller import Caller
from llmhost.cost import sums
from llmhost.cost.entries import Entry, account_of
from llmhost.cost.ledger import append
from llmhost.cost.sums import Level
from llmhost.storage.connect import Connection
from llmhost.tenants.accounts import Accounts
from llmhost.tenants.budget_store import BookCredit, Spending, Sums
from llmhost.tenants.budgets import Budget, Credit
from llmhost.tenants.periods import EVER_NS, Span

_FROM: Mapping[str, str] = {"payment": "cash", "grant": "grants"}
"""Where the money of each kind of credit comes from."""


def spent_nano(connection: Connection, budget: Budget, span: Span) -> int:
    """By requests that arrived in the span."""
    level: Level = "org"
    who: str | tuple[str, str] = budget.org
    if budget.key_id is not None:
        level, who = "key", budget.key_id
    elif budget.team is not None:
        level, who = "team", (budget.org, budget.team)
    return sums.spent_nano(connection, level, who, _since(span), _until(span))


def spent_by_run(connection: Connection, budget: Budget, span: Span, most: int) -> Sums:
    """The same of each run, the one that was last heard of at the end."""
    by_run = sums.spent_by_run(
        connection,
        budget.org,
        team=budget.team,
        key_id=budget.key_id,
        since_ns=_since(span),
        until_ns=_until(span),
        most=most,
    )
    return dict(reversed(by_run.items()))


def booking(node_id: str) -> BookCredit:
    """Enters credits: money moves to the organisation's account, from which charges take it."""

    def book_credit(connection: Connection, credit: Credit) -> None:
        entry = Entry.transfer(
            credit.id,
            kind="credit",
            utc_ns=credit.created_ns,
            org=credit.org,
            debit=_FROM[credit.kind],
            credit=account_of(credit.org),
            amount_nano=credit.amount_nano,
        )
        append(connection, [entry], node_id=node_id)

    return book_credit


SPENDING = Spending(spent_nano, spent_by_run)


def _since(span: Span) -> int | None:
    return None if span.since_ns == -EVER_NS else span.since_ns


def _until(span: Span) -> int | None:
    return None if span.until_ns == EVER_NS else span.until_ns


def rerated(accounts: Accounts) -> Callable[[Entry], None]:
    """Has budgets that count in memory hear of a request that was rated again."""

    def charge(entry: Entry) -> None:
        caller = Caller(key_id=entry.key_id, org=entry.org, team=entry.team)
        accounts.correct(caller, entry.run_id, entry.amount_nano, entry.utc_ns)

    return charge
