"""Metrics of what judges found in prompts and answers. Texts, rules and names of tenants are no labels."""

from prometheus_client import CollectorRegistry

from llmhost.observe.loop import LoopCounter


class SafetyMetrics:
    """One per host."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = LoopCounter(
            "llmhost_safety_decisions",
            "Prompts and answers that were judged, by what was decided and the category that decided it.",
            ["direction", "action", "category"],
            registry,
        )
        for direction in ("input", "output"):
            self._decisions.add(0, direction, "allow", "none")  # there from the start, at 0

    def decided(self, direction: str, action: str, category: str, texts: int) -> None:
        self._decisions.sums[direction, action, category] += texts
