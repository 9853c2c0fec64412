"""What callers predict of their answers is taken in place of what a small model guesses: it is there, and is free."""

from collections.abc import Sequence

from llmhost.core.ports import DraftAsk, Drafter
from llmhost.schedule.drafting import PromptLookup


class WithPredictions:
    """Looks in what was predicted of an answer, and has another guess for those of which nothing was. Usage tells how
    often predictions were right, so nobody else guesses for them. Implements the Drafter port."""

    def __init__(self, other: Drafter) -> None:
        self._other = other
        self._lookup = PromptLookup()

    @property
    def device_ns(self) -> int:
        return self._other.device_ns

    @property
    def device_nano(self) -> int:
        return self._other.device_nano

    def propose(self, asks: Sequence[DraftAsk]) -> list[Sequence[int]]:
        found = iter(self._lookup.propose([ask for ask in asks if ask.predicted]))
        untold = [ask for ask in asks if not ask.predicted]
        others = iter(self._other.propose(untold) if untold else ())
        return [next(found if ask.predicted else others) for ask in asks]

    def forget(self, seq_id: int) -> None:
        self._lookup.forget(seq_id)
        self._other.forget(seq_id)

    def sleep(self) -> None:
        self._lookup.sleep()
        self._other.sleep()

    def wake(self) -> None:
        self._other.wake()

    def close(self) -> None:
        self._lookup.close()
        self._other.close()
