"""Charges in the columns of FOCUS, the FinOps Foundation's open specification for cost and usage data (version 1.2).

One row for each day, organisation, team, key, model, version of a price and dimension. Costs are decimal strings, exact
to the last of fifteen places; what rounding an entry to a nano-dollar made of them is a row of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import tzinfo

from llmhost.core.units import NANO, PER_MILLION, nano_to_dollars
from llmhost.cost import periods
from llmhost.cost.lines import (
    AMOUNT,
    CORRECTION,
    FEMTO,
    REQUESTS,
    ROUNDING,
    USE,
    BillLine,
    Charge,
    femto_to_dollars,
    lines_of,
    price_units,
)
from llmhost.cost.periods import Span
from llmhost.cost.pricing import Rates
from llmhost.cost.query import Query
from llmhost.cost.reports import Reports
from llmhost.cost.statement import Statements

GROUPS = ("day", "org", "team", "key", "model")
COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
)
"""All mandatory ones, and of the others those that have something to say."""

Row = dict[str, str | None]
ListRates = Callable[[str, int], Rates | None]
"""What everybody paid at a time for the model of a price's version; None where it is that very price."""

DAY_NS = 86_400 * NANO
ISSUER = "llmhost"
_TEXTS = {
    "fresh_input": "prompt tokens",
    "cached_input": "prompt tokens from the cache",
    "output": "answer tokens",
    "reasoning": "thought tokens",
    "embedding": "embedded tokens",
    REQUESTS: "requests",
    ROUNDING: "rounding of each charge to a nano-dollar",
    AMOUNT: "other charges",
}


def rows_of(
    charges: Iterable[Charge],
    rates: Mapping[str, Rates],
    list_rates: ListRates,
    *,
    zone: tzinfo,
) -> Iterator[Row]:
    """Of charges by GROUPS, in order. Use that nobody pays for and money that came in are no charges."""
    wanted = [charge for charge in charges if charge.sort in (USE, CORRECTION)]
    for charge in sorted(wanted, key=_order):
        is_rated = charge.sort == USE and charge.price is not None
        found = rates[str(charge.price)] if is_rated else None
        listed = None
        if is_rated:
            # at the day's end: a price of the same day may be the first
            listed = list_rates(str(charge.price), int(charge.key[0] or 0) + DAY_NS - 1) or found
        for line in lines_of(charge, found):
            yield _row(line, listed, zone)


def focus(reports: Reports, statements: Statements, query: Query) -> Iterator[Row]:
    """Charges of the query's time and filters. Blocks. Raises InvalidValue."""
    charges = reports.charges(replace(query, by=GROUPS))
    zone = periods.zone_of(query.zone)
    yield from rows_of(charges, statements.rates_of(charges), statements.list_rates(), zone=zone)


def _order(charge: Charge) -> tuple[object, ...]:
    names = tuple("" if one is None else str(one) for one in charge.key[1:])
    return charge.key[0], names, charge.sort != USE, charge.kind, charge.price or ""


def _row(line: BillLine, listed: Rates | None, zone: tzinfo) -> Row:
    start_ns, org, team, key, model = line.key
    day, month = _spans(int(start_ns or 0), zone)
    cost = femto_to_dollars(line.amount_femto)
    is_correction = line.sort == CORRECTION
    is_use = not is_correction and line.dimension not in (ROUNDING, AMOUNT)
    what = line.kind if is_correction else _TEXTS[line.dimension]
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "BilledCost": cost,
        "BillingAccountId": str(org),
        "BillingAccountName": str(org),
        "BillingAccountType": "Organisation",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": periods.iso(month.end_ns),
        "BillingPeriodStart": periods.iso(month.start_ns),
        "ChargeCategory": "Usage" if is_use else "Adjustment",
        "ChargeClass": "Correction" if is_correction else None,
        "ChargeDescription": f"{model}: {what}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": periods.iso(day.end_ns),
        "ChargePeriodStart": periods.iso(day.start_ns),
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": ISSUER,
        "ListCost": cost,
        "ProviderName": ISSUER,
        "PublisherName": ISSUER,
        "ResourceId": None if key is None else str(key),
        "ResourceName": None if key is None else str(key),
        "ResourceType": None if key is None else "API key",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "LLM inference",
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": str(team),
        "SubAccountName": str(team),
        "SubAccountType": "Team",
        "Tags": "{}",
    }
    return row | _priced(line, listed) if is_use else row


def _priced(line: BillLine, listed: Rates | None) -> Row:
    """What use has beside its cost: the quantity, the unit and the prices."""
    model, dimension = str(line.key[-1]), line.dimension
    unit_nano = line.unit_nano or 0
    list_nano = unit_nano if listed is None else price_units(listed)[dimension]
    scale = PER_MILLION if line.per == 1 else 1
    is_request = dimension == REQUESTS
    return {
        "ConsumedQuantity": str(line.quantity),
        "ConsumedUnit": "Requests" if is_request else "Tokens",
        "ContractedUnitPrice": nano_to_dollars(unit_nano),
        "ListCost": femto_to_dollars(line.quantity * list_nano * scale),
        "ListUnitPrice": nano_to_dollars(list_nano),
        "PricingCategory": "Standard",
        "PricingQuantity": _share(line.quantity, line.per),
        "PricingUnit": "Requests" if is_request else "1000000 Tokens",
        "SkuId": f"{model}/{dimension}",
        "SkuMeter": _TEXTS[dimension],
        "SkuPriceId": None if line.price is None else f"{line.price}/{dimension}",
    }


def _spans(start_ns: int, zone: tzinfo) -> tuple[Span, Span]:
    """The day that begins then, and its month."""
    day = Span(start_ns, _end("day", start_ns, zone))
    month_ns = periods.starts("month", zone, Span(start_ns, start_ns + 1))[0]
    return day, Span(month_ns, _end("month", month_ns, zone))


def _end(unit: periods.Unit, start_ns: int, zone: tzinfo) -> int:
    """When the bucket after it begins."""
    far_ns = start_ns + (32 if unit == "month" else 2) * DAY_NS
    return periods.starts(unit, zone, Span(start_ns, far_ns))[1]


def _share(quantity: int, per: int) -> str:
    """A quantity in units of so many, as a decimal."""
    return femto_to_dollars(quantity * FEMTO // per) if per != 1 else str(quantity)
