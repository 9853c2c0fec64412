"""Where answers stand in their grammars, and the masks that say how they may go on.

Beside what grammars allow, two things make answers of JSON end. A number has at most 20 digits where the schema lets it
end. And a model that wants to end its answer where the form does not allow it is told by `Closing` which token brings
the answer nearer to its end: the quote in a string, a bracket after a value. Without it such a model would have to say
something that it does not want to say, and often goes on for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher

from llmhost.core.step import GrammarState
from llmhost.text.json_place import JsonPlace
from llmhost.text.vocabulary import Masks, Vocabulary, words


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar ready to be copied: as an answer begins, and as it goes on after thoughts."""

    first: LLMatcher
    later: LLMatcher
    is_json: bool = False


class Closing(NamedTuple):
    """At a line of masks no end of the answer is allowed. Who wants one is nearest to it by saying `token`."""

    line: int
    token: int
    ends: Sequence[int]


@dataclass(slots=True)
class Sheet:
    """What one filling of masks is to write, by the number of the line."""

    wanted: list[tuple[LLMatcher, int, list[int]]] = field(default_factory=list)
    places: list[tuple[int, JsonPlace]] = field(default_factory=list)
    openings: list[int] = field(default_factory=list)
    """Where thoughts may begin, beside what the grammar allows."""
    free: list[int] = field(default_factory=list)
    """Amid thoughts, where only an end of the answer is barred."""
    every: list[int] = field(default_factory=list)
    """Where nothing is barred."""
    endless: list[int] = field(default_factory=list)
    """Where an end of the answer is barred beside what the grammar bars."""


class Answer:
    """Where one sequence stands. Implements the GrammarState protocol."""

    __slots__ = ("_grammar", "_is_thinking", "_matcher", "_place", "vocabulary")

    def __init__(
        self, vocabulary: Vocabulary, grammar: Compiled, prompt: Sequence[int] = ()
    ) -> None:
        self.vocabulary = vocabulary
        self._grammar = grammar
        self._is_thinking = vocabulary.is_thinking_after(prompt)
        """None where thoughts may begin with the next token."""
        begun = grammar.later if self._is_thinking else grammar.first
        self._matcher: LLMatcher = begun.deep_copy()
        self._place = JsonPlace()

    @property
    def is_free(self) -> bool:
        return False

    @property
    def is_ended(self) -> bool:
        if self._is_thinking:
            return False
        if self._matcher.is_stopped():
            return not self._matcher.is_error()
        return not self.vocabulary.ends and self._is_exhausted()

    def accept(self, token: int) -> None:
        thoughts, matcher = self._split((token,))
        if thoughts:
            self._is_thinking = matcher is None
            self._matcher = matcher or self._grammar.later.deep_copy()
        elif matcher is not None:
            self._is_thinking = False
            matcher.consume_token(token)
            self._place = self._after(self._place, token)

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        thoughts, matcher = self._split(tokens)
        if matcher is None:
            return thoughts
        return thoughts + int(matcher.validate_tokens(list(tokens[thoughts:])))

    def ask(self, guesses: Sequence[int], line: int, sheet: Sheet) -> None:
        """Have the masks of the next place, and of the place after each guess, written from `line` on."""
        thoughts, matcher = self._split(guesses)
        if matcher is not None:
            self._ask_held(matcher, guesses[thoughts:], line + thoughts, sheet)
        if self._is_thinking is None:
            sheet.openings.append(line)
            if thoughts:
                self._ask_held(self._matcher, (), line, sheet)
        free = range(line, line + thoughts + (matcher is None))
        sheet.free.extend(free if self._is_thinking else free[1:])

    def _ask_held(
        self, matcher: LLMatcher, guesses: Sequence[int], line: int, sheet: Sheet
    ) -> None:
        sheet.wanted.append((matcher, line, list(guesses)))
        if not self._grammar.is_json:
            return
        place = self._place
        sheet.places.append((line, place))
        for ahead, guess in enumerate(guesses, 1):
            place = self._after(place, guess)
            sheet.places.append((line + ahead, place))

    def _after(self, place: JsonPlace, token: int) -> JsonPlace:
        known = self.vocabulary.known
        return place.after(known[token]) if self._grammar.is_json and token < len(known) else place

    def _split(self, tokens: Sequence[int]) -> tuple[int, LLMatcher | None]:
        """How many of `tokens` are thoughts, and what holds the rest; None when they don't end the thoughts."""
        thinking = self.vocabulary.thinking
        if self._is_thinking is False or thinking is None:
            return 0, self._matcher
        if self._is_thinking is None and (not tokens or tokens[0] != thinking.begin):
            return 0, self._matcher
        if thinking.end not in tokens:
            return len(tokens), None
        after = self._matcher if self._is_thinking else self._grammar.later.deep_copy()
        return tokens.index(thinking.end) + 1, after

    def _is_exhausted(self) -> bool:
        """The answer is complete, and no token of the vocabulary may follow."""
        if not self._matcher.is_accepting():
            return False
        line = np.zeros((1, self.vocabulary.width), np.int32)
        fill_masks([self], line)
        return not line.any()


