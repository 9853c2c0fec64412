"""Which sequences of llama.cpp hold which KV blocks, and how a row's block table is brought about from them.

llama.cpp has no blocks: it has cells, which belong to sequences, and a unified cache in which one cell may belong to
many of them. So a block is the cells that any sequence holds for its positions. A row gets a sequence that holds
exactly what the row's table says below its start; what it lacks it shares with a sequence that has it, at no cost.
Sequences stay when their row has ended, because nobody says which blocks are still known to somebody. The least
recently used one makes room, and blocks that only it held go to host memory until they are asked for or overwritten.

Where each sequence has a buffer of its own, what it lacks is copied; and since llama.cpp computes sequences together
only if their numbers follow one another, those that run have the lowest.

It knows no model and no tokens. Cells in use never exceed the blocks' tokens where a block's cells are shared, and
whoever writes into a block takes it from all others.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, cast

from llmhost.core.errors import EngineFailed
from llmhost.core.step import KvMove, Row


class Cells(Protocol):
    """Keys and values by sequence and position, as llama.cpp keeps them."""

    scratch: int | None
    """A sequence that is kept free, to move single blocks through; None where cells can't be shared."""

    def cut(self, sequence: int, start: int, end: int | None = None) -> None:
        """A sequence holds positions from `start` on no more."""
        ...

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """`target` holds the cells of `source` at these positions, too."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Have an empty sequence hold what another one holds, where cells can't be shared. Raises as `restore`."""
        ...

    def read(self, sequence: int, start: int, end: int) -> bytes:
        """What a sequence holds at these positions."""
        ...

    def restore(self, sequence: int, saved: Sequence[bytes]) -> None:
        """Have an empty sequence hold all that was read. May raise, and then it holds nothing."""
        ...


class Held:
    """What one sequence of llama.cpp holds: a block for each place of its table, or None for a hole."""

    __slots__ = ("blocks", "tokens")

    def __init__(self) -> None:
        self.blocks: list[int | None] = []
        self.tokens = 0
        """Positions below this are held, but for holes."""


