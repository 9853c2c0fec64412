"""Stage 9: what it cost. The price is quoted once, at admission, and frozen; the entry is written once, at the end."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from llmhost.core.errors import LlmhostError
from llmhost.core.output import Outcome
from llmhost.core.request import Kind
from llmhost.cost.attribution import TrueCosts
from llmhost.cost.ledger import Entry, Ledger
from llmhost.cost.prices import PriceBook
from llmhost.cost.pricing import Price, Rates, amount_nano
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.hooks.spec import DIMENSIONS
from llmhost.hooks.spec import Price as Quote
from llmhost.pipeline.context import RequestContext

FREE = Price(version="free", input_nano=0, cached_input_nano=0, output_nano=0)
"""The list price of a model without one, as plugins see it."""


class Bill:
    """Quotes and books. Only answers and what a caller left behind are paid for: refusals and failures are not."""

    def __init__(
        self, ledger: Ledger, prices: PriceBook, plugins: Plugins, costs: TrueCosts
    ) -> None:
        self._ledger = ledger
        self._prices = prices
        self._plugins = plugins
        self._costs = costs
        self._quotes: dict[tuple[str, str, Quote], Price] = {}

    async def quote(self, context: RequestContext) -> None:
        """Freeze the price: what holds for the caller's organisation, or what a plugin makes of it."""
        context.ticket = self._costs.join()
        context.may_see_costs = self._costs.is_shown
        context.price = self._prices.list.of(
            context.known_deployment.entry.name, context.known_caller.org, context.arrived_utc_ns
        )
        if self._plugins.has("quote_price"):
            context.price = await self._quoted(context, context.price or FREE)

    def __call__(self, context: RequestContext) -> "asyncio.Future[None]":
        """Book the request; done when its entry is on disk. Without a caller there is no account to book to."""
        if context.outcome in (Outcome.ANSWERED, Outcome.CANCELLED):
            is_embedding = context.request.kind is Kind.EMBEDDING
            context.amount_nano = amount_nano(
                context.price, context.usage, is_embedding=is_embedding
            )
        load_id = None if context.replica is None else context.replica.load_id
        context.costs = self._costs.settle(context.usage, context.ticket, load_id)
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if context.caller is None:
            settled.set_result(None)
            return settled
        version = context.price.version if context.price is not None else None
        try:
            entry = Entry.of(context.event(), price_version=version, costs=context.costs)
            recorded = self._ledger.settle(entry)
        except LlmhostError as error:
            settled.set_exception(error)
            return settled
        recorded.add_done_callback(lambda done: _settle(settled, done.exception()))
        return settled

    async def _quoted(self, context: RequestContext, listed: Price) -> Price | None:
        offer = Quote(**{name: getattr(listed, f"{name}_nano") for name in DIMENSIONS})
        answer = await ask(
            self._plugins,
            "quote_price",
            request=replace(context.request, model=context.known_deployment.entry.name),
            caller=context.known_caller,
            price=offer,
            now=datetime.fromtimestamp(context.arrived_utc_ns / 1e9, UTC),
        )
        if answer is None:
            return context.price
        quote: Quote = answer.opinion
        key = (context.known_deployment.entry.name, answer.plugin, quote)
        if key not in self._quotes:
            rates = Rates(**{f"{name}_nano": getattr(quote, name) for name in DIMENSIONS})
            self._quotes[key] = await self._prices.quote(*key[:2], rates)
        return self._quotes[key]


def _settle(settled: "asyncio.Future[None]", failure: BaseException | None) -> None:
    if settled.done():
        return
    if failure is None:
        settled.set_result(None)
    else:
        settled.set_exception(failure)
