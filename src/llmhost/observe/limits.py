"""Which limits were reached, and how many requests wait for a place."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.limits")

DIMENSIONS = ("run", "key", "team", "org", "model")
"""The levels that have limits."""
LIMITS = ("requests", "input_tokens", "output_tokens", "concurrency")


class LimitMetrics:
    """One per host."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refusals = Counter(
            "llmhost_limit_refusals",
            "Calls that a limit refused, by whose it was and which.",
            ["dimension", "limit"],
            registry=registry,
        )
        self._refusals.labels("ip", "failed_auth")
        for dimension in DIMENSIONS:
            for limit in LIMITS:
                self._refusals.labels(dimension, limit)  # there from the start, at 0
        self._waiting = _Waiting()
        registry.register(self._waiting)

    def refused(self, dimension: str, limit: str, retry_after_s: float | None, **who: Any) -> None:
        """Count a refusal and log whom it met."""
        self._refusals.labels(dimension, limit).inc()
        log_event(
            log,
            "limit.refused",
            dimension=dimension,
            limit=limit,
            retry_after_s=retry_after_s and round(retry_after_s, 3),
            **who,
        )

    def read_waiting_from(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Have the queues' lengths, by dimension, read from `source` at every scrape."""
        self._waiting.source = source


class _Waiting(Collector):
    def __init__(self) -> None:
        self.source: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "llmhost_limit_waiting",
            "Requests that wait for a place, by whose max_concurrency is reached.",
            labels=["dimension"],
        )
        lengths = self.source()
        for dimension in DIMENSIONS:
            family.add_metric([dimension], lengths.get(dimension, 0))
        yield family
