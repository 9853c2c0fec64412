"""Metrics of texts that wait for humans. What waits is read when scraped."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

STATES = ("open", "claimed", "escalated")
ENDS = ("approved", "rejected", "expired")
MODES = ("block", "hold", "release")
WAITS_S = (60, 300, 900, 1800, 3600, 4 * 3600, 12 * 3600, 86_400, 3 * 86_400)


class Waiting(NamedTuple):
    """One that nobody has decided."""

    state: str
    age_s: float
    is_overdue: bool


class ReviewMetrics(Collector):
    """One per host."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting: Callable[[], Iterable[Waiting]] = tuple
        self._referred = Counter(
            "llmhost_reviews_referred",
            "Texts that policies left to reviewers, by what their callers got meanwhile.",
            ["mode"],
            registry=registry,
        )
        self._ended = Counter(
            "llmhost_reviews_ended",
            "Reviews that have ended, by how.",
            ["state"],
            registry=registry,
        )
        self._wait_s = Histogram(
            "llmhost_reviews_wait_seconds",
            "Time from a text's referral to its decision.",
            buckets=WAITS_S,
            registry=registry,
        )
        self._webhooks = Counter(
            "llmhost_reviews_webhooks",
            "Tries to post an event of a review to the webhook, by how they ended.",
            ["result"],
            registry=registry,
        )
        for result in ("told", "failed", "dropped"):
            self._webhooks.labels(result)
        for mode in MODES:
            self._referred.labels(mode)  # there from the start, at 0
        for state in ENDS:
            self._ended.labels(state)
        registry.register(self)

    def read_from(self, waiting: Callable[[], Iterable[Waiting]]) -> None:
        """Have what waits read at every scrape."""
        self._waiting = waiting

    def referred(self, mode: str) -> None:
        self._referred.labels(mode).inc()

    def webhook(self, result: str) -> None:
        self._webhooks.labels(result).inc()

    def ended(self, state: str, wait_s: float) -> None:
        self._ended.labels(state).inc()
        if state != "expired":
            self._wait_s.observe(wait_s)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = list(self._waiting())
        states = Counts(one.state for one in found)
        family = GaugeMetricFamily(
            "llmhost_reviews_open", "Texts that nobody has decided on, by state.", labels=["state"]
        )
        for state in STATES:
            family.add_metric([state], states[state])
        yield family
        oldest = GaugeMetricFamily(
            "llmhost_reviews_oldest_seconds", "Age of the oldest text that nobody has decided on."
        )
        oldest.add_metric([], max((one.age_s for one in found), default=0.0))
        yield oldest
        overdue = GaugeMetricFamily(
            "llmhost_reviews_overdue",
            "Texts that nobody has decided on, and somebody should have.",
        )
        overdue.add_metric([], sum(one.is_overdue for one in found))
        yield overdue
