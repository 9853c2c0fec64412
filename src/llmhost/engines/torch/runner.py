"""The torch runner: one forward pass per step over the paged KV cache.

It does what the step says and decides nothing: which sequences run, which blocks they own and how much memory there
is comes from outside, and rows are taken as valid.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import chain
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from llmhost.core.errors import EngineFailed
from llmhost.core.ports import Flight, RunnerFacts
from llmhost.core.step import PENDING, Drawn, KvMove, Row
from llmhost.engines.drawing import is_plain
from llmhost.engines.masks import MaskFiller, Masks
from llmhost.engines.torch.attention import Attention, ForwardPass, forward_pass
from llmhost.engines.torch.backend_torch import Scores as AttentionScores
from llmhost.engines.torch.backend_torch import Scratch, StepAttention
from llmhost.engines.torch.decode_steps import Begun, DecodeSteps, Draws, InOrder
from llmhost.engines.torch.fused import FusedDecoder
from llmhost.engines.torch.kernel_path import KernelPath
from llmhost.engines.torch.kv import KeyValue, KvShape, PagedKv
from llmhost.engines.torch.layout import StepLayout, lay_out
from llmhost.engines.torch.lora import LoraAdapters
from llmhost.engines.torch.memory import memory_errors
from llmhost.engines.torch.packed import Packing
from llmhost.engines.torch.sampler import Sampler
from llmhost.engines.torch.scoring import Scores, computed_once, score, with_scores
from llmhost.engines.torch.sleep import Sleeping
from llmhost.engines.torch.steady_rows import SteadyAttention, SteadyRooms, tile_for

Inputs = dict[str, Any]
"""What a model is called with."""


P = ParamSpec("P")
R = TypeVar("R")


def _on_its_device(
    method: "Callable[Concatenate[TorchRunner, P], R]",
) -> "Callable[Concatenate[TorchRunner, P], R]":
    """Kernels, streams and events belong to the device that is the calling thread's current one."""

    @wraps(method)
    def on_its_device(self: "TorchRunner", /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.device.type != "cuda":
            return method(self, *args, **kwargs)
        with torch.cuda.device(self.device):
            return method(self, *args, **kwargs)

    return on_its_device


class _Flight:
    """See `Flight`. A step without a grammar that waits has been drawn for when it is launched."""

    def __init__(self, finish: Callable[[], Draws | InOrder]) -> None:
        self._finish: Callable[[], Draws | InOrder] | None = finish
        self._draws: Draws | InOrder | None = None

    def draw(self) -> None:
        if self._finish is not None:
            self._draws = self._finish()
            self._finish = None  # and with it the step's logits

    def land(self) -> list[Drawn]:
        self.draw()
        assert self._draws is not None
        return self._draws.land()


class TorchRunner:
    """A transformers model that attends under our name, its KV cache and its sampler."""

    def __init__(
        self,
        model: Any,
        shape: KvShape,
        *,
        vocab_size: int,
        max_sequence_length: int,
        kernels: bool = False,
        is_steady: bool = False,
    ) -> None:
        """`kernels` has our kernels compute what they can, which takes a GPU, or Triton's interpreter. `is_steady`
        means that the model's layers compute each row as they would alone, and has attention do so too."""
        self._model: Any = model
        self.device: torch.device = model.device
        self._kv: PagedKv | None = PagedKv(shape, self.device)
        self.adapters = LoraAdapters(model)
        self._scratch = Scratch()
        tile = tile_for(shape) if is_steady else None
        self._steady = None if tile is None else SteadyRooms(tile)
        self._asleep: Sleeping | None = None
        self.packing: Packing | None = None
        """Of weights, beside the steps; on some CPUs."""
        self.sampler = Sampler()
        self._masks = MaskFiller()
        self._block_tokens = shape.block_tokens
        self._dtype: torch.dtype = model.dtype
        self.most_rows = 0
        """Graphs are captured for steps of up to so many rows as soon as there is a KV cache; others when needed."""
        self.most_tokens = 0
        self.path = (
            KernelPath(model, self._open_kv, max_sequence_length, vocab_size) if kernels else None
        )
        self._is_plain_step = True  # no row of this step has an adapter
        self._decode: DecodeSteps | None = None
        if self.path is not None:
            path = self.path
            self._decode = DecodeSteps(
                lambda rows: path.decode(rows, self.windows),
                path.draw,
                self.sampler.draw_ahead,
                block_tokens=shape.block_tokens,
                longest=max_sequence_length,
                device=self.device,
            )
        self.windows: Sequence[int | None] = (None,) * shape.layers
        """For each layer how many last positions it sees; set once they are known (`probe`)."""
        self.layers_ask: Sequence[AttentionScores] = ()
        """What each layer asks of attention; as `windows`, and all else."""
        self.facts = RunnerFacts(
            device=f"{self.device.type}:{self.device.index or 0}",
            vocab_size=vocab_size,
            max_sequence_length=max_sequence_length,
            block_tokens=shape.block_tokens,
            kv_block_bytes=shape.block_bytes,
            weights_bytes=_weights_bytes(model),
            checks_drafts=True,
            can_sleep=self.device.type == "cuda",  # on the CPU nothing would be gained
            runs_ahead=kernels,
            reenters=True,
        )

    @property
    def kv_shape(self) -> KvShape:
        return self._open_kv().shape

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed."""
        return self._dtype

    def keep_kv_as(self, dtype: torch.dtype) -> None:
        """Have the cache keep keys and values in this type. Only while there are no blocks."""
        shape = replace(self._open_kv().shape, dtype=dtype)
        self._kv = PagedKv(shape, self.device)
        if tile_for(shape) is None:
            self._steady = None
        self.facts = replace(self.facts, kv_block_bytes=shape.block_bytes)

    @_on_its_device
    def set_kv_blocks(self, count: int) -> None:
        self._forget_graphs()
        self._open_kv().resize(count)
        if count and self.most_rows:
            self._capture_graphs()

    def _forget_graphs(self) -> None:
        """They read the cache and the weights where they were."""
        if self._decode is not None:
            self._decode.forget()
        if self.path is not None and self.path.pieces is not None:
            self.path.pieces.forget()

    def _capture_graphs(self) -> None:
        with torch.inference_mode(), memory_errors(self.device):
            if self._decode is not None:
                self._decode.prepare(self.most_rows)
            if self.path is not None and self.path.pieces is not None:
                self.path.pieces.prepare(self.most_tokens)

    @_on_its_device
    def set_host_blocks(self, count: int) -> None:
        self._open_kv().resize_host(count)

    @_on_its_device
    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        with torch.inference_mode():
            self._open_kv().move(moves)

    @_on_its_device
    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        """One forward pass over `rows`. A row for which the model computed no numbers fails alone."""
        answers: list[Drawn] = [None] * len(rows)
        if not rows:
            return answers
        if lost := self.adapters.missing(rows):
            return self._without(rows, lost)
        self._is_plain_step = all(row.adapter is None for row in rows)
        if self._decode is not None and self._is_plain_step and self._decode.takes(rows):
            return self._run_decode(self._decode, rows)
        with torch.inference_mode(), memory_errors(self.device):
            layout = lay_out(rows, block_tokens=self._block_tokens, device=self.device)
            ordered = [rows[i] for i in layout.order]
            masks = self._masks.start(ordered, self.facts.vocab_size)
            try:
                with self.adapters.step(ordered, layout):
                    logits, scores = self._compute(layout, ordered)
            finally:
                filled = masks()  # until then a thread has the grammars
            if logits is not None:
                drawing = [i for i in layout.order if rows[i].wants_token]
                drawn = self.sampler.sample(logits, [rows[i] for i in drawing], filled)
                for i, one in zip(drawing, drawn, strict=True):
                    answers[i] = one
        if layout.scored is not None:
            for i, scored in zip(layout.order, scores, strict=True):
                answers[i] = with_scores(answers[i], scored)
        return answers

    def _run_decode(self, decode: DecodeSteps, rows: Sequence[Row]) -> list[Drawn]:
        """A step of one token per row, one of which wants more than to be drawn at once, or is not in a hurry."""
        with torch.inference_mode(), memory_errors(self.device):
            if all(is_plain(row) for row in rows):
                return decode.finish(decode.begin(rows), lambda _: Masks()).land()
            masks = self._masks.start(rows, self.facts.vocab_size)
            try:
                logits = decode.logits(rows)
            finally:
                filled = masks()
            return self.sampler.sample(logits, rows, filled)

    @_on_its_device
    def launch(self, rows: Sequence[Row]) -> Flight:
        """See `AheadRunner.launch`."""
        decode, masks = self._decode, self._masks
        assert decode is not None, "it runs ahead on a GPU only"
        self._is_plain_step = True
        held = [row for row in rows if row.grammar is not None]
        waits = any(row.tokens[0] == PENDING for row in held)
        filling = None if waits else masks.start(held, self.facts.vocab_size)
        made = None
        try:
            with torch.inference_mode(), memory_errors(self.device):
                begun = self._begin(decode, rows)
        finally:
            if filling is not None:
                made = filling()
        flight = _Flight(lambda: self._finish(begun, made))
        if not waits:
            flight.draw()
        return flight

    def _begin(self, decode: DecodeSteps, rows: Sequence[Row]) -> Begun:
        if decode.takes(rows):
            return decode.begin(rows)
        layout = lay_out(rows, block_tokens=self._block_tokens, device=self.device)
        ordered = [rows[i] for i in layout.order]
        ids = layout.input_ids[0]
        decode.fill_pending(ids, layout.offsets, ordered)
        logits = self.forward(layout)
        return decode.begin_drawing(logits, ordered, layout.order, ids[layout.sampled])

    @_on_its_device
    def _finish(self, begun: Begun, made: Masks | None) -> Draws | InOrder:
        """`made` are masks; where there are none yet, grammars know by now what they must."""
        assert self._decode is not None

        def masks(rows: Sequence[Row]) -> Masks:
            return made or self._masks.start(rows, self.facts.vocab_size)()

        with torch.inference_mode(), memory_errors(self.device):
            return self._decode.finish(begun, masks)

    @_on_its_device
    def forward(self, layout: StepLayout, *, ahead: int = 0) -> Tensor | None:
        """Logits [places to draw at, vocabulary] in the layout's order, or None when no row wants a token.

        The model is told positions `ahead` of those in the cache.
        """
        if self.path is not None and self.path.decoder is not None and self._is_plain_step:
            hidden = self.path.hidden(layout, self.windows, ahead)
            if not len(layout.sampled):
                return None
            return self.path.decoder.logits(hidden[layout.sampled])
        inputs = _inputs(layout, ahead)
        with self._pass(layout):
            if len(layout.sampled):
                return self._logits(inputs, layout.sampled)
            self._model.base_model(**inputs)
            return None

    def _compute(
        self, layout: StepLayout, ordered: Sequence[Row]
    ) -> tuple[Tensor | None, Sequence[Scores]]:
        """Logits as `forward` has them, and each row's scores of its prompt where any row asks for some."""
        if layout.scored is None:
            return self.forward(layout), ()
        if self.path is not None and self.path.decoder is not None and self._is_plain_step:
            return self._compute_fused(self.path, self.path.decoder, layout, ordered)
        body, inputs = self._model.base_model, _inputs(layout)
        with self._pass(layout), computed_once(body, body(**inputs)):
            scores = score(
                ordered,
                layout.scored,
                self.facts.vocab_size,
                lambda places: self._logits(inputs, places),
            )
            logits = self._logits(inputs, layout.sampled) if len(layout.sampled) else None
        return logits, scores

    def _compute_fused(
        self,
        path: KernelPath,
        decoder: FusedDecoder,
        layout: StepLayout,
        ordered: Sequence[Row],
    ) -> tuple[Tensor | None, Sequence[Scores]]:
        assert layout.scored is not None
        hidden = path.hidden(layout, self.windows)
        scores = score(
            ordered,
            layout.scored,
            self.facts.vocab_size,
            lambda places: decoder.logits(hidden[places]),
        )
        drawn = decoder.logits(hidden[layout.sampled]) if len(layout.sampled) else None
        return drawn, scores

    @contextmanager
    def _pass(self, layout: StepLayout) -> Iterator[None]:
        """What the model computes until the block ends is this step."""
        kv, path = self._open_kv(), self.path
        if path is not None:
            with path.through_modules(path.attention(layout), layout.slots, self.windows):
                yield
            return

        def write(layer: int, fresh: KeyValue) -> None:
            kv.write(layer, fresh, layout.slots, layout.entered)

        size = self._block_tokens
        attention: Attention
        if self._steady is not None:
            attention = SteadyAttention(layout, self._steady, block_tokens=size)
        else:
            attention = StepAttention(layout, self._scratch, block_tokens=size, dtype=self._dtype)
        with forward_pass(ForwardPass(write, kv, attention, self.windows)):
            yield

    def _logits(self, inputs: Inputs, places: Tensor) -> Tensor:
        """[places, vocabulary]"""
        with self.adapters.head_at(places):
            logits: Tensor = self._model(**inputs, logits_to_keep=places).logits[0]
        return logits

    def _without(self, rows: Sequence[Row], lost: Mapping[int, EngineFailed]) -> list[Drawn]:
        """The step without the rows in `lost`, which fail alone."""
        kept = [i for i in range(len(rows)) if i not in lost]
        others = dict(zip(kept, self.run([rows[i] for i in kept]), strict=True))
        return [lost[i] if i in lost else others[i] for i in range(len(rows))]

    @_on_its_device
    def sleep(self) -> None:
        self._scratch = Scratch()
        self._asleep = Sleeping(chain(self._model.parameters(), self._model.buffers()))

    @_on_its_device
    def wake(self) -> None:
        if self._asleep is not None:
            self._asleep.wake()
            self._asleep = None

    def close(self) -> None:
        if self.packing is not None:
            self.packing.close()
        self.adapters.close()
        self._asleep = None
        self._masks.close()
        self._model = None
        self._kv = None
        self.path = self._decode = None
        self._scratch.close()
        self._scratch = Scratch()
        self._steady = None
        self.sampler = Sampler()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _open_kv(self) -> PagedKv:
        if self._kv is None:
            raise EngineFailed("This model was unloaded; it can't run another step.")
        return self._kv


def _inputs(layout: StepLayout, ahead: int = 0) -> Inputs:
    return {
        "input_ids": layout.input_ids,
        "position_ids": layout.positions + ahead if ahead else layout.positions,
        "use_cache": False,
    }


def _weights_bytes(model: Any) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(storages.values())
