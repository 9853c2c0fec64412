"""Vectors of what was asked, and which kept answers belong to them. In memory alone, owned by the HTTP loop.

A partition holds what shares everything but the last thing that was asked; one is never searched for another. It keeps
no answer: what it finds is a key of the exact cache, which forgets, expires and judges as ever.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmhost.cache.verify import Facts, ask_the_same

Vector = NDArray[np.float32]

MOST_ROWS = 256
"""Of a partition; the oldest make room."""
MOST_NUMBERS = 16 * 2**20
"""Of all vectors together: 64 MiB. The partition that was asked least recently makes room."""
MOST_CANDIDATES = 4
"""The nearest that are looked at."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that was asked, and the key of its answer."""

    key: str
    facts: Facts
    expires_ns: int


class Near(NamedTuple):
    similarity: float
    kept: Kept


class _Partition:
    def __init__(self, size: int) -> None:
        self.rows: list[Kept] = []
        self._matrix = np.zeros((8, size), np.float32)

    @property
    def size(self) -> int:
        return self._matrix.shape[1]

    @property
    def numbers(self) -> int:
        return self._matrix.size

    def put(self, vector: Vector, kept: Kept, now_ns: int) -> None:
        self._keep_only(
            [row.expires_ns > now_ns and row.key != kept.key for row in self.rows], MOST_ROWS - 1
        )
        at = len(self.rows)
        if at == len(self._matrix):
            self._matrix = np.concatenate((self._matrix, np.zeros_like(self._matrix)))
        self._matrix[at] = vector
        self.rows.append(kept)

    def nearest(self, vector: Vector, least: float, now_ns: int) -> list[Near]:
        """At least so alike, and in time; the most alike first."""
        similarities = self._matrix[: len(self.rows)] @ vector
        order = np.argsort(-similarities)[:MOST_CANDIDATES]
        found = [Near(float(similarities[i]), self.rows[i]) for i in order]
        return [
            near for near in found if near.similarity >= least and near.kept.expires_ns > now_ns
        ]

    def _keep_only(self, stays: list[bool], most: int) -> None:
        places = [i for i, does in enumerate(stays) if does][-most:]
        if len(places) < len(self.rows):
            self._matrix[: len(places)] = self._matrix[places]
            self.rows = [self.rows[i] for i in places]


class Alike:
    def __init__(self, most_numbers: int = MOST_NUMBERS) -> None:
        self._partitions: OrderedDict[str, _Partition] = OrderedDict()
        self._most_numbers = most_numbers
        self._numbers = 0

    def __len__(self) -> int:
        """Things asked that are kept."""
        return sum(len(one.rows) for one in self._partitions.values())

    def put(self, partition: str, vector: Vector, kept: Kept, now_ns: int) -> None:
        held = self._partitions.get(partition)
        if held is None or held.size != len(vector):
            self._drop(partition)
            held = self._partitions[partition] = _Partition(len(vector))
            self._numbers += held.numbers
        before = held.numbers
        held.put(vector, kept, now_ns)
        self._numbers += held.numbers - before
        self._partitions.move_to_end(partition)
        while self._numbers > self._most_numbers and len(self._partitions) > 1:
            self._drop(next(iter(self._partitions)))

    def find(
        self, partition: str, vector: Vector, facts: Facts, *, least: float, now_ns: int
    ) -> list[Near]:
        """What asks the same as far as can be told, the most alike first."""
        held = self._partitions.get(partition)
        if held is None or held.size != len(vector):
            return []
        self._partitions.move_to_end(partition)
        near = held.nearest(vector, least, now_ns)
        return [one for one in near if ask_the_same(one.kept.facts, facts)]

    def _drop(self, partition: str) -> None:
        gone = self._partitions.pop(partition, None)
        if gone is not None:
            self._numbers -= gone.numbers


def unit(numbers: NDArray[np.float32]) -> Vector:
    """Of length 1, so that a product is a cosine."""
    return numbers / max(float(np.linalg.norm(numbers)), 1e-12)
