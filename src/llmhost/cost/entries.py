"""What a ledger entry says, and how it is kept. Pure.

An entry moves one amount from one account to another, so that all accounts together always hold nothing: nothing
can be charged without somebody having earned it. Quantities are kept per dimension beside the amount.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from llmhost.core.events import RequestEnded
from llmhost.core.output import Outcome
from llmhost.core.request import Kind
from llmhost.cost.breakdown import Breakdown

REVENUE = "revenue"
"""Where charges go. What moves here from an organisation's account is use; a negative amount takes it back."""

COLUMNS = (
    "seq",
    "node_id",
    "utc_ns",
    "kind",
    "request_id",
    "key_id",
    "org",
    "team",
    "model",
    "outcome",
    "code",
    "fresh_input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "engine_ns",
    "price_version",
    "amount_nano",
    "run_id",
    "adapter",
    "reasoning_tokens",
    "embedding_tokens",
    "load_ns",
    "safety_units",
    "debit",
    "credit",
    "cost_digest",
    "from_cache",
    "task",
)
"""What a row says and its hash covers; a column of a later step goes at the end and is null in older rows.

A null is not hashed, so quantities that few requests have are null where they are 0.
"""

COSTS, LOSS, MACHINE = "costs", "loss", "machine"
"""What requests cost the operator moves from the last of these to the others. No bill says anything of it."""

DIMENSIONS = ("fresh_input", "cached_input", "output", "reasoning", "embedding")
"""Of tokens. They are disjoint: no token is in two."""

TASKS = {Kind.DECISION.value: "decisions", Kind.MODERATION.value: "moderations"}
"""By kinds of requests, as OpenAI's reports of usage call them."""

_EMBEDDING = Kind.EMBEDDING.value
_RARE = ("reasoning", "embedding")
_MODEL_CHARS = 200
"""Of a model that was asked for and does not exist, this much of the name is kept: callers make it up."""


def account_of(org: str) -> str:
    """The account of an organisation: positive where it owes."""
    return f"org:{org}"


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing to record. `kind` and `request_id` together are its identity."""

    request_id: str
    kind: str = "request"
    utc_ns: int
    key_id: str | None
    org: str
    team: str | None = None
    model: str
    """`name@version`."""
    outcome: str
    code: str | None = None
    fresh_input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    engine_ns: int = 0
    price_version: str | None = None
    amount_nano: int = 0
    """Moves from `debit` to `credit`; a negative amount moves back."""
    run_id: str | None = None
    """What the caller says it is part of: one of its runs, sessions or jobs."""
    adapter: str | None = None
    reasoning_tokens: int = 0
    embedding_tokens: int = 0
    load_ns: int = 0
    safety_units: int = 0
    from_cache: str | None = None
    """How it had an answer that was not made for it: `hit`, `stale`, `semantic` or `joined`."""
    task: str | None = None
    """What was asked, where that is no text, vector or score: one of TASKS."""
    debit: str | None = None
    """None for the organisation's own account."""
    credit: str | None = None
    """None for `revenue`."""
    costs: Breakdown | None = None
    """What it cost the operator, where that is known: a row of its own beside the entry, written with it.

    The entry has a digest of it, which tells those who may see the entry nothing.
    """

    @classmethod
    def of(
        cls,
        event: RequestEnded,
        *,
        price_version: str | None,
        costs: Breakdown | None = None,
        safety_units: int = 0,
        safety_ns: int = 0,
        from_cache: str | None = None,
    ) -> "Entry":
        """A request's entry. `safety_units` texts of it were judged by models, in `safety_ns` of their engines' time.
        It has a caller: without one there is no account to book to."""
        caller = event.caller
        assert caller is not None, "strangers are counted, and not booked"
        usage, is_embedding, model = event.usage, event.kind == _EMBEDDING, event.model
        if not model.isascii() or len(model) > _MODEL_CHARS:
            model = model.encode("utf-8", "replace").decode()[:_MODEL_CHARS]
        return cls(
            request_id=event.request_id,
            utc_ns=event.utc_ns,
            key_id=caller.key_id,
            org=caller.org,
            team=caller.team,
            model=model,
            outcome=str(event.outcome),  # `value` is three calls of Python
            code=event.code,
            fresh_input_tokens=0 if is_embedding else usage.prompt_tokens - usage.cached_tokens,
            cached_input_tokens=0 if is_embedding else usage.cached_tokens,
            output_tokens=usage.completion_tokens - usage.reasoning_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            embedding_tokens=usage.prompt_tokens if is_embedding else 0,
            engine_ns=usage.engine_ns + safety_ns,
            price_version=price_version,
            amount_nano=event.amount_nano,
            run_id=event.run_id,
            adapter=event.adapter,
            load_ns=0 if costs is None else costs.load_ns,
            safety_units=safety_units,
            from_cache=from_cache,
            task=TASKS.get(event.kind),
            costs=costs,
        )

    @classmethod
    def transfer(
        cls,
        transfer_id: str,
        *,
        kind: str,
        utc_ns: int,
        org: str,
        debit: str,
        credit: str,
        amount_nano: int,
    ) -> "Entry":
        """Money that moves without a request: a payment or a grant, from `cash` or `grants` to `account_of(org)`."""
        return cls(
            request_id=transfer_id,
            kind=kind,
            utc_ns=utc_ns,
            key_id=None,
            org=org,
            model="",
            outcome="",
            amount_nano=amount_nano,
            debit=debit,
            credit=credit,
        )

    def unpaid(self) -> "Entry":
        """The same of what was made and is charged to nobody. Bills and reratings have every answer paid, and all that
        a caller left: to them it has failed."""
        is_paid = self.outcome in (Outcome.ANSWERED, Outcome.CANCELLED)
        outcome = Outcome.FAILED.value if is_paid else self.outcome
        return replace(self, outcome=outcome, amount_nano=0)

    @property
    def is_use(self) -> bool:
        """Whether it is use of models, or a correction of it, and no other movement of money."""
        return self.credit is None or self.credit == REVENUE


