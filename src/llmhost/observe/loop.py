"""Counters and histograms for what happens with every request, step or token: each of their values is written by one
thread, the HTTP loop or a model's engine.

So no lock is taken, and prometheus_client's own checks are not made each time.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

MANY_GAPS = 1024


class LoopCounter(Collector):
    """Sums by the values of labels."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self.sums: dict[tuple[str, ...], float] = defaultdict(int)
        """By labels. Whoever counts in several at once adds to them here, without a call for each."""
        registry.register(self)

    def add(self, count: float, *labels: str) -> None:
        self.sums[labels] += count

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in list(self.sums.items()):
            family.add_metric(labels, count)
        yield family


class Gaps(list[int]):
    """Nanoseconds that are noted with every token, and counted many at once, which is quicker."""

    def __init__(
        self, bounds_s: Sequence[float], count: Callable[[list[int], float], None]
    ) -> None:
        super().__init__()
        self._bounds_ns = [bound_s * 1e9 for bound_s in bounds_s]
        self._count = count

    def fold_if_many(self) -> None:
        if len(self) >= MANY_GAPS:
            self.fold()

    def fold(self) -> None:
        """Count what was noted, and forget it."""
        self.sort()
        reached = [0, *(bisect_right(self, bound_ns) for bound_ns in self._bounds_ns), len(self)]
        self._count([b - a for a, b in pairwise(reached)], sum(self) / 1e9)
        self.clear()


class LoopHistogram(Collector):
    """Times by model, in seconds."""

    def __init__(
        self, name: str, text: str, bounds_s: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._bounds_s = bounds_s
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0] * (len(bounds_s) + 1))
        self._sums: dict[str, float] = defaultdict(float)
        self._observers: dict[str, Callable[[float], None]] = {}
        self._gaps: dict[str, Gaps] = {}
        registry.register(self)

    def observe(self, seconds: float, model: str) -> None:
        self._counts[model][bisect_left(self._bounds_s, seconds)] += 1
        self._sums[model] += seconds

    def observer(self, model: str) -> Callable[[float], None]:
        """Takes seconds of one model, for what is observed with every step."""
        known = self._observers.get(model)
        if known is None:
            known = self._observers[model] = self._observer(model)
        return known

    def gaps(self, model: str) -> Gaps:
        """Where times of one model are noted that come with every token."""
        known = self._gaps.get(model)
        if known is None:
            known = self._gaps[model] = Gaps(self._bounds_s, self._adder(model))
        return known

    def collect(self) -> Iterator[HistogramMetricFamily]:
        for noted in list(self._gaps.values()):
            noted.fold()
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        bounds = [*(str(float(bound)) for bound in self._bounds_s), "+Inf"]
        for model, counts in list(self._counts.items()):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([model], buckets, self._sums[model])
        yield family

    def _adder(self, model: str) -> Callable[[list[int], float], None]:
        counts, sums = self._counts[model], self._sums

        def add(fresh: list[int], seconds: float) -> None:
            counts[:] = [old + new for old, new in zip(counts, fresh, strict=True)]
            sums[model] += seconds

        return add

    def _observer(self, model: str) -> Callable[[float], None]:
        counts, sums, bounds_s = self._counts[model], self._sums, self._bounds_s

        def observe(seconds: float) -> None:
            counts[bisect_left(bounds_s, seconds)] += 1
            sums[model] += seconds

        return observe
