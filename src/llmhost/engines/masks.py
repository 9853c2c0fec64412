"""Which tokens the grammars of a step allow, made while the model computes.

Nothing needs a mask before the logits are there, and filling masks needs no lock of Python's: so a thread does it
meanwhile. No state of a grammar is used by two threads at once, because the engine's waits for the step to end.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from llmhost.core.step import GrammarState, Row
from llmhost.engines.drawing import Place
from llmhost.text.grammar import Closing, fill_masks


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one step, packed: a bit per token, the lowest id in the lowest bit."""

    packed: "np.ndarray[tuple[int, int], np.dtype[np.int32]]" = field(
        default_factory=lambda: np.zeros((0, 0), np.int32)
    )
    lines: Mapping[int, int] = field(default_factory=dict)
    """For each sequence with a grammar the line of its first place; those after its guesses follow."""
    closings: Mapping[int, Closing] = field(default_factory=dict)
    """For some lines the token that a wish to end the answer becomes."""

    def allowed(
        self, places: Sequence[Place], vocabulary: int
    ) -> "np.ndarray[tuple[int, int], np.dtype[np.bool_]]":
        """[places, vocabulary], for places whose rows have grammars."""
        octets = self.packed_at(places).view(np.uint8)
        return np.unpackbits(octets, axis=1, count=vocabulary, bitorder="little").view(np.bool_)

    def packed_at(
        self, places: Sequence[Place]
    ) -> "np.ndarray[tuple[int, int], np.dtype[np.int32]]":
        """As `packed`, for places whose rows have grammars."""
        return self.packed[[self._line(place) for place in places]]

    def closing(self, place: Place) -> Closing | None:
        """None as well where an end is barred for other reasons than the grammar's."""
        row = place.row
        if row.grammar is None or (row.barred and place.position < row.barred_until):
            return None
        return self.closings.get(self._line(place))

    def _line(self, place: Place) -> int:
        return self.lines[place.row.seq_id] + place.depth


def fill(rows: Sequence[Row], vocabulary: int) -> Masks:
    """The masks at all places of those rows that draw by a grammar."""
    states: list[GrammarState] = []
    guesses: list[Sequence[int]] = []
    lines: dict[int, int] = {}
    line = 0
    for row in rows:
        if row.grammar is not None and row.wants_token:
            states.append(row.grammar)
            guesses.append(row.tokens[len(row.tokens) - row.drafts :])
            lines[row.seq_id] = line
            line += row.drafts + 1
    packed = np.zeros((line, -(-vocabulary // 32)), np.int32)
    closings = fill_masks(states, packed, guesses)
    return Masks(packed, lines, {closing.line: closing for closing in closings})


_NONE = Masks()


def _no_masks() -> Masks:
    return _NONE


class MaskFiller:
    """A thread that fills masks, started with the first grammar."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def start(self, rows: Sequence[Row], vocabulary: int) -> Callable[[], Masks]:
        """Begin with a step's masks; a call of the result waits for them."""
        if all(row.grammar is None for row in rows):
            return _no_masks
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "masks")
        return self._thread.submit(fill, rows, vocabulary).result

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
