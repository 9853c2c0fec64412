"""Money, memory and time as integers, and how they are read and shown."""

import re
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache

NANO_PLACES = 9
NANO: int = 10**NANO_PLACES
"""Nano-dollars in a dollar."""
PER_MILLION = 1_000_000
"""Prices are nano-dollars per this many units."""

_SIZES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def dollars_to_nano(text: str) -> int:
    """`"0.10"` to 100,000,000. Raises ValueError on anything but a plain decimal with at most nine places."""
    match = re.fullmatch(r"(-?)([0-9]{1,12})(?:\.([0-9]+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount of dollars such as '0.10'")
    places = (match[3] or "").rstrip("0")
    if len(places) > NANO_PLACES:
        raise ValueError(f"{text!r} is finer than a nano-dollar")
    nano = int(match[2]) * NANO + int(places.ljust(NANO_PLACES, "0"))
    return -nano if match[1] else nano


def show_dollars(nano: int) -> str:
    """100,000,000 to `"0.10"`: exact, at least two places, no trailing zeros beyond them."""
    if nano >= NANO:
        text = str(nano)  # which is quicker, and most budgets have more
    elif nano >= 0:
        text = f"{nano:010d}"
    else:
        return "-" + show_dollars(-nano)
    whole, places = text[:-NANO_PLACES], text[-NANO_PLACES:].rstrip("0")
    return f"{whole}.{places}" if len(places) > 1 else f"{whole}.{places:0<2}"


nano_to_dollars = lru_cache(1_000)(show_dollars)
"""The same for amounts that come again and again, as what requests cost."""


def show_duration(ns: int) -> str:
    """As OpenAI's headers write it: `12ms`, `1s`, `1.5s`, `6m0s`, `1h0m30s`; rounded up to a millisecond."""
    return _shown(-(-ns // 1_000_000))


@lru_cache(2_000)
def _shown(total_ms: int) -> str:
    if 0 < total_ms < 1000:
        return f"{total_ms}ms"
    minutes, rest_ms = divmod(total_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, part = divmod(rest_ms, 1000)
    text = f"{whole}.{part:03d}".rstrip("0").rstrip(".") if part else str(whole)
    text += "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def moment(utc_ns: int) -> datetime:
    """Aware and in UTC, to the microsecond that has begun. What a second is in a calendar is looked up once for all
    moments of it."""
    seconds, rest_ns = divmod(utc_ns, NANO)
    return datetime(*_second(seconds), rest_ns // 1000, tzinfo=UTC)


@lru_cache(4)
def _second(seconds: int) -> tuple[int, int, int, int, int, int]:
    return datetime.fromtimestamp(seconds, UTC).timetuple()[:6]


def parse_bytes(text: str) -> int:
    """`"8GiB"`, `"8g"`, `"512 MB"` or plain bytes. Units are powers of 1,024. Raises ValueError."""
    match = re.fullmatch(r" *([0-9]+(?:\.[0-9]+)?) *(?:([kmgt])i?b?|b)? *", text.lower())
    if match is None or ("." in match[1] and match[2] is None):
        raise ValueError(f"{text!r} is not a size such as '8GiB'")
    return int(Fraction(match[1]) * _SIZES[match[2] or "b"])


def show_bytes(count: int) -> str:
    """`7.0 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
