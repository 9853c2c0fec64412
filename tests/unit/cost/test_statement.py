"""Statements: whole and signed, the same as the ledger, recomputed from an export, and of one organisation only."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from town import ORGS, SECRET, Town, entries, new_town, rated

from llmhost.core.errors import InvalidValue
from llmhost.cost.ed25519 import sign
from llmhost.cost.entries import Entry
from llmhost.cost.lines import femto_in
from llmhost.cost.periods import month_of, zone_of
from llmhost.cost.statement import signed_text
from llmhost.cost.statement_check import check
from llmhost.testing import at

MONTHS = ("2026-10", "2026-11")
ZONES = ("UTC", "Europe/Berlin", "Pacific/Auckland")
SIGNED_NS = at("2026-12-24T18:00Z").utc_ns()


@pytest.fixture(scope="module")
def old_town() -> Iterator[Town]:
    with new_town() as place:
        place.clock.set("2026-12-24T18:00Z")
        yield place


def own(place: Town, org: str) -> list[dict[str, Any]]:
    """What the organisation can export."""
    return [row for row in place.rows() if row["org"] == org]


@settings(max_examples=30, deadline=None)
@given(entries(), st.sampled_from(ORGS), st.sampled_from(MONTHS), st.sampled_from(ZONES))
def test_a_statement_is_the_ledger_to_the_nano_dollar_and_can_be_recomputed(
    old_town: Town, made: list[Entry], org: str, month: str, zone: str
) -> None:
    old_town.record(*made)
    span = month_of(month, zone_of(zone))
    rows = [row for row in own(old_town, org) if row["utc_ns"] in span]
    use = [row for row in rows if row["credit"] == "revenue"]

    whole = json.loads(json.dumps(old_town.statements.make(org, month, zone)))

    said, totals = whole["statement"], whole["statement"]["totals"]
    assert totals["charged_nano"] == sum(row["amount_nano"] for row in use)
    assert totals["requests"] == sum(row["kind"] == "request" for row in use)
    assert totals["credits_nano"] == sum(row["amount_nano"] for row in rows) - sum(
        row["amount_nano"] for row in use
    )
    lines = sum(femto_in(line["amount_usd"]) for line in said["lines"])
    assert lines == sum(row["amount_nano"] for row in rows) * 10**6
    assert said["entries"]["count"] == len(rows)
    verdict = check(
        whole, entries=own(old_town, org), public_key=old_town.statements.key["public_key"]
    )
    assert verdict.problems == []
    assert verdict.checked == ["signature", "sums", "entries", "hashes", "amounts", "lines"]


@pytest.fixture(scope="module")
def billed() -> Iterator[tuple[Town, dict[str, Any]]]:
    """A statement of acme for November with lines of every sort."""
    with new_town() as place:
        place.clock.set("2026-12-01T00:00Z")
        place.record(*(row for one in range(6) for row in _month(one)))
        yield place, place.statements.make("acme", "2026-11")


def _month(one: int) -> Iterator[Entry]:
    for org in ORGS:
        yield rated(
            Entry(
                request_id=f"req_{org}_{one}",
                utc_ns=at("2026-11-10T12:00Z").utc_ns() + one,
                key_id=f"key-of-{org}",
                org=org,
                team="red",
                model=["tiny@1", "tiny@2", "big@1"][one % 3],
                outcome="failed" if one == 5 else "answered",
                fresh_input_tokens=100 + one,
                cached_input_tokens=7,
                output_tokens=31,
                reasoning_tokens=one,
            )
        )
    yield Entry(
        request_id=f"req_acme_{one}",
        kind="rerate",
        utc_ns=at("2026-11-20T12:00Z").utc_ns() + one,
        key_id="key-of-acme",
        org="acme",
        model="tiny@1",
        outcome="answered",
        amount_nano=-1,
    )


def test_a_statement_says_nothing_of_others(billed: tuple[Town, dict[str, Any]]) -> None:
    place, whole = billed
    text = json.dumps(whole)

    assert "beta" not in text
    foreign = {row["request_id"] for row in place.rows() if row["org"] == "beta"}
    assert not [name for name in foreign if name in text]
    assert whole["statement"]["totals"]["requests"] == 6


def test_lines_are_quantity_times_price_and_one_of_rounding(
    billed: tuple[Town, dict[str, Any]],
) -> None:
    _, whole = billed
    lines = [line for line in whole["statement"]["lines"] if line["price"] == "tiny/2"]

    by_dimension = {line["dimension"]: line for line in lines}
    fresh = by_dimension["fresh_input"]
    assert (fresh["quantity"], fresh["unit_price_usd"], fresh["per"]) == (205, "0.100000001", 10**6)
    assert fresh["amount_usd"] == "0.000020500000205"
    assert by_dimension["requests"]["amount_usd"] == "0.000002"
    assert by_dimension["rounding"]["unit_price_usd"] is None


def test_failed_requests_and_corrections_have_lines_of_their_own(
    billed: tuple[Town, dict[str, Any]],
) -> None:
    _, whole = billed
    sorts = {line["sort"] for line in whole["statement"]["lines"]}

    assert sorts == {"use", "not_charged", "correction"}
    assert whole["statement"]["totals"]["corrections_nano"] == -6
    free = [line for line in whole["statement"]["lines"] if line["sort"] == "not_charged"]
    assert {line["amount_usd"] for line in free} == {"0.00"}


Forge = Callable[[dict[str, Any]], None]


def _cheaper(said: dict[str, Any]) -> None:
    said["totals"]["charged_nano"] -= 1


def _another_price(said: dict[str, Any]) -> None:
    said["prices"][0]["nano"]["output"] += 1


def _fewer_tokens(said: dict[str, Any]) -> None:
    said["lines"][0]["quantity"] -= 1


def _a_line_less(said: dict[str, Any]) -> None:
    del said["lines"][0]


def _an_entry_less(said: dict[str, Any]) -> None:
    said["entries"]["count"] -= 1


def _longer_month(said: dict[str, Any]) -> None:
    said["period"]["until_ns"] += 1


FORGERIES = [_cheaper, _another_price, _fewer_tokens, _a_line_less, _an_entry_less, _longer_month]


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_changed_statement_is_not_what_was_signed(
    billed: tuple[Town, dict[str, Any]], forge: Forge
) -> None:
    forged = copy.deepcopy(billed[1])
    forge(forged["statement"])

    assert "signature: the statement is not what was signed" in check(forged).problems


@pytest.mark.parametrize("forge", FORGERIES[:-1])
def test_what_the_node_itself_signs_must_still_be_true(
    billed: tuple[Town, dict[str, Any]], forge: Forge
) -> None:
    place, whole = billed
    forged = copy.deepcopy(whole)
    forge(forged["statement"])
    value = sign(SECRET, signed_text(forged["statement"])).hex()
    forged["signature"]["value"] = value

    verdict = check(forged, entries=own(place, "acme"))

    assert "signature" in verdict.checked
    assert verdict.problems


def test_another_node_s_key_is_not_trusted(billed: tuple[Town, dict[str, Any]]) -> None:
    assert check(billed[1], public_key="ab" * 32).problems


def _less(rows: list[dict[str, Any]]) -> None:
    del rows[2]


def _dearer(rows: list[dict[str, Any]]) -> None:
    rows[0]["amount_nano"] += 1


def _renamed(rows: list[dict[str, Any]]) -> None:
    rows[0]["model"] = "big@1"


def _rehashed(rows: list[dict[str, Any]]) -> None:
    rows[0]["hash"] = "00" * 32


def _twice(rows: list[dict[str, Any]]) -> None:
    rows.append(rows[0])


@pytest.mark.parametrize("change", [_less, _dearer, _renamed, _rehashed, _twice])
def test_an_export_that_was_changed_does_not_fit(
    billed: tuple[Town, dict[str, Any]], change: Callable[[list[dict[str, Any]]], None]
) -> None:
    place, whole = billed
    rows = copy.deepcopy(own(place, "acme"))
    change(rows)

    assert check(whole, entries=rows).problems


@pytest.mark.parametrize(
    "whole", [None, 5, [], {}, {"statement": {}, "signature": {}}, {"statement": 1, "signature": 2}]
)
def test_what_is_no_statement_is_a_problem_and_no_failure(whole: Any) -> None:
    assert not check(whole).is_good


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_value_may_stand_anywhere(
    billed: tuple[Town, dict[str, Any]], data: st.DataObject
) -> None:
    forged = copy.deepcopy(billed[1])
    at_: Any = forged
    while isinstance(at_, dict | list) and at_:
        keys = list(at_) if isinstance(at_, dict) else range(len(at_))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at_[key], dict | list) or data.draw(st.booleans()):
            at_[key] = data.draw(st.sampled_from([None, -1, "x", [], {}, 10**30, True, "é\x00"]))
            break
        at_ = at_[key]

    assert check(forged, entries=own(billed[0], "acme")).problems or forged == billed[1]


def test_statements_follow_one_another(billed: tuple[Town, dict[str, Any]]) -> None:
    place, november = billed
    place.clock.set("2027-01-02T00:00Z")
    december = place.statements.make("acme", "2026-12")

    assert check(december, previous=november).checked[-1] == "order"
    assert check(november, previous=december).problems


def test_a_month_to_come_has_no_statement_and_this_one_an_unfinished_one() -> None:
    with new_town() as place:
        place.clock.set("2026-11-26T00:00Z")
        with pytest.raises(InvalidValue, match="has not begun"):
            place.statements.make("acme", "2026-12")

        said = place.statements.make("acme", "2026-11")["statement"]

        assert not said["is_complete"]
        assert said["lines"] == []
        assert said["entries"]["count"] == 0
