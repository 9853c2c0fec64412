"""Stage 9: what it cost. The price is quoted once, at admission, and frozen, and budgets are held for it; the entry
is written once, at the end, and what was held and not used is given back in the same moment: see `pipeline/settle.py`.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from functools import partial

from llmhost.config.schema.money import BillingSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import ModelNotPriced, Overloaded
from llmhost.core.request import GenerationRequest
from llmhost.core.units import moment
from llmhost.cost.attribution import TrueCosts
from llmhost.cost.entries import Entry
from llmhost.cost.ledger import Ledger
from llmhost.cost.prices import PriceBook
from llmhost.cost.pricing import Price, Rates, factor_of
from llmhost.cost.shares import Share
from llmhost.cost.under_way import Settlements
from llmhost.hooks.call import Answer, ask
from llmhost.hooks.now import NotNow, ask_each_now, ask_now
from llmhost.hooks.registry import Plugins
from llmhost.hooks.spec import DIMENSIONS
from llmhost.hooks.spec import Price as Quote
from llmhost.pipeline.admission import Size, size_of, under_way
from llmhost.pipeline.context import RequestContext, each_named
from llmhost.pipeline.estimate import Estimate, estimate_of
from llmhost.pipeline.settle import Settle
from llmhost.pipeline.spending import Spending
from llmhost.pipeline.tabs import Tabs
from llmhost.storage.connect import StorageFailed
from llmhost.storage.journal import Slot
from llmhost.tenants.accounts import Accounts

log = logging.getLogger("llmhost.request")

FREE = Price(version="free", input_nano=0, cached_input_nano=0, output_nano=0)
"""The list price of a model without one, as plugins see it."""
ALL = Fraction(1)
KEPT_OFFERS = 1_000
QUOTED_BY = ("request", "caller", "price", "now")
MOST_BEHIND = 5_000
"""Entries that may wait for a disk that is slow, or hangs: for those of free hits nobody waits, so they would be any
number."""


class Bill:
    """Quotes, and holds what it may cost."""

    def __init__(  # noqa: PLR0913 - all that a bill is made of
        self,
        ledger: Ledger,
        settlements: Settlements,
        accounts: Accounts,
        prices: PriceBook,
        plugins: Plugins,
        costs: TrueCosts,
        settings: BillingSettings,
        batch_factor: str = "1",
        tabs: Tabs | None = None,
        *,
        hit_factor: Fraction = ALL,
        hit_fee_nano: int = 0,
    ) -> None:
        """`batch_factor` times the price is what lines of batches are charged, and `hit_factor` what kept answers are,
        with `hit_fee_nano` beside; `tabs` has what guards took."""
        self._ledger = ledger
        self._settlements = settlements
        self._accounts = accounts
        self._settings = settings
        self._prices = prices
        self._plugins = plugins
        self._costs = costs
        self._tabs = tabs or Tabs(costs.bear)
        self.settle = Settle(settlements, accounts, costs, settings, self._tabs)
        self._quotes: dict[tuple[str, str, Quote], Price] = {}
        self._offers: dict[str, Quote] = {}
        """By the version of the price that each was made of, which never changes."""
        self._batch_factor = factor_of(batch_factor, key="batches.price_factor")
        self._batch_prices: dict[str, Price] = {}
        """By the version of the price that each was made of."""
        self._hit_factor, self._hit_fee_nano = hit_factor, hit_fee_nano
        self._hits_cost = hit_factor != 0 or hit_fee_nano != 0
        self._hits_cost_all = hit_factor == 1 and not hit_fee_nano
        self._hit_prices: dict[str, Price] = {}

    async def quote(self, context: RequestContext) -> None:
        """Freeze the price: what holds for the caller's organisation, or what a plugin makes of it."""
        self.take_part(context)
        await self._find_price(context)

    def drop(self, context: RequestContext) -> None:
        """The request is never booked: what guards took for it is nobody's."""
        self._tabs.drop(context.request.request_id)

    async def estimate(self, context: RequestContext) -> Estimate:
        """What the request may cost and whether its budgets have that. Holds nothing. Raises ModelNotPriced."""
        await self._find_price(context)
        caller, run_id = context.known_caller, context.run_id
        if context.price is None and self._accounts.is_budgeted(caller, run_id):
            raise ModelNotPriced(context.request.model)
        tightest = self._accounts.tightest(caller, run_id, context.arrived_utc_ns)
        return estimate_of(context, None if tightest is None else tightest.remaining_nano)

    async def hold_again(self, context: RequestContext) -> None:
        """A request that was to have a kept answer runs, or the reverse: give back what is held, and hold what that
        costs."""
        if context.spending is not None:
            context.spending.hold.void()
            context.spending = None
        if context.slot is not None:
            context.slot.close()
            context.slot = None
        context.full_price = None
        await self._find_price(context)
        self.hold(context)

    async def _find_price(self, context: RequestContext) -> None:
        name = context.known_deployment.entry.name
        listed = self._prices.list.of(name, context.known_caller.org, context.arrived_utc_ns)
        if listed is not None and context.request.batch is not None:
            listed = await self._batch_price(name, listed)
        context.price = listed
        if self._plugins.has("quote_price"):
            context.price = await self._quoted(context, listed or FREE)
        if context.cache is not None and context.cache.is_hit and context.price is not None:
            context.full_price = context.price
            context.price = await self._hit_price(name, context.price)

    async def _hit_price(self, model: str, full: Price) -> Price:
        """What a kept answer costs: a version of its own, so that ledger and bills tell it apart."""
        if self._hits_cost_all:
            return full
        if full.version not in self._hit_prices:
            share = Share(full.version, self._hit_factor, self._hit_fee_nano)
            self._hit_prices[full.version] = await self._prices.for_hits(model, full, share)
        return self._hit_prices[full.version]

    async def _batch_price(self, model: str, listed: Price) -> Price:
        """What a line of a batch pays: a version of its own, so that ledger and bills tell it apart."""
        if self._batch_factor == 1:
            return listed
        if listed.version not in self._batch_prices:
            share = Share(listed.version, self._batch_factor)
            self._batch_prices[listed.version] = await self._prices.for_batches(
                model, listed, share
            )
        return self._batch_prices[listed.version]

    def hold(self, context: RequestContext) -> None:
        """Hold the prompts and a slice of each answer on every budget, and open the request's slot in the journal.

        Raises QuotaExhausted, ModelNotPriced, or Overloaded while the ledger can't be written.
        """
        self._check_takes_entries()
        if context.price is not None:
            context.spending = self._held(context, context.price)
        elif self._accounts.is_budgeted(context.known_caller, context.run_id):
            raise ModelNotPriced(context.request.model)
        self._open_slot(context)

    def hold_alike(self, contexts: Sequence[RequestContext]) -> bool:
        """The part of `hold` that budgets have, of requests of one caller that pay one price; False, and nothing is
        held, where each has to ask for itself."""
        first = contexts[0]
        if (price := first.price) is None or any(each.price is not price for each in contexts):
            return False
        if not self._accounts.has_budgets(first.known_caller.org):
            return True
        wishes: list[tuple[int, str, int]] = []
        sizes: list[Size] = []
        nano, terms = 0, None
        for each in contexts:
            if each.terms is not terms or not sizes:  # of those that are the same it is known
                terms, size = each.terms, size_of(each, self._settings.slice_tokens)
                nano = Spending.first_nano(price, **size)
            sizes.append(size)
            wishes.append((each.arrived_utc_ns, each.request.request_id, nano))
        holds = self._accounts.hold_in_turn(first.known_caller, first.run_id, wishes)
        if holds is None:
            return False
        for context, hold, size in zip(contexts, holds, sizes, strict=True):
            if hold is not None:
                context.budget_remaining_nano = hold.first_remaining_nano
                context.spending = Spending(hold, price, **size)
        return True

    def hold_slot(self, context: RequestContext) -> None:
        """The other part. Raises Overloaded while the ledger can't be written."""
        self._check_takes_entries()
        self._open_slot(context)

    def _check_takes_entries(self) -> None:
        if not self.takes_entries:
            raise Overloaded(
                "The server can't write its ledger now, so it takes no requests. Try again.",
                retry_after_s=1.0,
            )

    def _open_slot(self, context: RequestContext) -> None:
        try:
            context.slot = self._settlements.begin(under_way(context))
        except StorageFailed as error:
            raise Overloaded(error.message, retry_after_s=1.0) from error

    @property
    def takes_entries(self) -> bool:
        """Whether the ledger can be written, and is not far behind. While it can't, all requests are refused."""
        return self._ledger.health is None and self._ledger.waiting < MOST_BEHIND

    def hold_anew(self, context: RequestContext) -> None:
        """The prompt is another one than was held for. Raises QuotaExhausted."""
        spending, price = context.spending, context.price
        if spending is not None and price is not None:
            spending.hold.void()
            context.spending = None
            context.spending = self._held(context, price)

    def _held(self, context: RequestContext, price: Price) -> Spending | None:
        """None where no budget is over its caller, or nothing is to be held."""
        if not self._accounts.has_budgets(context.known_caller.org):
            return None
        size = size_of(context, self._settings.slice_tokens)
        nano = Spending.first_nano(price, **size)
        if context.full_price is not None and not nano:
            return None  # a free hit is for those, too, who have nothing left
        hold = self._accounts.hold(
            context.known_caller,
            context.run_id,
            nano,
            context.arrived_utc_ns,
            request_id=context.request.request_id,
        )
        if hold is None:
            return None
        context.budget_remaining_nano = hold.first_remaining_nano
        return Spending(hold, price, **size)

    def listed(self, context: RequestContext) -> Price | None:
        """The list price, which is the same until `next_price_ns`."""
        name = context.known_deployment.entry.name
        return self._prices.list.of(name, context.known_caller.org, context.arrived_utc_ns)

    def price_now(self, context: RequestContext, listed: Price | None) -> bool:
        """Find the price of one that runs; False where it has to be waited for. Raises NotNow."""
        answer = None
        if self._plugins.has("quote_price"):
            answer = ask_now(self._plugins, "quote_price", *self._offered(context, listed or FREE))
        return self._take_quote(context, listed, answer)

    def priced_now(
        self, contexts: Sequence[RequestContext], listed: Price | None
    ) -> Sequence[RequestContext]:
        """Those of requests that are alike, and about to run, whose price is found without waiting for it."""
        said: Sequence[Answer | NotNow | None] = [None] * len(contexts)
        if self._plugins.has("quote_price"):
            facts = (self._offered(each, listed or FREE) for each in each_named(contexts))
            said = ask_each_now(self._plugins, "quote_price", facts)
        return [
            context
            for context, answer in zip(contexts, said, strict=True)
            if not isinstance(answer, NotNow) and self._take_quote(context, listed, answer)
        ]

    def _take_quote(
        self, context: RequestContext, listed: Price | None, answer: Answer | None
    ) -> bool:
        """What a plugin quoted, or the list price if it has no opinion; False for a quote that is new."""
        context.price = listed
        if answer is not None:
            key = (context.known_deployment.entry.name, answer.plugin, answer.opinion)
            context.price = self._quotes.get(key)
            return context.price is not None
        return True

    def quote_hit_now(self, context: RequestContext) -> bool:
        """As `quote`, of a kept answer whose price has been made before; False where it has to be waited for."""
        if not self.price_now(context, self.listed(context)):
            return False
        if (full := context.price) is None:
            return not self._accounts.is_budgeted(context.known_caller, context.run_id)
        price = full if self._hits_cost_all else self._hit_prices.get(full.version)
        context.full_price, context.price = full, price
        return price is not None

    def next_price_ns(self, model: str, org: str, utc_ns: int) -> int | None:
        """When another list price begins to hold; None where none is set."""
        return self._prices.list.next_ns(model, org, utc_ns)

    def has_room(self, context: RequestContext) -> bool:
        """Whether budgets have what `hold` would hold, and the ledger can be written."""
        caller, price = context.known_caller, context.price
        if not self.takes_entries:
            return False
        if (
            not self._hits_cost
            or price is None
            or not self._accounts.is_budgeted(caller, context.run_id)
        ):
            return True
        nano = Spending.first_nano(price, **size_of(context, self._settings.slice_tokens))
        return self._accounts.has_room(caller, context.run_id, nano, context.arrived_utc_ns)

    def slot_of_hit(self) -> Slot | None:
        """Where a kept answer's entry will be until it is on disk; None while the disk has no room for it."""
        try:
            return self._settlements.reserve()
        except StorageFailed:
            return None

    def settle_hit(self, context: RequestContext, slot: Slot) -> None:
        """Hold, book and settle a kept answer for which there is room. When this returns, its entry is in the journal,
        and nobody need wait for the ledger."""
        try:
            entry = self._secured(context, slot)
        except Exception:
            slot.close()
            self.settle.let_go(context)
            raise
        if entry.amount_nano or context.spending is not None:
            self.settle.book(context, slot, entry, partial(self._check_hit, context))
        else:
            self._settlements.settle_soon(entry, slot)

    def _secured(self, context: RequestContext, slot: Slot) -> Entry:
        is_paid = self._hits_cost and context.price is not None
        if is_paid and self._accounts.is_budgeted(context.known_caller, context.run_id):
            assert context.price is not None
            context.spending = self._held(context, context.price)
        entry = self.settle.closed(context)
        assert entry is not None, "who has a kept answer is known"
        self._settlements.secure(entry, slot)
        return entry

    def _check_hit(self, context: RequestContext, failure: BaseException | None) -> None:
        """Neither the ledger nor the journal's disk could take the entry of an answer that has gone out."""
        if failure is not None:
            log.error("ledger.unrecorded error=%s", failure)
            self.settle.take_back(context)

    def take_part(self, context: RequestContext) -> None:
        """It is in flight from here on."""
        context.ticket = self._costs.join()
        context.may_see_costs = self._costs.is_shown

    def take_part_all(self, contexts: Sequence[RequestContext]) -> None:
        """As `take_part`, for those that come at one moment."""
        is_shown = self._costs.is_shown
        for context, ticket in zip(contexts, self._costs.join_all(len(contexts)), strict=True):
            context.ticket = ticket
            context.may_see_costs = is_shown

    async def _quoted(self, context: RequestContext, listed: Price) -> Price | None:
        facts = dict(zip(QUOTED_BY, self._offered(context, listed), strict=True))
        answer = await ask(self._plugins, "quote_price", **facts)
        if answer is None:
            return context.price
        quote: Quote = answer.opinion
        key = (context.known_deployment.entry.name, answer.plugin, quote)
        if key not in self._quotes:
            rates = Rates(**{f"{name}_nano": getattr(quote, name) for name in DIMENSIONS})
            self._quotes[key] = await self._prices.quote(*key[:2], rates)
        return self._quotes[key]

    def _offered(
        self, context: RequestContext, listed: Price
    ) -> tuple[GenerationRequest, Caller, Quote, datetime]:
        """The facts that a price is quoted by."""
        request, name = context.request, context.known_deployment.entry.name
        return (
            request if request.model == name else replace(request, model=name),
            context.known_caller,
            self._offers.get(listed.version) or self._offer(listed),
            moment(context.arrived_utc_ns),
        )

    def _offer(self, listed: Price) -> Quote:
        """A price as plugins see it."""
        if len(self._offers) >= KEPT_OFFERS:
            self._offers.clear()
        offer = Quote(**{name: getattr(listed, f"{name}_nano") for name in DIMENSIONS})
        self._offers[listed.version] = offer
        return offer
