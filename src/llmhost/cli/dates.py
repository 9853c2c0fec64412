"""Dates on the command line: as the node takes them, or an age."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

Since = Annotated[
    str | None, typer.Option(metavar="DATE", help="From this date on, or 24h, 7d, 4w ago.")
]
Until = Annotated[str | None, typer.Option(metavar="DATE", help="Up to, and without, this date.")]
Zone = Annotated[
    str | None,
    typer.Option(
        metavar="ZONE",
        help="Of dates, hours, days and months, such as Europe/Berlin; UTC when absent.",
    ),
]
_AGE = re.compile(r"(\d{1,4})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def when(text: str, now: datetime) -> datetime:
    """`2026-01-31`, `2026-01-31T12:00`, or `7d` ago; UTC unless it says otherwise. Raises ValueError."""
    if match := _AGE.fullmatch(text):
        return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    return as_utc(text)


def as_utc(text: str) -> datetime:
    """A date or time; UTC unless it says otherwise. Raises ValueError."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def moment(text: str | None, option: str, zone: str | None, now: datetime) -> str | None:
    """What the node is asked with: a date of the zone stays what it is, all else becomes UTC.

    Raises BadParameter.
    """
    if text is None:
        return None
    try:
        at = when(text, now).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a date such as 2026-01-31, nor an age such as 7d", param_hint=option
        ) from None
    is_local = zone is not None and not _AGE.fullmatch(text) and is_bare(text)
    return text if is_local else f"{at:%Y-%m-%dT%H:%M:%SZ}"


def is_bare(text: str) -> bool:
    """Whether a date names no zone."""
    return datetime.fromisoformat(text).tzinfo is None


def span_of(
    since: str | None, until: str | None, timezone: str | None
) -> tuple[str | None, str | None]:
    """What the node is asked with. Raises BadParameter."""
    now = datetime.now(UTC)
    start, end = moment(since, "--since", timezone, now), moment(until, "--until", timezone, now)
    if start and end and as_utc(start) >= as_utc(end):
        raise typer.BadParameter("must lie before --until", param_hint="--since")
    return start, end
