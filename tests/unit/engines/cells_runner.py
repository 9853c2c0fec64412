"""A fake runner over cells and sequences instead of blocks: what the mapping between the two is tested with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.step import Drawn, KvMove, Row
from llmhost.engines.fake import FakeRunner, _advance
from llmhost.engines.llama.residents import Residents


@dataclass
class Cell:
    """One position; what it holds, and whose it is."""

    position: int
    state: int
    owners: set[int] = field(default_factory=set)


class ModelCells:
    """Does what llama.cpp does to its cells, and no more."""

    def __init__(self, room: int, scratch: int | None = None) -> None:
        self.cells: list[Cell] = []
        self.scratch = scratch
        self._room = room

    def of(self, sequence: int) -> dict[int, Cell]:
        found = [cell for cell in self.cells if sequence in cell.owners]
        by_position = {cell.position: cell for cell in found}
        assert len(by_position) == len(found), "two cells of one sequence at one position"
        return by_position

    def cut(self, sequence: int, start: int, end: int | None = None) -> None:
        for cell in self.cells:
            if start <= cell.position and (end is None or cell.position < end):
                cell.owners.discard(sequence)
        self.cells = [cell for cell in self.cells if cell.owners]

    def share(self, source: int, target: int, start: int, end: int) -> None:
        assert self.scratch is not None, "each sequence has a buffer of its own"
        for cell in self.cells:
            if source in cell.owners and start <= cell.position < end:
                cell.owners.add(target)

    def copy(self, source: int, target: int) -> None:
        self.restore(target, [self.read(source, 0, self._room)])

    def read(self, sequence: int, start: int, end: int) -> bytes:
        held = sorted(self.of(sequence).items())
        return repr([(p, cell.state) for p, cell in held if start <= p < end]).encode()

    def restore(self, sequence: int, saved: Sequence[bytes]) -> None:
        assert not self.of(sequence), "restored over something"
        for position, state in (cell for one in saved for cell in eval(one)):
            self.add(sequence, position, state)

    def add(self, sequence: int, position: int, state: int) -> None:
        self.cells.append(Cell(position, state, {sequence}))
        taken = len(self.of(sequence)) if self.scratch is None else len(self.cells)
        assert taken <= self._room, "more cells than the blocks have tokens"


class CellsRunner(FakeRunner):
    """Says what the fake runner says, from states that it finds in its sequences."""

    def __init__(
        self,
        options: FakeOptions,
        *,
        block_tokens: int,
        sequences: int,
        shares: bool = True,
    ) -> None:
        """`shares`: one buffer for all sequences, or one for each."""
        super().__init__(options, block_tokens=block_tokens)
        self._shares = shares
        self._most_sequences = sequences
        self._sequence_of: dict[int, int] = {}
        self.set_kv_blocks(0)

    def set_kv_blocks(self, count: int) -> None:
        size = self.facts.block_tokens
        old = getattr(self, "residents", None)
        sequences = getattr(self, "_most_sequences", 2)
        scratch = sequences - 1 if getattr(self, "_shares", True) else None
        self.cells = ModelCells(count * size, scratch)
        self.residents = Residents(self.cells, block_tokens=size, sequences=sequences)
        if old is not None:
            # What was held is read before its cells are gone.
            self.residents.adopt(old.save_all(count), old.host)

    def set_host_blocks(self, count: int) -> None: ...

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        self.residents.move(moves)

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        taken = self.residents.take_in(rows)
        assert len({*taken}) == len(rows), "two rows in one sequence"
        if not self._shares:
            assert sorted(taken) == [*range(len(rows))], "they do not follow one another"
        self._sequence_of = {row.seq_id: one for row, one in zip(rows, taken, strict=True)}
        return super().run(list(rows))  # its quick way through decoding rows looks into blocks

    def _feed(self, row: Row) -> list[int]:
        sequence = self._sequence_of[row.seq_id]
        held = self.cells.of(sequence)
        assert sorted(held) == list(range(row.start)), "what is held is not what is before the row"
        state = held[row.start - 1].state if row.start else 0
        fed = []
        for position, token in enumerate(row.tokens, row.start):
            state = _advance(state, token)
            self.cells.add(sequence, position, state)
            fed.append(state)
        return fed
