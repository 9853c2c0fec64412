"""Text that is still being written, held back until it is judged. Pure: no rule is known here.

A window holds back the end of what was judged as well, so that something forbidden that began there is seen whole
before its first character leaves: nothing up to `overlap_chars` long gets out in two halves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

CONTEXT = 64
"""Characters before a piece that a rule may look back at."""
SLACK = 32
"""How far a cut moves back to fall between words."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text to judge. What is before `start` is context: it was judged before."""

    text: str
    start: int = 0
    is_end: bool = True
    """Nothing follows. Otherwise what touches the end may yet go on, and is seen again, unless it is too long to be."""
    offset: int = 0
    """Where `text` begins in what places are told in: less than 0 for context that is no part of it."""

    def at(self, place: int) -> int:
        """Where a place in `text` lies in the whole."""
        return self.offset + place

    @property
    def body(self) -> str:
        return self.text[self.start :]


def split(piece: Piece, *, size_chars: int, overlap_chars: int) -> Iterator[Piece]:
    """A long piece as several of at most `size_chars`, each beginning `overlap_chars` before the last one's end."""
    at, total = piece.start, len(piece.text)
    while total - at > size_chars:
        yield _cut_out(piece, at, at + size_chars, is_end=False)
        at += size_chars - overlap_chars
    yield _cut_out(piece, at, total, is_end=piece.is_end)


def _cut_out(piece: Piece, start: int, end: int, *, is_end: bool) -> Piece:
    first = max(start - CONTEXT, 0)
    return Piece(piece.text[first:end], start - first, is_end, piece.at(first))


class Window:
    """One stream of text: `push` says when there is enough to judge, `release` lets out what was judged fine.

    At most `size_chars` are held back between pushes.
    """

    def __init__(self, size_chars: int, overlap_chars: int) -> None:
        if not 0 <= overlap_chars < size_chars:
            raise ValueError(f"an overlap of {overlap_chars} does not fit a window of {size_chars}")
        self._size = size_chars
        self._overlap = overlap_chars
        self._slack = min(SLACK, (size_chars - overlap_chars) // 4)
        self._context = ""
        self._pending = ""
        """Not released: judged text that overlaps into the next window, then text that was never judged."""
        self._judged = 0
        self._is_ended = False

    def hold(self, text: str) -> bool:
        """Add text if there is not enough to judge with it."""
        is_room = len(self._pending) + len(text) < self._size
        if is_room:
            self._pending += text
        return is_room

    def push(self, text: str) -> Piece | None:
        """Add text; the piece to judge now, if there is one."""
        self._pending += text
        if len(self._pending) < self._size:
            return None
        self._judged = _between_words(self._pending, len(self._pending), self._slack)
        return self._piece()

    def finish(self) -> Piece | None:
        """No more text comes; the last piece to judge, unless nothing is left."""
        self._is_ended = True
        self._judged = len(self._pending)
        return self._piece() if self._pending else None

    def release(self) -> str:
        """What the last piece, judged fine, lets out."""
        cut = self._judged
        if not self._is_ended:
            cut = _between_words(self._pending, max(cut - self._overlap, 0), self._slack)
        released, self._pending = self._pending[:cut], self._pending[cut:]
        self._context = (self._context + released)[-CONTEXT:]
        self._judged = 0
        return released

    def _piece(self) -> Piece:
        text = self._context + self._pending[: self._judged]
        return Piece(text, len(self._context), self._is_ended, -len(self._context))


def _between_words(text: str, at: int, slack: int) -> int:
    """The last place up to `at` that follows a space, when one is near; else `at` itself."""
    for place in range(at, max(at - slack, 0), -1):
        if text[place - 1].isspace():
            return place
    return at
