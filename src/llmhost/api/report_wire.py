"""What reports look like: sums of what was used and what it cost, in pages."""

import json
from datetime import datetime, tzinfo
from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from llmhost.core.errors import InvalidValue
from llmhost.core.units import nano_to_dollars
from llmhost.cost import periods
from llmhost.cost.periods import UNITS, Unit
from llmhost.cost.query import LAST_NS, POOLS, USED, Query
from llmhost.cost.reports import Line, cost_of


class _Groups(msgspec.Struct, frozen=True, kw_only=True):
    """Those groups that were asked for; a key or a team is null where there is none, and `cache` where an answer was
    made for the request."""

    id: str
    org: str | UnsetType = UNSET
    team: str | UnsetType | None = UNSET
    key: str | UnsetType | None = UNSET
    model: str | UnsetType = UNSET
    run: str | UnsetType | None = UNSET
    adapter: str | UnsetType | None = UNSET
    cache: str | UnsetType | None = UNSET
    kind: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET
    price: str | UnsetType | None = UNSET
    minute: str | UnsetType = UNSET
    hour: str | UnsetType = UNSET
    day: str | UnsetType = UNSET
    month: str | UnsetType = UNSET


class UsedRow(_Groups, frozen=True, kw_only=True):
    """What a group used, and what it was charged: nano-dollars, and dollars as text so that no reader rounds them."""

    requests: int
    fresh_input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    embedding_tokens: int
    engine_ns: int
    amount_nano: int
    amount_usd: str


class UsedPage(msgspec.Struct, frozen=True, kw_only=True):
    """Groups: in order of time if they have one, else the largest charge first. More come `after` `last_id`."""

    data: list[UsedRow]
    has_more: bool
    last_id: str | None


class CostedRow(UsedRow, frozen=True, kw_only=True):
    """The same, and what it cost the operator, by pool; the margin is the charge without the cost."""

    gpu_compute_nano: int
    infrastructure_nano: int
    model_loading_nano: int
    safety_moderation_nano: int
    provisional_nano: int
    """The part of `model_loading_nano` that is made up for when the models are unloaded."""
    cost_nano: int
    cost_usd: str
    margin_nano: int
    margin_usd: str


class CostedPage(msgspec.Struct, frozen=True, kw_only=True):
    """Groups, the dearest first or in order of time. The next page comes `after` `last_id`."""

    data: list[CostedRow]
    has_more: bool
    last_id: str | None


def used_row(line: Line, query: Query) -> UsedRow:
    return UsedRow(**_groups(line, query), **_used(line))


def costed_row(line: Line, query: Query) -> CostedRow:
    cost_nano = cost_of(line)
    pools: dict[str, Any] = dict(zip(POOLS, line.sums[len(USED) :], strict=True))
    used = _used(line)
    margin_nano = used["amount_nano"] - cost_nano
    return CostedRow(
        **_groups(line, query),
        **used,
        **pools,
        cost_nano=cost_nano,
        cost_usd=nano_to_dollars(cost_nano),
        margin_nano=margin_nano,
        margin_usd=nano_to_dollars(margin_nano),
    )


def names_in(text: str) -> tuple[str, ...]:
    """Of a list with commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def time_ns(text: str | None, param: str, zone: str = "UTC") -> int | None:
    """An ISO date or date-time, of the zone where it names none. Raises InvalidValue."""
    if text is None:
        return None
    known = periods.zone_of(zone)
    try:
        at = datetime.fromisoformat(text)
        found = int((at if at.tzinfo else at.replace(tzinfo=known)).timestamp()) * 10**9
        found += at.microsecond * 1000
    except (ValueError, OverflowError):
        raise InvalidValue(
            f"{param!r} is {text[:80]!r}; give a date such as 2026-01-31 or a date and time.",
            param=param,
        ) from None
    if abs(found) > LAST_NS:
        raise InvalidValue(f"{param!r} is {text[:80]!r}, which is out of range.", param=param)
    return found


def line_id(line: Line, query: Query) -> str:
    """What tells a group from the others of its report."""
    return json.dumps(list(_named(line, query).values()), ensure_ascii=False)


def _groups(line: Line, query: Query) -> dict[str, Any]:
    return {"id": line_id(line, query), **_named(line, query)}


def _named(line: Line, query: Query) -> dict[str, Any]:
    zone = periods.zone_of(query.zone)
    return {
        name: _label(name, group, zone) if name in UNITS else group
        for name, group in zip(query.by, line.groups, strict=True)
    }


def _label(unit: str, start_ns: Any, zone: tzinfo) -> str:
    return periods.label(cast(Unit, unit), zone, start_ns)


def _used(line: Line) -> dict[str, Any]:
    used: dict[str, Any] = dict(zip(USED, line.sums[: len(USED)], strict=True))
    return {**used, "amount_usd": nano_to_dollars(used["amount_nano"])}
