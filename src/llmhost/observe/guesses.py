"""Speculation in numbers, under vLLM's names. What is counted is what runners checked, whoever guessed."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from llmhost.core.errors import EngineFailed
from llmhost.core.step import DecodeRows, StepResult, confirmed_drafts

MEMORY = 0.99
"""What each step with guesses keeps of the weight of those before it, in the rate of right ones."""


class GuessMetrics:
    """Counters of all models of one host."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model_name"]
        self._drafts = Counter(
            "vllm:spec_decode_num_drafts",
            "Times that guesses were checked for a sequence.",
            labels,
            registry=registry,
        )
        self._guesses = Counter(
            "vllm:spec_decode_num_draft_tokens",
            "Guesses that were checked.",
            labels,
            registry=registry,
        )
        self._right = Counter(
            "vllm:spec_decode_num_accepted_tokens",
            "Guesses that were right.",
            labels,
            registry=registry,
        )
        self._right_at = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Right guesses by their place among those of one step, from 0.",
            [*labels, "position"],
            registry=registry,
        )
        self._rate = Gauge(
            "vllm:spec_decode_draft_acceptance_rate",
            "Share of recent guesses that were right, 0 to 1.",
            labels,
            registry=registry,
        )

    def observer(self, model: str) -> Callable[[StepResult], None]:
        """Takes each step of `model`, on its engine thread."""
        drafts, guesses = self._drafts.labels(model), self._guesses.labels(model)
        right, rate = self._right.labels(model), self._rate.labels(model)
        self._right_at.labels(model, "0")  # shown before the first guess, as the others are
        recent = recent_right = 0.0

        def observe(result: StepResult) -> None:
            nonlocal recent, recent_right
            if type(result.rows) is DecodeRows or not sum([r.drafts for r in result.rows]):
                return
            checked = [
                (row.drafts, confirmed_drafts(row, drawn))
                for row, drawn in zip(result.rows, result.drawn, strict=True)
                if row.drafts and not isinstance(drawn, EngineFailed)
            ]
            if not checked:
                return
            all_guesses, all_right = (sum(counts) for counts in zip(*checked, strict=True))
            drafts.inc(len(checked))
            guesses.inc(all_guesses)
            right.inc(all_right)
            for place in range(max(count for _, count in checked)):
                reached = sum(count > place for _, count in checked)
                self._right_at.labels(model, str(place)).inc(reached)
            recent = recent * MEMORY + all_guesses
            recent_right = recent_right * MEMORY + all_right
            rate.set(recent_right / recent)

        return observe