class Recorded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An entry's place in the chain."""

    node_id: str
    seq: int
    hash: bytes
    entry: Entry


class EntryRow(msgspec.Struct, omit_defaults=True, gc=False):
    """What is recorded of an entry: all COLUMNS, in the order of their names, because that is how they are hashed."""

    adapter: str | None = None
    amount_nano: int | None = None
    cached_input_tokens: int | None = None
    code: str | None = None
    cost_digest: str | None = None
    credit: str | None = None
    debit: str | None = None
    embedding_tokens: int | None = None
    engine_ns: int | None = None
    fresh_input_tokens: int | None = None
    from_cache: str | None = None
    key_id: str | None = None
    kind: str | None = None
    load_ns: int | None = None
    model: str | None = None
    node_id: str | None = None
    org: str | None = None
    outcome: str | None = None
    output_tokens: int | None = None
    price_version: str | None = None
    reasoning_tokens: int | None = None
    request_id: str | None = None
    run_id: str | None = None
    safety_units: int | None = None
    seq: int | None = None
    task: str | None = None
    team: str | None = None
    utc_ns: int | None = None


def row_of(entry: Entry, seq: int, node_id: str) -> EntryRow:
    """By place and not by name, which takes half as long."""
    costs = entry.costs
    return EntryRow(
        entry.adapter,
        entry.amount_nano,
        entry.cached_input_tokens,
        entry.code,
        None if costs is None else costs.digest,
        entry.credit or REVENUE,
        entry.debit or account_of(entry.org),
        entry.embedding_tokens or None,
        entry.engine_ns,
        entry.fresh_input_tokens,
        entry.from_cache,
        entry.key_id,
        entry.kind,
        entry.load_ns or None,
        entry.model,
        node_id,
        entry.org,
        entry.outcome,
        entry.output_tokens,
        entry.price_version,
        entry.reasoning_tokens or None,
        entry.request_id,
        entry.run_id,
        entry.safety_units or None,
        seq,
        entry.task,
        entry.team,
        entry.utc_ns,
    )


def entry_of(row: dict[str, Any]) -> Entry:
    """The entry that a row of COLUMNS, without its number and its node, was made of, but for what it cost."""
    row = {name: value for name, value in row.items() if value is not None}
    if row.get("debit") == account_of(row["org"]):
        del row["debit"]
    if row.get("credit") == REVENUE:
        del row["credit"]
    row.pop("cost_digest", None)
    return Entry(**{"key_id": None, **row})


def exported(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is told: tokens are a table per dimension, of which rare ones are only there where there are any."""
    tokens = {name: row.pop(f"{name}_tokens") for name in DIMENSIONS}
    row["tokens"] = {n: count for n, count in tokens.items() if n not in _RARE or count}
    return row
