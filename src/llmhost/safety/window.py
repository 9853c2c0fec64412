"""Text that is still being written, held back until it is judged. Pure: no rule is known here.

A window holds back the end of what was judged as well, so that something forbidden that began there is seen whole
before its first character leaves: nothing up to `overlap_chars` long gets out in two halves.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

CONTEXT = 64
"""Characters before a piece that a rule may look back at."""
SLACK = 32
"""How far a cut moves back to fall between words."""

TAIL_CHARS = 64
"""A line of dashes that closes something is no longer than this."""


class Piece(msgspec.Struct, frozen=True, gc=False):
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


class Cut(NamedTuple):
    """A stretch of a stream's text as it was written, of which so many characters are left."""

    start: int
    end: int
    left_chars: int


class Window:
    """One stream of text: `push` says when there is enough to judge, `release` lets out what was judged fine.

    At most `size_chars` are held back between pushes. Places in a piece are places in what is held back.
    """

    # Here, since most windows are never full and leave these as they are.
    _context = ""
    _pending = ""
    """Not released: judged text that overlaps into the next window, then text that was never judged."""
    _judged = 0
    _is_ended = False
    _written = 0
    """Where `_pending` begins in the text as it was written."""
    _tail: re.Pattern[str] | None = None
    """What still belongs to what was cut at `_tail_at`."""
    _tail_at = 0

    def __init__(self, size_chars: int, overlap_chars: int) -> None:
        if not 0 <= overlap_chars < size_chars:
            raise ValueError(f"an overlap of {overlap_chars} does not fit a window of {size_chars}")
        self._size = size_chars
        self._overlap = overlap_chars
        self._slack = min(SLACK, (size_chars - overlap_chars) // 4)
        self._marks: list[tuple[int, int, int]] = []
        """In `_pending`: where something was put in place of other text, where it ends, and how long that was."""
        self._cuts: list[Cut] = []

    def hold(self, text: str) -> bool:
        """Add text if there is not enough to judge with it."""
        is_room = self._tail is None and len(self._pending) + len(text) < self._size
        if is_room:
            self._pending += text
        return is_room

    def whole(self, text: str) -> str | None:
        """All that there would be with this text, where nothing of it was judged and there is not enough to judge."""
        pending = self._pending
        is_first = not (self._context or self._judged or self._written or self._marks)
        is_short = self._tail is None and len(pending) + len(text) < self._size
        return pending + text if is_first and is_short else None

    def push(self, text: str) -> Piece | None:
        """Add text; the piece to judge now, if there is one."""
        self._pending += text
        if self._tail is not None:
            self._cut_tail(self._tail)
        if len(self._pending) < self._size:
            return None
        self._judged = _between_words(self._pending, len(self._pending), self._slack)
        return self._piece()

    def finish(self) -> Piece | None:
        """No more text comes; the last piece to judge, unless nothing is left."""
        self._is_ended = True
        if self._tail is not None:
            self._cut_tail(self._tail)
        self._judged = len(self._pending)
        return self._piece() if self._pending else None

    def cut(self, start: int, end: int, mark: str, tail: re.Pattern[str] | None = None) -> bool:
        """Put a mark in place of judged text; False where one is already. From the last place to the first.

        Where the text ends where the judging did, what follows it belongs to it as far as `tail` matches: up to
        something else, or to what its group matches.
        """
        if any(start < to and end > at for at, to, _ in self._marks):
            return False
        self._cuts.append(Cut(self._place(start), self._place(end), len(mark)))
        self._pending = self._pending[:start] + mark + self._pending[end:]
        grown = len(mark) - (end - start)
        marks = [(a + grown, b + grown, c) if a >= end else (a, b, c) for a, b, c in self._marks]
        self._marks = sorted([*marks, (start, start + len(mark), end - start)])
        if end == self._judged and tail is not None and not self._is_ended:
            self._tail, self._tail_at = tail, start + len(mark)
        elif self._tail is not None:
            self._tail_at += grown
        self._judged += grown
        return True

    def release(self) -> str:
        """What the last piece, judged fine, lets out."""
        cut = self._judged
        if not self._is_ended:
            cut = _between_words(self._pending, max(cut - self._overlap, 0), self._slack)
            for start, end, _ in self._marks:
                if start < cut < end:
                    cut = start
        self._written = self._place(cut)
        released, self._pending = self._pending[:cut], self._pending[cut:]
        self._marks = [(a - cut, b - cut, c) for a, b, c in self._marks if a >= cut]
        self._tail_at -= cut
        self._context = (self._context + released)[-CONTEXT:]
        self._judged = 0
        return released

    def take_cuts(self) -> tuple[Cut, ...]:
        """Those since the last call: each is told before any of what follows it is released."""
        cuts, self._cuts = tuple(self._cuts), []
        return tuple(sorted(cuts))

    def _cut_tail(self, tail: re.Pattern[str]) -> None:
        at = self._tail_at
        match = tail.match(self._pending, at)
        end = at if match is None else match.end()
        if end > at:
            self._cuts.append(Cut(self._place(at), self._place(end), 0))
            self._marks.append((at, at, end - at))
            self._pending = self._pending[:at] + self._pending[end:]
        rest = self._pending[at:]
        may_end = rest.startswith("-") and len(rest) < TAIL_CHARS
        if (match is not None and match.lastindex) or (rest and not may_end) or self._is_ended:
            self._tail = None

    def _place(self, place: int) -> int:
        """Where a place in what is held back lies in the text as it was written."""
        moved = sum(was - (end - start) for start, end, was in self._marks if end <= place)
        return self._written + place + moved

    def _piece(self) -> Piece:
        text = self._context + self._pending[: self._judged]
        return Piece(text, len(self._context), self._is_ended, -len(self._context))


def _between_words(text: str, at: int, slack: int) -> int:
    """The last place up to `at` that follows a space, when one is near; else `at` itself."""
    for place in range(at, max(at - slack, 0), -1):
        if text[place - 1].isspace():
            return place
    return at
