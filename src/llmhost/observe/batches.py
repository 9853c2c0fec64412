"""Metrics of batches."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

STATES = ("validating", "in_progress", "finalizing", "cancelling")
ENDS = ("completed", "failed", "expired", "cancelled")


class BatchMetrics(Collector):
    """Counts lines and ends, and reads what is alive at every scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._states: Callable[[], Iterable[str]] = tuple
        self._in_flight: Callable[[], int] = int
        self._lines = Counter(
            "llmhost_batch_lines",
            "Lines of batches that have ended, by whether they were answered.",
            ["outcome"],
            registry=registry,
        )
        self._ended = Counter(
            "llmhost_batches_ended",
            "Batches that have ended, by how.",
            ["status"],
            registry=registry,
        )
        for outcome in ("completed", "failed"):
            self._lines.labels(outcome)  # there from the start, at 0
        for status in ENDS:
            self._ended.labels(status)
        registry.register(self)

    def line_ended(self, *, is_error: bool) -> None:
        self._lines.labels("failed" if is_error else "completed").inc()

    def batch_ended(self, status: str) -> None:
        self._ended.labels(status).inc()

    def read_from(self, states: Callable[[], Iterable[str]], in_flight: Callable[[], int]) -> None:
        """`states` says the state of each batch that has not ended, and `in_flight` how many lines run now."""
        self._states, self._in_flight = states, in_flight

    @property
    def in_flight(self) -> int:
        """Lines that run now."""
        return self._in_flight()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "llmhost_batches", "Batches that have not ended, by state.", labels=["status"]
        )
        found = Counts(self._states())
        for status in STATES:
            family.add_metric([status], found[status])
        yield family
        running = GaugeMetricFamily(
            "llmhost_batch_lines_in_flight", "Lines of batches that run now."
        )
        running.add_metric([], self.in_flight)
        yield running
