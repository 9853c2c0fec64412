"""Sums of the ledger: for any groups, filters and time zones the same as adding up its rows one by one."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from town import DAYS_NS, MODELS, ORGS, START_NS, Town, entries, new_town

from llmhost.core.errors import InvalidValue
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.entries import DIMENSIONS
from llmhost.cost.ledger import Entry
from llmhost.cost.periods import label, zone_of
from llmhost.cost.query import ENTRY_GROUPS, GROUPS, USED, Query
from llmhost.cost.reports import cost_of

ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York")
CLOCK = {
    "minute": "%Y-%m-%d %H:%M%z",
    "hour": "%Y-%m-%d %H%z",
    "day": "%Y-%m-%d",
    "month": "%Y-%m",
}

BY = st.lists(st.sampled_from(sorted(GROUPS)), unique=True, max_size=3)
RARE = st.lists(st.sampled_from(sorted(ENTRY_GROUPS)), unique=True, max_size=2)
UNIT = st.sampled_from((None, *CLOCK))
BOUND = st.one_of(st.none(), st.integers(START_NS, START_NS + DAYS_NS))


@st.composite
def queries(draw: st.DrawFn, rare: st.SearchStrategy[list[str]] = RARE) -> Query:
    unit = draw(UNIT)
    by = draw(BY) + draw(rare) + ([unit] if unit else [])
    since, until = draw(BOUND), draw(BOUND)
    if since is not None and until is not None and until < since:
        since, until = until, since
    return Query(
        by=tuple(draw(st.permutations(by))),
        zone=draw(st.sampled_from(ZONES)),
        since_ns=since,
        until_ns=until,
        orgs=draw(st.sampled_from(((), ("acme",), ORGS, ("nobody",)))),
        teams=draw(st.sampled_from(((), ("red",), ("acme/red",), ("beta/red", "blue"), ("acme",)))),
        keys=draw(st.sampled_from(((), ("key-1-acme",)))),
        models=draw(st.sampled_from(((), ("tiny",), ("tiny@1", "big"), ("nothing",)))),
        within_org=draw(st.sampled_from((None, None, "beta"))),
        within_key=draw(st.sampled_from((None, None, "key-1-beta"))),
    )


def is_meant(row: dict[str, Any], query: Query) -> bool:
    team = row["team"]
    return (
        (query.since_ns is None or row["utc_ns"] >= query.since_ns)
        and (query.until_ns is None or row["utc_ns"] < query.until_ns)
        and (not query.orgs or row["org"] in query.orgs)
        and (not query.teams or {team, group(row, Query(by=("team",)))[0]} & {*query.teams})
        and (not query.keys or row["key_id"] in query.keys)
        and (not query.models or {row["model"], row["model"].split("@")[0]} & {*query.models})
        and query.within_org in (None, row["org"])
        and query.within_key in (None, row["key_id"])
        and row["credit"] == "revenue"
    )


def group(row: dict[str, Any], query: Query) -> tuple[Any, ...]:
    when = datetime.fromtimestamp(row["utc_ns"] // 10**9, UTC).astimezone(ZoneInfo(query.zone))
    facts = {
        "org": row["org"],
        "team": row["org"] if row["team"] is None else f"{row['org']}/{row['team']}",
        "key": row["key_id"],
        "model": row["model"],
        "run": row["run_id"],
        "adapter": row["adapter"],
        "cache": row["from_cache"],
        "kind": row["kind"],
        "outcome": row["outcome"],
        "price": row["price_version"],
    }
    return tuple(when.strftime(CLOCK[n]) if n in CLOCK else facts[n] for n in query.by)


def used(row: dict[str, Any]) -> list[int]:
    tokens = row["tokens"]
    counts = [tokens.get(name, 0) for name in DIMENSIONS]
    return [row["kind"] == "request", *counts, row["engine_ns"], row["amount_nano"]]


def named(groups: tuple[Any, ...], query: Query) -> tuple[Any, ...]:
    """With a bucket of time as the clock of the zone shows it."""
    zone = ZoneInfo(query.zone)
    return tuple(
        datetime.fromtimestamp(one // 10**9, UTC).astimezone(zone).strftime(CLOCK[name])
        if name in CLOCK
        else one
        for name, one in zip(query.by, groups, strict=True)
    )


@pytest.fixture(scope="module")
def old_town() -> Iterator[Town]:
    """One for all examples: a ledger only grows."""
    with new_town() as place:
        yield place


@settings(max_examples=60, deadline=None)
@given(entries(), queries())
def test_a_report_is_what_adding_up_the_rows_gives(
    old_town: Town, made: list[Entry], query: Query
) -> None:
    old_town.record(*made)
    expected: dict[Any, list[int]] = defaultdict(lambda: [0] * len(USED))
    for row in (row for row in old_town.rows() if is_meant(row, query)):
        sums = expected[group(row, query)]
        sums[:] = [a + b for a, b in zip(sums, used(row), strict=True)]

    lines = old_town.reports.usage(query)

    assert {named(line.groups, query): list(line.sums) for line in lines} == expected
    assert len(lines) == len(expected)


@settings(max_examples=30, deadline=None)
@given(entries(), queries(st.just([])))
def test_a_report_of_costs_has_all_charges_and_all_costs(
    old_town: Town, made: list[Entry], query: Query
) -> None:
    old_town.record(*made)
    meant = [row for row in old_town.rows() if is_meant(row, query)]

    lines = old_town.reports.costs(query)

    charged = sum(line.sums[USED.index("amount_nano")] for line in lines)
    assert charged == sum(row["amount_nano"] for row in meant)
    costs = old_town.costs
    assert sum(map(cost_of, lines)) == sum(costs.get(row["request_id"], 0) for row in meant)


def test_what_is_read_for_the_first_time_comes_in_the_next_report() -> None:
    with new_town() as place:
        assert place.reports.usage(Query()) == []
        place.record(_one("acme", 5), _one("beta", 7))

        lines = place.reports.usage(Query())

        assert [(line.groups, line.sums[-1]) for line in lines] == [(("beta",), 7), (("acme",), 5)]


def test_days_come_in_order_and_other_groups_by_their_charge() -> None:
    day_ns = 86_400 * 10**9
    with new_town() as place:
        place.record(
            _one("acme", 5, utc_ns=START_NS + day_ns, request_id="a"),
            _one("acme", 50, utc_ns=START_NS, request_id="b"),
            _one("beta", 70, utc_ns=START_NS, request_id="c"),
        )

        lines = place.reports.usage(Query(by=("day", "org")))

        days = [(label("day", zone_of("UTC"), line.groups[0]), line.groups[1]) for line in lines]
        assert days == [("2026-10-20", "beta"), ("2026-10-20", "acme"), ("2026-10-21", "acme")]


@pytest.mark.parametrize(
    "query",
    [
        Query(by=("mood",)),
        Query(by=("org", "org")),
        Query(by=("day", "hour")),
        Query(zone="Mars/Olympus"),
        Query(since_ns=10**19),
        Query(since_ns=2, until_ns=1),
    ],
)
def test_what_cannot_be_asked_is_refused(query: Query) -> None:
    with new_town() as place, pytest.raises(InvalidValue):
        place.reports.usage(query)


def test_costs_are_not_by_what_only_entries_have() -> None:
    with new_town() as place, pytest.raises(InvalidValue, match="outcome"):
        place.reports.costs(Query(by=("outcome",)))


def _one(org: str, amount: int, *, utc_ns: int = START_NS, request_id: str | None = None) -> Entry:
    return Entry(
        request_id=request_id or f"req_{org}",
        utc_ns=utc_ns,
        key_id=None,
        org=org,
        model=MODELS[0],
        outcome="answered",
        amount_nano=amount,
        costs=Breakdown(),
    )
