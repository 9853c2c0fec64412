"""How long answers were, so that no more is held for the next one than it is likely to need."""

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Hashable

FEWEST_ANSWERS = 10
"""Of fewer there is no saying what nine of ten are like."""
KEPT_ANSWERS = 100
KEPT_PAIRS = 10_000
"""So many answers of so many pairs of model and key are remembered: some 20 MB at most."""


class AnswerLengths:
    """The last answers of each model for each key, in memory only."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Hashable, _Seen] = OrderedDict()

    def p90(self, who: Hashable) -> int | None:
        """Tokens that nine of ten past answers did not exceed; None while there were too few."""
        seen = self._seen.get(who)
        return None if seen is None else seen.p90

    def note(self, who: Hashable, tokens: int) -> None:
        """Remember one whole answer."""
        seen = self._seen.get(who)
        if seen is None:
            seen = self._seen[who] = _Seen()
            if len(self._seen) > KEPT_PAIRS:
                self._seen.popitem(last=False)
        self._seen.move_to_end(who)
        seen.note(tokens)


class _Seen:
    __slots__ = ("_in_order", "_sorted", "p90")

    def __init__(self) -> None:
        self._in_order: deque[int] = deque()
        self._sorted: list[int] = []
        self.p90: int | None = None
        """By the nearest rank; None while there are too few."""

    def note(self, tokens: int) -> None:
        self._in_order.append(tokens)
        if len(self._in_order) > KEPT_ANSWERS:
            oldest = self._in_order.popleft()
            if oldest == tokens:
                return  # nothing changes but the order
            del self._sorted[bisect_left(self._sorted, oldest)]
        insort(self._sorted, tokens)
        if (count := len(self._sorted)) >= FEWEST_ANSWERS:
            self.p90 = self._sorted[-(-9 * count // 10) - 1]
