from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.tenants.periods import EVER, Period, Span, show_time, span_of, zone_of

HOUR_NS = 3_600 * 10**9
ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "America/Havana", "Asia/Kathmandu"),
    *("Pacific/Apia", "America/Sao_Paulo", "Australia/Lord_Howe", "America/St_Johns"),
    *("Africa/Cairo", "Asia/Tehran", "Pacific/Chatham"),
)


def ns(text: str) -> int:
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 10**9


def span(period: Period, zone: str, text: str) -> Span:
    return span_of(period, zone_of(zone), ns(text))


def test_a_day_begins_and_ends_at_its_zones_midnights():
    assert span(Period.DAY, "Europe/Berlin", "2026-07-01T22:30") == (
        ns("2026-07-01T22:00"),
        ns("2026-07-02T22:00"),
    )


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29T12:00", 23), ("2026-10-25T12:00", 25), ("2026-05-01T12:00", 24)]
)
def test_a_day_on_which_clocks_are_set_is_one_day(day: str, hours: int):
    since_ns, until_ns = span(Period.DAY, "Europe/Berlin", day)

    assert until_ns - since_ns == hours * HOUR_NS


def test_a_midnight_that_is_skipped_is_when_clocks_are_set():
    # In Havana 0:00 became 1:00 on 2026-03-08, at 05:00 UTC.
    assert span(Period.DAY, "America/Havana", "2026-03-08T05:00").since_ns == ns("2026-03-08T05:00")
    assert span(Period.DAY, "America/Havana", "2026-03-08T04:59").until_ns == ns("2026-03-08T05:00")


def test_a_midnight_that_comes_twice_ends_the_day_once():
    # In Havana 1:00 became 0:00 on 2026-11-01, at 05:00 UTC: midnight was at 04:00 and again at 05:00.
    assert span(Period.DAY, "America/Havana", "2026-11-01T05:30") == (
        ns("2026-11-01T04:00"),
        ns("2026-11-02T05:00"),
    )


def test_a_day_that_an_island_left_out_lasts_no_time():
    # Samoa went from the 29th to the 31st of December 2011.
    before, after = (
        span(Period.DAY, "Pacific/Apia", text) for text in ("2011-12-30T09:59", "2011-12-30T10:00")
    )

    assert before.until_ns == after.since_ns == ns("2011-12-30T10:00")


def test_a_month_is_the_calendars():
    assert span(Period.MONTH, "America/New_York", "2026-12-15T00:00") == (
        ns("2026-12-01T05:00"),
        ns("2027-01-01T05:00"),
    )
    february = span(Period.MONTH, "UTC", "2028-02-10T00:00")
    assert (february.until_ns - february.since_ns) // (24 * HOUR_NS) == 29


@pytest.mark.parametrize("period", [Period.TOTAL, Period.BALANCE])
def test_a_total_lasts_for_ever(period: Period):
    assert span(period, "UTC", "2026-01-01") == EVER


@given(
    at_s=st.integers(160_000_000, 3_800_000_000),
    zone=st.sampled_from(ZONES),
    period=st.sampled_from([Period.DAY, Period.MONTH]),
)
def test_spans_tile_time(at_s: int, zone: str, period: Period):
    at_ns = at_s * 10**9
    found = span_of(period, zone_of(zone), at_ns)

    assert found.since_ns <= at_ns < found.until_ns
    assert span_of(period, zone_of(zone), found.since_ns) == found
    assert span_of(period, zone_of(zone), found.until_ns - 1) == found
    assert span_of(period, zone_of(zone), found.until_ns).since_ns == found.until_ns
    assert span_of(period, zone_of(zone), found.since_ns - 1).until_ns == found.since_ns
    days = (found.until_ns - found.since_ns) / (24 * HOUR_NS)
    assert 0.9 < days < 1.1 or 26.9 < days < 31.1
    middle = datetime.fromtimestamp((found.since_ns + found.until_ns) // 2 / 1e9, ZoneInfo(zone))
    near = datetime.fromtimestamp(at_s, ZoneInfo(zone)).date()
    assert abs((middle.date() - near).days) <= (1 if period is Period.DAY else 31)


@pytest.mark.parametrize(
    "name", ["Europe/Atlantis", "", "../../etc/passwd", "/etc/passwd", "a" * 500, "Europe", "\0"]
)
def test_what_is_no_zone_is_refused(name: str):
    with pytest.raises(ValueError, match="no time zone"):
        zone_of(name)


def test_a_time_is_shown_in_its_zone():
    assert show_time(ns("2026-11-30T23:00"), "Europe/Berlin") == "2026-12-01 00:00 Europe/Berlin"
    assert zone_of("UTC") is UTC
    assert timedelta(0) == UTC.utcoffset(None)
