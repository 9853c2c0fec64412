"""Times of threads: what the metrics say is what the threads used."""

import threading
import time

from prometheus_client import CollectorRegistry

from llmhost.observe.threads import ThreadMetrics


def test_an_engines_cpu_time_is_that_of_its_thread() -> None:
    registry = CollectorRegistry()
    metrics = ThreadMetrics(registry)
    used: list[float] = []

    def engine() -> None:
        observe = metrics.engine_observer("m@1")
        for _ in range(3):
            sum(range(100_000))
            observe()
        used.append(time.thread_time())

    for _ in range(2):  # a model that was loaded twice had two threads
        thread = threading.Thread(target=engine)
        thread.start()
        thread.join()

    told = registry.get_sample_value("llmhost_engine_cpu_seconds_total", {"model_name": "m@1"})
    assert told is not None
    assert 0 < told <= sum(used)
    assert told > 0.9 * sum(used) - 0.001


def test_the_loops_cpu_time_is_that_of_the_thread_that_asks() -> None:
    registry = CollectorRegistry()
    ThreadMetrics(registry)
    before = time.thread_time()
    told = registry.get_sample_value("llmhost_loop_cpu_seconds_total")

    assert told is not None
    assert before <= told <= time.thread_time()
