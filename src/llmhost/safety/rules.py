"""The rules of [safety], compiled once and pure. Verdicts name the rule and never repeat the text.

Python's `re` can be neither timed out nor interrupted. What a pattern is given at once is bounded (`PIECE_CHARS`), so
a pattern that takes quadratic time stays harmless; one that takes exponential time, such as `(a+)+$`, does not, and
must not be configured. Words cost linear time, however many there are.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from llmhost.config.schema import SafetySettings
from llmhost.core.errors import ConfigError
from llmhost.safety.window import Piece, split

PIECE_CHARS = 4096
"""Most text that is matched in one go, context aside; more only where `window_chars` asks for it."""

_RUN = re.compile(r"[^\W_]+")
"""Letters and digits in a row: what makes a word go on. An underscore doesn't, so `_word_` is found."""
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""Thai, Lao, Burmese and Khmer, which are written without spaces, as are the wide scripts."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why text may not pass: `blocked_words[2]` is the third of them."""

    rule: str


class Rules:
    """Compiled words and patterns. Raises ConfigError naming table, key and index."""

    def __init__(self, settings: SafetySettings) -> None:
        words = _folded_words(settings.blocked_words)
        self._plain = {word: index for word, index in words.items() if _is_plain(word)}
        self._other = {word: index for word, index in words.items() if word not in self._plain}
        self._other_pattern = re.compile("|".join(map(_word_pattern, self._other)))
        self._patterns = tuple(
            _compiled(index, pattern) for index, pattern in enumerate(settings.blocked_patterns)
        )
        self.overlap_chars = max([settings.window_chars // 2, *map(len, words)])
        """What is at most this long is found wherever a window ends."""
        self.window_chars = max(settings.window_chars, 2 * self.overlap_chars)

    def __bool__(self) -> bool:
        return bool(self._plain or self._other or self._patterns)

    def judge(self, text: str) -> Verdict | None:
        """The first rule that whole text breaks."""
        if len(text) <= PIECE_CHARS:
            return self.judge_piece(Piece(text))
        return next((v for p in self.pieces(Piece(text)) if (v := self.judge_piece(p))), None)

    def pieces(self, piece: Piece) -> Iterator[Piece]:
        """A piece of any length as pieces that are short enough to judge."""
        size = max(PIECE_CHARS, self.window_chars)
        return split(piece, size_chars=size, overlap_chars=self.overlap_chars)

    def judge_piece(self, piece: Piece) -> Verdict | None:
        if piece.start:
            context = piece.text[: piece.start].casefold()
            folded = Piece(context + piece.body.casefold(), len(context), piece.is_end)
        else:
            folded = Piece(piece.text.casefold(), 0, piece.is_end)
        return self._judge_words(folded) or self._judge_patterns(piece)

    def _judge_words(self, folded: Piece) -> Verdict | None:
        # Most text has none of the words, which sets find out faster than looking at one run after the other.
        if self._plain and not self._plain.keys().isdisjoint(
            _RUN.findall(folded.text, folded.start)
        ):
            for run in _RUN.finditer(folded.text, folded.start):
                index = self._plain.get(run[0])
                if (
                    index is not None
                    and self._counts(run, folded)
                    and not _goes_back(run.start(), folded)
                ):
                    return Verdict(f"blocked_words[{index}]")
        if self._other:
            match = self._other_pattern.search(folded.text, folded.start)
            if match is not None and self._counts(match, folded):
                return Verdict(f"blocked_words[{self._other[_spaced(match[0])]}]")
        return None

    def _judge_patterns(self, piece: Piece) -> Verdict | None:
        for index, pattern in enumerate(self._patterns):
            # Searching from `start`, rather than in a slice, lets `^` and look-behinds see what was before.
            match = pattern.search(piece.text, piece.start)
            if match is not None and self._counts(match, piece):
                return Verdict(f"blocked_patterns[{index}]")
        return None

    def _counts(self, match: re.Match[str], piece: Piece) -> bool:
        """Not yet when it touches an end that is none: a word may go on there, and the next piece shows it whole."""
        if piece.is_end or match.end() < len(piece.text):
            return True
        return match.end() - match.start() > self.overlap_chars


def _goes_back(start: int, piece: Piece) -> bool:
    """Whether a run at the very start of a piece is the rest of a word, which was judged with the piece before."""
    return start == piece.start > 0 and _RUN.match(piece.text[start - 1]) is not None


def _folded_words(words: tuple[str, ...]) -> dict[str, int]:
    """Each word as it is looked for, and its index in models.toml."""
    folded: dict[str, int] = {}
    for index, word in enumerate(words):
        spaced = _spaced(word.casefold())
        if not spaced:
            raise ConfigError(f"[safety] blocked_words[{index}] is blank. Remove it.")
        folded.setdefault(spaced, index)
    return folded


def _spaced(word: str) -> str:
    return " ".join(word.split())


def _is_plain(word: str) -> bool:
    """Whether the word is exactly one run of letters and digits, which a table finds faster than any expression."""
    return _RUN.fullmatch(word) is not None and not (
        _stands_free(word[0]) or _stands_free(word[-1])
    )


def _stands_free(char: str) -> bool:
    """Whether no boundary is needed beside this character: punctuation, or a script that puts no spaces."""
    if _RUN.match(char) is None:
        return True
    return unicodedata.east_asian_width(char) in "WF" or _UNSPACED.match(char) is not None


def _word_pattern(word: str) -> str:
    before = "" if _stands_free(word[0]) else r"(?<![^\W_])"
    after = "" if _stands_free(word[-1]) else r"(?![^\W_])"
    return before + r"\s+".join(map(re.escape, word.split())) + after


def _compiled(index: int, pattern: str) -> re.Pattern[str]:
    place = f"[safety] blocked_patterns[{index}] {pattern!r}"
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{place} is not a regular expression: {error}.") from None
    if compiled.search(""):
        raise ConfigError(f"{place} matches empty text, so it would refuse everything.")
    return compiled
