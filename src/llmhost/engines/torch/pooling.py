"""The runner of models that pool: a text goes in whole, and one vector or a score for each label comes out.

There is no KV cache. The rows of a step are sorted by length and run in groups, padded on the right under a mask, so
that a row's numbers are those that it has alone, but for rounding. What sentence-transformers puts behind the
transformer (linear layers, normalisation, a squashing function) is done here, in float32.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmhost.core.errors import EngineFailed
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Draw, Drawn, Row
from llmhost.engines.without_kv import WithoutKv

Squash = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Squash] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "tanh": torch.tanh,
}

GROUP_TOKENS = 64
"""Work that starting another group costs, in tokens: padding below this is cheaper than one more pass."""
PADDED_SHARE = 0.15
"""Padding that a group may have beside that, as a part of its real tokens."""


class PoolingRunner(WithoutKv):
    """A transformers model without a cache. `pool` turns a padded batch into one float32 vector for each text."""

    def __init__(self, pool: "Embedder | Classifier", facts: RunnerFacts) -> None:
        self._pool: Embedder | Classifier | None = pool
        self.device: torch.device = pool.device
        self.facts = facts

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        """A vector for each row. A row that is not a whole text to pool, or has no numbers, fails alone."""
        if self._pool is None:
            raise EngineFailed("This model was unloaded; it can't run another step.")
        drawn: list[Drawn] = [self._refusal(row) for row in rows]
        places = [i for i, refusal in enumerate(drawn) if refusal is None]
        with torch.inference_mode():
            for group in group_by_length([len(rows[i].tokens) for i in places]):
                chosen = [places[i] for i in group]
                for i, vector in zip(chosen, self._vectors([rows[i] for i in chosen]), strict=True):
                    drawn[i] = _draw(vector)
        return drawn

    def close(self) -> None:
        self._pool = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _vectors(self, rows: Sequence[Row]) -> Tensor:
        """[R, size] on the CPU."""
        assert self._pool is not None
        texts = [row.tokens for row in rows]
        seconds = [row.pooling.second_from if row.pooling else None for row in rows]
        batch = pad(texts, seconds, pad_id=self._pool.pad_id, device=self.device)
        is_raw = torch.tensor([bool(row.pooling and row.pooling.is_raw) for row in rows])
        return self._pool(batch, is_raw.to(self.device)).float().cpu()

    def _refusal(self, row: Row) -> EngineFailed | None:
        if row.pooling is None or row.pooling.task != self.facts.task:
            wanted = "text" if row.pooling is None else row.pooling.task
            return EngineFailed(
                f"This model was loaded to {self.facts.task}, and was asked for {wanted}."
            )
        if row.start or not row.wants_token:
            return EngineFailed("A text that is pooled can't be computed in pieces.")
        return None


class Batch:
    """Texts of similar length, padded on the right."""

    __slots__ = ("ids", "lengths", "mask", "types")

    def __init__(self, ids: Tensor, mask: Tensor, types: Tensor, lengths: Tensor) -> None:
        self.ids = ids
        """[R, T]"""
        self.mask = mask
        """[R, T]: 1 where there is a token."""
        self.types = types
        """[R, T]: 1 in the second text of a pair."""
        self.lengths = lengths
        """[R]"""


def pad(
    texts: Sequence[Sequence[int]],
    seconds: Sequence[int | None],
    *,
    pad_id: int,
    device: torch.device,
) -> Batch:
    """`seconds[r]` is where the second text of row r begins, if it has one."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad_id] * (width - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    starts = torch.tensor([width if second is None else second for second in seconds])
    places = torch.arange(width)
    mask = places < lengths[:, None]
    types = (places >= starts[:, None]) & mask
    return Batch(
        ids.to(device), mask.long().to(device), types.long().to(device), lengths.to(device)
    )


class Embedder:
    """Hidden states -> one vector a text: pooled, through linear layers, normalised."""

    def __init__(
        self,
        model: Any,
        *,
        pooling: str,
        layers: Sequence[tuple[torch.nn.Linear, Squash]] = (),
        is_normalised: bool,
        pad_id: int,
        takes_types: bool,
    ) -> None:
        self._model = model
        self._reduce = _POOLINGS[pooling]
        self._layers = layers
        self._is_normalised = is_normalised
        self._takes_types = takes_types
        self.pad_id = pad_id
        self.device: torch.device = model.device

    def __call__(self, batch: Batch, is_raw: Tensor) -> Tensor:
        more = {"token_type_ids": batch.types} if self._takes_types else {}
        out = self._model(input_ids=batch.ids, attention_mask=batch.mask, **more)
        pooled = self._reduce(out.last_hidden_state.float(), batch)
        for linear, activation in self._layers:
            pooled = activation(linear(pooled))
        if not self._is_normalised:
            return pooled
        return torch.where(is_raw[:, None], pooled, F.normalize(pooled, dim=-1))


class Classifier:
    """A trained head's scores for its labels, made probabilities."""

    def __init__(
        self, model: Any, *, activation: str, pad_id: int, takes_types: bool, is_decoder: bool
    ) -> None:
        self._model = model
        self._activation = ACTIVATIONS[activation]
        self._takes_types = takes_types
        self._is_decoder = is_decoder
        self.pad_id = pad_id
        self.device: torch.device = model.device

    def __call__(self, batch: Batch, is_raw: Tensor) -> Tensor:
        scores = self._scores(batch).float()
        return torch.where(is_raw[:, None], scores, self._activation(scores))

    def _scores(self, batch: Batch) -> Tensor:
        more = {"token_type_ids": batch.types} if self._takes_types else {}
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, **more}
        if not self._is_decoder:
            logits: Tensor = self._model(**inputs).logits
            return logits
        # transformers looks for the last token that isn't padding, and refuses models that have no token for it.
        hidden = self._model.base_model(**inputs, use_cache=False).last_hidden_state
        scores: Tensor = self._model.score(_last(hidden, batch))
        return scores


def _mean(hidden: Tensor, batch: Batch) -> Tensor:
    mask = batch.mask[:, :, None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def _first(hidden: Tensor, batch: Batch) -> Tensor:
    return hidden[:, 0]


def _last(hidden: Tensor, batch: Batch) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), batch.lengths - 1]


def _largest(hidden: Tensor, batch: Batch) -> Tensor:
    return hidden.masked_fill(batch.mask[:, :, None] == 0, -torch.inf).amax(1)


_POOLINGS: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "last": _last,
    "max": _largest,
}


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Places of `lengths`, the longest first, in groups that are padded little."""
    groups: list[list[int]] = []
    longest = tokens = 0
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[place]
        padding = longest * len(groups[-1]) - tokens + longest - length if groups else 0
        if not groups or padding > GROUP_TOKENS + PADDED_SHARE * (tokens + length):
            groups.append([])
            longest, tokens = length, 0
        groups[-1].append(place)
        tokens += length
    return groups


def _draw(vector: Tensor) -> Drawn:
    if not bool(torch.isfinite(vector).all()):
        return EngineFailed("The model computed no numbers for this text.")
    return Draw(pooled=array("f", vector.numpy().tobytes()))
