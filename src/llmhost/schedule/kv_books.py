"""The books of the KV cache: which block belongs to which sequence. It knows counts, never tensors.

Invariant, audited by `check`: every block is either free or held by exactly one sequence.
"""

from collections.abc import Iterable


class KvBooks:
    """Hands out block numbers 0 .. total-1."""

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self._free = list(range(total - 1, -1, -1))  # a stack: low numbers go out first

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def capacity_tokens(self) -> int:
        return self.total * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def take(self, count: int) -> list[int]:
        """`count` blocks. Asking for more than are free is a scheduler's bug."""
        assert 0 <= count <= len(self._free), (count, len(self._free))
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        self._free.extend(blocks)

    def resize(self, total: int) -> None:
        """Change the number of blocks. Only blocks that nobody holds may go."""
        if total >= self.total:
            self._free[:0] = range(total - 1, self.total - 1, -1)
        else:
            self._free = [b for b in self._free if b < total]
        self.total = total

    def check(self, held: Iterable[list[int]]) -> None:
        """Audit the books against what sequences say they hold. Raises AssertionError on any difference."""
        seen = sorted([*self._free, *(b for blocks in held for b in blocks)])
        assert seen == list(range(self.total)), f"{self.total} blocks, but the books show {seen}"
