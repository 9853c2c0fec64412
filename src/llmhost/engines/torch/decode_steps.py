"""Steps in which every row feeds one token, as they run on a GPU: one copy of inputs, one graph, nobody waits.

What such a step computes is the same for every batch of one width, so it is captured once per width as a CUDA graph,
for a few widths; smaller batches are padded. Everything that differs from step to step lies in tensors that stay where
they are. Tokens that are drawn stay on the device, where the next step finds them.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmhost.core.step import PENDING, Drawn, Row
from llmhost.engines.drawing import Place, answer, is_plain, settled
from llmhost.engines.masks import Masks
from llmhost.engines.torch.asked import DrawAsked, asked_of, to_device
from llmhost.engines.torch.logprobs import read
from llmhost.engines.torch.row_tables import ASKED_WORDS, COLUMNS, RowTables
from llmhost.engines.torch.sampler import Reports, failed_draw

log = logging.getLogger("llmhost.engines")

MOST_DRAWN = 4096
"""Tokens that one step can draw: as many as `max_batch_size` can be."""
WIDTHS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Rows of a step that a graph is captured for. More rows than the last are run without."""


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """What kernels read of such a step, [width] each, int32 on the device."""

    ids: Tensor
    """Tokens to feed; of padding 0."""
    positions: Tensor
    ends: Tensor
    """Positions that the row sees; 0 for padding."""
    slots: Tensor
    """Where its key and value go; -1 for padding."""
    tables: Tensor
    """[width, most blocks of a sequence]"""


