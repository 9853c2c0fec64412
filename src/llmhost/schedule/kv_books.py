"""The books of the KV cache: which block belongs to which sequences. It knows counts and texts, never tensors.

Invariant, audited by `check`: every block is blank, or held by one or more sequences, or kept: held by nobody, with
a text that the index knows, until somebody needs the text or the room.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from llmhost.core.step import KvMove
from llmhost.schedule.host_tier import HostTier
from llmhost.schedule.prefix import Parent, Place, PrefixIndex, Text


class KvBooks:
    """Hands out block numbers 0 .. total-1."""

    def __init__(self, total: int, block_tokens: int, host_slots: int = 0) -> None:
        serials = itertools.count(1)
        self.total = total
        self.block_tokens = block_tokens
        self.evicted = 0
        """Kept blocks whose text was given up for room."""
        self._blank = list(range(total - 1, -1, -1))  # a stack: low numbers go out first
        self._holders = [0] * total
        self._kept: dict[int, None] = {}  # in the order in which they will be evicted
        self._index = PrefixIndex(serials)
        self.host = HostTier(host_slots, serials)
        self._moves: list[KvMove] = []

    @property
    def free(self) -> int:
        """Blocks that can be taken: blank and kept ones."""
        return len(self._blank) + len(self._kept)

    @property
    def kept(self) -> int:
        return len(self._kept)

    @property
    def known(self) -> int:
        """Blocks whose text can be found, held ones among them."""
        return len(self._index)

    @property
    def capacity_tokens(self) -> int:
        return self.total * self.block_tokens

    def take(self, count: int) -> list[int]:
        """`count` blocks, evicting the least recently used of the kept ones if need be.

        Asking for more than are free is a scheduler's bug.
        """
        if count == 0:
            return []
        blank = self._blank
        assert 0 < count <= len(blank) + len(self._kept), (count, self.free)
        while len(blank) < count:
            self._evict(next(iter(self._kept)))
        taken = blank[-count:]
        del blank[-count:]
        taken.reverse()
        for block in taken:
            self._holders[block] = 1
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        """One holder less for each. The last ones go first when room is needed: others are found through those
        before them."""
        holders, texts = self._holders, self._index.texts
        for block in reversed(blocks):
            holders[block] -= 1
            if holders[block] == 0:
                if block in texts:
                    self._kept[block] = None
                else:
                    self._blank.append(block)

    def match(self, salt: str, tokens: Sequence[int], most_tokens: int) -> list[Place]:
        """The known beginning of `tokens`, of its first `most_tokens` only, on the device or on the host."""
        size, find, find_on_host = self.block_tokens, self._index.places.get, self.host.find
        places: list[Place] = []
        parent: Parent = salt
        for end in range(size, most_tokens + 1, size):
            text = (parent, tuple(tokens[end - size : end]))
            place = find(text) or find_on_host(text)
            if place is None:
                break
            places.append(place)
            parent = place.serial
        return places

    def claim(self, places: Sequence[Place]) -> list[tuple[Text, int]]:
        """One holder more for each block of a match, and for what of it is on the host a hold on its slot, so that
        nothing of it is evicted before `fetch`."""
        holders = self._holders
        claims: list[tuple[Text, int]] = []
        for block, _, is_on_host in places:
            if is_on_host:
                claims.append(self.host.claim(block))
                continue
            if holders[block] == 0:  # as `share`
                del self._kept[block]
            holders[block] += 1
        return claims

    def fetch(self, places: Sequence[Place], claims: Sequence[tuple[Text, int]]) -> list[int]:
        """The blocks of a claimed match. What is on the host gets a free block, and a move into it."""
        if not claims:
            return [place.block for place in places]
        slots = [place.block for place in places if place.is_on_host]
        fresh = self.take(len(slots))
        for slot, block, (text, serial) in zip(slots, fresh, claims, strict=True):
            self._index.enter(text, block, serial)
            self._moves.append(KvMove(block, slot, is_to_host=False))
            self.host.free(slot)
        back = iter(fresh)
        return [next(back) if place.is_on_host else place.block for place in places]

    def take_moves(self) -> list[KvMove]:
        """What a runner has to move, in this order, before it runs anything that was planned."""
        moves, self._moves = self._moves, []
        return moves

    def count_kept(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: sharing them leaves so many fewer free."""
        holders = self._holders
        return [holders[block] for block in blocks].count(0)

    def count_sole(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` have one holder, who frees them by giving them back."""
        return sum(self._holders[block] == 1 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """One holder more for each of these known blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._kept[block]
            self._holders[block] += 1

    def record(self, parent: Parent, tokens: tuple[int, ...], block: int) -> Place:
        """A held block's text has been computed. Where it is known already, the known block takes its place."""
        text: Text = (parent, tokens)
        place = self._index.find(text)
        if place is None:
            on_host = self.host.find(text)
            serial = None if on_host is None else self.host.drop(on_host.block)
            return self._index.enter(text, block, serial)
        if place.block != block:
            self.share([place.block])
            self.give_back([block])
        return place

    def forget_texts(self) -> None:
        """Nothing that was computed may be found any more; held blocks stay with their holders."""
        self._moves.clear()
        self.host.clear()
        for block in list(self._kept):
            self._drop(block)
        for block in list(self._index.blocks()):
            self._index.leave(block)

    def resize(self, total: int) -> None:
        """Change the number of blocks. Only blocks that nobody holds may go."""
        if total >= self.total:
            self._blank[:0] = range(total - 1, self.total - 1, -1)
            self._holders += [0] * (total - self.total)
        else:
            for block in [block for block in self._kept if block >= total]:
                self._drop(block)  # not to the host: its bytes are about to go
            self._blank = [block for block in self._blank if block < total]
            del self._holders[total:]
        self.total = total

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Audit the books against what sequences say they hold. Raises AssertionError on any difference."""
        holders = Counter(block for blocks in held for block in blocks)
        shown = {block: count for block, count in enumerate(self._holders) if count}
        assert shown == holders, f"the books show {shown}, and sequences hold {dict(holders)}"
        seen = sorted([*self._blank, *self._kept, *holders])
        assert seen == list(range(self.total)), f"{self.total} blocks, but the books show {seen}"
        assert all(block in self._index for block in self._kept), "a kept block has no text"
        assert not any(block in self._index for block in self._blank), "a blank block has a text"
        self.host.check()

    def _evict(self, block: int) -> None:
        """Make a kept block blank. Its text goes to the host if there is room."""
        slot = self.host.keep(*self._drop(block))
        if slot is not None:
            self._moves.append(KvMove(block, slot, is_to_host=True))

    def _drop(self, block: int) -> tuple[Text, int]:
        del self._kept[block]
        self._blank.append(block)
        self.evicted += 1
        return self._index.leave(block)
