"""Metrics of the response cache. Its counts are read at every scrape, so that counting costs nothing more."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class CacheRow(NamedTuple):
    """Of one model."""

    model: str
    results: Mapping[str, int]
    """How often requests met the cache, by how."""
    saved_tokens: int
    saved_engine_ns: int
    saved_cost_nano: int
    agreed: int
    differed: int
    """Both of answers to alike questions, when the model answered, too."""


class CacheLevels(NamedTuple):
    answers: int
    bytes: int
    """Both of what lies in memory."""
    evicted: int
    refused: int
    policies: int


NOTHING = CacheLevels(0, 0, 0, 0, 0)


class CacheMetrics(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows: Callable[[], Iterable[CacheRow]] = tuple
        self._levels: Callable[[], CacheLevels] = lambda: NOTHING
        registry.register(self)

    def read_from(
        self, rows: Callable[[], Iterable[CacheRow]], levels: Callable[[], CacheLevels]
    ) -> None:
        self._rows, self._levels = rows, levels

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        requests = CounterMetricFamily(
            "llmhost_cache_requests",
            "Requests that met the response cache, by how.",
            labels=["model_name", "result"],
        )
        tokens = CounterMetricFamily(
            "llmhost_cache_saved_tokens",
            "Tokens of prompts and answers that were not computed because an answer was kept.",
            labels=["model_name"],
        )
        seconds = CounterMetricFamily(
            "llmhost_cache_saved_device_seconds",
            "Device time that making the same answers took.",
            labels=["model_name"],
        )
        dollars = CounterMetricFamily(
            "llmhost_cache_saved_cost_usd",
            "What that time cost, in dollars; 0 where no [costs] are configured.",
            labels=["model_name"],
        )
        checks = CounterMetricFamily(
            "llmhost_cache_semantic_checks",
            "Answers to alike questions that the model made as well, by whether both agreed.",
            labels=["model_name", "result"],
        )
        for row in self._rows():
            for result, count in row.results.items():
                requests.add_metric([row.model, result], count)
            tokens.add_metric([row.model], row.saved_tokens)
            seconds.add_metric([row.model], row.saved_engine_ns / 1e9)
            dollars.add_metric([row.model], row.saved_cost_nano / 1e9)
            checks.add_metric([row.model, "agreed"], row.agreed)
            checks.add_metric([row.model, "differed"], row.differed)
        yield from (requests, tokens, seconds, dollars, checks)
        yield from _levels(self._levels())


def _levels(now: CacheLevels) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    yield GaugeMetricFamily("llmhost_cache_answers", "Answers in memory.", now.answers)
    yield GaugeMetricFamily("llmhost_cache_bytes", "Bytes of the answers in memory.", now.bytes)
    yield GaugeMetricFamily("llmhost_cache_policies", "Learned policies in force.", now.policies)
    yield CounterMetricFamily(
        "llmhost_cache_evicted", "Answers that made room for others in memory.", now.evicted
    )
    yield CounterMetricFamily(
        "llmhost_cache_refused", "Values on disk that this node did not write.", now.refused
    )
