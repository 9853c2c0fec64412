"""Whose limits a request has to keep to: those of its run, key, team, organisation and model, each on its own."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from llmhost.config.schema.limits import LimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.core.caller import NO_LIMITS, Caller, Limits

REQUESTS, INPUT, OUTPUT = "requests", "input_tokens", "output_tokens"

KEPT_CALLERS = 10_000


class Rate(NamedTuple):
    """So many units in a minute."""

    kind: str
    """REQUESTS, INPUT or OUTPUT."""
    whose: Hashable
    """Tells it from all other rates of all levels."""
    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Level:
    """One of them, for all requests that come under it."""

    dimension: str
    """run, key, team, org or model: as metrics and logs name it."""
    who: Hashable
    """Tells this key from other keys, this team from other teams, and a key from a team."""
    name: str
    """As a message names it."""
    limits: Limits
    rates: tuple[Rate, ...] = ()
    """What of `limits` is per minute."""

    @classmethod
    def of(
        cls,
        dimension: str,
        who: Hashable,
        name: str,
        limits: Limits,
        *,
        burst_requests: int | None = None,
    ) -> "Level":
        """`who` need only be unique within its dimension; `burst_requests` is a minute's worth when absent."""
        unique = (dimension, who)
        units = {
            REQUESTS: limits.requests_per_minute,
            INPUT: limits.input_tokens_per_minute,
            OUTPUT: limits.output_tokens_per_minute,
        }
        rates = tuple(
            Rate(kind, (kind, unique), rate, (kind == REQUESTS and burst_requests) or rate)
            for kind, rate in units.items()
            if rate is not None
        )
        return cls(dimension, unique, name, limits, rates)


class Over(NamedTuple):
    """All that limits a caller's requests for one model."""

    levels: list[Level]
    """Those that have a limit, the narrowest first."""
    places: list[Level]
    """Those of them that limit how many run at once."""
    key: Hashable
    """Tells keys apart."""
    who: Hashable
    """Tells keys and models apart."""


class Levels:
    """Joins what keys, teams and organisations carry with what models.toml says."""

    def __init__(self, settings: LimitSettings, models: Mapping[str, ModelSpec]) -> None:
        self._settings = settings
        self._key_defaults = Limits(
            requests_per_minute=settings.requests_per_minute,
            input_tokens_per_minute=settings.input_tokens_per_minute,
            output_tokens_per_minute=settings.output_tokens_per_minute,
            max_concurrency=settings.max_concurrency,
        )
        self._run = Limits(
            requests_per_minute=settings.run_requests_per_minute,
            input_tokens_per_minute=settings.run_input_tokens_per_minute,
            output_tokens_per_minute=settings.run_output_tokens_per_minute,
            max_concurrency=settings.run_max_concurrency,
        )
        self._has_runs = self._run != NO_LIMITS
        self._models = {
            name: Level.of("model", name, f"The model {name!r}", _of_model(spec))
            for name, spec in models.items()
        }
        self._known: dict[Hashable, tuple[Caller, Over]] = {}

    def of(self, caller: Caller, model: str, run: str | None = None) -> list[Level]:
        """The levels that have a limit, the narrowest first. `model` is a name of models.toml."""
        return self.over(caller, model, run).levels

    def over(self, caller: Caller, model: str, run: str | None = None) -> Over:
        """The same, and what each request asks of them."""
        if not self._has_runs:
            run = None
        who = (caller.key_id, caller.org, caller.team, model, run)
        known = self._known.get(who)
        if known is not None and (known[0] is caller or known[0] == caller):
            return known[1]
        if len(self._known) >= KEPT_CALLERS:
            self._known.clear()
        key, levels = key_of(caller), self._found(caller, model, run)
        places = [level for level in levels if level.limits.max_concurrency is not None]
        over = Over(levels, places, key, (model, key))
        self._known[who] = (caller, over)
        return over

    def _found(self, caller: Caller, model: str, run: str | None) -> list[Level]:
        key, levels = key_of(caller), []
        if run is not None:
            levels.append(Level.of("run", (*key, run), f"The run {run!r}", self._run))
        limits = self._of_key(caller.limits)
        if limits != NO_LIMITS:
            burst = self._burst(caller.limits.requests_per_minute, limits.requests_per_minute)
            levels.append(Level.of("key", key, "This key", limits, burst_requests=burst))
        if caller.team is not None and caller.team_limits != NO_LIMITS:
            name = f"The team {caller.team!r}"
            levels.append(Level.of("team", (caller.org, caller.team), name, caller.team_limits))
        if caller.org_limits != NO_LIMITS:
            name = f"The organisation {caller.org!r}"
            levels.append(Level.of("org", caller.org, name, caller.org_limits))
        level = self._models.get(model)
        if level is not None and level.limits != NO_LIMITS:
            levels.append(level)
        return levels

    def _of_key(self, own: Limits) -> Limits:
        """What a key doesn't say of itself, the defaults say."""
        defaults = self._key_defaults
        if own == NO_LIMITS or defaults == NO_LIMITS:
            return defaults if own == NO_LIMITS else own
        return Limits(
            requests_per_minute=own.requests_per_minute or defaults.requests_per_minute,
            input_tokens_per_minute=own.input_tokens_per_minute or defaults.input_tokens_per_minute,
            output_tokens_per_minute=own.output_tokens_per_minute
            or defaults.output_tokens_per_minute,
            max_concurrency=own.max_concurrency or defaults.max_concurrency,
        )

    def _burst(self, own_rate: int | None, rate: int | None) -> int | None:
        """The configured one, unless the key's own rate is smaller."""
        burst = self._settings.burst_requests
        if burst is None or rate is None:
            return None
        return burst if own_rate is None else min(burst, own_rate)


def key_of(caller: Caller) -> tuple[str | None, str, str | None]:
    """What tells keys apart: a plugin's callers need not have keys, and their names may hold anything."""
    return caller.key_id, caller.org, caller.team


def _of_model(spec: ModelSpec) -> Limits:
    return Limits(
        requests_per_minute=spec.limits.requests_per_minute,
        input_tokens_per_minute=spec.limits.input_tokens_per_minute,
        output_tokens_per_minute=spec.limits.output_tokens_per_minute,
        max_concurrency=spec.limits.max_concurrency,
    )
