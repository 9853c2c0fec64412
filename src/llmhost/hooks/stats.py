"""Counts and durations of one implementation: what `llmhost plugins` shows."""

from collections import deque

KEPT = 512
"""Durations remembered; percentiles are over this many of the last calls."""


class CallStats:
    """Written by the HTTP loop only, except by register hooks, which run before it."""

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.timeouts = 0
        self.dropped = 0
        """Events that an observer missed because its queue was full."""
        self._durations: deque[float] = deque(maxlen=KEPT)

    def took(self, seconds: float) -> None:
        self.calls += 1
        self._durations.append(seconds)

    def percentile_ms(self, share: float) -> float | None:
        """Nearest rank over the last calls; None before the first."""
        if not self._durations:
            return None
        ranked = sorted(self._durations)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)] * 1000
