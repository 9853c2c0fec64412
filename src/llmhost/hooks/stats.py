"""Counts and durations of one implementation: what `llmhost plugins` shows."""

from collections import deque

KEPT = 512
"""Durations remembered; percentiles are over this many of the last calls."""
SLOW_CALLS = 3
FORGIVEN = 1 / 32
"""Of a slow call, by each that is not."""
VERY_SLOW_S = 0.25
"""So long nobody waits for a processor: such a call is slow enough by itself."""


class CallStats:
    """Written by the HTTP loop only, except by register hooks, which run before it."""

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.timeouts = 0
        self.dropped = 0
        """Events that an observer missed because its queue was full."""
        self._durations: deque[float] = deque(maxlen=KEPT)
        self._slowness = 0.0

    def took(self, seconds: float) -> None:
        self.calls += 1
        self._durations.append(seconds)

    def is_slow(self, took_s: float, limit_s: float) -> bool:
        """Whether it has been slow too often, with this call.

        Once says little: on a busy machine any function may be interrupted for longer than it takes.
        """
        if took_s <= limit_s:
            if self._slowness > 0.0:
                self._slowness -= FORGIVEN
            return False
        self._slowness += 1.0
        return self._slowness > SLOW_CALLS - 1 or took_s > VERY_SLOW_S

    def percentile_ms(self, share: float) -> float | None:
        """Nearest rank over the last calls; None before the first."""
        if not self._durations:
            return None
        ranked = sorted(self._durations)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)] * 1000
