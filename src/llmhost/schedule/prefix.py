"""Which computed blocks hold which text: the index of the prefix cache. It knows no sequences and frees nothing.

A block is found by its own tokens and by the block before it, so that a chain of look-ups follows a prompt from its
beginning. The block before is named by a serial number that is never used twice, and tokens are compared, not only
hashed: two texts can't be taken for one another. A chain begins with a salt, and chains of two salts never meet.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Parent = str | int
"""The salt at a chain's beginning, or the serial number of the block before."""


class Place(NamedTuple):
    """A block with known text, and the name by which the block after it finds it."""

    block: int
    serial: int


class PrefixIndex:
    """Full blocks by (what comes before, own tokens)."""

    def __init__(self) -> None:
        self._places: dict[tuple[Parent, tuple[int, ...]], Place] = {}
        self._keys: dict[int, tuple[Parent, tuple[int, ...]]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def find(self, parent: Parent, tokens: tuple[int, ...]) -> Place | None:
        return self._places.get((parent, tokens))

    def enter(self, parent: Parent, tokens: tuple[int, ...], block: int) -> Place:
        """Make `block` known. Neither the text nor the block may be known yet."""
        key = (parent, tokens)
        assert key not in self._places and block not in self._keys, (block, "is known already")
        self._serial += 1
        place = self._places[key] = Place(block, self._serial)
        self._keys[block] = key
        return place

    def leave(self, block: int) -> None:
        """Forget what `block` holds."""
        del self._places[self._keys.pop(block)]

    def blocks(self) -> Iterator[int]:
        return iter(self._keys)


def chain_hashes(salt: str, tokens: Sequence[int], block_tokens: int) -> list[int]:
    """A number for each full block of `tokens` that stands for the text up to its end. Two texts may share one by
    chance: good for guessing what is about to be computed, not for finding it."""
    hashes, last = [], hash(salt)
    for end in range(block_tokens, len(tokens) + 1, block_tokens):
        last = hash((last, tuple(tokens[end - block_tokens : end])))
        hashes.append(last)
    return hashes
