"""FOCUS rows: what the specification asks of every row, and the ledger's amounts to the last place."""

from collections.abc import Iterator
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from town import DAYS_NS, ORGS, START_NS, Town, entries, new_town

from llmhost.cost.entries import Entry
from llmhost.cost.focus import COLUMNS, Row, focus, rows_of
from llmhost.cost.lines import Charge
from llmhost.cost.pricing import Rates
from llmhost.cost.query import Query
from llmhost.testing import at

NEVER_NULL = {
    "BilledCost",
    "BillingAccountId",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
}
OF_USE = {
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "SkuId",
}


@pytest.fixture(scope="module")
def old_town() -> Iterator[Town]:
    with new_town() as place:
        yield place


@settings(max_examples=40, deadline=None)
@given(
    entries(),
    st.sampled_from((None, *ORGS)),
    st.sampled_from(("UTC", "Europe/Berlin", "America/Havana")),
    st.integers(0, DAYS_NS),
)
def test_rows_are_as_focus_wants_them_and_add_up_to_the_ledger(
    old_town: Town, made: list[Entry], org: str | None, zone: str, since_ns: int
) -> None:
    old_town.record(*made)
    query = Query(zone=zone, since_ns=START_NS + since_ns, within_org=org)

    rows = list(focus(old_town.reports, old_town.statements, query))

    billed = sum(Decimal(str(row["BilledCost"])) for row in rows)
    assert billed * 10**9 == sum(
        row["amount_nano"]
        for row in old_town.rows()
        if row["utc_ns"] >= START_NS + since_ns
        and org in (None, row["org"])
        and row["credit"] == "revenue"
    )
    for row in rows:
        check(row)
    assert org is None or {row["BillingAccountId"] for row in rows} <= {org}


def check(row: Row) -> None:
    assert tuple(row) == COLUMNS
    assert all(row[name] is not None for name in NEVER_NULL), row
    assert str(row["BillingPeriodStart"]) <= str(row["ChargePeriodStart"])
    assert str(row["ChargePeriodStart"]) < str(row["ChargePeriodEnd"])
    assert str(row["ChargePeriodEnd"]) <= str(row["BillingPeriodEnd"])
    if row["ChargeCategory"] == "Usage":
        assert all(row[name] is not None for name in OF_USE), row
        quantity, unit = Decimal(str(row["PricingQuantity"])), str(row["ContractedUnitPrice"])
        assert quantity * Decimal(unit) == Decimal(str(row["ContractedCost"]))
        assert quantity * Decimal(str(row["ListUnitPrice"])) == Decimal(str(row["ListCost"]))
        assert row["ChargeClass"] is None
    else:
        assert row["ChargeCategory"] == "Adjustment"
        assert row["PricingQuantity"] is None


def _charge(day: str) -> Charge:
    return Charge(
        key=(at(day).utc_ns(), "acme", "acme", None, "tiny@1"),
        sort="use",
        kind="request",
        price="tiny+acme/1",
        entries=1,
        paid_requests=1,
        tokens=(2_500_000, 0, 0, 0, 0),
        amount_nano=250_000_000,
    )


def test_a_price_of_one_s_own_stands_beside_the_list_price() -> None:
    own = Rates(input_nano=10**8, cached_input_nano=0, output_nano=0)
    listed = Rates(input_nano=4 * 10**8, cached_input_nano=0, output_nano=0)

    (row,) = rows_of(
        [_charge("2026-11-10")], {"tiny+acme/1": own}, lambda *_: listed, zone=ZoneInfo("UTC")
    )

    assert (row["ContractedUnitPrice"], row["ListUnitPrice"]) == ("0.10", "0.40")
    assert (row["BilledCost"], row["ListCost"]) == ("0.25", "1.00")
    assert (row["PricingQuantity"], row["PricingUnit"]) == ("2.50", "1000000 Tokens")
    assert row["SkuPriceId"] == "tiny+acme/1/fresh_input"


def test_a_day_is_as_long_as_its_clock_says() -> None:
    rates = Rates(input_nano=10**8, cached_input_nano=0, output_nano=0)

    (row,) = rows_of(
        [_charge("2026-10-24T22:00Z")],
        {"tiny+acme/1": rates},
        lambda *_: None,
        zone=ZoneInfo("Europe/Berlin"),
    )

    day = (row["ChargePeriodStart"], row["ChargePeriodEnd"])
    assert day == ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z")
    month = (row["BillingPeriodStart"], row["BillingPeriodEnd"])
    assert month == ("2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z")
