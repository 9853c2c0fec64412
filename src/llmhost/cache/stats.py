"""What the cache has done since the start, per organisation and model. Owned by the HTTP loop."""

from collections import defaultdict
from dataclasses import dataclass, fields

MOST_ROWS = 10_000
"""Pairs of organisation and model that are counted apart; others count as `-`."""


@dataclass(slots=True)
class Counts:
    hits: int = 0
    """Answers that were kept."""
    joined: int = 0
    """Requests that had the answer of an identical one that ran."""
    stale: int = 0
    """Of `hits`, those that were given beyond their time while a fresh one was made."""
    semantic: int = 0
    """Of `hits`, answers to questions that were only alike."""
    semantic_checks: int = 0
    """Of those, so many were also answered by the model."""
    semantic_false: int = 0
    """And so many of the model's answers were others."""
    misses: int = 0
    bypassed: int = 0
    """Requests that said or were found not to be for the cache."""
    stored: int = 0
    saved_tokens: int = 0
    """Of prompts and answers that did not have to be computed."""
    saved_engine_ns: int = 0
    """Device time that making the same answers took."""
    saved_cost_nano: int = 0
    """What that cost the operator."""
    discount_nano: int = 0
    """What callers would have paid more without the cache."""

    def add(self, other: "Counts") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def hit_rate(self) -> float:
        """Of all requests that looked; 0 while none has."""
        asked = self.hits + self.joined + self.misses
        return (self.hits + self.joined) / asked if asked else 0.0

    @property
    def false_hit_rate(self) -> float | None:
        """Measured of answers to questions that were only alike; None while none was checked."""
        return self.semantic_false / self.semantic_checks if self.semantic_checks else None


class Stats:
    def __init__(self) -> None:
        self._rows: defaultdict[tuple[str, str], Counts] = defaultdict(Counts)

    def of(self, org: str, model: str) -> Counts:
        row = org, model
        if row not in self._rows and len(self._rows) >= MOST_ROWS:
            row = "-", "-"
        return self._rows[row]

    def rows(self) -> list[tuple[str, str, Counts]]:
        return [(org, model, counts) for (org, model), counts in sorted(self._rows.items())]

    def total(self) -> Counts:
        total = Counts()
        for counts in self._rows.values():
            total.add(counts)
        return total
