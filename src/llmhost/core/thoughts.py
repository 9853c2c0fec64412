"""Which of an answer's tokens are thoughts, by the tokens that thoughts stand between."""

from collections.abc import Sequence
from typing import NamedTuple


class ThoughtIds(NamedTuple):
    """The tokens that thoughts begin and end with."""

    begin: tuple[int, ...]
    end: tuple[int, ...]

    def count(self, tokens: Sequence[int], *, begun: bool = False) -> int:
        """How many of an answer's tokens are thoughts, their marks among them. `begun`: its prompt ends amid them."""
        count = here = 0
        while begun or (found := _place(tokens, self.begin, here)) is not None:
            start = here if begun else found
            assert start is not None
            end = _place(tokens, self.end, start)
            here = len(tokens) if end is None else end + len(self.end)
            count, begun = count + here - start, False
        return count


def _place(tokens: Sequence[int], wanted: tuple[int, ...], start: int) -> int | None:
    """Where `wanted` first stands from `start` on."""
    while True:
        try:
            start = tokens.index(wanted[0], start)
        except ValueError:
            return None
        if tuple(tokens[start : start + len(wanted)]) == wanted:
            return start
        start += 1
