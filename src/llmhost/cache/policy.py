"""Which kinds of requests repeat, and for how long their answers pay. Pure: histories in, policies out.

A kind of requests is a signature: model, tenant, form and system prompt. Of each the recent uses are known: when, which
key, and what making that answer cost. What a time to live would have saved is found by replaying them; what an answer
that lies there costs is its bytes times that time, so that a longer time has to earn its room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEAST_USES = 8
"""Fewer say nothing."""
TIMES_S = (60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)
"""Times to live that are tried; the bound is one more."""
RETIRED_AT = 0.8
"""Of the potential that makes a policy: so much less ends it. Between the two nothing changes."""
TOP_PRIORITY = 9


class Use(NamedTuple):
    """One request of a kind."""

    at_s: float
    key: int
    value: int
    """What making its answer costs: nano-dollars, or whatever else is counted for all kinds."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What policies have to keep to."""

    max_ttl_s: float
    """The staleness that is allowed."""
    min_potential: float
    idle_s: float = 3600.0
    """A kind that nobody has asked for so long has no policy."""
    byte_day_value: float = 0.0
    """What a byte costs that lies there for a day, in the same unit as values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What holds for one kind of requests."""

    signature: str
    ttl_s: float
    priority: int
    """Answers of a smaller one make room first."""
    potential: float
    """The share of its requests that an answer of before could have served."""
    saved: int
    """What this time would have saved of the uses that were looked at."""
    uses: int


def decide(
    histories: Mapping[str, Sequence[Use]],
    known: Mapping[str, Policy],
    bounds: Bounds,
    now_s: float,
) -> dict[str, Policy]:
    """The policies that hold from now on. A kind without one has the usual time, and makes room first."""
    policies = {}
    for signature, uses in histories.items():
        policy = _policy(signature, uses, bounds, now_s, is_known=signature in known)
        if policy is not None:
            policies[signature] = policy
    return policies


def potential_of(uses: Sequence[Use], max_ttl_s: float) -> float:
    """The share of requests that come again within the bound."""
    hits, _ = _replayed(uses, max_ttl_s)
    return hits / len(uses) if uses else 0.0


def _policy(
    signature: str, uses: Sequence[Use], bounds: Bounds, now_s: float, *, is_known: bool
) -> Policy | None:
    if len(uses) < LEAST_USES or now_s - uses[-1].at_s > bounds.idle_s:
        return None
    potential = potential_of(uses, bounds.max_ttl_s)
    needed = bounds.min_potential * (RETIRED_AT if is_known else 1.0)
    if potential <= needed:
        return None
    ttl_s, saved = _best_time(uses, bounds)
    if saved <= 0:
        return None
    return Policy(
        signature=signature,
        ttl_s=ttl_s,
        priority=_priority(uses, saved),
        potential=potential,
        saved=saved,
        uses=len(uses),
    )


def _best_time(uses: Sequence[Use], bounds: Bounds) -> tuple[float, int]:
    """The shortest of those that save most, after what their room costs."""
    times = [time for time in TIMES_S if time < bounds.max_ttl_s] + [bounds.max_ttl_s]
    size = sum(use.size_bytes for use in uses) / len(uses)
    best_s, best_net, best_saved = 0.0, 0.0, 0
    for time_s in times:
        hits, saved = _replayed(uses, time_s)
        stored = len(uses) - hits
        net = saved - stored * size * time_s / 86_400 * bounds.byte_day_value
        if net > best_net:
            best_s, best_net, best_saved = time_s, net, saved
    return best_s, best_saved


def _replayed(uses: Sequence[Use], ttl_s: float) -> tuple[int, int]:
    """How many of the uses would have been hits, and what that would have saved."""
    made: dict[int, float] = {}
    hits = saved = 0
    for use in uses:
        if (at_s := made.get(use.key)) is not None and use.at_s - at_s < ttl_s:
            hits += 1
            saved += use.value
        else:
            made[use.key] = use.at_s
    return hits, saved


def _priority(uses: Sequence[Use], saved: int) -> int:
    """What a byte that is kept saves, in powers of four."""
    room = max(sum({use.key: use.size_bytes for use in uses}.values()), 1)
    worth = saved * 1024 // room
    return min(1 + worth.bit_length() // 2, TOP_PRIORITY)