class Draws:
    """Tokens that a launched step has drawn, on their way to the host."""

    def __init__(
        self, rows: Sequence[Row | None], drawn: Tensor, reports: Reports | None = None
    ) -> None:
        """`rows` are those of the first places of `drawn`, and None for a row that wants no token."""
        self._rows = rows
        self._asked = () if reports is None else reports.asked
        self._count = count = sum(row is not None for row in rows)
        numbers = drawn[:count]
        if reports is not None:
            numbers = torch.cat([numbers, reports.measured.view(-1)])
        self._event: torch.cuda.Event | None = None
        if drawn.device.type == "cuda":
            self._numbers = torch.empty(len(numbers), dtype=torch.int32, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._numbers = numbers.clone()

    def land(self) -> list[Drawn]:
        if self._event is not None:
            self._event.synchronize()
        tokens = self._numbers[: self._count].tolist()
        said: list[Drawn] = tokens
        if self._asked or (tokens and min(tokens) < 0):
            said = self._more_than_tokens(tokens)
        if self._count == len(self._rows):
            return said
        rest = iter(said)
        return [None if row is None else next(rest) for row in self._rows]

    def _more_than_tokens(self, tokens: Sequence[int]) -> list[Drawn]:
        rows = [row for row in self._rows if row is not None]
        said: list[Drawn] = [
            failed_draw(Place(row), token) if token < 0 else token
            for row, token in zip(rows, tokens, strict=True)
        ]
        if not self._asked:
            return said
        table = self._numbers[self._count :].numpy().reshape(len(self._asked), -1)
        for (place, count), measured in zip(self._asked, table, strict=True):
            if (token := tokens[place]) >= 0:
                said[place] = answer((token,), (read(measured, token, count),))
        return said


class InOrder(NamedTuple):
    """Draws of rows that were put into another order."""

    draws: Draws
    order: Sequence[int]

    def land(self) -> list[Drawn]:
        drawn: list[Drawn] = [None] * len(self.order)
        for i, one in zip(self.order, self.draws.land(), strict=True):
            drawn[i] = one
        return drawn


DrawSpecial = Callable[
    [Tensor, Sequence[Row], Sequence[int], Tensor, Tensor, Masks], Reports | None
]


class Begun(NamedTuple):
    """A step whose plain rows have been drawn for, on the device."""

    rows: Sequence[Row | None]
    """As they are given, and None for a row that wants no token."""
    logits: Tensor | None
    """[rows that want a token, vocabulary]; valid until the next step."""
    drawing: Sequence[Row]
    special: Sequence[int]
    """Places among those that draw, of rows that are yet to be drawn for or reported of."""
    fed: Tensor
    order: Sequence[int] | None = None


class _Graph(NamedTuple):
    replay: Callable[[], None]
    logits: Tensor


class DecodeSteps:
    """Runs them for one model. `compute` makes logits [width, vocabulary] of a step's rows; `draw` takes logits and how
    to draw, and fills `drawn`; `draw_special` does so after it for rows that want more, as `Sampler.draw_ahead`."""

    def __init__(
        self,
        compute: Callable[[DecodeRows], Tensor],
        draw: Callable[[Tensor, DrawAsked, Tensor], None],
        draw_special: DrawSpecial,
        *,
        block_tokens: int,
        longest: int,
        device: torch.device,
        captures: bool = True,
    ) -> None:
        from llmhost.engines.torch.kernels.feed import feed_tokens

        self._compute = compute
        self._draw = draw
        self._draw_special = draw_special
        self._feed = feed_tokens
        self._device = device
        self._captures = self._may_capture = captures and device.type == "cuda"
        self._aside: Any = None  # the stream of all captures: libraries keep a room for each
        self._tables = RowTables(block_tokens)
        most, blocks = WIDTHS[-1], -(-longest // block_tokens)
        self._words = torch.zeros((ASKED_WORDS + COLUMNS) * most, dtype=torch.int32, device=device)
        self._ids = torch.zeros(most, dtype=torch.int32, device=device)
        self._blocks = torch.zeros((most, blocks), dtype=torch.int32, device=device)
        self.drawn = torch.zeros(MOST_DRAWN, dtype=torch.int32, device=device)
        """What the last launched step drew, by place."""
        self.places: Mapping[int, int] = {}
        """And the place of each of its sequences."""
        self._graphs: dict[int, _Graph] = {}
        self._pool: Any = None  # of the memory that graphs share
        self._on_device: tuple[bytes, int, int] | None = (
            None  # which tables are there, of what version and width
        )

    def takes(self, rows: Sequence[Row]) -> bool:
        """Every row feeds one token and draws one, and no more of them than there are graphs for."""
        return len(rows) <= WIDTHS[-1] and all(
            len(row.tokens) == 1 and row.wants_token for row in rows
        )

    def begin(self, rows: Sequence[Row]) -> Begun:
        """Compute, and draw for rows that want nothing special."""
        logits = self.logits(rows)
        self.places = {row.seq_id: place for place, row in enumerate(rows)}
        special = self._tables.special(rows)
        return Begun(rows, logits, rows, special, self._ids)

    def fill_pending(self, ids: Tensor, offsets: Sequence[int], rows: Sequence[Row]) -> None:
        """Put what the step before has drawn into `ids` [T] of a step of any form, whose row r begins at offsets[r]."""
        found = [
            (offset, self.places[row.seq_id])
            for offset, row in zip(offsets, rows, strict=False)
            if row.tokens[0] == PENDING
        ]
        if found:
            at, places = to_device(torch.tensor(found).T.contiguous(), self._device)
            ids[at] = self.drawn[places].clamp(min=0).to(ids.dtype)

    def begin_drawing(
        self, logits: Tensor | None, rows: Sequence[Row], order: Sequence[int], fed: Tensor
    ) -> Begun:
        """Draw for a step of any form: `logits` [rows that want a token, vocabulary], each of which was `fed` that
        token last. `order` leads back to the order in which the rows were given."""
        drawing = [row for row in rows if row.wants_token]
        if logits is not None:
            asked = asked_of([Place(row) for row in drawing], self._device)
            self._draw(logits, asked, self.drawn)
        self.places = {row.seq_id: place for place, row in enumerate(drawing)}
        special = [place for place, row in enumerate(drawing) if not is_plain(row)]
        given = [row if row.wants_token else None for row in rows]
        return Begun(given, logits, drawing, special, fed, order)

    def finish(self, begun: Begun, masks: Callable[[Sequence[Row]], Masks]) -> "Draws | InOrder":
        """Draw what is special, and have it all on its way to the host. `masks` makes those of rows with grammars."""
        given, special = begun.rows, begun.special
        reports = None
        if special and begun.logits is not None:
            rows = [*begun.drawing]
            for place in special:
                rows[place] = settled(rows[place])
            held = masks([rows[place] for place in special])
            reports = self._draw_special(begun.logits, rows, special, begun.fed, self.drawn, held)
            those = iter(rows)
            given = [None if row is None else next(those) for row in given]
        draws = Draws(given, self.drawn, reports)
        return draws if begun.order is None else InOrder(draws, begun.order)

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """[rows, vocabulary], in the order of the rows; valid until the next step."""
        width = WIDTHS[bisect_left(WIDTHS, len(rows))]
        self._bring(rows, width)
        graph = self._graphs.get(width) or self._captured(width)
        if graph is None:
            return self._body(width)[: len(rows)]
        graph.replay()
        return graph.logits[: len(rows)]

    def prepare(self, most_rows: int) -> None:
        """Capture graphs for steps of up to `most_rows`, which have a KV cache by now."""
        last = bisect_left(WIDTHS, min(most_rows, WIDTHS[-1]))
        for width in reversed(
            WIDTHS[: last + 1]
        ):  # smaller ones find room in what the largest left
            if width not in self._graphs:
                self._captured(width)

    def forget(self) -> None:
        """The KV cache or the weights have moved: graphs would read where they were."""
        self._graphs.clear()
        self._pool = None
        self._on_device = None
        self._captures = self._may_capture  # what there was no room for may have room now

    def _bring(self, rows: Sequence[Row], width: int) -> None:
        lines = self._tables.lines(rows)
        words = self._tables.pack(rows, lines, width, self.places)
        self._words[: len(words)].copy_(to_device(words, self._device))
        columns = self._tables.columns(rows)
        shown = (lines.tobytes(), self._tables.version, columns)
        if shown != self._on_device:
            tables = to_device(self._tables.tables(lines, columns), self._device)
            self._blocks[: tables.shape[0], : tables.shape[1]].copy_(tables)
            self._on_device = shown

    def _rows(self, width: int) -> DecodeRows:
        first = ASKED_WORDS * width
        _, _, positions, ends, slots = self._words[first : first + COLUMNS * width].view(
            COLUMNS, width
        )
        return DecodeRows(self._ids[:width], positions, ends, slots, self._blocks[:width])

    def _body(self, width: int) -> Tensor:
        first = ASKED_WORDS * width
        ids, places = self._words[first : first + 2 * width].view(2, width)
        self._feed(ids, places, self.drawn, self._ids[:width])
        logits = self._compute(self._rows(width))
        asked = DrawAsked.of(self._words[:first].view(torch.int64))
        self._draw(logits, asked, self.drawn)
        return logits

    def _captured(self, width: int) -> _Graph | None:
        """The graph of that width, from now on. None where there are none: from then on steps are run as they are."""
        if not self._captures:
            return None
        words, drawn = self._words.clone(), self.drawn.clone()
        self._words.copy_(_padding(width, len(words)))
        try:
            graph = self._graphs[width] = self._capture(width)
        except RuntimeError as error:  # what a model's own code does may not be recordable
            self._captures = False
            log.warning("graphs.off width=%d", width, exc_info=error)
            return None
        finally:
            self._words.copy_(words)
            self.drawn.copy_(drawn)
        return graph

    def _capture(self, width: int) -> _Graph:
        """Run once as it is, which compiles kernels and makes libraries' rooms; then record."""
        current = torch.cuda.current_stream()
        aside = self._aside = self._aside or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(aside):
                self._body(width)
                aside.synchronize()
                if self._pool is None:
                    self._pool = torch.cuda.graph_pool_handle()
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    logits = self._body(width)
                finally:
                    graph.capture_end()
        finally:  # what failed amid its first run may still run, over inputs that others use next
            current.wait_stream(aside)
        return _Graph(graph.replay, logits)


def _padding(width: int, count: int) -> Tensor:
    """Inputs of a step without a row."""
    words = torch.zeros(count, dtype=torch.int32)
    columns = words[ASKED_WORDS * width :][: COLUMNS * width].view(COLUMNS, width)
    columns[1] = columns[4] = -1
    return words
