"""Token ids to text, one at a time, and exactly what decoding all of them at once gives.

`tokenizers.DecodeStream` is not used: it lets out characters that a later byte token turns into replacement
characters, and raises when that happens. The two families of decoders that published models use are cheaper
and exact when each token's piece is looked up once:

- byte-level (GPT-2, Llama 3, Qwen): a piece is a run of bytes; only UTF-8 reaches over its border.
- SentencePiece (Llama 2, Mistral, Gemma, T5): a piece is text, or one byte of a run; the first one may lose a space.

Any other decoder is asked about a short window, which is exact as long as a token's text depends on its
neighbour only (WordPiece, `</w>` suffixes, no decoder at all).
"""

import re
from abc import ABC, abstractmethod
from codecs import utf_8_decode
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

P = TypeVar("P")

REPLACEMENT = "\ufffd"
RUN_BYTES = 64
"""A run of byte tokens is held until it ends, for one bad byte spoils all of it; a longer run comes out in parts."""
WINDOW_TOKENS = 64
"""How long the window may grow while its text ends in an incomplete character."""


class Detokeniser(ABC):
    """The text that each further token makes certain. Ids without text (special, unknown) add nothing.

    It is the `TextWatch` of a text without stop strings, too: who watches for nothing costs nothing."""

    __slots__ = ("is_armed",)

    is_armed: bool
    is_stopped = False
    stop: str | None = None

    @abstractmethod
    def push(self, token: int) -> str: ...

    @abstractmethod
    def flush(self) -> str: ...


class Pieces(dict[int, P | None], Generic[P]):
    """Token id to piece, filled on first use and shared by all streams; None for ids without text."""

    def __init__(self, look_up: Callable[[int], P | None]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, token: int) -> P | None:
        piece = self[token] = self._look_up(token)
        return piece


class ShowingDetokeniser(Detokeniser):
    """Another detokeniser, and some special tokens as they are spelled."""

    __slots__ = ("_inner", "_shown")

    def __init__(self, inner: Detokeniser, shown: Mapping[int, str]) -> None:
        self._inner = inner
        self._shown = shown

    def push(self, token: int) -> str:
        text = self._shown.get(token)
        return self._inner.push(token) if text is None else self._inner.flush() + text

    def flush(self) -> str:
        return self._inner.flush()


class ByteDetokeniser(Detokeniser):
    """Pieces are `str` where they are whole characters, else `bytes`."""

    __slots__ = ("_pending", "_pieces")

    def __init__(self, pieces: Mapping[int, str | bytes | None]) -> None:
        self._pieces = pieces
        self._pending = b""
        """The beginning of a character: never more than three bytes."""

    def push(self, token: int) -> str:
        piece = self._pieces[token]
        if piece is None:
            return ""
        if isinstance(piece, str):
            if not self._pending:
                return piece
            return self.flush() + piece  # a whole character never continues another one
        data = self._pending + piece
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def flush(self) -> str:
        # Not simply one U+FFFD: the beginning of a surrogate (ED A0..BF) is held back, and is two broken bytes.
        cut, self._pending = self._pending, b""
        return utf_8_decode(cut, "replace", True)[0]


class SentencePieceDetokeniser(Detokeniser):
    """Pieces are `str`, or `int` for a byte token. A run of bytes that is not UTF-8 becomes one U+FFFD per byte.

    `first` holds the pieces as they read at the start of a text; up to `strip` leading `space`s are dropped
    from the text as a whole.
    """

    __slots__ = ("_broken", "_pieces", "_rest", "_run", "_running", "_space", "_strip")

    def __init__(
        self,
        pieces: Mapping[int, str | int | None],
        *,
        first: Mapping[int, str | int | None],
        strip: int = 0,
        space: str = " ",
    ) -> None:
        self._pieces = first
        self._rest = pieces
        self._strip = strip
        self._space = space
        self._run = bytearray()
        self._running = False
        self._broken = False

    def push(self, token: int) -> str:
        piece = self._pieces[token]
        if piece is None:
            return ""
        self._pieces = self._rest
        if isinstance(piece, int):
            text = self._push_byte(piece)
        elif self._running:
            text = self._end_run() + piece
        else:
            text = piece
        return self._stripped(text) if self._strip else text

    def flush(self) -> str:
        return self._stripped(self._end_run())

    def _push_byte(self, byte: int) -> str:
        self._running = True
        if self._broken:
            return REPLACEMENT
        self._run.append(byte)
        try:
            text, used = utf_8_decode(self._run, "strict", False)
        except UnicodeDecodeError:
            self._broken = True
            return self._spoiled()
        if len(self._run) < RUN_BYTES:
            return ""
        del self._run[:used]
        return text

    def _end_run(self) -> str:
        self._running = self._broken = False
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            return self._spoiled()
        self._run.clear()
        return text

    def _spoiled(self) -> str:
        text = REPLACEMENT * len(self._run)
        self._run.clear()
        return text

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if not text.startswith(self._space):
                self._strip = 0
                break
            text = text[len(self._space) :]
            self._strip -= 1
        return text


