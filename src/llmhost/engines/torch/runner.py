"""The torch runner: one forward pass per step over the paged KV cache.

It does what the step says and decides nothing: which sequences run, which blocks they own and how much memory there
is comes from outside, and rows are taken as valid.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmhost.core.errors import EngineFailed
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Drawn, KvMove, Row
from llmhost.engines.torch.attention import ForwardPass, forward_pass
from llmhost.engines.torch.backend_torch import Scratch, StepAttention
from llmhost.engines.torch.kv import KvShape, PagedKv
from llmhost.engines.torch.layout import StepLayout, lay_out
from llmhost.engines.torch.sampler import sample


class TorchRunner:
    """A transformers model that attends under our name, its KV cache and its sampler."""

    def __init__(
        self, model: Any, shape: KvShape, *, vocab_size: int, max_sequence_length: int
    ) -> None:
        self._model: Any = model
        self.device: torch.device = model.device
        self._kv: PagedKv | None = PagedKv(shape, self.device)
        self._scratch = Scratch()
        self._block_tokens = shape.block_tokens
        self.windows: Sequence[int | None] = (None,) * shape.layers
        """For each layer how many last positions it sees; set once they are known (`probe`)."""
        self.facts = RunnerFacts(
            device=f"{self.device.type}:{self.device.index or 0}",
            vocab_size=vocab_size,
            max_sequence_length=max_sequence_length,
            block_tokens=shape.block_tokens,
            kv_block_bytes=shape.block_bytes,
            weights_bytes=_weights_bytes(model),
        )

    def set_kv_blocks(self, count: int) -> None:
        self._open_kv().resize(count)

    def set_host_blocks(self, count: int) -> None:
        self._open_kv().resize_host(count)

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        with torch.inference_mode():
            self._open_kv().move(moves)

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        """One forward pass over `rows`. A row for which the model computed no numbers fails alone."""
        drawn: list[Drawn] = [None] * len(rows)
        if not rows:
            return drawn
        with torch.inference_mode():
            layout = lay_out(rows, block_tokens=self._block_tokens, device=self.device)
            logits = self.forward(layout)
            if logits is not None:
                places = [i for i in layout.order if rows[i].wants_token]
                tokens = sample(logits, [rows[i] for i in places])
                for i, token in zip(places, tokens, strict=True):
                    drawn[i] = token
        return drawn

    def forward(self, layout: StepLayout, *, ahead: int = 0) -> Tensor | None:
        """Logits [wanted rows, vocabulary] in the layout's order, or None when no row wants a token.

        The model is told positions `ahead` of those in the cache.
        """
        kv = self._open_kv()
        attention = StepAttention(
            layout, self._scratch, block_tokens=self._block_tokens, dtype=kv.shape.dtype
        )
        state = ForwardPass(layout, kv, attention, self.windows)
        inputs = {
            "input_ids": layout.input_ids,
            "position_ids": layout.positions + ahead if ahead else layout.positions,
            "use_cache": False,
        }
        with forward_pass(state):
            if len(layout.sampled) == 0:
                self._model.base_model(**inputs)
                logits = None
            else:
                logits = self._model(**inputs, logits_to_keep=layout.sampled).logits[0]
        return logits

    def close(self) -> None:
        self._model = None
        self._kv = None
        self._scratch = Scratch()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _open_kv(self) -> PagedKv:
        if self._kv is None:
            raise EngineFailed("This model was unloaded; it can't run another step.")
        return self._kv


def _weights_bytes(model: Any) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(storages.values())
