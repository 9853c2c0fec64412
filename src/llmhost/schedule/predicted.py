"""What callers predict of their answers goes before what a small model guesses: it is there, and costs nothing."""

from collections.abc import Sequence

from llmhost.core.ports import DraftAsk, Drafter
from llmhost.schedule.drafting import PromptLookup


class PredictedFirst:
    """Looks in what was predicted, and has another guess where that has nothing to say. Implements the Drafter port."""

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
        predicted = [ask for ask in asks if ask.predicted]
        found = {
            ask.seq_id: guess
            for ask, guess in zip(predicted, self._lookup.propose(predicted), strict=True)
            if guess
        }
        open_asks = [ask for ask in asks if ask.seq_id not in found]
        if open_asks:
            guesses = self._other.propose(open_asks)
            found |= {ask.seq_id: each for ask, each in zip(open_asks, guesses, strict=True)}
        return [found[ask.seq_id] for ask in asks]

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
