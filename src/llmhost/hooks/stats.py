"""Counts and durations of one implementation: what `llmhost plugins` shows."""

from collections import deque

KEPT = 512
"""Durations remembered; percentiles are over this many of the last calls."""
WEIGHT = 1 / 16
"""Of each call in the average of the last ones."""
MOST_S = 0.04
"""A call counts for no more: whatever it was that took long, once is not often."""


class CallStats:
    """Written by the HTTP loop only, except by register hooks, which run before it."""

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.timeouts = 0
        self.dropped = 0
        """Events that an observer missed because its queue was full."""
        self._durations: deque[float] = deque(maxlen=KEPT)
        self._mean_s = 0.0

    def took(self, seconds: float) -> None:
        self.calls += 1
        self._durations.append(seconds)

    def is_slow(self, took_s: float, limit_s: float) -> bool:
        """Whether calls take longer than that on the average, with this one.

        Single ones say little: on a busy machine any function may be interrupted for longer than it takes.
        """
        self._mean_s += WEIGHT * ((took_s if took_s < MOST_S else MOST_S) - self._mean_s)
        return self._mean_s > limit_s

    def took_is_slow(self, took_s: float, limit_s: float) -> bool:
        """`took` and `is_slow` at once: repeated requests ask several times each."""
        self.calls += 1
        self._durations.append(took_s)
        mean_s = self._mean_s
        mean_s += WEIGHT * ((took_s if took_s < MOST_S else MOST_S) - mean_s)
        self._mean_s = mean_s
        return mean_s > limit_s

    def took_all_is_slow(self, taken_s: list[float], limit_s: float) -> bool:
        """The same of several calls, after the last of them."""
        self.calls += len(taken_s)
        self._durations.extend(taken_s)
        mean_s = self._mean_s
        for took_s in taken_s:
            mean_s += WEIGHT * ((took_s if took_s < MOST_S else MOST_S) - mean_s)
        self._mean_s = mean_s
        return mean_s > limit_s

    def took_longer(self, seconds: float) -> None:
        """The call that was noted last was not over then."""
        self._durations[-1] += seconds

    def percentile_ms(self, share: float) -> float | None:
        """Nearest rank over the last calls; None before the first."""
        if not self._durations:
            return None
        ranked = sorted(self._durations)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)] * 1000
