"""What a report is asked: groups, a time zone, bounds and filters, and how those are said in SQL. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmhost.core.errors import InvalidValue
from llmhost.cost import periods
from llmhost.cost.entries import DIMENSIONS
from llmhost.cost.periods import SECOND_NS, UNITS, Span

Bounds = Mapping[str, str | int | None]

GROUPS: Mapping[str, str] = {
    "org": "org",
    "team": "CASE WHEN team IS NULL THEN org ELSE org || '/' || team END",
    "key": "key_id",
    "model": "model",
}
"""What rows can be added up for, beside the time, and where that stands in all tables."""
ENTRY_GROUPS: Mapping[str, str] = {
    "run": "run_id",
    "adapter": "adapter",
    "cache": "from_cache",
    "kind": "kind",
    "outcome": "outcome",
    "price": "price_version",
}
"""The same for what only entries have."""
NAMES = (*GROUPS, *ENTRY_GROUPS, *UNITS)

USED = ("requests", *(f"{name}_tokens" for name in DIMENSIONS), "engine_ns", "amount_nano")
"""What is added up of use. The dimensions of tokens are disjoint."""
POOLS = (
    "gpu_compute_nano",
    "infrastructure_nano",
    "model_loading_nano",
    "safety_moderation_nano",
    "provisional_nano",
)
"""What is added up of costs; the last is a part of `model_loading_nano`."""

LAST_NS = 9_000_000_000 * SECOND_NS
"""A time in the year 2255: 64 bits hold it."""
EVER = Span(-(2**63 - 1), 2**63 - 1)

THEIRS = """
    (:within_org IS NULL OR org = :within_org) AND (:within_key IS NULL OR key_id = :within_key)
    AND (:orgs IS NULL OR org IN (SELECT value FROM json_each(:orgs)))
    AND (:teams IS NULL OR team IN (SELECT value FROM json_each(:teams))
        OR CASE WHEN team IS NULL THEN org ELSE org || '/' || team END
            IN (SELECT value FROM json_each(:teams)))
    AND (:keys IS NULL OR key_id IN (SELECT value FROM json_each(:keys)))
    AND (:models IS NULL OR model IN (SELECT value FROM json_each(:models))
        OR substr(model, 1, instr(model, '@') - 1) IN (SELECT value FROM json_each(:models)))
"""
WITHIN = f"utc_ns >= :since AND utc_ns < :until AND seq <= :last AND {THEIRS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to add up, of since <= time < until, and for whom. No names in a filter: all."""

    by: tuple[str, ...] = ("org",)
    """Of `NAMES`, at most one of them a unit of time."""
    zone: str = "UTC"
    since_ns: int | None = None
    until_ns: int | None = None
    orgs: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    """`TEAM`, `ORG/TEAM`, or `ORG` for what belongs to no team."""
    keys: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """With or without version."""
    within_org: str | None = None
    """Whoever asks sees nothing else, whatever the filters say."""
    within_key: str | None = None
    last: int | None = None
    """The last entry that counts, by number; None for those of the moment at which the report is made."""

    @property
    def unit(self) -> str | None:
        return next((name for name in self.by if name in UNITS), None)

    @property
    def span(self) -> Span:
        return Span(
            EVER.start_ns if self.since_ns is None else self.since_ns,
            EVER.end_ns if self.until_ns is None else self.until_ns,
        )

    def checked(self, names: Iterable[str] = NAMES) -> "Query":
        """Itself. Raises InvalidValue for what can't be asked."""
        known = tuple(names)
        for name in self.by:
            if name not in known:
                raise InvalidValue(
                    f"'by' is {name[:80]!r}; it may be {', '.join(known)}, or several with commas between.",
                    param="by",
                )
        if len(set(self.by)) < len(self.by):
            raise InvalidValue("'by' has a name twice.", param="by")
        if sum(name in UNITS for name in self.by) > 1:
            raise InvalidValue(
                f"'by' has several units of time; give one of {', '.join(UNITS)}.", param="by"
            )
        self._check_span()
        periods.zone_of(self.zone)
        return self

    def theirs(self) -> Bounds:
        """The values of THEIRS."""
        filters = {
            name: json.dumps(found) if (found := getattr(self, name)) else None
            for name in ("orgs", "teams", "keys", "models")
        }
        return {**filters, "within_org": self.within_org, "within_key": self.within_key}

    def _check_span(self) -> None:
        for bound in (self.since_ns, self.until_ns):
            if bound is not None and abs(bound) > LAST_NS:
                raise InvalidValue(f"A time is out of range: {bound} ns.", param="since")
        if self.span.end_ns < self.span.start_ns:
            raise InvalidValue("'since' lies behind 'until'.", param="since")
