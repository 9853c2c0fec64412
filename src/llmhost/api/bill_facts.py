"""What a caller pays for a request, what is left to spend and which review waits: headers of answers, and the end of
streams.

A stream's headers go out before its cost is known, so its end says it again: in the usage where that is asked for,
else in a comment, which no reader of events looks at unless it wants to.
"""

from collections.abc import Mapping

from llmhost.core.units import nano_to_dollars
from llmhost.pipeline.context import RequestContext

REVIEW = "x-llmhost-review"
BUDGET = "x-llmhost-budget-remaining-usd"
_HEADERS = {
    "cost_usd": "x-llmhost-cost-usd",
    "price_version": "x-llmhost-price-version",
    "budget_remaining_usd": BUDGET,
    "stop": "x-llmhost-stop",
    "review": REVIEW,
}
NAMES = tuple(_HEADERS.values())


def bill_facts(context: RequestContext, *, with_cost: bool = True) -> dict[str, str]:
    """Each fact that there is: `cost_usd`, `price_version`, `budget_remaining_usd`, `stop` and `review`. Dollars are
    exact."""
    facts: dict[str, str] = {}
    if context.price is not None:
        if with_cost:
            facts["cost_usd"] = nano_to_dollars(context.amount_nano)
        facts["price_version"] = context.price.version
    if context.budget_remaining_nano is not None:
        facts["budget_remaining_usd"] = remaining_usd(context.budget_remaining_nano)
    if context.stop is not None:
        facts["stop"] = context.stop
    if context.screening is not None and context.screening.review_id is not None:
        facts["review"] = context.screening.review_id
    return facts


def bill_headers(context: RequestContext, *, with_cost: bool = True) -> dict[str, str]:
    """The same as headers; without the cost, of an answer that has only begun."""
    facts = bill_facts(context, with_cost=with_cost)
    return {_HEADERS[name]: fact for name, fact in facts.items()}


def bill_comment(facts: Mapping[str, str]) -> bytes:
    """One line of a stream, `: llmhost cost_usd=0.000012 ...`; nothing where there are no facts."""
    if not facts:
        return b""
    said = " ".join(f"{name}={fact}" for name, fact in facts.items())
    return f": llmhost {said}\n\n".encode()


def remaining_usd(nano: int) -> str:
    """A budget that was lowered below what is spent has nothing left, and not less."""
    return nano_to_dollars(max(nano, 0))
