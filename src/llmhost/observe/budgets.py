"""How organisations' budgets stand, and whom budgets refused. Read when scraped: nothing is counted twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

LEVELS = ("run", "key", "team", "org")


class OrgBudget(NamedTuple):
    """An organisation's own budget, in nano-dollars."""

    org: str
    period: str
    limit: int
    spent: int
    held: int


class BudgetMetrics(Collector):
    """One per host. Keys, teams and runs have no series of their own: there may be any number of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refusals: Callable[[], Mapping[str, int]] = dict
        self._budgets: Callable[[], Iterable[OrgBudget]] = tuple
        registry.register(self)

    def read_from(
        self,
        refusals: Callable[[], Mapping[str, int]],
        budgets: Callable[[], Iterable[OrgBudget]],
    ) -> None:
        """Have refusals by level, and budgets, read at every scrape."""
        self._refusals = refusals
        self._budgets = budgets

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        refused = CounterMetricFamily(
            "llmhost_budget_refusals",
            "Requests that a budget had no room for, by whose it was.",
            labels=["level"],
        )
        counts = self._refusals()
        for level in LEVELS:
            refused.add_metric([level], counts.get(level, 0))
        yield refused
        families = {
            "limit": _gauge(
                "limit", "What organisations may spend; of a balance, what was paid in."
            ),
            "spent": _gauge("spent", "What they have spent, in nano-dollars."),
            "held": _gauge("held", "What running requests hold of it, in nano-dollars."),
        }
        for budget in self._budgets():
            for name, family in families.items():
                family.add_metric([budget.org, budget.period], getattr(budget, name))
        yield from families.values()


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"llmhost_budget_{name}_nano", text, labels=["org", "period"])
