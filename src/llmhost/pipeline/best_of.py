"""`best_of`: more sequences are run than are answered with. Which ones are the best is known when all have ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmhost.core.output import Delta, FinishReason


@dataclass(slots=True)
class _Run:
    deltas: list[Delta] = field(default_factory=list)
    logprob: float = 0.0
    tokens: int = 0

    @property
    def merit(self) -> tuple[bool, float]:
        """What a rule cut off comes last; then the mean log probability of a token."""
        is_whole = self.deltas[-1].finish_reason is not FinishReason.CONTENT_FILTER
        return is_whole, self.logprob / max(self.tokens, 1)


class BestOf:
    """Holds back everything that the sequences of one request say, `runs` for each prompt."""

    def __init__(self, *, n: int, runs: int) -> None:
        self._n = n
        self._runs = runs
        self._held: dict[int, _Run] = {}

    def push(self, delta: Delta) -> None:
        run = self._held.setdefault(delta.index, _Run())
        run.deltas.append(delta)
        run.logprob += sum(entry.logprob for entry in delta.logprobs)
        run.tokens += len(delta.logprobs)

    def winners(self) -> Iterator[Delta]:
        """The `n` likeliest of each prompt, numbered as choices, the likeliest first. Ties go to the earlier one."""
        by_prompt: dict[int, list[int]] = {}
        for index in sorted(self._held):
            by_prompt.setdefault(index // self._runs, []).append(index)
        for prompt, indexes in by_prompt.items():
            of_prompt = tuple(
                e for i in indexes for d in self._held[i].deltas for e in d.prompt_logprobs
            )
            best = sorted(indexes, key=lambda index: self._held[index].merit, reverse=True)
            for place, index in enumerate(best[: self._n]):
                first, *others = self._held[index].deltas
                said_of_prompt = () if place else of_prompt  # whichever run computed them
                for delta in (first.but(prompt_logprobs=said_of_prompt), *others):
                    yield delta.but(index=prompt * self._n + place)
