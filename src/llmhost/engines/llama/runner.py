"""The llama runner: each step is a call of `llama_decode` over sequences that hold what the rows' block tables say.

It draws as the torch engine does on the CPU, with the same sampler over llama.cpp's logits, which are not copied: a
seed gives the same draw from the same logits in both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmhost.core.errors import EngineFailed, OutOfMemory
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Drawn, KvMove, Row
from llmhost.engines.drawing import is_plain
from llmhost.engines.llama.adapters import LlamaAdapters
from llmhost.engines.llama.computing import Computing
from llmhost.engines.llama.context import Context, ContextShape, Logits, NoRoom, Room, padded
from llmhost.engines.llama.residents import Residents
from llmhost.engines.llama.results import has_no_numbers, likeliest
from llmhost.engines.llama.rooms import (
    TOO_FEW_ROWS,
    apart_for,
    most_cells,
    most_tokens,
    spare_tokens,
    suits,
)
from llmhost.engines.masks import MaskFiller, Masks
from llmhost.engines.torch.sampler import Sampler
from llmhost.engines.torch.scoring import Scores, with_scores

LEAST_CELLS = 2048
"""Of a context on the CPU. It grows with what runs: each step looks at all cells in use, whoever's they are, so what
rests waits in host memory instead. Both together stay within what was leased, but for the moment in which a context is
made anew."""
SHRINK_EVERY = 256
"""Steps between two looks at whether the context has become too large."""


class LlamaRunner:
    """A GGUF model, its context and its sampler. Implements the Runner port."""

    def __init__(
        self, library: Any, model: Any, path: Path, shape: ContextShape, facts: RunnerFacts
    ) -> None:
        """`path` is the model's file."""
        self.facts = facts
        self.adapters = LlamaAdapters(library, model, path, self._run_plain)
        self._llama = library
        self._model = model
        self._shape = shape
        self._blocks = self._steps = 0
        self._is_together = False
        """For a while, since buffers of their own did not suit what ran: to change back and forth would be dear."""
        self._context: Context | None = None
        self._residents: Residents | None = None
        # Then NaN of one sequence may become another's, so each row of a step is looked at.
        self._spreads = shape.flash_attention != library.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._computing = Computing(
            self.adapters,
            vocab_size=facts.vocab_size,
            outputs=shape.outputs,
            watches=self._spreads,
        )
        self._sampler = Sampler()
        self._masks = MaskFiller()

    # ------------------------------------------------------------ KV memory

    def set_kv_blocks(self, count: int) -> None:
        """What the blocks below both counts hold is kept."""
        self._blocks = count
        if count == 0:
            self._close_context()
        elif self._context is None:
            self._rebuild(Room(LEAST_CELLS))
        elif self._room_for(self._context.room) != self._context.room:
            self._rebuild(Room(max(self._context.room.tokens, LEAST_CELLS)))
        elif self._residents is not None:
            self._residents.forget_from(count)
            if self._holds_too_much:
                self._rebuild(Room(self.context_cells))

    @property
    def _lease_tokens(self) -> int:
        return self._blocks * self.facts.block_tokens

    def _room_for(self, room: Room) -> Room:
        """What a room is bounded to by the lease. On a GPU a shared one has all of it at once."""
        whole = padded(self._lease_tokens)
        if room.buffers:
            return room if room.tokens <= whole else Room(whole)
        return Room(
            whole if self._shape.offloads_kv else min(padded(max(room.cells, LEAST_CELLS)), whole)
        )

    @property
    def held_tokens(self) -> int:
        """Room of the context, and what waits beside it in host memory. On a GPU that is not the lease's."""
        waiting = 0 if self._residents is None else self._residents.saved_tokens
        return self.context_cells + (0 if self._shape.offloads_kv else waiting)

    @property
    def _holds_too_much(self) -> bool:
        most = most_tokens(self._lease_tokens)
        return self.held_tokens > most and not self._shape.offloads_kv

    def _within(self, room: Room, rows: Sequence[Row]) -> Room:
        """A room, or the largest that the lease has room for beside all that is not of `rows`."""
        room = self._room_for(room)
        if self._residents is None or self._shape.offloads_kv:
            return room
        most = most_cells(self._lease_tokens, self._residents.waiting_tokens(rows))
        return room if room.tokens <= most else Room(most)

    def _rebuild(self, room: Room, rows: Sequence[Row] = ()) -> None:
        """Another context, no larger than leaves room for all that is not of `rows`. What the old one's blocks held
        waits in host memory until a row asks for it.

        Raises OutOfMemory; what was there before a failed growth is there again.
        """
        old = self._residents
        room = self._within(room, rows)
        saved = {} if old is None else old.save_all(self._blocks)
        host = {} if old is None else old.host
        before = None if self._context is None else self._context.room
        self._close_context()
        try:
            self._start(room)
        except OutOfMemory:
            if before is not None:
                self._start(before)  # the step that wanted more fails, and those after it need not
            raise
        finally:
            if self._residents is not None:
                self._residents.adopt(saved, host)

    def _start(self, room: Room) -> None:
        """An empty context. Raises OutOfMemory."""
        self._context = Context(self._llama, self._open(), self._shape, room)
        self._residents = Residents(
            self._context,
            block_tokens=self.facts.block_tokens,
            sequences=self._context.sequences,
        )
        self._steps = 0

    def _make_room(self, rows: Sequence[Row]) -> None:
        """Have what rests wait in host memory, or the context grow where most of it runs. Raises OutOfMemory."""
        assert self._context is not None and self._residents is not None
        running = sum(row.start + len(row.tokens) for row in rows)
        if self._context.room.buffers:
            self._is_together = True
            self._rebuild(Room(2 * running), rows)
            return
        cells = self._context.room.cells
        is_whole = self._within(Room(2 * cells), rows).cells <= cells
        least = min(cells // 4, spare_tokens(self._lease_tokens))
        if (is_whole or 2 * running < cells) and self._residents.park(rows, least):
            return
        if is_whole:
            raise OutOfMemory("llama.cpp has no cells left for this step.")
        self._rebuild(Room(2 * cells), rows)

    def _suit(self, rows: Sequence[Row]) -> None:
        """Have a buffer for each sequence or one for all, as it suits the rows."""
        if self._context is None:
            return
        room = self._context.room
        if room.buffers and suits(room, rows, self._shape):
            return
        wanted = apart_for(rows, self._shape, self._lease_tokens)
        try:
            if wanted is not None and not self._is_together:
                self._is_together = self._within(wanted, rows) != wanted
            if wanted is not None and not self._is_together:
                self._rebuild(wanted, rows)
            elif room.buffers:
                self._is_together = True
                self._rebuild(Room(2 * sum(row.start + len(row.tokens) for row in rows)), rows)
        except OutOfMemory:  # it goes on as it was
            self._is_together = True

    def _shrink(self, rows: Sequence[Row]) -> None:
        """Every step computes over all cells that are held: a context that a busy hour has grown is made smaller."""
        self._steps += 1
        if self._steps < SHRINK_EVERY or self._context is None:
            return
        self._steps, self._is_together = 0, False
        running = sum(row.start + len(row.tokens) for row in rows)
        smaller = self._room_for(Room(4 * running))
        room = self._context.room
        is_lull = len(rows) < TOO_FEW_ROWS and self._shape.layout != "partitioned"
        if is_lull if room.buffers else 8 * running < room.cells and smaller.cells < room.cells:
            self._rebuild(smaller, rows)

    def set_host_blocks(self, count: int) -> None:
        """Host memory is taken block by block, as blocks are moved there."""

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        if self._residents is not None:
            self._residents.move(moves)

    # ------------------------------------------------------------ a step

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        """One forward pass over `rows`. A row for which the model computed no numbers fails alone."""
        if not rows:
            return []
        if lost := self.adapters.missing(rows):
            rest = iter(self.run([row for at, row in enumerate(rows) if at not in lost]))
            return [lost[at] if at in lost else next(rest) for at in range(len(rows))]
        self._shrink(rows)
        self._suit(rows)
        answers, is_sound = self._answer(rows)
        return answers if is_sound or not self._spreads else self._apart(rows)

    def _answer(self, rows: Sequence[Row]) -> tuple[list[Drawn], bool]:
        """What the rows say, and whether the model computed numbers for all of them."""
        masks = self._masks.start(rows, self.facts.vocab_size)
        try:
            logits, scores = self._compute_somehow(rows)
        finally:
            filled = masks()  # nobody may touch a grammar before this is done
        drawing = [row for row in rows if row.wants_token]
        drawn = iter(self._draw(logits, drawing, filled))
        answers: list[Drawn] = [next(drawn) if row.wants_token else None for row in rows]
        for at, scored in scores.items():
            answers[at] = with_scores(answers[at], scored)
        if not any(isinstance(answer, EngineFailed) for answer in answers):
            return answers, True
        is_sound = not any(isinstance(scored, EngineFailed) for scored in scores.values())
        return answers, is_sound and not has_no_numbers(logits)

    def _apart(self, rows: Sequence[Row]) -> list[Drawn]:
        """A step in which numbers of one row may have spoilt those of others: without flash attention each is
        multiplied by what all cells hold, those of others by zero, and zero times what is no number is none.

        So the cells are made anew, the rows computed in halves, and one alone is believed the second time.
        """
        self._clean(rows)
        if len(rows) > 1:
            half = len(rows) // 2
            return [*self._in_part(rows[:half]), *self._in_part(rows[half:])]
        answers, is_sound = self._answer(rows)
        if not is_sound:
            self._clean(rows)
        return answers

    def _in_part(self, rows: Sequence[Row]) -> list[Drawn]:
        answers, is_sound = self._answer(rows)
        return answers if is_sound else self._apart(rows)

    def _clean(self, rows: Sequence[Row]) -> None:
        """Another context, of which no cell holds what is no number, and what the rows fed is in none."""
        if self._context is not None and self._residents is not None:
            self._residents.undo(rows)
            self._rebuild(self._context.room, rows)

    def _draw(self, logits: Logits, rows: Sequence[Row], masks: Masks) -> list[Drawn]:
        """As the torch engine draws. The likeliest tokens alone are found without going through it: in a small model's
        step even that can be felt."""
        for row in rows:
            if row.sampling.temperature != 0.0 or not is_plain(row):
                return self._sampler.sample(torch.from_numpy(logits), rows, masks)
        return [likeliest(line, row) for line, row in zip(logits, rows, strict=True)]

    def _compute_somehow(self, rows: Sequence[Row]) -> tuple[Logits, Mapping[int, Scores]]:
        """As `_compute`, making room as often as that helps."""
        while True:
            try:
                context, sequences = self._take_in(rows)
                found = self._computing.run(context, rows, sequences)
                self._computing.is_roomy = True
                return found
            except NoRoom:
                self._undo(rows)
                if not self._computing.is_roomy:
                    self._make_room(rows)
                self._computing.is_roomy = False
            except Exception:
                self._undo(rows)
                raise

    def _take_in(self, rows: Sequence[Row]) -> tuple[Context, list[int]]:
        """The rows' sequences. Where too much waits beside them in host memory the context is made smaller."""
        if self._context is None or self._residents is None:
            self._open()
            raise EngineFailed("This model has no KV memory.")
        sequences = self._residents.take_in(rows)
        if self._holds_too_much:
            self._undo(rows)
            self._is_together = self._is_together or self.buffers > 0
            self._rebuild(Room(self.context_cells), rows)
            sequences = self._residents.take_in(rows)
        return self._context, sequences

    def _undo(self, rows: Sequence[Row]) -> None:
        if self._residents is not None:
            self._residents.undo(rows)

    @property
    def context_cells(self) -> int:
        """Tokens that the context has room for right now; 0 without one."""
        return 0 if self._context is None else self._context.room.tokens

    @property
    def buffers(self) -> int:
        """One for each sequence, or 0 where all share one."""
        return 0 if self._context is None else self._context.room.buffers

    def interrupt(self) -> None:
        """Have the running step end at once. From any thread, when the model is to be closed."""
        if (context := self._context) is not None:
            context.interrupt()

    def close(self) -> None:
        self._close_context()
        self._masks.close()
        if self._model is not None:
            self._llama.llama_model_free(self._model)
        self.adapters.forget()
        self._model = None
        self._blocks = 0

    def _run_plain(self) -> None:
        if self._context is not None:
            self._context.adapt(None)

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context = self._residents = None

    def _open(self) -> Any:
        if self._model is None:
            raise EngineFailed("This model was unloaded; it can't run another step.")
        return self._model
