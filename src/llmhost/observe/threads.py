"""How much time the threads that matter have: how late the HTTP loop is, and the CPU time that each has used.

They share one interpreter. A loop that is late, or an engine whose thread is busy for most of a step, is the first sign
that the GPU waits for Python.
"""

import asyncio
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from llmhost.observe.loop import LoopCounter

LOOK_S = 0.1
LAG_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ThreadMetrics:
    """One per host. `watch_loop` on the HTTP loop, an `engine_observer` for each load of a model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "llmhost_loop_lag_seconds",
            "How much later than it should have the HTTP loop came to something, ten times a second.",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self._engine = LoopCounter(
            "llmhost_engine_cpu_seconds",
            "CPU time of the engine's thread.",
            ["model_name"],
            registry,
        )
        registry.register(_LoopTime())

    async def watch_loop(self) -> None:
        """Measure until cancelled."""
        while True:
            due_s = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._lag.observe(max(time.monotonic() - due_s, 0.0))

    def engine_observer(self, model: str) -> Callable[[], None]:
        """To be called on the engine's thread, after each step."""
        spent, labels, last_s = self._engine.sums, (model,), 0.0

        def observe() -> None:
            nonlocal last_s
            now_s = time.thread_time()
            spent[labels] += now_s - last_s
            last_s = now_s

        return observe


class _LoopTime(Collector):
    """Read where it is scraped: on the HTTP loop."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "llmhost_loop_cpu_seconds", "CPU time of the HTTP loop's thread."
        )
        family.add_metric([], time.thread_time())
        yield family