class Residents:
    """Owner of the sequences of one context."""

    def __init__(self, cells: Cells, *, block_tokens: int, sequences: int) -> None:
        self._cells = cells
        self._size = block_tokens
        self._scratch = cells.scratch
        usable = sequences - (self._scratch is not None)
        assert usable, "one sequence at least runs"
        self._held = [Held() for _ in range(usable)]
        self._empty = list(range(usable - 1, -1, -1))
        self._recent: dict[int, int | None] = {}
        """Sequences that hold something, the least recently used first, and the row's that each is for."""
        self._of_row: dict[int, int] = {}
        self._holders: dict[int, set[int]] = {}
        self._place: dict[int, int] = {}
        """At which place of every table a block is."""
        self._saved: dict[int, tuple[int, bytes]] = {}
        """Blocks that no sequence holds: their place, and their bytes."""
        self._host: dict[int, tuple[int, bytes]] = {}

    # ------------------------------------------------------------ a step

    def take_in(self, rows: Sequence[Row]) -> list[int]:
        """The sequence of each row. It holds what the row's table says below its start, and is about to hold what
        the row feeds. Raises EngineFailed when what a table says is nowhere."""
        taken = [self._go_on(row, len(rows)) for row in rows]
        places = [at for at, sequence in enumerate(taken) if sequence is None]
        if places:
            busy = {sequence for sequence in taken if sequence is not None}
            found = self._take_in_others([rows[at] for at in places], busy, len(rows))
            for at, sequence in zip(places, found, strict=True):
                taken[at] = sequence
        return cast(list[int], taken)

    def _go_on(self, row: Row, running: int) -> int | None:
        """The sequence of a row that has all that it needs and feeds one token more: of nearly every row there is.

        None where it does not, and nothing has changed.
        """
        start, blocks = row.start, row.blocks
        sequence = self._of_row.get(row.seq_id)
        if sequence is None or len(row.tokens) != 1:
            return None
        held = self._held[sequence]
        if held.tokens != start or (self._scratch is None and sequence >= running):
            return None
        count, place = len(held.blocks), start // self._size
        if held.blocks != (blocks if len(blocks) == count else blocks[:count]):
            return None
        block = blocks[place]
        if place < count:
            if len(self._holders[block]) != 1:
                return None
        elif block in self._holders:
            return None
        else:
            self._hold(sequence, place, block)
        self._saved.pop(block, None)
        held.tokens = start + 1
        self._use(sequence, row)
        return sequence

    def _use(self, sequence: int, row: Row) -> None:
        """It is the most recently used one, and the row's."""
        self._recent.pop(sequence, None)
        self._recent[sequence] = row.seq_id
        self._of_row[row.seq_id] = sequence

    def _take_in_others(self, rows: Sequence[Row], busy: set[int], running: int) -> list[int]:
        """As `take_in`, for rows that begin, or that have to be given something. Sequences in `busy` are others'."""
        owns = [self._own(row) for row in rows]
        for row, own in zip(rows, owns, strict=True):
            self._take_from_others(row, own)
        busy.update(own for own in owns if own is not None)
        taken: dict[int, int] = {}
        for at in self._order(rows, owns):
            row, own = rows[at], owns[at]
            is_high = self._scratch is None and own is not None and own >= running
            sequence = self._free_one(busy) if own is None or is_high else own
            busy.add(sequence)
            self._use(sequence, row)
            if own is not None and sequence != own:
                self._move_whole(own, sequence)
            self._bring(sequence, row)
            self._enter(sequence, row)
            taken[at] = sequence
        return [taken[at] for at in range(len(rows))]

    def _order(self, rows: Sequence[Row], owns: Sequence[int | None]) -> Sequence[int]:
        """In which rows get their sequences. What newcomers feed beyond the shortest of them is computed together only
        if those that have it follow one another, so the longest come first where that counts."""
        order = range(len(rows))
        if self._scratch is not None:
            return order
        return sorted(order, key=lambda at: (owns[at] is None, -len(rows[at].tokens)))

    def _own(self, row: Row) -> int | None:
        """The sequence that a row had before, if it can go on with it.

        Not when it held blocks after the row's start that are no longer the row's: the row has begun anew, and
        somebody may still know what they hold. Blocks before its start may have been replaced by others of one text.
        """
        sequence = self._of_row.get(row.seq_id)
        if sequence is None:
            return None
        held, first = self._held[sequence].blocks, row.start // self._size
        if held[first:] == list(row.blocks[first : len(held)]):
            return sequence
        del self._of_row[row.seq_id]
        self._recent[sequence] = None
        return None

    def undo(self, rows: Sequence[Row]) -> None:
        """What the rows fed came to nothing, or only some of them were taken in."""
        for row in rows:
            if (sequence := self._of_row.get(row.seq_id)) is not None:
                self._cut_tail(sequence, row.start)

    def _take_from_others(self, row: Row, own: int | None) -> None:
        """What a row writes into is no longer what others hold it for."""
        size, end = self._size, row.start + len(row.tokens)
        for place in range(row.start // size, -(-end // size)):
            block = row.blocks[place]
            if place * size >= row.start:
                self._saved.pop(block, None)
            for other in [*self._holders.get(block, ())]:
                if other != own or self._place[block] != place:
                    self._drop(other, self._place[block])

    def _bring(self, sequence: int, row: Row) -> None:
        """Have a sequence hold what a row's table says below the row's start, and nothing else."""
        held, start = self._held[sequence], row.start
        self._cut_tail(sequence, start)
        count = -(-start // self._size)
        wanted = list(row.blocks[:count])
        if held.blocks == wanted:
            return
        if self._scratch is None:
            self._copy_in(sequence, wanted)
        else:
            self._share_in(sequence, wanted)
        self._cells.cut(sequence, start)  # a block that was saved may hold guesses that were wrong
        held.tokens = start

    def _move_whole(self, source: int, target: int) -> None:
        """What runs in one sequence goes on in another, which is empty."""
        self._cells.copy(source, target)
        held, moved = self._held[source], self._held[target]
        for place, block in enumerate(held.blocks):
            if block is not None:
                self._hold(target, place, block)
        moved.tokens = held.tokens
        self._clear(source)

    def _copy_in(self, sequence: int, wanted: Sequence[int]) -> None:
        copies = [self._found(place, block) for place, block in enumerate(wanted)]
        self._clear_cells(sequence)
        if not copies:
            return
        self._cells.restore(sequence, copies)
        for place, block in enumerate(wanted):
            self._saved.pop(block, None)
            self._hold(sequence, place, block)
        self._held[sequence].tokens = len(wanted) * self._size

    def _found(self, place: int, block: int) -> bytes:
        """What a block holds. Raises EngineFailed when it is nowhere."""
        copy = self._copy(block)
        if copy is None or copy[0] != place:
            raise _lost(block)
        return copy[1]

    def _share_in(self, sequence: int, wanted: Sequence[int]) -> None:
        held = self._held[sequence]
        for place, block in enumerate(wanted):
            have = held.blocks[place] if place < len(held.blocks) else None
            if have != block:
                if have is not None:
                    self._drop(sequence, place)
                self._fetch(sequence, place, block)

    def _fetch(self, sequence: int, place: int, block: int) -> None:
        assert self._scratch is not None
        first, end = place * self._size, (place + 1) * self._size
        source = next(iter(self._holders.get(block, ())), None)
        if source is not None and self._place[block] == place:
            self._cells.share(source, sequence, first, end)
        elif block in self._saved and self._saved[block][0] == place:
            self._cells.restore(self._scratch, [self._saved[block][1]])
            del self._saved[block]
            self._cells.share(self._scratch, sequence, first, end)
            self._cells.cut(self._scratch, 0)
        else:
            raise _lost(block)
        self._hold(sequence, place, block)

    def _enter(self, sequence: int, row: Row) -> None:
        """Note the blocks that the row is about to fill."""
        held, end = self._held[sequence], row.start + len(row.tokens)
        for place in range(len(held.blocks), -(-end // self._size)):
            self._hold(sequence, place, row.blocks[place])
        held.tokens = end

    # ------------------------------------------------------------ books

    def _hold(self, sequence: int, place: int, block: int) -> None:
        blocks = self._held[sequence].blocks
        blocks += [None] * (place + 1 - len(blocks))
        blocks[place] = block
        self._holders.setdefault(block, set()).add(sequence)
        self._place[block] = place

    def _drop(self, sequence: int, place: int) -> None:
        """A sequence holds the block at a place no more."""
        held = self._held[sequence]
        self._cells.cut(sequence, place * self._size, (place + 1) * self._size)
        self._forget(sequence, place)
        while held.blocks and held.blocks[-1] is None:
            held.blocks.pop()
        held.tokens = min(held.tokens, len(held.blocks) * self._size)

    def _forget(self, sequence: int, place: int) -> None:
        block, self._held[sequence].blocks[place] = self._held[sequence].blocks[place], None
        if block is None:
            return
        holders = self._holders[block]
        holders.discard(sequence)
        if not holders:
            del self._holders[block], self._place[block]

    def _cut_tail(self, sequence: int, tokens: int) -> None:
        """A sequence holds `tokens` at most."""
        held = self._held[sequence]
        if held.tokens <= tokens:
            return
        self._cells.cut(sequence, tokens)
        for place in range(-(-tokens // self._size), len(held.blocks)):
            self._forget(sequence, place)
        del held.blocks[-(-tokens // self._size) :]
        held.tokens = tokens

    def _free_one(self, busy: set[int]) -> int:
        """An empty sequence; the least recently used one is emptied when there is none, or the lowest that rests."""
        if self._scratch is None:
            oldest = next((one for one in range(len(self._held)) if one not in busy), None)
            if oldest in self._empty:
                self._empty.remove(oldest)
                return oldest
        else:
            if self._empty:
                return self._empty.pop()
            oldest = next((one for one in self._recent if one not in busy), None)
        if oldest is None:
            raise EngineFailed(
                f"llama.cpp runs at most {len(self._held)} sequences at once: set max_batch_size to that or less."
            )
        self._evict(oldest)
        return self._empty.pop()

    def _evict(self, sequence: int) -> None:
        held = self._held[sequence]
        for place, block in enumerate(held.blocks):
            if block is not None and len(self._holders[block]) == 1:
                self._saved[block] = (place, self._read(sequence, place))
        self._clear(sequence)

    def _clear_cells(self, sequence: int) -> None:
        """A sequence holds nothing, whatever it was meant to hold."""
        self._cells.cut(sequence, 0)
        held = self._held[sequence]
        for place in range(len(held.blocks)):
            self._forget(sequence, place)
        held.blocks.clear()
        held.tokens = 0

    def _clear(self, sequence: int) -> None:
        self._cut_tail(sequence, 0)
        seq_id = self._recent.pop(sequence, None)
        if seq_id is not None and self._of_row.get(seq_id) == sequence:
            del self._of_row[seq_id]
        self._empty.append(sequence)

    def _read(self, sequence: int, place: int) -> bytes:
        return self._cells.read(sequence, place * self._size, (place + 1) * self._size)

    # ------------------------------------------------------------ host memory

    def move(self, moves: Iterable[KvMove]) -> None:
        """Blocks to host memory and back, in order. What comes back stays there until a row asks for it."""
        for block, slot, is_to_host in moves:
            if is_to_host:
                if (copy := self._copy(block)) is not None:
                    self._host[slot] = copy
            elif slot in self._host:
                for other in [*self._holders.get(block, ())]:
                    self._drop(other, self._place[block])
                self._saved[block] = self._host[slot]

    def _copy(self, block: int) -> tuple[int, bytes] | None:
        holders = self._holders.get(block)
        if not holders:
            return self._saved.get(block)
        place = self._place[block]
        return place, self._read(next(iter(holders)), place)

    def save_all(self, below: int) -> dict[int, tuple[int, bytes]]:
        """Every block below a number that holds something, for residents of another context."""
        found = ((block, self._copy(block)) for block in {*self._holders, *self._saved})
        return {block: copy for block, copy in found if copy is not None and block < below}

    def adopt(
        self, saved: dict[int, tuple[int, bytes]], host: dict[int, tuple[int, bytes]]
    ) -> None:
        """Go on with what others held."""
        self._saved, self._host = saved, host

    @property
    def host(self) -> dict[int, tuple[int, bytes]]:
        return self._host

    def park(self, rows: Iterable[Row], tokens: int) -> bool:
        """Have the sequences that rest longest wait in host memory, until so many tokens' cells are free.

        Those of `rows` stay. False where there is none other.
        """
        busy = {self._of_row.get(row.seq_id) for row in rows}
        resting = [one for one in self._recent if one not in busy]
        for sequence in resting:
            sole = sum(
                block is not None and len(self._holders[block]) == 1
                for block in self._held[sequence].blocks
            )
            self._evict(sequence)
            tokens -= sole * self._size
            if tokens <= 0:
                break
        return bool(resting)

    @property
    def saved_tokens(self) -> int:
        """That wait in host memory, as many as their blocks have room for."""
        return len(self._saved) * self._size

    def waiting_tokens(self, rows: Iterable[Row]) -> int:
        """That would wait there if only what `rows` name were held by sequences."""
        named = {block for row in rows for block in row.blocks}
        known = {*self._holders, *self._saved}
        return len(known - named) * self._size

    def forget_from(self, block: int) -> None:
        """Blocks from this number on are no more."""
        for gone in [one for one in self._saved if one >= block]:
            del self._saved[gone]
        for gone in [one for one in self._holders if one >= block]:
            for sequence in [*self._holders[gone]]:
                self._drop(sequence, self._place[gone])


def _lost(block: int) -> EngineFailed:
    return EngineFailed(
        f"The keys and values of KV block {block} are lost; the prompt must be computed again."
    )
