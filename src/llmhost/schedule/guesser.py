"""Speculation as the engine loop sees it: before a step somebody guesses, after it everybody learns."""

import time
from collections.abc import Callable, Iterable

from llmhost.core.ports import Drafter
from llmhost.core.step import StepResult
from llmhost.schedule.scheduler import Emission, Scheduler
from llmhost.schedule.speculation import Speculation


class Guesser:
    """A drafter and the decision of when to ask it. Lives on the engine's thread."""

    def __init__(
        self,
        drafter: Drafter,
        speculation: Speculation,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.speculation = speculation
        self._drafter = drafter
        self._clock_ns = clock_ns
        self._took_ns = 0

    def guess(self, scheduler: Scheduler) -> None:
        """Hand the scheduler what its sequences may say next, for those for whom it pays to try."""
        self._took_ns = 0
        sequences = scheduler.load().running
        if not 0 < sequences <= self.speculation.most_sequences:
            return
        asks = scheduler.draft_asks(self.speculation.most_tokens)
        chosen = self.speculation.share_out(asks, sequences)
        if not chosen:
            return
        started_ns, device_ns = self._clock_ns(), self._drafter.device_ns
        found = self._drafter.propose(chosen)
        self._took_ns = self._clock_ns() - started_ns
        scheduler.operator_ns += self._drafter.device_ns - device_ns
        scheduler.set_drafts(
            {ask.seq_id: list(tokens) for ask, tokens in zip(chosen, found, strict=True) if tokens}
        )

    def learn(self, result: StepResult) -> None:
        self.speculation.learn(result, self._took_ns)

    def forget_ended(self, emissions: Iterable[Emission]) -> None:
        for seq_id, delta in emissions:
            if delta.finish_reason is not None:
                self.speculation.forget(seq_id)
                self._drafter.forget(seq_id)

    def close(self) -> None:
        self._drafter.close()
