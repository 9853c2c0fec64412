"""Days and months as people of a time zone count them, as spans of UTC nanoseconds. Pure.

A day of 23 or 25 hours is one day. A midnight that a clock skips or shows twice still parts two days at one instant.
"""

from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

EVER_NS = 2**63 - 1
"""Later than any time, and its negative earlier: the most that a column holds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Period(StrEnum):
    """How long a budget lasts before it begins anew."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"
    BALANCE = "balance"
    """Never: it is what was paid in."""


class Span(NamedTuple):
    """since <= time < until."""

    since_ns: int
    until_ns: int


EVER = Span(-EVER_NS, EVER_NS)


@lru_cache(maxsize=1_000)
def zone_of(name: str) -> tzinfo:
    """A time zone of the IANA database by its name. Raises ValueError for what is none here."""
    if name == "UTC":  # needs no database
        return UTC
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"{name[:80]!r} is no time zone that this machine knows") from None


def span_of(period: Period, zone: tzinfo, utc_ns: int) -> Span:
    """The day or month that a time lies in; all time for the other periods."""
    if period not in (Period.DAY, Period.MONTH):
        return EVER
    first = _first(period, _local_date(zone, utc_ns))
    since_ns, until_ns = _midnight_ns(zone, first), _midnight_ns(zone, _next(period, first))
    # Where clocks are set over midnight, the date that a clock shows can be the one before or after.
    while utc_ns >= until_ns:
        first = _next(period, first)
        since_ns, until_ns = until_ns, _midnight_ns(zone, _next(period, first))
    while utc_ns < since_ns:
        first = _first(period, first - timedelta(days=1))
        since_ns, until_ns = _midnight_ns(zone, first), since_ns
    return Span(since_ns, until_ns)


def show_time(utc_ns: int, zone_name: str) -> str:
    """`2026-12-01 00:00 Europe/Berlin`."""
    at = (_EPOCH + timedelta(seconds=utc_ns // 10**9)).astimezone(zone_of(zone_name))
    return f"{at:%Y-%m-%d %H:%M} {zone_name}"


def _local_date(zone: tzinfo, utc_ns: int) -> date:
    return (_EPOCH + timedelta(seconds=utc_ns // 10**9)).astimezone(zone).date()


def _first(period: Period, day: date) -> date:
    return day.replace(day=1) if period is Period.MONTH else day


def _next(period: Period, first: date) -> date:
    if period is Period.DAY:
        return first + timedelta(days=1)
    return date(first.year + first.month // 12, first.month % 12 + 1, 1)


def _midnight_ns(zone: tzinfo, day: date) -> int:
    """The first instant of a date: of a midnight shown twice the first, of one skipped when clocks are set."""
    passed = datetime(day.year, day.month, day.day, tzinfo=zone) - _EPOCH
    return (passed.days * 86_400 + passed.seconds) * 10**9
