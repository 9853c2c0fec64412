"""Which computed blocks hold which text: the index of the prefix cache. It knows no sequences and frees nothing.

A block is found by its own tokens and by the block before it, so that a chain of look-ups follows a prompt from its
beginning. The block before is named by a serial number that is never used twice, and tokens are compared, not only
hashed: two texts can't be taken for one another. A chain begins with a salt, and chains of two salts never meet.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Parent = str | int
"""The salt at a chain's beginning, or the serial number of the block before."""

Text = tuple[Parent, tuple[int, ...]]
"""What a block holds: what comes before it, and its own tokens."""


class Place(NamedTuple):
    """A block with known text, and the name by which the block after it finds it."""

    block: int
    serial: int
    is_on_host: bool = False
    """`block` is a slot of the host tier, and not a block of the device."""


class PrefixIndex:
    """Full blocks by their text. `serials` is shared by all indexes between which texts move."""

    def __init__(self, serials: Iterator[int], *, is_on_host: bool = False) -> None:
        self.places: dict[Text, Place] = {}
        self.texts: dict[int, Text] = {}
        """Of each block that is known. Both are to be looked at only."""
        self._serials = serials
        self._is_on_host = is_on_host

    def __len__(self) -> int:
        return len(self.texts)

    def __contains__(self, block: int) -> bool:
        return block in self.texts

    def find(self, text: Text) -> Place | None:
        return self.places.get(text)

    def enter(self, text: Text, block: int, serial: int | None = None) -> Place:
        """Make `block` known, under the serial number that its text had elsewhere, or a new one.

        Neither the text nor the block may be known yet.
        """
        assert text not in self.places and block not in self.texts, (block, "is known already")
        if serial is None:
            serial = next(self._serials)
        place = self.places[text] = Place(block, serial, self._is_on_host)
        self.texts[block] = text
        return place

    def leave(self, block: int) -> tuple[Text, int]:
        """Forget `block`; returns what it held, and under which serial number."""
        text = self.texts.pop(block)
        return text, self.places.pop(text).serial

    def blocks(self) -> Iterator[int]:
        return iter(self.texts)


def chain_hashes(salt: str, tokens: Sequence[int], block_tokens: int) -> list[int]:
    """A number for each full block of `tokens` that stands for the text up to its end. Two texts may share one by
    chance: good for guessing what is about to be computed, not for finding it."""
    hashes, last = [], hash(salt)
    for end in range(block_tokens, len(tokens) + 1, block_tokens):
        last = hash((last, tuple(tokens[end - block_tokens : end])))
        hashes.append(last)
    return hashes
