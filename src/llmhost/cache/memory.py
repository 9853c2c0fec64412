"""The answers that lie in memory: at most so many bytes, the least recently used of the least priority go first."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from llmhost.cache.answer import Answer

LOOKED_AT = 8
"""So many of the least recently used are looked at for the one that goes."""


class Memory:
    """Owned by one thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[Answer, int]] = OrderedDict()
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Answer | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: str, answer: Answer, size_bytes: int) -> None:
        """Nothing is kept that is larger than all there is room for."""
        self.drop(key)
        if size_bytes > self._most_bytes:
            return
        while self._kept and self.bytes + size_bytes > self._most_bytes:
            self.drop(self._least())
            self.evicted += 1
        self._kept[key] = answer, size_bytes
        self.bytes += size_bytes

    def drop(self, key: str) -> bool:
        found = self._kept.pop(key, None)
        if found is None:
            return False
        self.bytes -= found[1]
        return True

    def purge(self, is_meant: Callable[[str, Answer], bool]) -> int:
        """Forget all that are meant; how many they were."""
        meant = [key for key, (answer, _) in self._kept.items() if is_meant(key, answer)]
        return sum(map(self.drop, meant))

    def _least(self) -> str:
        oldest = islice(self._kept.items(), LOOKED_AT)
        return min(oldest, key=lambda item: item[1][0].priority)[0]
