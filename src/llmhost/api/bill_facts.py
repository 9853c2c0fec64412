"""What a caller pays for a request, what is left to spend and which review waits: headers of answers, and the end of
streams.

A stream's headers go out before its cost is known, so its end says it again: in the usage where that is asked for,
else in a comment, which no reader of events looks at unless it wants to.
"""

from collections.abc import Mapping

from llmhost.core.units import nano_to_dollars, show_dollars
from llmhost.pipeline.context import RequestContext

REVIEW = "x-llmhost-review"
BUDGET = "x-llmhost-budget-remaining-usd"
COST = "x-llmhost-cost-usd"
VERSION = "x-llmhost-price-version"
STOP = "x-llmhost-stop"
NAMES = (COST, VERSION, BUDGET, STOP, REVIEW)
_PRICE_LINES = f"{COST}: %s\r\n{VERSION}: %s\r\n"
_BUDGET_LINE = f"{BUDGET}: %s\r\n"
_BOTH_LINES = _PRICE_LINES + _BUDGET_LINE
_FACTS = ("cost_usd", "price_version", "budget_remaining_usd", "stop", "review")


def bill_facts(context: RequestContext, *, with_cost: bool = True) -> dict[str, str]:
    """Each fact that there is: `cost_usd`, `price_version`, `budget_remaining_usd`, `stop` and `review`. Dollars are
    exact."""
    return _told(context, _FACTS, with_cost=with_cost)


def bill_headers(context: RequestContext, *, with_cost: bool = True) -> dict[str, str]:
    """The same as headers; without the cost, of an answer that has only begun."""
    return _told(context, NAMES, with_cost=with_cost)


def bill_lines(context: RequestContext) -> str:
    """`bill_headers` as lines."""
    price, budget_nano, text = context.price, context.budget_remaining_nano, ""
    if price is not None and budget_nano is not None:
        text = _BOTH_LINES % (
            nano_to_dollars(context.amount_nano),
            price.version,
            show_dollars(budget_nano if budget_nano > 0 else 0),
        )
    elif price is not None:
        text = _PRICE_LINES % (nano_to_dollars(context.amount_nano), price.version)
    elif budget_nano is not None:
        text = _BUDGET_LINE % remaining_usd(budget_nano)
    if context.stop is not None:
        text += f"{STOP}: {context.stop}\r\n"
    if context.screening is not None and context.screening.review_id is not None:
        text += f"{REVIEW}: {context.screening.review_id}\r\n"
    return text


def _told(
    context: RequestContext, names: tuple[str, str, str, str, str], *, with_cost: bool
) -> dict[str, str]:
    """The facts that there are, by these names."""
    cost, version, budget, stop, review = names
    told: dict[str, str] = {}
    if context.price is not None:
        if with_cost:
            told[cost] = nano_to_dollars(context.amount_nano)
        told[version] = context.price.version
    if context.budget_remaining_nano is not None:
        told[budget] = remaining_usd(context.budget_remaining_nano)
    if context.stop is not None:
        told[stop] = context.stop
    if context.screening is not None and context.screening.review_id is not None:
        told[review] = context.screening.review_id
    return told


def bill_comment(facts: Mapping[str, str]) -> bytes:
    """One line of a stream, `: llmhost cost_usd=0.000012 ...`; nothing where there are no facts."""
    if not facts:
        return b""
    said = " ".join(f"{name}={fact}" for name, fact in facts.items())
    return f": llmhost {said}\n\n".encode()


def remaining_usd(nano: int) -> str:
    """A budget that was lowered below what is spent has nothing left, and not less."""
    return show_dollars(nano if nano > 0 else 0)
