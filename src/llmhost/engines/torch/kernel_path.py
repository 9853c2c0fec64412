"""How a model runs on a GPU: our kernels where transformers calls attention, and fused layers where they are known.

A model of a known family goes through `FusedDecoder` and never through transformers' modules, but for what only those
do (adapters). Any other goes through its own modules, with keys and values written and read by our kernels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llmhost.config.environment import process_environment
from llmhost.engines.kernel_needs import kernels_refusal
from llmhost.engines.torch.asked import DrawAsked
from llmhost.engines.torch.attention import ForwardPass, forward_pass
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.decode_steps import WIDTHS, DecodeRows
from llmhost.engines.torch.fused import FusedDecoder
from llmhost.engines.torch.kv import KeyValue, PagedKv
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.pieces import Pieces

Windows = Sequence[int | None]


def has_kernels(device: torch.device) -> bool:
    """Our kernels can be run there: a GPU, Triton, which comes with torch for CUDA, and what that needs itself."""
    return device.type == "cuda" and kernels_refusal(process_environment()) is None


class KernelPath:
    """For one loaded model. It keeps the rooms that kernels work in."""

    def __init__(
        self, model: Any, kv: Callable[[], PagedKv], longest: int, vocabulary: int
    ) -> None:
        """`kv` tells which cache there is now."""
        from llmhost.engines.torch.kernels.attention import DecodeRoom
        from llmhost.engines.torch.kernels.draw import DrawRoom

        self.decoder: FusedDecoder | None = FusedDecoder.of(model, longest)
        self.pieces = Pieces(self.decoder, lambda: kv().layers) if self.decoder else None
        self._model = model
        self._kv = kv
        self._vocabulary = vocabulary
        self._make_draw_room = DrawRoom
        shape, config = kv().shape, model.config.get_text_config()
        self.heads: int = config.num_attention_heads
        self.room = DecodeRoom(WIDTHS[-1], self.heads, shape.kv_heads, shape.head_dim, model.device)
        self.prefill: Any = None
        """A library that attends to long rows (`prefill.ByLibrary`); None where our kernel does."""
        self._draw_rooms: list[Any] = []  # none is ever dropped: a captured graph may write there

    def unfuse(self) -> None:
        """From now on the model's own modules compute."""
        self.decoder = self.pieces = None

    # ------------------------------------------------------------ a step of one token per row

    def decode(self, rows: DecodeRows, windows: Windows) -> Tensor:
        """Logits [rows, vocabulary]. It can be captured."""
        with torch.inference_mode():
            attention = DecodeAttention(rows, self.room)
            if self.decoder is None:
                return self._by_modules(rows, attention, windows)
            hidden = self.decoder.hidden(
                rows.ids,
                rows.positions,
                rows.slots,
                self._kv().layers,
                lambda layer, query: attention.over(
                    query, self._kv().layers[layer], Scores(window=windows[layer])
                ),
            )
            return self.decoder.logits(hidden)

    def _by_modules(
        self, rows: DecodeRows, attention: "DecodeAttention", windows: Windows
    ) -> Tensor:
        with self.through_modules(attention, rows.slots, windows):
            logits: Tensor = self._model(
                input_ids=rows.ids[None].long(),
                position_ids=rows.positions[None].long(),
                use_cache=False,
                logits_to_keep=0,
            ).logits[0]
        return logits

    # ------------------------------------------------------------ any step

    def hidden(self, layout: StepLayout, windows: Windows, ahead: int = 0) -> Tensor:
        """What the fused decoder makes of a step's tokens, [T, H]."""
        assert self.decoder is not None
        attention, caches = self.attention(layout), self._kv().layers

        def attend(layer: int, query: Tensor, out: Tensor | None = None) -> Tensor:
            attended: Tensor = attention.attend_flat(
                query, caches[layer], Scores(window=windows[layer]), out
            )
            return attended

        ids, slots = layout.input_ids[0], layout.slots
        positions = layout.positions[0] + ahead if ahead else layout.positions[0]
        if self.pieces is not None and self.pieces.takes(len(ids)):
            hidden = self.pieces.hidden(ids, positions, slots, attend)
            if hidden is not None:
                return hidden
        return self.decoder.hidden(ids, positions, slots, caches, attend)

    def attention(self, layout: StepLayout) -> Any:
        """Attends for the modules in a step of any form, as `StepAttention` does."""
        from llmhost.engines.torch.backend_triton import TritonAttention

        return TritonAttention(layout, self.room, self.prefill)

    @contextmanager
    def through_modules(self, attention: Any, slots: Tensor, windows: Windows) -> Iterator[None]:
        """Until the block ends the model's own modules attend and write by our kernels."""
        from llmhost.engines.torch.kernels.feed import write_kv

        def write(layer: int, fresh: KeyValue) -> None:
            key, value = (part[0].transpose(0, 1) for part in fresh)
            write_kv(key, value, slots, *self._kv().layers[layer])

        with forward_pass(ForwardPass(write, self._kv(), attention, windows)):
            yield

    # ------------------------------------------------------------ draws

    def draw(self, logits: Tensor, asked: DrawAsked, out: Tensor) -> None:
        """Tokens of lines that nothing shapes but temperature and filters. It can be captured."""
        from llmhost.engines.torch.kernels.draw import draw_tokens

        draw_tokens(logits, asked, out, self._draw_room(len(logits)))

    def _draw_room(self, places: int) -> Any:
        for room in self._draw_rooms:
            if room.fits(places, self._vocabulary):
                return room
        size = max(WIDTHS[0], 1 << (places - 1).bit_length())
        self._draw_rooms.append(self._make_draw_room(size, self._vocabulary, self._model.device))
        return self._draw_rooms[-1]


class DecodeAttention:
    """Attention of a step in which every row has one token; the counterpart of `StepAttention`."""

    def __init__(self, rows: DecodeRows, room: Any) -> None:
        from llmhost.engines.torch.kernels.attention import decode_attention

        self._rows = rows
        self._room = room
        self._attend: Callable[..., None] = decode_attention

    def attend(self, query: Tensor, fresh: KeyValue, cache: KeyValue, scores: Scores) -> Tensor:
        """query [1, heads, T, dim] -> [1, T, heads, dim]"""
        return self.over(query[0].transpose(0, 1), cache, scores)[None]

    def over(self, query: Tensor, cache: KeyValue, scores: Scores) -> Tensor:
        """query [T, heads, dim] -> the same"""
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        self._attend(
            query,
            cache.key,
            cache.value,
            self._rows.tables,
            self._rows.ends,
            out,
            room=self._room,
            scaling=query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling,
            window=scores.window,
            softcap=scores.softcap,
            sinks=scores.sinks,
        )
        return out
