"""A model's tokens as bytes: what a grammar must know of them, and masks over them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

Masks = NDArray[np.int32]
"""A line per place where a token is drawn, a bit per token id, the lowest id in the lowest bit."""

DIGITS = b"0123456789"


def words(bits: int) -> int:
    """Of 32 bits, to hold so many."""
    return (bits + 31) // 32


class Thinking(NamedTuple):
    """The tokens around a model's thoughts."""

    begin: int
    end: int
    is_free: bool
    """The model may begin to think without having been told to by its prompt."""


@dataclass(frozen=True)
class Vocabulary:
    """What a grammar must know of a model's tokens."""

    tokens: Callable[[], Sequence[bytes]]
    """Each id's bytes, empty for ids that stand for no text. Called once, when the first grammar comes."""
    eos_ids: frozenset[int]
    encode: Callable[[str], list[int]]
    thinking: Thinking | None = None
    controls: frozenset[int] = frozenset()
    """Ids that part a prompt's turns, among others."""
    specials: Mapping[str, int] = field(default_factory=dict)
    """Ids that stand for no text, by how they are spelled."""
    drops_space: bool = False
    """The text of an answer lacks the space that its first token begins with."""
    words: Sequence[str] = ()
    """Set where tokens are a space and one of these words, which can't spell everything that a grammar may ask for."""

    @cached_property
    def known(self) -> tuple[bytes, ...]:
        return tuple(self.tokens())

    @cached_property
    def ends(self) -> list[int]:
        """The end ids that there are tokens for."""
        return sorted(token for token in self.eos_ids if token < len(self.known))

    @cached_property
    def extended(self) -> tuple[bytes, ...]:
        """What llguidance takes for granted is added after the last id, and never drawn: every byte, and an end."""
        missing = {bytes([byte]) for byte in range(256)}.difference(self.known)
        return (*self.known, *sorted(missing), *([] if self.ends else [b""]))

    @cached_property
    def engine(self) -> LLTokenizer:
        """llguidance's view. Making it holds Python's lock for half a second when there are 150,000 tokens."""
        ends = self.ends or [len(self.extended) - 1]
        speller = TokenizerWrapper(_Speller(self, ends[0]))
        return LLTokenizer(speller, n_vocab=len(self.extended), eos_token=ends)

    @cached_property
    def width(self) -> int:
        """Words of a mask."""
        return words(len(self.known))

    @cached_property
    def every(self) -> Masks:
        """The mask of all tokens."""
        return self._line(())

    @cached_property
    def but_ends(self) -> Masks:
        return self._line(self.ends)

    def short_of(self, digits: int) -> Masks:
        """The mask of tokens that begin with no more than so many digits, kept for the few that are asked for."""
        found = self._short.get(digits)
        if found is None:
            long = np.flatnonzero(self._leading_digits > digits)
            found = self._short[digits] = self._line(long)
        return found

    @cached_property
    def _short(self) -> dict[int, Masks]:
        return {}

    @cached_property
    def _leading_digits(self) -> NDArray[np.int64]:
        return np.array([len(text) - len(text.lstrip(DIGITS)) for text in self.known])

    @cached_property
    def most_digits(self) -> int:
        """With which any token begins."""
        return int(self._leading_digits.max())

    @cached_property
    def single(self) -> dict[bytes, int]:
        """The ids of tokens that are one byte."""
        return {text: token for token, text in enumerate(self.known) if len(text) == 1}

    @cached_property
    def byte_ids(self) -> list[int]:
        """An id for each byte, which llguidance takes even where the model has none."""
        found = {text: token for token, text in enumerate(self.extended) if len(text) == 1}
        return [found[bytes([byte])] for byte in range(256)]

    def _line(self, barred: Sequence[int] | NDArray[np.int64]) -> Masks:
        may = np.zeros(self.width * 32, np.bool_)
        may[: len(self.known)] = True
        may[np.asarray(barred, np.int64)] = False
        return np.packbits(may, bitorder="little").view(np.int32)

    def is_thinking_after(self, prompt: Sequence[int]) -> bool | None:
        """Whether an answer begins amid thoughts; None when it may begin with them.

        What the last turn of the prompt has of their marks decides. A turn begins with a control token, so that a mark
        in somebody's message is none of ours.
        """
        if self.thinking is None:
            return False
        begin, end, is_free = self.thinking
        for token in reversed(prompt):
            if token in (begin, end):
                return token == begin
            if token in self.controls:
                break
        return None if is_free else False


class _Speller:
    """A vocabulary as llguidance asks for it. Called for texts that the grammar leaves no choice about."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, end: int) -> None:
        known = vocabulary.extended
        self.eos_token_id = end
        self.special_token_ids = [token for token, text in enumerate(known) if not text]
        # llguidance takes tokens that are spelled alike for one, and prefixes special ones with a byte of its own.
        self.tokens = [text or b"[%d]" % token for token, text in enumerate(known)]
        self._known = known
        self._encode = vocabulary.encode
        self._longest = max(map(len, known))
        self._ids = {text: token for token, text in enumerate(known) if text}

    def __call__(self, text: bytes) -> list[int]:
        """The model's own tokens for `text`, or, where its tokenizer would add to the text, the longest that fit."""
        try:
            ids = self._encode(text.decode())
        except UnicodeDecodeError:
            ids = []
        return ids if b"".join(self._known[token] for token in ids) == text else self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        ids, here = [], 0
        while here < len(text):
            ends = range(min(len(text), here + self._longest), here, -1)
            end = next(end for end in ends if text[here:end] in self._ids)  # one byte at the least
            ids.append(self._ids[text[here:end]])
            here = end
        return ids
