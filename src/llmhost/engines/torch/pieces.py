"""Steps with prompts in them, as graphs between one attention and the next.

Everything in a layer but attention treats each token by itself, so it is captured once for each of a few widths, in as
many pieces as there are layers, and replayed for any mix of rows; fewer tokens are padded. Attention, which depends on
the rows, is launched in between. Launched one by one from Python, the kernels of a short prompt take three times as
long as they run.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmhost.engines.torch.fused import FusedDecoder, Places
from llmhost.engines.torch.kv import KeyValue

log = logging.getLogger("llmhost.engines")

WIDTHS = (16, 32, 64, 128, 192, 256, 320, 384, 512, 640, 768, 1024)
"""Tokens of a step that pieces are captured for. Longer steps have work enough to hide their launches."""

AttendInto = Callable[[int, Tensor, Tensor], object]
"""Of a layer, its queries [T, heads, dim], and where the result goes, of the same shape."""


Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""Of a computation: what does it again, and where its result then is."""


class _Width(NamedTuple):
    """The pieces of one width, and the tensors that they read and leave."""

    inputs: Tensor
    """[3, width]: ids, positions, slots"""
    replays: Sequence[Callable[[], object]]
    query: Tensor
    attended: Tensor
    hidden: Tensor
    kept: Sequence[Any]
    """What later captures must not get the memory of."""


class Pieces:
    """The pieces of one model's fused decoder."""

    def __init__(
        self,
        decoder: FusedDecoder,
        caches: Callable[[], Sequence[KeyValue]],
        record: "Record | None" = None,
    ) -> None:
        """`caches` tells which there are now; `record` is what captures, by default CUDA graphs."""
        self._decoder = decoder
        self._caches = caches
        self._widths: dict[int, _Width] = {}
        self._pool: Any = None
        self._record = record or self._captures
        self._is_off = self._cannot = record is None and decoder.table.device.type != "cuda"
        self._stream: Any = None  # of all captures

    def takes(self, tokens: int) -> bool:
        return not self._is_off and tokens <= WIDTHS[-1]

    def prepare(self, most_tokens: int) -> None:
        """Capture those of steps of up to so many tokens."""
        if not self._is_off:
            last = bisect_left(WIDTHS, min(most_tokens, WIDTHS[-1]))
            for width in reversed(WIDTHS[: last + 1]):
                self._captured(width)

    def forget(self) -> None:
        """The KV cache or the weights have moved."""
        self._widths.clear()
        self._pool = None
        self._is_off = self._cannot

    def hidden(
        self, input_ids: Tensor, positions: Tensor, slots: Tensor, attend: AttendInto
    ) -> Tensor | None:
        """As `FusedDecoder.hidden`, valid until the next step. None where it can't be captured."""
        count = len(input_ids)
        pieces = self._captured(WIDTHS[bisect_left(WIDTHS, count)])
        if pieces is None:
            return None
        ids_, positions_, slots_ = pieces.inputs
        ids_[:count].copy_(input_ids)
        positions_[:count].copy_(positions)
        slots_.fill_(-1)
        slots_[:count].copy_(slots)
        query, attended = pieces.query[:count], pieces.attended[:count]
        *before_attention, last = pieces.replays
        for layer, replay in enumerate(before_attention):
            replay()
            attend(layer, query, attended)
        last()
        return pieces.hidden[:count]

    def _captured(self, width: int) -> _Width | None:
        if width not in self._widths and not self._is_off:
            try:
                self._widths[width] = self._capture(width)
            except RuntimeError as error:
                self._is_off = True
                log.warning("pieces.off width=%d", width, exc_info=error)
        return self._widths.get(width)

    def _capture(self, width: int) -> _Width:
        decoder, caches = self._decoder, self._caches()
        inputs = torch.zeros((3, width), dtype=torch.int64, device=decoder.table.device)
        inputs[2] = -1
        ids, positions, slots = inputs
        query, attended = (decoder.room_for_queries(width).zero_() for _ in range(2))
        places, residual = Places(positions, slots, query), decoder.embed(ids)

        def begin() -> Tensor:
            torch.index_select(decoder.embedding, 0, ids, out=residual)
            return decoder.before(residual, places, caches)

        def go_on(layer: int) -> Tensor:
            return decoder.after(layer, attended, residual, places, caches)

        begin(), go_on(0)  # compiles what was not yet
        with self._aside(inputs.device):
            recorded = [self._record(begin)]
            recorded += [
                self._record(partial(go_on, layer)) for layer in range(len(decoder.layers))
            ]
        replays = [replay for replay, _ in recorded]
        hidden = recorded[-1][1]
        return _Width(inputs, replays, query, attended, hidden, (recorded, residual))

    def _captures(self, piece: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(self._pool, capture_error_mode="thread_local")
        try:
            out = piece()
        finally:
            graph.capture_end()
        return graph.replay, out

    @contextmanager
    def _aside(self, device: torch.device) -> Iterator[None]:
        """A stream of its own, which capturing takes; what was before comes before it, what is after waits for it."""
        if device.type != "cuda":
            yield
            return
        current = torch.cuda.current_stream()
        aside = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        try:
            with torch.cuda.stream(aside):
                yield
        finally:
            current.wait_stream(aside)
