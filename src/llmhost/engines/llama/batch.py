"""The tokens of one call of `llama_decode`, in memory that is made once and written to from numpy."""

import ctypes
from collections.abc import Sequence
from struct import pack_into
from typing import Any

import numpy as np


class Batch:
    """Room for `most` tokens. Each belongs to one sequence, and to that one's twin where sequences have twins."""

    def __init__(self, library: Any, most: int, *, twin: int = 0) -> None:
        """`twin`: how far above a sequence its twin is; 0 where there are none."""
        self.most = most
        self._twin = twin
        of_token = 2 if twin else 1
        self._tokens = np.zeros(most, np.int32)
        self._positions = np.zeros(most, np.int32)
        self._sequences = np.zeros(most * of_token, np.int32)
        self._counts = np.full(most, of_token, np.int32)
        self._wants = np.zeros(most, np.int8)
        first = self._sequences.ctypes.data
        self._pointers = first + 4 * of_token * np.arange(most, dtype=np.uintp)
        self._filled: tuple[Sequence[int], Sequence[int]] = (), ()
        """Sequences and wants of the last call: in one that goes on from it they are the same. Never changed."""
        self._batch = library.llama_batch()
        for field, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._wants),
        ):
            kind = dict(library.llama_batch._fields_)[field]
            setattr(self._batch, field, ctypes.cast(array.ctypes.data, kind))

    def fill(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        wants: Sequence[int],
    ) -> Any:
        """The batch as llama.cpp takes it, until it is filled again. `wants` marks places whose logits are wanted."""
        count = len(tokens)
        numbers = f"{count}i"  # struct's way is shorter than numpy's
        pack_into(numbers, self._tokens.data, 0, *tokens)
        pack_into(numbers, self._positions.data, 0, *positions)
        if sequences != self._filled[0]:
            if self._twin:
                pairs = [own + more for own in sequences for more in (0, self._twin)]
                pack_into(f"{2 * count}i", self._sequences.data, 0, *pairs)
            else:
                pack_into(numbers, self._sequences.data, 0, *sequences)
        if wants != self._filled[1]:
            pack_into(f"{count}b", self._wants.data, 0, *wants)
        self._filled = sequences, wants
        self._batch.n_tokens = count
        return self._batch
