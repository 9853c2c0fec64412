"""A bill's lines: for each price and dimension a quantity times a unit price, and what rounding has made of them. Pure.

An entry is rounded once, over all its dimensions. So products of sums are finer than nano-dollars, and a line of
their own says by how much the entries were rounded: all lines together are the ledger's amount, exactly.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmhost.core.units import NANO, PER_MILLION
from llmhost.cost.entries import DIMENSIONS
from llmhost.cost.pricing import Rates

FEMTO = NANO * PER_MILLION
"""Femto-dollars in a dollar: what one token costs is a whole number of them."""

Key = tuple[str | int | None, ...]

USE, FREE, CORRECTION, CREDIT = "use", "not_charged", "correction", "credit"
"""What an entry is to a bill: use, use that nobody pays for, a correction of use, or money that came in."""

REQUESTS, ROUNDING, AMOUNT = "requests", "rounding", "amount"
"""What a line is about beside the dimensions of tokens; `amount` is of entries that say no more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Entries of one kind, added up."""

    key: Key
    """Whose they are, in whatever groups the bill has."""
    sort: str
    kind: str
    price: str | None
    """The version of the price."""
    entries: int
    paid_requests: int
    """Those that used anything."""
    tokens: tuple[int, ...]
    """One number for each of DIMENSIONS."""
    amount_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BillLine:
    """One line. `amount_femto` is the quantity times the unit price, where there is one."""

    key: Key
    sort: str
    kind: str
    price: str | None
    dimension: str
    quantity: int
    unit_nano: int | None
    """Nano-dollars for `per` of them."""
    per: int
    amount_femto: int


def lines_of(charge: Charge, rates: Rates | None) -> list[BillLine]:
    """Its lines, which together are its amount. `rates` are those of its price."""
    if charge.sort in (CORRECTION, CREDIT):
        whole = charge.amount_nano * PER_MILLION
        return [_line(charge, AMOUNT, charge.entries, None, 1, whole)] if whole else []
    is_priced = charge.sort == USE and rates is not None
    found = [
        _line(charge, dimension, tokens, unit if is_priced else None, PER_MILLION, tokens * unit)
        for dimension, tokens, unit in zip(
            DIMENSIONS, charge.tokens, _units(rates if is_priced else None), strict=True
        )
        if tokens
    ]
    if is_priced and rates is not None and rates.request_nano and charge.paid_requests:
        unit, count = rates.request_nano, charge.paid_requests
        found.append(_line(charge, REQUESTS, count, unit, 1, count * unit * PER_MILLION))
    rest = charge.amount_nano * PER_MILLION - sum(line.amount_femto for line in found)
    if rest:
        is_rounding = is_priced and 2 * abs(rest) <= charge.entries * PER_MILLION
        name = ROUNDING if is_rounding else AMOUNT
        found.append(_line(charge, name, charge.entries, None, 1, rest))
    return found


def price_units(rates: Rates) -> dict[str, int]:
    """Nano-dollars for a million tokens of each dimension, and for a request."""
    return {**dict(zip(DIMENSIONS, _units(rates), strict=True)), REQUESTS: rates.request_nano}


def rates_in(units: Mapping[str, int]) -> Rates:
    """What `price_units` was made of, as far as charges go."""
    return Rates(
        input_nano=units["fresh_input"],
        cached_input_nano=units["cached_input"],
        output_nano=units["output"],
        reasoning_nano=units["reasoning"],
        embedding_nano=units["embedding"],
        request_nano=units[REQUESTS],
    )


def total_femto(lines: Iterable[BillLine], *sorts: str) -> int:
    """Of the lines of some sorts."""
    return sum(line.amount_femto for line in lines if line.sort in sorts)


def femto_to_dollars(femto: int) -> str:
    """Exact: up to fifteen places, and two at least."""
    sign = "-" if femto < 0 else ""
    whole, rest = divmod(abs(femto), FEMTO)
    return f"{sign}{whole}.{f'{rest:015d}'.rstrip('0').ljust(2, '0')}"


def femto_in(dollars: str) -> int:
    """What `femto_to_dollars` has written. Raises ValueError."""
    match = re.fullmatch(r"(-?)([0-9]{1,20})\.([0-9]{1,15})", dollars)
    if match is None:
        raise ValueError(f"{dollars[:40]!r} is no amount")
    femto = int(match[2]) * FEMTO + int(match[3].ljust(15, "0"))
    return -femto if match[1] else femto


def _units(rates: Rates | None) -> tuple[int, ...]:
    """In the order of DIMENSIONS."""
    if rates is None:
        return (0,) * len(DIMENSIONS)
    thoughts, texts = rates.reasoning_nano, rates.embedding_nano
    return (
        rates.input_nano,
        rates.cached_input_nano,
        rates.output_nano,
        rates.output_nano if thoughts is None else thoughts,
        rates.input_nano if texts is None else texts,
    )


def _line(
    charge: Charge, dimension: str, quantity: int, unit: int | None, per: int, femto: int
) -> BillLine:
    return BillLine(
        key=charge.key,
        sort=charge.sort,
        kind=charge.kind,
        price=charge.price,
        dimension=dimension,
        quantity=quantity,
        unit_nano=unit,
        per=per,
        amount_femto=femto,
    )
