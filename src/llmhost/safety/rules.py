"""The words and patterns of [safety], compiled once and pure. Findings name the rule and never repeat the text.

Python's `re` can be neither timed out nor interrupted. What a pattern is given at once is bounded (`PIECE_CHARS`), so
a pattern that takes quadratic time stays harmless; one that takes exponential time, such as `(a+)+$`, does not, and
must not be configured. Words cost linear time, however many there are.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.errors import ConfigError
from llmhost.safety.escapes import unescaped
from llmhost.safety.pack.pack import Pack
from llmhost.safety.phrases import pattern_of
from llmhost.safety.verdict import Finding, Tier
from llmhost.safety.window import CONTEXT, Piece, split

PIECE_CHARS = 4096
"""Most text that is matched in one go, context aside; more only where `window_chars` asks for it."""

FEW_WORDS = 16
"""So many are looked for one by one, in any place, before it is looked at where words begin and end: it takes a tenth
of the time, and most text has none of them."""

_RUN = re.compile(r"[^\W_]+")
"""Letters and digits in a row: what makes a word go on. An underscore doesn't, so `_word_` is found."""
_AS_RUNS = bytes(byte if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256))
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""Thai, Lao, Burmese and Khmer, which are written without spaces, as are the wide scripts."""


class Rules:
    """Compiled words and patterns. Raises ConfigError naming table, key and index."""

    def __init__(
        self,
        settings: SafetySettings,
        org_words: tuple[str, ...] = (),
        pack: Pack | None = None,
    ) -> None:
        """`org_words` are an organisation's own, beside those of the node; `pack` is what its policy looks for."""
        self._pack = pack or None
        words = _folded_words(org_words, "words") | _folded_words(
            settings.blocked_words, "blocked_words"
        )
        self._plain = {word: rule for word, rule in words.items() if _is_plain(word)}
        self._other = {word: rule for word, rule in words.items() if word not in self._plain}
        self._other_pattern = re.compile(pattern_of(self._other, _before, _after))
        parts = tuple(max(word.split(), key=len) for word in words)
        self._parts = parts if len(words) <= FEW_WORDS else ("",)
        """Of each word something without a blank, which any text has that has the word; of many what all texts have."""
        self._patterns = tuple(
            _compiled(index, pattern) for index, pattern in enumerate(settings.blocked_patterns)
        )
        recognised = 0 if pack is None else pack.overlap_chars
        self.overlap_chars = max([settings.window_chars // 2, recognised, *map(len, words)])
        """What is at most this long is found wherever a window ends."""
        self.window_chars = max(settings.window_chars, 2 * self.overlap_chars)
        self.was_used = False
        """Since somebody last looked for a set to give up."""
        self._piece_chars = max(PIECE_CHARS, self.window_chars)

    def __bool__(self) -> bool:
        return bool(self._plain or self._other or self._patterns or self._pack)

    def judge(self, text: str) -> list[Finding]:
        """All that whole text breaks. Long text takes long: `pieces` lets others have their turn."""
        if len(text) <= PIECE_CHARS:
            return self.judge_piece(Piece(text))
        return [found for piece in self.pieces(Piece(text)) for found in self.judge_piece(piece)]

    def pieces(self, piece: Piece) -> Iterator[Piece]:
        """A piece of any length as pieces that are short enough to judge."""
        return split(piece, size_chars=self._piece_chars, overlap_chars=self.overlap_chars)

    def takes_whole(self, piece: Piece) -> bool:
        """Whether `pieces` would be the piece itself."""
        return piece.start <= CONTEXT and len(piece.text) - piece.start <= self._piece_chars

    def is_clean(self, text: str) -> bool:
        """Whether `judge` is sure to find nothing in a short text: what most have not is found out without looking for
        places. False says nothing."""
        if len(text) > PIECE_CHARS or "\\" in text:
            return False
        if self._parts:
            folded = text.casefold()
            for part in self._parts:
                if part in folded:
                    if self._has_words(folded):
                        return False
                    break
        for pattern in self._patterns:
            if pattern.search(text) is not None:
                return False
        return self._pack is None or self._pack.is_clean(text)

    def _has_words(self, folded: str) -> bool:
        if self._plain and not self._plain.keys().isdisjoint(_runs(folded)):
            return True
        return bool(self._other) and self._other_pattern.search(folded) is not None

    def judge_piece(self, piece: Piece) -> list[Finding]:
        """Places are those in the text that the piece is of. What JSON's escapes hide is found, too."""
        found = self._judge_as_is(piece)
        if "\\" in piece.text and (read := unescaped(piece)) is not None:
            meant, places = read
            whole = {piece.at(place) for place in places}
            found = [each for each in found if _is_meant(each, whole)]
            for hidden in self._judge_as_is(meant):
                start, end = piece.at(places[hidden.start]), piece.at(places[hidden.end])
                found.append(replace(hidden, start=start, end=end))
        return found

    def _judge_as_is(self, piece: Piece) -> list[Finding]:
        found: list[Finding] = []
        if self._plain or self._other:
            found += self._judge_words(piece)
        if self._patterns:
            found += self._judge_patterns(piece)
        if self._pack is not None:
            found += self._pack.judge_piece(piece, self.overlap_chars)
        return found

    def _judge_words(self, piece: Piece) -> Iterator[Finding]:
        folded = _folded(piece)
        # Most text has none of the words, which sets find out faster than looking at one run after the other.
        if self._plain and not self._plain.keys().isdisjoint(_runs(folded.text, folded.start)):
            for run in _RUN.finditer(folded.text, folded.start):
                rule = self._plain.get(run[0])
                if (
                    rule is not None
                    and self._counts(run, folded)
                    and not _goes_back(run.start(), folded)
                ):
                    yield _found("words", rule, run, folded, piece)
        if self._other:
            for match in self._other_pattern.finditer(folded.text, folded.start):
                if self._counts(match, folded):
                    rule = self._other[_spaced(match[0])]
                    yield _found("words", rule, match, folded, piece)

    def _judge_patterns(self, piece: Piece) -> Iterator[Finding]:
        for index, pattern in enumerate(self._patterns):
            # Searching from `start`, rather than in a slice, lets `^` and look-behinds see what was before.
            for match in pattern.finditer(piece.text, piece.start):
                if self._counts(match, piece):
                    yield _found("patterns", f"blocked_patterns[{index}]", match, piece, piece)

    def _counts(self, match: re.Match[str], piece: Piece) -> bool:
        """Not yet when it touches an end that is none: a word may go on there, and the next piece shows it whole."""
        if piece.is_end or match.end() < len(piece.text):
            return True
        return match.end() - match.start() > self.overlap_chars


def _is_meant(finding: Finding, whole: set[int]) -> bool:
    """Whether it neither begins nor ends amid an escape. Patterns may be about escapes."""
    return finding.category == "patterns" or (finding.start in whole and finding.end in whole)


def _runs(folded: str, start: int = 0) -> list[str]:
    if not folded.isascii():
        return _RUN.findall(folded, start)
    return folded[start:].encode().translate(_AS_RUNS).decode().split()  # some times faster


def _folded(piece: Piece) -> Piece:
    if piece.start:
        context = piece.text[: piece.start].casefold()
        return Piece(context + piece.body.casefold(), len(context), piece.is_end)
    return Piece(piece.text.casefold(), 0, piece.is_end)


def _found(category: str, rule: str, match: re.Match[str], folded: Piece, piece: Piece) -> Finding:
    """A finding at its place in the whole text; the whole piece where folding its case made it longer."""
    if len(folded.text) != len(piece.text):
        start, end = piece.start, len(piece.text)
    else:
        start, end = match.span()
    return Finding(category, rule, Tier.RULES, start=piece.at(start), end=piece.at(end))


def _goes_back(start: int, piece: Piece) -> bool:
    """Whether a run at the very start of a piece is the rest of a word, which was judged with the piece before."""
    return start == piece.start > 0 and _RUN.match(piece.text[start - 1]) is not None


def _folded_words(words: tuple[str, ...], key: str) -> dict[str, str]:
    """Each word as it is looked for, and the rule that it is."""
    folded: dict[str, str] = {}
    for index, word in enumerate(words):
        spaced = _spaced(word.casefold())
        if not spaced:
            raise ConfigError(f"[safety] {key}[{index}] is blank. Remove it.")
        folded.setdefault(spaced, f"{key}[{index}]")
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


def _before(word: str) -> str:
    return "" if _stands_free(word[0]) else r"(?<![^\W_])"


def _after(word: str) -> str:
    return "" if _stands_free(word[-1]) else r"(?![^\W_])"


def _compiled(index: int, pattern: str) -> re.Pattern[str]:
    place = f"[safety] blocked_patterns[{index}] {pattern!r}"
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{place} is not a regular expression: {error}.") from None
    if compiled.search(""):
        raise ConfigError(f"{place} matches empty text, so it would refuse everything.")
    return compiled
