"""The end of stage 9: what a request is booked by that has ended, and the budgets that it is charged to.

How requests end, and what their callers pay:

    answered                                  what it used
    its reader left, or its time was over     what was made of it until it was stopped
    refused                                   nothing; after a guard has judged it, with `refused_prompts = "judged"`,
                                              its prompt
    failed before or amid the answer          nothing; amid it, with `failed_answers = "delivered"`, what had come
    this process was killed                   the prompt and what its caller was given, see `cost/under_way.py`
    the ledger could not take the entry       the same as otherwise, a little later

The line of a batch is booked when its answer is kept, and not before: see `pipeline/deferral.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from msgspec import structs

from llmhost.config.schema.money import BillingSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import ContentRefused
from llmhost.core.output import Outcome, Usage
from llmhost.core.request import Kind
from llmhost.cost.attribution import TrueCosts
from llmhost.cost.entries import Entry
from llmhost.cost.pricing import amount_nano
from llmhost.cost.under_way import Settlements, Then, tell
from llmhost.observe.logs import request_id
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.tabs import NOTHING_USED, Judging, Tabs
from llmhost.storage.journal import Slot
from llmhost.tenants.accounts import Accounts

log = logging.getLogger("llmhost.request")

ANSWERED, EMBEDDING = Outcome.ANSWERED, Kind.EMBEDDING
"""Looked up once: a member of an enumeration is found by several steps."""


class Ending(Protocol):
    """A request that has ended. Called, if not told of otherwise, when its entry can't be lost, or why it is."""

    context: RequestContext

    def __call__(self, failure: BaseException | None) -> None: ...


SomeEnding = TypeVar("SomeEnding", bound=Ending)


