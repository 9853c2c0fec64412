"""Hours, days and months of a time zone as UTC nanoseconds, summer time included. Pure but for the zone database."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal, get_args
from zoneinfo import ZoneInfo, available_timezones

from llmhost.core.errors import InvalidValue

Unit = Literal["minute", "hour", "day", "month"]

UNITS: tuple[str, ...] = get_args(Unit)
SECOND_NS = 10**9
HOUR_NS = 3_600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
QUARTER_NS = 900 * SECOND_NS
"""A quarter of an hour: what every zone's hours, days and months are whole numbers of."""
FIRST_YEAR, LAST_YEAR = 1970, 2255
_LENGTHS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
_MOST = 200_000
"""Bounds of one report: three months of minutes."""


@dataclass(frozen=True, slots=True)
class Span:
    """start_ns <= time < end_ns."""

    start_ns: int
    end_ns: int

    def __contains__(self, utc_ns: int) -> bool:
        return self.start_ns <= utc_ns < self.end_ns


@lru_cache(64)
def zone_of(name: str) -> tzinfo:
    """A zone such as `Europe/Berlin`. Raises InvalidValue, with the nearest name."""
    if name == "UTC":
        return UTC
    if name in _zone_names():
        return ZoneInfo(name)
    near = get_close_matches(name, _zone_names(), 1)
    hint = f" Did you mean {near[0]!r}?" if near else " An example is 'Europe/Berlin'."
    raise InvalidValue(f"{name[:80]!r} is no time zone.{hint}", param="timezone")


def month_of(text: str, zone: tzinfo) -> Span:
    """A month such as `2026-11`, as the zone has it. Raises InvalidValue."""
    match = re.fullmatch(r"([0-9]{4})-(0[1-9]|1[0-2])", text)
    if match is None or not FIRST_YEAR <= int(match[1]) <= LAST_YEAR - 1:
        raise InvalidValue(f"{text[:80]!r} is no month such as '2026-11'.", param="month")
    first = datetime(int(match[1]), int(match[2]), 1)  # noqa: DTZ001 - made aware below
    return Span(_utc_ns(first, zone), _utc_ns(_next(first, "month"), zone))


def starts(unit: Unit, zone: tzinfo, span: Span) -> list[int]:
    """The beginning of every bucket that meets the span, in order. Raises InvalidValue when they are too many.

    When clocks go back, an hour comes twice and is two buckets; when they go forward, one that is skipped is none.
    """
    if unit in ("minute", "hour"):
        return _even_starts(_LENGTHS[unit], zone, span)
    local = _local(span.start_ns, zone)
    first = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if unit == "month":
        first = first.replace(day=1)
    found = []
    while (start_ns := _utc_ns(first, zone)) < span.end_ns:
        found.append(start_ns)
        first = _next(first, unit)
    return found


def offsets(zone: tzinfo, span: Span) -> list[tuple[int, int]]:
    """(from when on, nanoseconds that the zone's clock is before UTC) over a span, the first from its start on."""
    found = [(span.start_ns, _offset_ns(span.start_ns, zone))]
    at_ns = span.start_ns
    while at_ns < span.end_ns:
        next_ns = min(at_ns + DAY_NS, span.end_ns)
        if (offset_ns := _offset_ns(next_ns, zone)) != found[-1][1]:
            found.append((_change_ns(zone, at_ns, next_ns), offset_ns))
        at_ns = next_ns
    return found


def day_start(number: int, zone: tzinfo) -> int:
    """When a day begins on the zone's clock: day 0 is 1970-01-01 there."""
    return _utc_ns(datetime(1970, 1, 1) + timedelta(days=number), zone)  # noqa: DTZ001 - made aware there


def month_start(number: int, zone: tzinfo) -> int:
    """When the month of such a day begins."""
    day = datetime(1970, 1, 1) + timedelta(days=number)  # noqa: DTZ001 - made aware below
    return _utc_ns(day.replace(day=1), zone)


def hour_shift_ns(zone: tzinfo, utc_ns: int) -> int:
    """By how much the zone's hours begin before those of UTC."""
    return _offset_ns(utc_ns, zone) % HOUR_NS


def place(bounds: Sequence[int], utc_ns: int) -> int:
    """Which of the buckets a time is in; they begin at or before it."""
    return bisect_right(bounds, utc_ns) - 1


def label(unit: Unit, zone: tzinfo, start_ns: int) -> str:
    """`2026-11`, `2026-11-30`, `2026-11-30T09:00+01:00`."""
    local = _local(start_ns, zone)
    if unit == "month":
        return f"{local:%Y-%m}"
    if unit == "day":
        return f"{local:%Y-%m-%d}"
    return local.isoformat(timespec="minutes")


def iso(utc_ns: int) -> str:
    """`2026-11-30T08:00:00Z`."""
    return f"{_local(utc_ns, UTC):%Y-%m-%dT%H:%M:%SZ}"


@lru_cache(1)
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def _even_starts(length: timedelta, zone: tzinfo, span: Span) -> list[int]:
    """Steps of one length in real time, aligned to the zone's clock."""
    step_ns = int(length.total_seconds()) * SECOND_NS
    offset = _local(span.start_ns, zone).utcoffset() or timedelta()
    shift_ns = int(offset.total_seconds()) * SECOND_NS % step_ns
    first = span.start_ns - (span.start_ns + shift_ns) % step_ns
    count = -(-(span.end_ns - first) // step_ns)
    if count > _MOST:
        raise InvalidValue(
            f"That is {count} buckets; {_MOST} is the most. Ask for a shorter time, or longer buckets.",
            param="since",
        )
    return list(range(first, span.end_ns, step_ns))


def _offset_ns(utc_ns: int, zone: tzinfo) -> int:
    offset = _local(utc_ns, zone).utcoffset() or timedelta()
    return int(offset.total_seconds()) * SECOND_NS


def _change_ns(zone: tzinfo, low_ns: int, high_ns: int) -> int:
    """The second at which the offset becomes what it is at `high_ns`."""
    low, high, after = low_ns // SECOND_NS, -(-high_ns // SECOND_NS), _offset_ns(high_ns, zone)
    while high - low > 1:
        middle = (low + high) // 2
        is_after = _offset_ns(middle * SECOND_NS, zone) == after
        low, high = (low, middle) if is_after else (middle, high)
    return high * SECOND_NS


def _next(first: datetime, unit: Unit) -> datetime:
    if unit == "month":
        year, month = divmod(first.year * 12 + first.month, 12)
        return first.replace(year=year, month=month + 1)
    return first + _LENGTHS[unit]


def _local(utc_ns: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(utc_ns // SECOND_NS, UTC).astimezone(zone)


def _utc_ns(local: datetime, zone: tzinfo) -> int:
    """Of a time on the zone's clock; of one that summer time skips, the moment of the skip."""
    first, second = (int(local.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1))
    if _local(first * SECOND_NS, zone).replace(tzinfo=None) == local:
        return first * SECOND_NS
    low, high = sorted((first, second))
    while high - low > 1:
        middle = (low + high) // 2
        is_past = _local(middle * SECOND_NS, zone).replace(tzinfo=None) >= local
        low, high = (low, middle) if is_past else (middle, high)
    return high * SECOND_NS