class WindowDetokeniser(Detokeniser):
    """The difference that a token makes to the text of a short window."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], has_text: Mapping[int, str | None]
    ) -> None:
        self._decode = decode
        self._has_text = has_text
        self._window: list[int] = []
        self._said = 0
        """Characters of the window's text that are out already."""

    def push(self, token: int) -> str:
        if self._has_text[token] is None:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) < WINDOW_TOKENS:
            return ""
        fresh = text[self._said :]
        del self._window[:-1]
        self._said = len(self._decode(self._window))
        return fresh

    def flush(self) -> str:
        text = self._decode(self._window)[self._said :]
        self._said += len(text)
        return text


def detokeniser_factory(
    decoder: Mapping[str, Any] | None,
    *,
    spelling: Callable[[int], str | None],
    decode: Callable[[Sequence[int]], str],
) -> Callable[[], Detokeniser]:
    """What makes a detokeniser per sequence, for `decoder` as tokenizer.json has it.

    `spelling` gives a token as the vocabulary writes it, None for special and unknown ids; `decode` is the
    whole decoder, special tokens skipped.
    """
    steps = _steps(decoder)
    if _is_byte_level(steps):
        return partial(ByteDetokeniser, Pieces(partial(_bytes_piece, spelling)))
    if _is_sentencepiece(steps):
        return _sentencepiece(steps, spelling)
    return partial(WindowDetokeniser, decode, Pieces(spelling))


def token_speller(
    decoder: Mapping[str, Any] | None, *, spelling: Callable[[int], str | None]
) -> Callable[[int], bytes] | None:
    """What gives the bytes that a token stands for wherever it stands, parts of characters too, and none for special
    tokens. None for decoders to which a token's text depends on its neighbours.

    SentencePiece's space belongs to the token that it is written with, though a text lacks its first one.
    """
    steps = _steps(decoder)
    piece: Callable[[int], str | bytes | int | None]
    if _is_byte_level(steps):
        piece = partial(_bytes_piece, spelling)
    elif _is_sentencepiece(steps):
        piece = _sentencepiece_piece(steps, spelling)
    else:
        return None
    return lambda token: _as_bytes(piece(token))


def drops_first_space(decoder: Mapping[str, Any] | None) -> bool:
    """Whether a text lacks the space that its first token begins with."""
    steps = _steps(decoder)
    named = {step["type"]: step for step in steps}
    metaspace = named.get("Metaspace", {"prepend_scheme": "never"})
    return _is_sentencepiece(steps) and (
        metaspace["prepend_scheme"] != "never" or bool(named.get("Strip", {"start": 0})["start"])
    )


def _as_bytes(piece: str | bytes | int | None) -> bytes:
    if piece is None:
        return b""
    if isinstance(piece, int):
        return bytes([piece])
    return piece.encode() if isinstance(piece, str) else piece


def _shape(steps: Sequence[Mapping[str, Any]]) -> str:
    return "".join(step["type"] + " " for step in steps)


def _is_byte_level(steps: Sequence[Mapping[str, Any]]) -> bool:
    return _shape(steps) == "ByteLevel "


def _is_sentencepiece(steps: Sequence[Mapping[str, Any]]) -> bool:
    return bool(steps and _SENTENCEPIECE.fullmatch(_shape(steps)) and _is_plain(steps))


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [inner for step in decoder["decoders"] for inner in _steps(step)]
    return [decoder]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: a byte that prints stands for itself, the others are numbered from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _bytes_piece(token_text: Callable[[int], str | None], token: int) -> str | bytes | None:
    text = token_text(token)
    if text is None:
        return None
    try:
        data = bytes([_BYTE_OF[char] for char in text])
    except KeyError:
        return text  # an added token that the alphabet can't spell stands for itself
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


_SENTENCEPIECE = re.compile(r"(Metaspace |(Replace )*)(ByteFallback )?(Fuse (Strip )?)?")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _is_plain(steps: Sequence[Mapping[str, Any]]) -> bool:
    """No pattern but fixed strings, and nothing stripped from the end, which would have to be awaited."""
    return all(
        "String" in step.get("pattern", {"String": ""}) and not step.get("stop") for step in steps
    )


def _sentencepiece_piece(
    steps: Sequence[Mapping[str, Any]],
    spelling: Callable[[int], str | None],
    space: str = " ",
) -> Callable[[int], str | int | None]:
    """`space` is what Metaspace's sign becomes."""
    named = {step["type"]: step for step in steps}
    swaps = [(s["pattern"]["String"], s["content"]) for s in steps if s["type"] == "Replace"]
    metaspace = named.get("Metaspace")

    def piece(token: int) -> str | int | None:
        text = spelling(token)
        if text is None:
            return None
        if metaspace:
            text = text.replace(metaspace["replacement"], space)
        for old, new in swaps:
            text = text.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(text) if "ByteFallback" in named else None
        return int(byte[1], 16) if byte else text

    return piece


def _sentencepiece(
    steps: Sequence[Mapping[str, Any]], spelling: Callable[[int], str | None]
) -> Callable[[], SentencePieceDetokeniser]:
    named = {step["type"]: step for step in steps}
    metaspace = named.get("Metaspace")
    strip = named.get("Strip", {"start": 0, "content": " "})
    pieces: Pieces[str | int] = Pieces(_sentencepiece_piece(steps, spelling))
    first = pieces
    if metaspace and metaspace["prepend_scheme"] != "never":
        first = Pieces(_sentencepiece_piece(steps, spelling, space=""))
    return partial(
        SentencePieceDetokeniser,
        pieces,
        first=first,
        strip=strip["start"],
        space=strip["content"],
    )
