"""JSON's escapes read as what they stand for: within a call's arguments they would hide what rules look for."""

import re
from bisect import bisect_left

from llmhost.safety.window import Piece

_ESCAPE = re.compile(r'\\(?:u[0-9a-fA-F]{4}|[nrtbf"/\\])')
_SHORT = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def unescaped(piece: Piece) -> tuple[Piece, list[int]] | None:
    """A piece without its escapes, and the place in `piece.text` of each character and of the end. None where there
    are no escapes."""
    text, at = piece.text, 0
    parts: list[str] = []
    places: list[int] = []
    for match in _ESCAPE.finditer(text):
        parts += (text[at : match.start()], _meant(match[0]))
        places += range(at, match.start() + 1)
        at = match.end()
    if not parts:
        return None
    places += range(at, len(text) + 1)
    start = bisect_left(places, piece.start)
    return Piece("".join(parts) + text[at:], start, piece.is_end), places


def _meant(escape: str) -> str:
    if escape[1] == "u":
        return chr(int(escape[2:], 16))
    return _SHORT.get(escape[1], escape[1])
