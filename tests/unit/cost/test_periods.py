"""Hours, days and months of real time zones, over the days on which their clocks change."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.errors import InvalidValue
from llmhost.cost.periods import (
    Span,
    Unit,
    day_start,
    iso,
    label,
    month_of,
    month_start,
    offsets,
    place,
    starts,
    zone_of,
)

HOUR_NS = 3600 * 10**9
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/Havana",  # summer time begins and ends at midnight
    "America/New_York",
    "Asia/Kathmandu",  # 5:45 from UTC
    "Australia/Lord_Howe",  # summer time is half an hour
    "Pacific/Apia",  # a day of 2011 is missing
)
SECONDS = st.integers(0, 2_500_000_000)


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("month", "zone", "first", "last", "hours"),
    [
        ("2026-11", "UTC", "2026-11-01T00:00", "2026-12-01T00:00", 720),
        ("2026-03", "Europe/Berlin", "2026-02-28T23:00", "2026-03-31T22:00", 743),
        ("2026-10", "Europe/Berlin", "2026-09-30T22:00", "2026-10-31T23:00", 745),
        ("2026-12", "Asia/Kathmandu", "2026-11-30T18:15", "2026-12-31T18:15", 744),
    ],
)
def test_a_month_is_as_long_as_its_clock_says(
    month: str, zone: str, first: str, last: str, hours: int
) -> None:
    span = month_of(month, zone_of(zone))

    assert (span.start_ns, span.end_ns) == (ns(first), ns(last))
    assert (span.end_ns - span.start_ns) // HOUR_NS == hours


@pytest.mark.parametrize("text", ["2026-13", "2026-1", "26-01", "now", "", "2255-12", "1969-12"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="no month"):
        month_of(text, UTC)


def test_a_zone_that_does_not_exist_is_named_with_its_neighbour() -> None:
    with pytest.raises(InvalidValue, match="Europe/Berlin"):
        zone_of("Europe/Berln")


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "\x00", "Europe", "x" * 10_000, "/UTC"])
def test_a_zone_is_never_a_path(name: str) -> None:
    with pytest.raises(InvalidValue):
        zone_of(name)


def test_a_day_begins_when_its_midnight_is_skipped() -> None:
    zone = zone_of("America/Havana")
    day = Span(ns("2026-03-08T12:00"), ns("2026-03-08T13:00"))

    (start,) = starts("day", zone, day)

    assert iso(start) == "2026-03-08T05:00:00Z"
    assert label("day", zone, start) == "2026-03-08"


def test_an_hour_that_comes_twice_is_two_buckets() -> None:
    zone = zone_of("Europe/Berlin")
    night = Span(ns("2026-10-25T00:00"), ns("2026-10-25T02:00"))

    labels = [label("hour", zone, start) for start in starts("hour", zone, night)]

    assert labels == ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"]


def test_minutes_of_many_years_are_refused() -> None:
    with pytest.raises(InvalidValue, match="shorter"):
        starts("minute", UTC, Span(0, ns("2026-01-01")))


@given(st.sampled_from(get_args(Unit)), st.sampled_from(ZONES), SECONDS, st.integers(1, 90_000))
def test_buckets_tile_any_stretch_of_time(
    unit: Unit, name: str, start_s: int, length_s: int
) -> None:
    zone = zone_of(name)
    span = Span(start_s * 10**9, (start_s + length_s) * 10**9)

    found = starts(unit, zone, span)

    assert found[0] <= span.start_ns
    assert all(a < b for a, b in pairwise(found))
    assert found[-1] < span.end_ns
    assert place(found, span.start_ns) == 0
    assert place(found, span.end_ns - 1) == len(found) - 1
    labels = [label(unit, zone, start) for start in found]
    assert len(set(labels)) == len(labels)


@given(st.sampled_from(ZONES), SECONDS, st.integers(1, 500), st.data())
def test_days_and_months_by_number_are_those_by_the_calendar(
    name: str, start_s: int, days: int, data: st.DataObject
) -> None:
    zone = zone_of(name)
    span = Span(start_s * 10**9, (start_s + days * 86_400) * 10**9)
    changes = offsets(zone, span)
    at_ns = data.draw(st.integers(span.start_ns, span.end_ns - 1)) // 10**9 * 10**9
    at_ns = max(at_ns, span.start_ns)
    (offset,) = [after for since, after in changes if since <= at_ns][-1:]

    number = (at_ns + offset) // (24 * HOUR_NS)

    moment = Span(at_ns, at_ns + 1)
    assert [day_start(number, zone)] == starts("day", zone, moment)
    assert [month_start(number, zone)] == starts("month", zone, moment)


@given(st.sampled_from(ZONES), st.integers(1970, 2100), st.integers(1, 12))
def test_months_follow_one_another(name: str, year: int, month: int) -> None:
    zone = zone_of(name)
    following = f"{year + month // 12:04d}-{month % 12 + 1:02d}"

    this = month_of(f"{year:04d}-{month:02d}", zone)

    assert this.end_ns == month_of(following, zone).start_ns
    assert starts("month", zone, this) == [this.start_ns]
    assert len(starts("day", zone, this)) in range(28, 32)
