"""What llama.cpp saves of a sequence, with a row for each cell: parts can be taken from it and put together.

Where each sequence has a buffer of its own nothing can be shared, and llama.cpp restores a sequence from one state
only: a text whose blocks were saved one by one is put together here. Saved states are told apart by nothing but their
size, so what doesn't read to its last byte is refused rather than guessed.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmhost.core.errors import EngineFailed

Bytes = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Integers = np.ndarray[tuple[int, int], np.dtype[np.int32]]

HEAD_BYTES = 8
"""A magic number and the sequence's id, which is not looked at when a state is restored."""
CELL_FORMS = (3, 6)
"""Integers that are said of a cell: its position, the number of its owners (1), and the owner. Models whose positions
have several parts, or that look at tokens again, have three more before the owner."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Keys or values of one layer: what is said of them in a state, and their bytes in a cell."""

    says: bytes
    cell_bytes: int
    number_bytes: int = 0
    """Of one number, where the numbers of one channel lie together and not those of one cell; 0 elsewhere."""


@dataclass(frozen=True, slots=True)
class State:
    """Cells of one sequence."""

    head: bytes
    layers: tuple[Layer, ...]
    says: bytes
    """How values lie, and the number of layers."""
    about: Integers
    """[cells, one of `CELL_FORMS`]"""
    cells: Bytes
    """[cells, bytes of all layers]"""

    @property
    def positions(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return self.about[:, 0]

    def part(self, start: int, end: int) -> "State":
        """The cells at these positions, copied."""
        chosen = (self.positions >= start) & (self.positions < end)
        return replace(self, about=self.about[chosen], cells=self.cells[chosen])

    def written(self) -> bytes:
        """As llama.cpp saves it from a buffer that all sequences share."""
        count = len(self.about)
        about = self.about.copy()
        about[:, -1] = 0
        parts = [self.head, struct.pack("<II", 1, count)]
        if count:
            parts += [about.tobytes(), self.says]
        at = 0
        for layer in self.layers if count else ():
            lines = self.cells[:, at : at + layer.cell_bytes]
            if layer.number_bytes:
                lines = lines.reshape(count, -1, layer.number_bytes).swapaxes(0, 1)
            parts += [layer.says, lines.tobytes()]
            at += layer.cell_bytes
        return b"".join(parts)


def joined(states: Sequence[State]) -> State:
    """The cells of all, which have no position in common."""
    first = states[0]
    width = first.about.shape[1]
    if any(state.layers != first.layers or state.about.shape[1] != width for state in states):
        raise EngineFailed("Keys and values that were saved apart don't fit one another.")
    return replace(
        first,
        about=np.concatenate([state.about for state in states]),
        cells=np.concatenate([state.cells for state in states]),
    )


def read_state(saved: bytes) -> State:
    """A state that was saved from a shared buffer. Raises EngineFailed for a layout that isn't known here."""
    why: Exception | None = None
    for form in CELL_FORMS:  # which it is isn't said, but only one reads to the last byte
        try:
            return _Reader(saved).state(form)
        except (struct.error, ValueError) as error:
            why = error
    raise EngineFailed("llama.cpp saves keys and values in a layout that isn't known.") from why


def from_own_buffer(saved: bytes, sequence: int) -> bytes:
    """As if a sequence had been saved from a shared buffer."""
    before = HEAD_BYTES + 4
    (buffers,) = struct.unpack_from("<I", saved, HEAD_BYTES)
    start, after = before + 4 * sequence, 4 * (buffers - sequence - 1)
    return b"".join((saved[:HEAD_BYTES], struct.pack("<I", 1), saved[start : len(saved) - after]))


def for_own_buffer(saved: bytes, sequence: int, buffers: int) -> bytes:
    """As if it had been saved from the buffer of a sequence, of so many buffers."""
    empty = bytes(4)
    return b"".join(
        (
            saved[:HEAD_BYTES],
            struct.pack("<I", buffers),
            empty * sequence,
            memoryview(saved)[HEAD_BYTES + 4 :],
            empty * (buffers - sequence - 1),
        )
    )


class _Reader:
    """Goes through a state once, from its beginning to its end."""

    def __init__(self, saved: bytes) -> None:
        self._saved = saved
        self._at = HEAD_BYTES

    def state(self, form: int) -> State:
        buffers, count = self._numbers("<II")
        if buffers != 1:
            raise ValueError("more than one buffer")
        head = self._saved[:HEAD_BYTES]
        if not count:
            nothing = np.empty((0, 0), np.uint8)
            return State(head, (), b"", np.empty((0, form), np.int32), nothing)
        about = np.frombuffer(self._take(4 * form * count), np.int32).reshape(count, form)
        if (about[:, 1] != 1).any():
            raise ValueError("cells with more than they should have")
        says = self._take(8)
        lies_across, layers = struct.unpack("<II", says)
        found = [self._cells(count) for _ in range(layers)]
        while self._at < len(self._saved):
            found.append(self._across(count) if lies_across else self._cells(count))
        kinds, arrays = zip(*found, strict=True)
        return State(head, kinds, says, about, np.concatenate(arrays, axis=1))

    def _cells(self, count: int) -> tuple[Layer, Bytes]:
        says = self._take(12)
        (size,) = struct.unpack_from("<Q", says, 4)
        raw = np.frombuffer(self._take(size * count), np.uint8)
        return Layer(says, size), raw.reshape(count, size)

    def _across(self, count: int) -> tuple[Layer, Bytes]:
        says = self._take(12)
        size, channels = struct.unpack_from("<II", says, 4)
        raw = np.frombuffer(self._take(size * channels * count), np.uint8)
        lines = raw.reshape(channels, count, size).swapaxes(0, 1).reshape(count, channels * size)
        return Layer(says, channels * size, size), lines

    def _numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, size: int) -> bytes:
        taken = self._saved[self._at : self._at + size]
        if len(taken) != size:
            raise ValueError("it ends early")
        self._at += size
        return taken
