"""What was charged, by what for: a model's fresh input, its output, and so on, for any groups."""

from dataclasses import dataclass, replace
from typing import Any

from llmhost.core.units import PER_MILLION
from llmhost.cost.lines import (
    AMOUNT,
    CORRECTION,
    REQUESTS,
    ROUNDING,
    USE,
    BillLine,
    lines_of,
)
from llmhost.cost.query import Query
from llmhost.cost.reports import Reports
from llmhost.cost.statement import Statements

NAMES = {"fresh_input": "input_tokens", AMOUNT: "other", ROUNDING: ROUNDING, REQUESTS: REQUESTS}
"""How OpenAI's line items say it; other dimensions are called by themselves."""


@dataclass(frozen=True, slots=True)
class LineCosts:
    """By (groups, what for): femto-dollars and how many of it."""

    sums: dict[tuple[Any, ...], tuple[int, int | None]]

    def without_items(self) -> "LineCosts":
        """By groups alone."""
        found: dict[tuple[Any, ...], tuple[int, int | None]] = {}
        for (*groups, _), (femto, _) in self.sums.items():
            key = (*groups, None)
            found[key] = (found.get(key, (0, None))[0] + femto, None)
        return LineCosts(found)


def line_costs(
    reports: Reports, statements: Statements, query: Query, items: tuple[str, ...] = ()
) -> LineCosts:
    """Charges of the query's groups, of these items or of all. Blocks. Raises InvalidValue."""
    by_model = query if "model" in query.by else replace(query, by=(*query.by, "model"))
    charges = [one for one in reports.charges(by_model) if one.sort in (USE, CORRECTION)]
    rates = statements.rates_of(charges)
    place = by_model.by.index("model")
    width = len(query.by)
    found: dict[tuple[Any, ...], tuple[int, int | None]] = {}
    for charge in charges:
        is_rated = charge.sort == USE and charge.price is not None
        for line in lines_of(charge, rates[str(charge.price)] if is_rated else None):
            name = item_of(line, str(charge.key[place]))
            if not line.amount_femto or (items and name not in items):
                continue
            key = (*charge.key[:width], name)
            femto, quantity = found.get(key, (0, 0))
            found[key] = (femto + line.amount_femto, (quantity or 0) + line.quantity)
    return LineCosts(dict(sorted(found.items(), key=_order)))


def whole_costs(reports: Reports, query: Query) -> LineCosts:
    """Charges of the query's groups, whatever they are for. Blocks. Raises InvalidValue."""
    return LineCosts(
        {(*line.groups, None): (line.sums[-1] * PER_MILLION, None) for line in reports.usage(query)}
    )


def item_of(line: BillLine, model: str) -> str:
    """`tiny@1, output_tokens`."""
    if line.sort == CORRECTION:
        return f"{model}, {line.kind}"
    return f"{model}, {NAMES.get(line.dimension, f'{line.dimension}_tokens')}"


def _order(item: tuple[tuple[Any, ...], tuple[int, int | None]]) -> tuple[Any, ...]:
    key, (femto, _) = item
    return key[0], -femto, tuple(str(one) for one in key[1:])
