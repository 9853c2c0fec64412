"""Prometheus metrics of one host, in a registry of its own. vLLM's names where a metric is the same thing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
)
from prometheus_client.registry import Collector

from llmhost.core.events import RequestEnded
from llmhost.core.output import Outcome
from llmhost.core.ports import EngineLoad
from llmhost.core.step import StepResult
from llmhost.observe.batches import BatchMetrics
from llmhost.observe.budgets import BudgetMetrics
from llmhost.observe.cache import CacheMetrics
from llmhost.observe.guesses import GuessMetrics
from llmhost.observe.limits import LimitMetrics
from llmhost.observe.loop import Gaps, LoopCounter, LoopHistogram
from llmhost.observe.reviews import ReviewMetrics
from llmhost.observe.safety import SafetyMetrics
from llmhost.observe.threads import ThreadMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
)
STEP_BUCKETS_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 2)


Observe = Callable[[float], None]


class _OfModel(NamedTuple):
    """Labels of one model, what takes its latencies, and, once it has answered, those of first tokens and queues."""

    labels: tuple[str]
    e2e: Observe
    first: tuple[Observe, Observe] | None = None


class Metrics:
    """What is counted where it happens; engine gauges are read when scraped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["model_name"]
        self._requests = LoopCounter(
            "llmhost_requests",
            "Requests by how they ended.",
            ["model_name", "outcome", "code"],
            self.registry,
        )
        self._success = LoopCounter(
            "vllm:request_success",
            "Answered requests.",
            ["model_name", "finished_reason"],
            self.registry,
        )
        self._prompt = LoopCounter("vllm:prompt_tokens", "Prompt tokens.", labels, self.registry)
        self._output = LoopCounter(
            "vllm:generation_tokens", "Generated tokens.", labels, self.registry
        )
        self._amount = LoopCounter(
            "llmhost_amount_nano", "Billed nano-dollars.", labels, self.registry
        )
        self._ttft = self._latency(
            "vllm:time_to_first_token_seconds", "From arrival to the first token."
        )
        self._itl = self._latency(
            "vllm:inter_token_latency_seconds", "Between two pieces of an answer."
        )
        self._e2e = self._latency("vllm:e2e_request_latency_seconds", "From arrival to the end.")
        self._queue = self._latency(
            "vllm:request_queue_time_seconds", "From arrival to the engine."
        )
        self._step = LoopHistogram(
            "llmhost_step_seconds", "One forward pass.", STEP_BUCKETS_S, self.registry
        )
        self._step_tokens = LoopCounter(
            "llmhost_step_tokens", "Tokens fed to the engine.", labels, self.registry
        )
        self._replays = Counter(
            "llmhost_idempotent_replays",
            "Requests that were sent again with their Idempotency-Key, and joined or repeated an answer.",
            ["how"],
            registry=self.registry,
        )
        for how in ("attached", "replayed"):
            self._replays.labels(how)  # there from the start, at 0
        self._of_models: dict[str, _OfModel] = {}
        self._guesses = GuessMetrics(self.registry)
        self.threads = ThreadMetrics(self.registry)
        self.limits = LimitMetrics(self.registry)
        self.budgets = BudgetMetrics(self.registry)
        self.batches = BatchMetrics(self.registry)
        self.reviews = ReviewMetrics(self.registry)
        self.safety = SafetyMetrics(self.registry)
        self.cache = CacheMetrics(self.registry)

    def request_ended(self, event: RequestEnded, *, is_resolved: bool) -> None:
        """Count one request. Unless it was resolved, its model's name is the caller's invention and makes no label."""
        model, usage = event.model if is_resolved else "unknown", event.usage
        of_model = self._of_models.get(model)
        if of_model is None:
            of_model = self._of_models[model] = _OfModel((model,), self._e2e.observer(model))
        labels, e2e, first = of_model
        self._requests.sums[model, str(event.outcome), event.code or ""] += 1
        if event.outcome is Outcome.ANSWERED:
            self._success.sums[model, str(event.finish_reason or "")] += 1
        self._prompt.sums[labels] += usage.prompt_tokens
        self._output.sums[labels] += usage.completion_tokens
        self._amount.sums[labels] += event.amount_nano
        if event.ttft_ms is not None:
            if first is None:  # not before there is anything to say
                first = (self._ttft.observer(model), self._queue.observer(model))
                self._of_models[model] = of_model._replace(first=first)
            ttft, queue = first
            ttft(event.ttft_ms / 1000)
            queue(event.queue_ms / 1000)
        e2e(event.total_ms / 1000)

    def answer_repeated(self, how: str) -> None:
        """Count a request that was not run: `attached` to one that runs, or `replayed` from the file."""
        self._replays.labels(how).inc()

    def gaps(self, model: str) -> Gaps:
        """Where the times between two pieces of an answer of `model` are noted."""
        return self._itl.gaps(model)

    def step_observer(self, model: str) -> Callable[[StepResult], None]:
        """Takes each step of `model`, on its engine thread."""
        seconds, tokens, labels = self._step.observer(model), self._step_tokens.sums, (model,)
        guesses, thread = self._guesses.observer(model), self.threads.engine_observer(model)

        def observe(result: StepResult) -> None:
            seconds(result.busy_ns / 1e9)
            tokens[labels] += result.fed_tokens
            guesses(result)
            thread()

        return observe

    def read_gauges_from(self, source: "GaugeSource") -> None:
        """Have engine and device gauges read from `source` at every scrape."""
        self.registry.register(_Gauges(source))

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _latency(self, name: str, text: str) -> LoopHistogram:
        return LoopHistogram(name, text, LATENCY_BUCKETS_S, self.registry)


