"""What is written down of a request when it is admitted: how much budgets hold for it, and its note in the journal."""

from typing import TypedDict

from llmhost.core.request import Kind
from llmhost.cost.under_way import UnderWay
from llmhost.pipeline.context import RequestContext


class Size(TypedDict):
    """What a hold is made for, as `Spending` takes it."""

    prompt_tokens: int
    slice_tokens: int
    most_tokens: int
    choices: int


def size_of(context: RequestContext, slice_tokens: int) -> Size:
    """A slice of each answer and the prompts; of a kept answer all of it."""
    most_tokens, use, terms = context.max_new_tokens, context.cache, context.known_terms
    if use is not None and use.is_hit:  # nothing is held later, so all of it is now
        slice_tokens = most_tokens = (
            most_tokens if use.answer is None else use.answer.longest_tokens
        )
    return Size(
        prompt_tokens=terms.prompt_tokens,
        slice_tokens=slice_tokens,
        most_tokens=most_tokens,
        choices=context.choices,
    )


def under_way(context: RequestContext) -> UnderWay:
    """Its note in the journal."""
    caller, price, adapter = context.known_caller, context.price, context.adapter
    return UnderWay(
        request_id=context.request.request_id,
        utc_ns=context.arrived_utc_ns,
        key_id=caller.key_id,
        org=caller.org,
        team=caller.team,
        run_id=context.run_id,
        model=context.model,
        adapter=None if adapter is None else adapter.adapter,
        price_version=None if price is None else price.version,
        rates=price,
        is_embedding=context.request.kind is Kind.EMBEDDING,
        is_line=context.deferral is not None,
        is_hit=context.cache is not None and context.cache.is_hit,
        held_nano=0 if context.spending is None else context.spending.hold.held_nano,
    )
