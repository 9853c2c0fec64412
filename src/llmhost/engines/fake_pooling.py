"""A runner without a model that pools: each word has a fixed direction, a text the mean of those of its words.

So texts that share words are alike, as with a real embedder, and a test knows by how much. As a classifier it scores
a pair by the share of the first text's words that the second one has, and each label of a single text by its words.
"""

import random
import time
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Draw, Drawn, Row
from llmhost.engines.fake import MAX_SEQUENCE_LENGTH
from llmhost.engines.without_kv import WithoutKv

SIZE = 64
"""Numbers in a vector."""


@lru_cache(maxsize=16_384)
def _direction(token: int) -> NDArray[np.float32]:
    rng = random.Random(token)
    return np.array([rng.gauss(0, 1) for _ in range(SIZE)], np.float32)


def fake_vector(tokens: Sequence[int], *, is_raw: bool = False) -> list[float]:
    """What the fake embedder makes of a text: what tests compare with."""
    mean = np.mean([_direction(token) for token in tokens], axis=0)
    vector = mean if is_raw else mean / np.linalg.norm(mean)
    numbers: list[float] = vector.astype(np.float32).tolist()
    return numbers


def fake_scores(tokens: Sequence[int], second_from: int | None, labels: int) -> list[float]:
    """What the fake classifier makes of a text, or of a pair: one number from 0 to 1 for each label."""
    if second_from is not None:
        first, second = set(tokens[:second_from]), set(tokens[second_from:])
        return [len(first & second) / max(len(first), 1)] * labels
    weights = [1 + sum(token % labels == label for token in tokens) for label in range(labels)]
    return [weight / sum(weights) for weight in weights]


class FakePoolingRunner(WithoutKv):
    """Implements the Runner port. `sleep` takes seconds; tests bring their own."""

    def __init__(
        self,
        options: FakeOptions,
        *,
        block_tokens: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._sleep = sleep
        labels = options.labels if options.task == "classify" else ()
        self.facts = RunnerFacts(
            device="none",
            vocab_size=options.vocab,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            block_tokens=block_tokens,
            kv_block_bytes=0,
            weights_bytes=0,
            task=options.task,
            pooled_size=len(labels) or SIZE,
            labels=labels,
        )

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        if delay_ms := self._options.token_delay_ms + self._options.prefill_delay_ms:
            self._sleep(delay_ms / 1000)
        return [self._run_row(row) for row in rows]

    def close(self) -> None:
        """There is nothing to give back."""

    def _run_row(self, row: Row) -> Drawn:
        if row.pooling is None or row.pooling.task != self.facts.task:
            return EngineFailed(f"This fake model was loaded to {self.facts.task}.")
        if row.start or not row.wants_token:
            return EngineFailed("A text that is pooled can't be computed in pieces.")
        if row.pooling.task == "embed":
            numbers = fake_vector(row.tokens, is_raw=row.pooling.is_raw)
        else:
            numbers = fake_scores(row.tokens, row.pooling.second_from, len(self.facts.labels))
        return Draw(pooled=array("f", numbers))