def fill_masks(
    states: Sequence[GrammarState], out: Masks, guesses: Sequence[Sequence[int]] = ()
) -> list[Closing]:
    """Write which tokens may come next, in `states`' order: a line for each state, and one after each of its guesses.

    `out` is C-contiguous, with a line for each of them and 32 ids per word; ids that the vocabulary lacks are barred.
    A place after a guess that its grammar bars has an empty line, and so has a state whose grammar became too complex
    on the way: nothing may be drawn there. All states are of one vocabulary. Python's lock is free meanwhile.
    """
    sheet, line = Sheet(), 0
    vocabulary: Vocabulary | None = None
    for place, state in enumerate(states):
        assert isinstance(state, Answer)
        vocabulary = state.vocabulary
        ahead = guesses[place] if guesses else ()
        state.ask(ahead, line, sheet)
        line += 1 + len(ahead)
    out.fill(0)
    if vocabulary is None:
        return []
    _write_held(vocabulary, sheet, out)
    _shorten_numbers(vocabulary, sheet, out)
    _write_thoughts(vocabulary, sheet, out)
    return _closings(vocabulary, sheet, out)


def _write_held(vocabulary: Vocabulary, sheet: Sheet, out: Masks) -> None:
    """What the grammars allow, into `out`, which is all zeros."""
    width = words(vocabulary.engine.vocab_size)
    is_direct = out.shape[1] == width and len(vocabulary.extended) == len(vocabulary.known)
    masks = out if is_direct else np.zeros((len(out), width), np.int32)
    room = (masks.ctypes.data, width * 4, len(masks))
    if plain := [(matcher, line) for matcher, line, ahead in sheet.wanted if not ahead]:
        _executor().unsafe_compute_mask_ptr(plain, *room)
    if guessed := [want for want in sheet.wanted if want[2]]:
        _executor().unsafe_compute_mask_ptr_with_draft_token(guessed, *room)
    for matcher, line, ahead in sheet.wanted:
        if matcher.is_error():
            masks[line : line + 1 + len(ahead)] = 0
    if not is_direct:
        shared = min(vocabulary.width, out.shape[1])
        out[:, :shared] = masks[:, :shared] & vocabulary.every[:shared]


def _shorten_numbers(vocabulary: Vocabulary, sheet: Sheet, out: Masks) -> None:
    """Bar further digits where a number has enough of them, unless the schema wants more."""
    shared = min(vocabulary.width, out.shape[1])
    for line, place in sheet.places:
        if place.digits and place.digits_left < vocabulary.most_digits:
            short = out[line, :shared] & vocabulary.short_of(place.digits_left)[:shared]
            if short.any():
                out[line, :shared] = short


def _write_thoughts(vocabulary: Vocabulary, sheet: Sheet, out: Masks) -> None:
    shared = min(vocabulary.width, out.shape[1])
    out[sheet.free, :shared] = vocabulary.but_ends[:shared]
    if sheet.every:
        out[sheet.every, :shared] = vocabulary.every[:shared]
    if sheet.endless:
        out[sheet.endless, :shared] &= vocabulary.but_ends[:shared]
    if sheet.openings:
        assert vocabulary.thinking is not None
        begin = vocabulary.thinking.begin
        out.view(np.uint32)[sheet.openings, begin >> 5] |= np.uint32(1 << (begin & 31))


def _closings(vocabulary: Vocabulary, sheet: Sheet, out: Masks) -> list[Closing]:
    ends = vocabulary.ends
    if not ends:
        return []
    found = []
    if vocabulary.thinking is not None:
        found += [Closing(line, vocabulary.thinking.end, ends) for line in sheet.free]
    for line, place in sheet.places:
        if not any(_allows(out[line], end) for end in ends):
            known = (vocabulary.single.get(text) for text in place.closers)
            tokens = (token for token in known if token is not None)
            token = next((token for token in tokens if _allows(out[line], token)), None)
            found += [] if token is None else [Closing(line, token, ends)]
    return found


def _allows(line: Masks, token: int) -> bool:
    return token >> 5 < len(line) and bool(line[token >> 5] >> (token & 31) & 1)


@cache
def _executor() -> LLExecutor:
    """Threads that fill masks, shared by all models."""
    return LLExecutor()
