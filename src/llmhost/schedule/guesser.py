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

    def may_guess(self, scheduler: Scheduler) -> bool:
        """So few sequences run that guesses can pay."""
        return 0 < scheduler.running <= self.speculation.most_sequences

    def guess(self, scheduler: Scheduler) -> bool:
        """Hand the scheduler what its sequences may say next, where it pays to try; whether there is any."""
        self._took_ns = 0
        if not self.may_guess(scheduler):
            return False
        sequences = scheduler.running
        asks = scheduler.draft_asks(self.speculation.most_tokens)
        chosen = self.speculation.share_out(asks, sequences)
        if not chosen:
            return False
        drafter, started_ns = self._drafter, self._clock_ns()
        device_ns, device_nano = drafter.device_ns, drafter.device_nano
        found = drafter.propose(chosen)
        self._took_ns = self._clock_ns() - started_ns
        scheduler.accounts.pay(drafter.device_ns - device_ns, drafter.device_nano - device_nano)
        drafts = {
            ask.seq_id: list(tokens) for ask, tokens in zip(chosen, found, strict=True) if tokens
        }
        scheduler.set_drafts(drafts)
        return bool(drafts)

    def learn(self, result: StepResult) -> None:
        self.speculation.learn(result, self._took_ns)

    def forget_ended(self, emissions: Iterable[Emission]) -> None:
        for seq_id, delta in emissions:
            if delta.finish_reason is not None:
                self.speculation.forget(seq_id)
                self._drafter.forget(seq_id)

    def sleep(self) -> None:
        """No sequence is left. Nothing is guessed until `wake`."""
        self._drafter.sleep()

    def wake(self) -> None:
        """Raises OutOfMemory, and goes on sleeping."""
        self._drafter.wake()

    def close(self) -> None:
        self._drafter.close()