class GaugeSource:
    """What a scrape asks for; the host overrides it."""

    def engine_loads(self) -> Iterable[tuple[str, EngineLoad]]:
        return ()

    def analytics_dropped(self) -> int:
        return 0

    def ledger_drift(self) -> int:
        return 0

    def audit_waiting(self) -> int:
        return 0

    def deployment_states(self) -> Iterable[tuple[str, str]]:
        return ()

    def adapters(self) -> Iterable[tuple[str, int, int]]:
        """(model, LoRA adapters in memory, requests that hold one)."""
        return ()

    def device_costs(self) -> Iterable[tuple[str, Mapping[str, int], int]]:
        """(device, nano-dollars by pool, those that did not add up at the last check)."""
        return ()

    def infrastructure_costs(self) -> Mapping[str, int]:
        """Nano-dollars of the host and of bytes sent."""
        return {}

    def device_figures(self) -> Iterable[tuple[str, int, int, int, int]]:
        """(device, capacity bytes, leased bytes, busy ns, idle ns)."""
        return ()


class _Gauges(Collector):
    def __init__(self, source: GaugeSource) -> None:
        self._source = source

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        yield from self._engines()
        yield from self._adapters()
        yield from self._devices()
        yield from self._costs()
        dropped = CounterMetricFamily("llmhost_analytics_dropped", "Analytics rows that were shed.")
        dropped.add_metric([], self._source.analytics_dropped())
        yield dropped
        drift = GaugeMetricFamily(
            "llmhost_ledger_drift",
            "Sums of the ledger that were not what its entries add up to at the last daily check: 0.",
        )
        drift.add_metric([], self._source.ledger_drift())
        yield drift
        waiting = GaugeMetricFamily(
            "llmhost_audit_waiting",
            "Rows of the audit log that the disk has refused so far: 0.",
        )
        waiting.add_metric([], self._source.audit_waiting())
        yield waiting

    def _engines(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        running = GaugeMetricFamily(
            "vllm:num_requests_running", "Sequences in the batch.", labels=["model_name"]
        )
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting", "Sequences that wait.", labels=["model_name"]
        )
        kv = GaugeMetricFamily(
            "vllm:kv_cache_usage_perc", "KV blocks in use, 0 to 1.", labels=["model_name"]
        )
        preempted = CounterMetricFamily(
            "vllm:num_preemptions", "Preemptions.", labels=["model_name"]
        )
        unpaid = CounterMetricFamily(
            "llmhost_operator_seconds",
            "Device time that no caller pays for: recomputed prompts, failed steps.",
            labels=["model_name"],
        )
        yield from self._prefix_caches()
        hung = GaugeMetricFamily(
            "llmhost_step_hung_seconds",
            "How long a step has been running that should have ended; 0 while none has.",
            labels=["model_name"],
        )
        for model, load in self._source.engine_loads():
            hung.add_metric([model], load.hung_s)
            running.add_metric([model], load.running)
            waiting.add_metric([model], load.waiting)
            kv.add_metric([model], load.kv_blocks_used / max(load.kv_blocks_total, 1))
            preempted.add_metric([model], load.preemptions)
            unpaid.add_metric([model], load.operator_ns / 1e9)
        state = GaugeMetricFamily(
            "llmhost_model_state", "1 for the state a model is in.", labels=["model_name", "state"]
        )
        for model, name in self._source.deployment_states():
            state.add_metric([model, name], 1)
        yield from (running, waiting, kv, preempted, unpaid, hung, state)

    def _adapters(self) -> Iterator[GaugeMetricFamily]:
        loaded = GaugeMetricFamily(
            "llmhost_adapters_loaded", "LoRA adapters in memory.", labels=["model_name"]
        )
        requests = GaugeMetricFamily(
            "llmhost_adapter_requests", "Requests that hold a LoRA adapter.", labels=["model_name"]
        )
        for model, count, users in self._source.adapters():
            loaded.add_metric([model], count)
            requests.add_metric([model], users)
        yield from (loaded, requests)

    def _prefix_caches(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        labels = ["model_name"]
        queries = CounterMetricFamily(
            "llmhost_prefix_cache_query_tokens",
            "Prompt tokens that were looked up in the prefix cache.",
            labels=labels,
        )
        hits = CounterMetricFamily(
            "llmhost_prefix_cache_hit_tokens", "Those that were found there.", labels=labels
        )
        evicted = CounterMetricFamily(
            "llmhost_prefix_cache_evicted_blocks", "Blocks given up for room.", labels=labels
        )
        known = GaugeMetricFamily(
            "llmhost_prefix_cache_blocks",
            "KV blocks that can be found by their text.",
            labels=labels,
        )
        host_hits = CounterMetricFamily(
            "llmhost_prefix_cache_host_hit_tokens",
            "Of the hits, tokens that came back from host memory.",
            labels=labels,
        )
        host = GaugeMetricFamily(
            "llmhost_prefix_cache_host_blocks", "KV blocks kept in host memory.", labels=labels
        )
        for model, load in self._source.engine_loads():
            host_hits.add_metric([model], load.host_hit_tokens)
            host.add_metric([model], load.host_blocks_used)
            queries.add_metric([model], load.prefix_query_tokens)
            hits.add_metric([model], load.prefix_hit_tokens)
            evicted.add_metric([model], load.prefix_evicted_blocks)
            known.add_metric([model], load.prefix_known_blocks)
        yield from (queries, hits, evicted, known, host_hits, host)

    def _costs(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        cost = CounterMetricFamily(
            "llmhost_cost_nano",
            "What the node has cost, in nano-dollars.",
            labels=["device", "pool"],
        )
        error = GaugeMetricFamily(
            "llmhost_cost_conservation_error_nano",
            "Nano-dollars of a device that did not add up at the last check: 0.",
            labels=["device"],
        )
        for device, pools, error_nano in self._source.device_costs():
            error.add_metric([device], error_nano)
            for pool, nano in pools.items():
                cost.add_metric([device, pool], nano)
        for pool, nano in self._source.infrastructure_costs().items():
            cost.add_metric(["", pool], nano)
        yield from (cost, error)

    def _devices(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        capacity = GaugeMetricFamily(
            "llmhost_device_capacity_bytes", "Memory that models may use.", labels=["device"]
        )
        leased = GaugeMetricFamily(
            "llmhost_device_leased_bytes", "Memory leased to models.", labels=["device"]
        )
        busy = CounterMetricFamily(
            "llmhost_device_busy_seconds", "Time in steps.", labels=["device"]
        )
        idle = CounterMetricFamily(
            "llmhost_device_idle_seconds", "Time between steps.", labels=["device"]
        )
        for device, bytes_all, bytes_leased, busy_ns, idle_ns in self._source.device_figures():
            capacity.add_metric([device], bytes_all)
            leased.add_metric([device], bytes_leased)
            busy.add_metric([device], busy_ns / 1e9)
            idle.add_metric([device], idle_ns / 1e9)
        yield from (capacity, leased, busy, idle)
