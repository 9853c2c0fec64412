"""Money, memory and time as integers, and how they are read and shown."""

import re
from decimal import Decimal, InvalidOperation

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""
PER_MILLION = 1_000_000
"""Prices are nano-dollars per this many units."""

_SIZES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def dollars_to_nano(text: str) -> int:
    """`"0.10"` to 100,000,000. Raises ValueError on anything but a plain decimal with at most nine places."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount of dollars such as '0.10'") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not an amount of dollars such as '0.10'")
    nano = value * NANO
    if nano != nano.to_integral_value():
        raise ValueError(f"{text!r} is finer than a nano-dollar")
    return int(nano)


def nano_to_dollars(nano: int) -> str:
    """100,000,000 to `"0.10"`: exact, at least two places, no trailing zeros beyond them."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{places}"


def parse_bytes(text: str) -> int:
    """`"8GiB"`, `"8g"`, `"512 MB"` or plain bytes. Units are powers of 1,024. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as '8GiB'")
    return int(Decimal(match[1]) * _SIZES[match[2] or "b"])


def show_bytes(count: int) -> str:
    """`7.0 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
