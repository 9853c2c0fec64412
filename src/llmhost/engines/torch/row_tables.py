"""What the host knows of the sequences that decode, kept from step to step, and packed for the device by columns.

A row's sampling never changes and its block table mostly grows at its end; so per step only starts, tokens and the
ends of tables are looked at. It knows no device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, Row
from llmhost.engines.torch.asked import COLDEST

COLUMNS = 5
"""int32 numbers of a row beside its table and how it draws: id, place, position, end, slot."""
ASKED_WORDS = 8
"""int32 words of a row's entry in `DrawAsked.packed`."""
_MASK = 2**64 - 1
_FIRST_ROWS, _FIRST_BLOCKS = 64, 64


@dataclass(slots=True)
class _Known:
    """One sequence."""

    line: int
    sampling: Sampling
    seed: int
    is_plain: bool
    """One token is wanted of it, and temperature and filters alone shape that."""
    blocks: list[int] = field(default_factory=list)
    """As its table has them."""
    seen: int = 0
    """The last step that it was in."""


class RowTables:
    """Lines for sequences, which are found again by their ids. A line is given away two steps after its last use."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._known: dict[int, _Known] = {}
        self._free: list[int] = []
        self._special = 0
        self._step = 0
        self._seeds = np.zeros(0, np.int64)
        self._heat = np.zeros((3, 0), np.float32)  # temperature, top_p, min_p
        self._top_k = np.zeros(0, np.int32)
        self._tables = np.zeros((0, _FIRST_BLOCKS), np.int32)
        self.version = 0
        """Changes whenever a table does."""

    def lines(self, rows: Sequence[Row]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Where each row is kept, with its table up to date."""
        self._step += 1
        return np.array([self._line(row) for row in rows], np.int64)

    def special(self, rows: Sequence[Row]) -> list[int]:
        """Places among `rows`, of which `lines` was asked last, of those that want more than tokens as most do."""
        held = [place for place, row in enumerate(rows) if row.grammar is not None]
        if not self._special:
            return held
        known = self._known
        return [
            place
            for place, row in enumerate(rows)
            if row.grammar is not None or not known[row.seq_id].is_plain
        ]

    def pack(
        self,
        rows: Sequence[Row],
        lines: "np.ndarray[tuple[int], np.dtype[np.int64]]",
        width: int,
        before: Mapping[int, int],
    ) -> Tensor:
        """How the rows draw and what they feed, for `width` places, those after the rows being padding.

        `before` has the place of each sequence in the step before this, where `PENDING` tokens are drawn. Returns int32
        words on the host: `DrawAsked.packed`, then `COLUMNS` columns of `width`.
        """
        count, size = len(rows), self._block_tokens
        words = np.zeros((ASKED_WORDS + COLUMNS) * width, np.int32)
        starts = np.fromiter((row.start for row in rows), np.int64, count)
        self._pack_asked(words[: ASKED_WORDS * width], starts + 1, lines, width)
        ids, places, positions, ends, slots = words[ASKED_WORDS * width :].reshape(COLUMNS, width)
        places[:] = slots[:] = -1
        for at, row in enumerate(rows):
            token = row.tokens[0]
            if token == PENDING:
                places[at] = before[row.seq_id]
            else:
                ids[at] = token
        positions[:count] = starts
        ends[:count] = starts + 1
        slots[:count] = self._tables[lines, starts // size] * size + starts % size
        return torch.from_numpy(words)

    def columns(self, rows: Sequence[Row]) -> int:
        """Blocks that the longest of the rows sees."""
        return int(max(row.start for row in rows) // self._block_tokens + 1)

    def tables(self, lines: "np.ndarray[tuple[int], np.dtype[np.int64]]", columns: int) -> Tensor:
        """Block tables [lines, columns], int32. What a table has behind its row's end means nothing."""
        return torch.from_numpy(self._tables[:, :columns].take(lines, axis=0))

    def _pack_asked(
        self,
        words: "np.ndarray[tuple[int], np.dtype[np.int32]]",
        positions: "np.ndarray[tuple[int], np.dtype[np.int64]]",
        lines: "np.ndarray[tuple[int], np.dtype[np.int64]]",
        width: int,
    ) -> None:
        count = len(lines)
        whole = words[: 4 * width].view(np.int64).reshape(2, width)
        whole[0, :count] = self._seeds[lines]
        whole[1, :count] = positions
        heat = words[4 * width :].view(np.float32).reshape(4, width)
        heat[1] = 1.0
        heat[:3, :count] = self._heat[:, lines]
        words[7 * width : 7 * width + count] = self._top_k[lines]

    def _line(self, row: Row) -> int:
        known = self._known.get(row.seq_id)
        if known is None or known.sampling is not row.sampling or known.seed != row.seed:
            known = self._admit(row)
        if known.blocks != row.blocks:
            self._update(known, row.blocks)
        known.seen = self._step
        return known.line

    def _admit(self, row: Row) -> _Known:
        if row.seq_id in self._known:
            self._forget(row.seq_id)
        if not self._free:
            self._make_room()
        line, asked = self._free.pop(), row.sampling
        known = _Known(line, asked, row.seed, asked.is_plain and not row.barred)
        self._known[row.seq_id] = known
        self._special += not known.is_plain
        self._seeds[line] = np.uint64(row.seed & _MASK).astype(np.int64)
        heat = max(asked.temperature, COLDEST) if asked.temperature else 0.0
        self._heat[:, line] = heat, asked.top_p, asked.min_p
        self._top_k[line] = min(asked.top_k or 0, 2**31 - 1)
        return known

    def _make_room(self) -> None:
        """Lines of sequences that are gone, or new ones."""
        for seq_id in [i for i, known in self._known.items() if known.seen < self._step - 1]:
            self._forget(seq_id)
        if not self._free:
            had = len(self._seeds)
            more = max(had, _FIRST_ROWS)
            self._free += range(had, had + more)
            self._seeds = np.pad(self._seeds, (0, more))
            self._heat = np.pad(self._heat, ((0, 0), (0, more)))
            self._top_k = np.pad(self._top_k, (0, more))
            self._tables = np.pad(self._tables, ((0, more), (0, 0)))

    def _forget(self, seq_id: int) -> None:
        known = self._known.pop(seq_id)
        self._free.append(known.line)
        self._special -= not known.is_plain

    def _update(self, known: _Known, blocks: Sequence[int]) -> None:
        width = self._tables.shape[1]
        if len(blocks) > width:
            more = max(width, len(blocks) - width)
            self._tables = np.pad(self._tables, ((0, 0), (0, more)))
        had = len(known.blocks)
        if list(blocks[:had]) == known.blocks:
            self._tables[known.line, had : len(blocks)] = blocks[had:]
        else:
            self._tables[known.line, : len(blocks)] = blocks
        known.blocks = list(blocks)
        self.version += 1