class Settle:
    """Books what has ended. Only answers and what a caller left behind are paid for: refusals and failures are not."""

    def __init__(
        self,
        settlements: Settlements,
        accounts: Accounts,
        costs: TrueCosts,
        settings: BillingSettings,
        tabs: Tabs,
    ) -> None:
        self._settlements = settlements
        self._accounts = accounts
        self._costs = costs
        self._settings = settings
        self._tabs = tabs

    def __call__(self, context: RequestContext, then: Then) -> None:
        """Book the request; `then` is called in a later turn of the loop, when its entry can't be lost. Without a
        caller there is no account to book to."""
        try:
            entry = self.closed(context)
        except Exception:
            self.let_go(context)
            raise
        self._end(context, entry, then)

    def all(
        self, endings: Sequence[SomeEnding], done: Callable[[Sequence[SomeEnding]], None]
    ) -> None:
        """As calling it for each of a few that ended in one moment. Those whose entries are safe are not called: `done`
        is told of them together."""
        self._costs.infrastructure.bring_up_to_date()
        entries: list[Entry] = []
        slots: list[Slot | None] = []
        booked: list[SomeEnding] = []
        for ending in endings:
            context = ending.context
            request_id.set(context.request.request_id)
            try:
                entry = self.closed(context, is_now=True)
                if entry is None or context.deferral is not None:
                    self._end(context, entry, ending)
                    continue
            except Exception as error:  # boundary: as around what an engine tells
                log.exception("request.not_settled")
                self.let_go(context)
                asyncio.get_running_loop().call_soon(ending, error)
                continue
            entries.append(entry)
            slots.append(context.slot)
            booked.append(ending)
            context.slot = None
        if entries:
            self._settlements.settle_together(entries, slots, booked, done)
        for ending, entry in zip(booked, entries, strict=True):  # in the same turn: see `book`
            context = ending.context
            try:
                self._charge(context, context.known_caller, entry.amount_nano)
            except Exception:  # boundary: as above
                request_id.set(context.request.request_id)
                log.exception("request.not_settled")

    def let_go(self, context: RequestContext) -> None:
        """Of one that can't be booked since something is broken: nobody pays for it, and it holds nothing any more."""
        context.amount_nano = context.discount_nano = 0
        if context.ticket is not None:
            self._costs.infrastructure.leave(context.ticket)
        if context.spending is not None:
            context.spending.hold.settle(0)
        if context.slot is not None:
            context.slot.close()

    def _end(self, context: RequestContext, entry: Entry | None, then: Then) -> None:
        slot, deferral = context.slot, context.deferral
        if entry is not None:
            context.slot = None
            if deferral is None:
                self.book(context, slot, entry, then)
                return
            deferral.take(entry, partial(self._book_deferred, context, slot))
        asyncio.get_running_loop().call_soon(then, None)

    def closed(self, context: RequestContext, *, is_now: bool = False) -> Entry | None:
        """What a request that has ended is booked by; None where nobody is known to book it to. `is_now` says that what
        pools cost was brought up to date in this moment."""
        judging = self._tabs.take(context.request.request_id)
        is_judged = judging.texts > 0 and self._pays_for_judging(context)
        if is_judged:
            context.usage = _prompt_alone(context)
        if is_judged or self._is_paid(context):
            is_embedding = context.request.kind is EMBEDDING
            context.amount_nano = amount_nano(
                context.price, context.usage, is_embedding=is_embedding
            )
            if context.full_price is not None:
                full_nano = amount_nano(context.full_price, context.usage)
                context.discount_nano = full_nano - context.amount_nano
        load_id = None if context.replica is None else context.replica.load_id
        if judging.embedding is not NOTHING_USED:
            self._add_embedding(context, judging)
        context.costs = self._costs.settle(
            context.usage,
            context.ticket,
            load_id,
            safety_nano=judging.usage.cost_nano,
            is_now=is_now,
        )
        if context.caller is None:
            return None
        version = context.price.version if context.price is not None else None
        entry = Entry.of(
            context.event(),
            price_version=version,
            costs=context.costs,
            safety_units=judging.texts,
            safety_ns=judging.usage.engine_ns,
            from_cache=_from_cache(context),
        )
        return entry.unpaid() if context.is_waived else entry

    def _add_embedding(self, context: RequestContext, judging: Judging) -> None:
        """A request that ended before its costs began bears none: the operator does."""
        embedding = judging.embedding
        if context.ticket is None:
            self._costs.bear(judging.embedder_device, embedding)
            embedding = Usage(engine_ns=embedding.engine_ns)
        context.usage += embedding

    def book(self, context: RequestContext, slot: Slot | None, entry: Entry, then: Then) -> None:
        self._settlements.settle_then(entry, slot, then)
        # In the same turn: a budget that is made meanwhile sees the amount here or in the ledger, and never in both.
        self._charge(context, context.known_caller, entry.amount_nano)

    def _book_deferred(
        self, context: RequestContext, slot: Slot | None, entry: Entry
    ) -> "asyncio.Future[None]":
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.book(context, slot, entry, partial(tell, settled))
        settled.add_done_callback(partial(self._check_deferred, entry))
        return settled

    def book_late(self, entry: Entry) -> "asyncio.Future[None]":
        """Book what could not be booked when its request ended, and whose request nobody has any more."""
        settled = self._settlements.settle(entry, None)
        self._charge_anew(entry, entry.amount_nano)
        settled.add_done_callback(partial(self._check_deferred, entry))
        return settled

    def _check_deferred(self, entry: Entry, booked: "asyncio.Future[None]") -> None:
        if booked.exception() is not None:
            self._charge_anew(entry, -entry.amount_nano)

    def _charge_anew(self, entry: Entry, nano: int) -> None:
        caller = Caller(entry.key_id, entry.org, entry.team)
        self._accounts.charge(caller, entry.run_id, nano, entry.utc_ns)

    def take_back(self, context: RequestContext) -> None:
        """The entry could be recorded nowhere: what it said is nobody's money."""
        if context.caller is not None:
            self._accounts.charge(
                context.caller, context.run_id, -context.amount_nano, context.arrived_utc_ns
            )
        context.amount_nano = 0

    def _is_paid(self, context: RequestContext) -> bool:
        if context.is_waived:
            return False
        if context.outcome is ANSWERED:
            return True
        if context.outcome is Outcome.FAILED:
            has_come = context.first_token_ns is not None
            has_come = has_come and context.deferral is None  # lines are given whole, or not at all
            return has_come and self._settings.failed_answers == "delivered"
        return context.outcome is Outcome.CANCELLED

    def _pays_for_judging(self, context: RequestContext) -> bool:
        is_refused = context.outcome is Outcome.REFUSED and isinstance(
            context.error, ContentRefused
        )
        return is_refused and self._settings.refused_prompts == "judged"

    def _charge(self, context: RequestContext, caller: Caller, nano: int) -> None:
        if (spending := context.spending) is not None:
            context.budget_remaining_nano = spending.hold.settle(nano)
        elif nano:
            self._accounts.charge(caller, context.run_id, nano, context.arrived_utc_ns)


def _prompt_alone(context: RequestContext) -> Usage:
    """What a prompt is charged by that was refused: a guard has read all of it, and what a model had made of it
    meanwhile is nobody's to pay."""
    terms = context.known_terms
    return structs.replace(
        context.usage,
        prompt_tokens=terms.prompt_tokens,
        cached_tokens=0,
        completion_tokens=0,
        reasoning_tokens=0,
    )


def _from_cache(context: RequestContext) -> str | None:
    """How it had another request's answer."""
    use = context.cache
    return str(use.status) if use is not None and use.is_hit else None
