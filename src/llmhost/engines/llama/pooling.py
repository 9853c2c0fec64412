"""The runner of GGUF models that pool: texts go in whole, many in one call, and a vector or scores come out of each."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llmhost.core.errors import EngineFailed, OutOfMemory
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Draw, Drawn, Row
from llmhost.engines.llama.batch import Batch
from llmhost.engines.llama.context import PAD_CELLS, ContextShape
from llmhost.engines.without_kv import WithoutKv

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]


class LlamaPoolingRunner(WithoutKv):
    """Implements the Runner port. How the model pools is said in its file, or by the operator."""

    def __init__(self, library: Any, model: Any, shape: ContextShape, facts: RunnerFacts) -> None:
        """`shape.batch_tokens` is room for the longest text. Raises OutOfMemory."""
        self.facts = facts
        self._llama = library
        self._model = model
        self._rows = texts_at_once(shape)
        self._context = open_pooling(library, model, shape)
        self._memory = library.llama_get_memory(self._context)
        self._batch = Batch(library, shape.batch_tokens)

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        """A vector for each row. A row that is not a whole text to pool, or has no numbers, fails alone."""
        if self._context is None:
            raise EngineFailed("This model was unloaded; it can't run another step.")
        drawn: list[Drawn] = [self._refusal(row) for row in rows]
        places = [at for at, refusal in enumerate(drawn) if refusal is None]
        for group in self._groups(rows, places):
            for at, vector in zip(group, self._pool([rows[at] for at in group]), strict=True):
                drawn[at] = self._finish(rows[at], vector)
        return drawn

    def close(self) -> None:
        if self._context is not None:
            self._llama.llama_free(self._context)
            self._llama.llama_model_free(self._model)
        self._context = self._model = None

    def _refusal(self, row: Row) -> EngineFailed | None:
        if row.pooling is None or row.pooling.task != self.facts.task:
            wanted = "text" if row.pooling is None else row.pooling.task
            return EngineFailed(
                f"This model was loaded to {self.facts.task}, and was asked for {wanted}."
            )
        if row.start or not row.wants_token:
            return EngineFailed("A text that is pooled can't be computed in pieces.")
        if len(row.tokens) > self._batch.most:
            return EngineFailed(
                f"The text has {len(row.tokens)} tokens; one call takes {self._batch.most}."
            )
        return None

    def _groups(self, rows: Sequence[Row], places: Sequence[int]) -> Iterator[list[int]]:
        """As many texts in one call as it has room for."""
        group: list[int] = []
        tokens = 0
        for at in places:
            count = len(rows[at].tokens)
            if group and (tokens + count > self._batch.most or len(group) == self._rows):
                yield group
                group, tokens = [], 0
            group.append(at)
            tokens += count
        if group:
            yield group

    def _pool(self, rows: Sequence[Row]) -> list[Vector]:
        lengths = [len(row.tokens) for row in rows]
        batch = self._batch.fill(
            [token for row in rows for token in row.tokens],
            [position for length in lengths for position in range(length)],
            np.repeat(np.arange(len(rows)), lengths).tolist(),
            [1] * sum(lengths),
        )
        if self._memory:
            self._llama.llama_memory_clear(self._memory, False)
        if code := self._llama.llama_decode(self._context, batch):
            raise EngineFailed(f"llama.cpp could not pool a batch (code {code}).")
        return [self._read(sequence) for sequence in range(len(rows))]

    def _read(self, sequence: int) -> Vector:
        pointer = self._llama.llama_get_embeddings_seq(self._context, sequence)
        if not pointer:
            raise EngineFailed("This GGUF file doesn't say how its model pools a text.")
        return np.ctypeslib.as_array(pointer, (self.facts.pooled_size,)).copy()

    def _finish(self, row: Row, vector: Vector) -> Drawn:
        if not np.isfinite(vector).all():
            return EngineFailed("The model computed no numbers for this text.")
        if row.pooling is not None and not row.pooling.is_raw:
            vector = _chances(vector) if self.facts.labels else _normal(vector)
        return Draw(pooled=array("f", vector.astype(np.float32).tobytes()))


def texts_at_once(shape: ContextShape) -> int:
    return min(shape.sequences, shape.batch_tokens)


def open_pooling(library: Any, model: Any, shape: ContextShape) -> Any:
    """A context that gives a vector for each sequence. Raises OutOfMemory."""
    params = library.llama_context_default_params()
    params.n_ctx = -(-shape.batch_tokens // PAD_CELLS) * PAD_CELLS
    params.n_batch = params.n_ubatch = shape.batch_tokens
    params.n_seq_max = texts_at_once(shape)
    params.n_outputs_max = shape.batch_tokens
    params.n_threads = params.n_threads_batch = shape.threads
    params.flash_attn_type = shape.flash_attention
    params.embeddings = True
    params.pooling_type = getattr(
        library, f"LLAMA_POOLING_TYPE_{(shape.pooling or 'unspecified').upper()}"
    )
    params.kv_unified = True
    params.no_perf = True
    context = library.llama_init_from_model(model, params)
    if not context:
        raise OutOfMemory(
            f"llama.cpp could not make a context of {shape.batch_tokens} tokens to pool."
        )
    return context


def _chances(scores: Vector) -> Vector:
    """Probabilities: of a single label by itself, of several among one another."""
    if len(scores) == 1:
        shares = 1 / (1 + np.exp(-scores))
    else:
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
    chances: Vector = shares.astype(np.float32)
    return chances


def _normal(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    unit: Vector = (vector / length).astype(np.float32) if length else vector
    return unit
