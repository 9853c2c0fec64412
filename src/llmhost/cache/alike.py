"""Vectors of what was asked, and which kept answers belong to them. Owned by the HTTP loop.

A partition holds what shares everything but the last thing that was asked; one is never searched for another. It keeps
no answer: what it finds is a key of the exact cache, which forgets, expires and judges as ever.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from sys import getsizeof
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmhost.cache.verify import FACTS_FORM, Facts, ask_the_same

Vector = NDArray[np.float32]

MOST_ROWS = 256
"""Of a partition; the oldest make room."""
MOST_BYTES = 64 * 2**20
"""Of vectors and words together. The partition that was asked least recently makes room."""
ROW_BYTES, PLACE_BYTES, PARTITION_BYTES = 1_600, 24, 1_000
"""What Python has of something that was asked, of a word's place in a list, and of a partition."""
MOST_CANDIDATES = 4
"""The nearest that are looked at."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that was asked, and the key of its answer."""

    key: str
    facts: Facts
    expires_ns: int
    tag: str = ""
    """As the answer has it."""
    stored_ns: int = 0
    """The same: another answer under that key may be another organisation's, where those share."""

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory, without its vector."""
        facts = self.facts
        lists = (*facts.exact, facts.entities, facts.words, facts.verbs)
        return ROW_BYTES + sum(PLACE_BYTES + getsizeof(word) for words in lists for word in words)


@dataclass(frozen=True, slots=True)
class Learnt:
    """A partition as it is on disk: vectors of `size` numbers each, one after the other."""

    size: int
    vectors: bytes
    rows: tuple[Kept, ...]


class Near(NamedTuple):
    similarity: float
    kept: Kept


class _Partition:
    def __init__(self, size: int) -> None:
        self.rows: list[Kept] = []
        self._matrix = np.zeros((8, size), np.float32)
        self._words_bytes = 0

    @property
    def size(self) -> int:
        return self._matrix.shape[1]

    @property
    def bytes(self) -> int:
        return PARTITION_BYTES + self._matrix.nbytes + self._words_bytes

    def put(self, vector: Vector, kept: Kept, now_ns: int) -> None:
        self.keep_only(
            [row.expires_ns > now_ns and row.key != kept.key for row in self.rows], MOST_ROWS - 1
        )
        at = len(self.rows)
        if at == len(self._matrix):
            self._matrix = np.concatenate((self._matrix, np.zeros_like(self._matrix)))
        self._matrix[at] = vector
        self.rows.append(kept)
        self._words_bytes += kept.size_bytes

    def nearest(self, vector: Vector, least: float, now_ns: int) -> list[Near]:
        """At least so alike, and in time; the most alike first."""
        similarities = self._matrix[: len(self.rows)] @ vector
        order = np.argsort(-similarities)[:MOST_CANDIDATES]
        found = [Near(float(similarities[i]), self.rows[i]) for i in order]
        return [
            near for near in found if near.similarity >= least and near.kept.expires_ns > now_ns
        ]

    def learnt(self) -> Learnt:
        return Learnt(self.size, self._matrix[: len(self.rows)].tobytes(), tuple(self.rows))

    def keep_only(self, stays: list[bool], most: int = MOST_ROWS) -> None:
        places = [i for i, does in enumerate(stays) if does][-most:]
        if len(places) < len(self.rows):
            self._matrix[: len(places)] = self._matrix[places]
            self.rows = [self.rows[i] for i in places]
            self._words_bytes = sum(row.size_bytes for row in self.rows)


class Alike:
    form = f"1 {FACTS_FORM}"
    row_type = Learnt

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._partitions: OrderedDict[str, _Partition] = OrderedDict()
        self._most_bytes = most_bytes
        self.bytes = 0
        self.changed: set[str] = set()
        """Partitions that are not on disk as they are here."""

    def __len__(self) -> int:
        """Things asked that are kept."""
        return sum(len(one.rows) for one in self._partitions.values())

    def put(self, partition: str, vector: Vector, kept: Kept, now_ns: int) -> None:
        held = self._partitions.get(partition)
        if held is None or held.size != len(vector):
            self._drop(partition)
            held = self._partitions[partition] = _Partition(len(vector))
            self.bytes += held.bytes
        before = held.bytes
        held.put(vector, kept, now_ns)
        self.bytes += held.bytes - before
        self.changed.add(partition)
        self._partitions.move_to_end(partition)
        while self.bytes > self._most_bytes and len(self._partitions) > 1:
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

    def forget(self, is_meant: Callable[[Kept], bool]) -> None:
        """What was asked whose answers are to be forgotten."""
        for name, held in list(self._partitions.items()):
            before, rows = held.bytes, len(held.rows)
            held.keep_only([not is_meant(row) for row in held.rows])
            self.bytes += held.bytes - before
            if len(held.rows) < rows:
                self.changed.add(name)
            if not held.rows:
                self._drop(name)

    def drop_expired(self, now_ns: int) -> None:
        self.forget(lambda kept: kept.expires_ns <= now_ns)

    def _drop(self, partition: str) -> None:
        gone = self._partitions.pop(partition, None)
        if gone is not None:
            self.bytes -= gone.bytes
            self.changed.add(partition)

    def row(self, name: str) -> Learnt | None:
        held = self._partitions.get(name)
        return None if held is None else held.learnt()

    def restore(self, name: str, row: Learnt, now_ns: int) -> bool:
        """What is still in time of it."""
        vectors = np.frombuffer(row.vectors, np.float32)
        if row.size < 1 or len(vectors) != row.size * len(row.rows):
            return False
        for vector, kept in zip(vectors.reshape(-1, row.size), row.rows, strict=True):
            if kept.expires_ns > now_ns:
                self.put(name, vector, kept, now_ns)
        self.changed.discard(name)
        return name in self._partitions and len(self._partitions[name].rows) == len(row.rows)


def unit(numbers: NDArray[np.float32]) -> Vector:
    """Of length 1, so that a product is a cosine."""
    return numbers / max(float(np.linalg.norm(numbers)), 1e-12)
