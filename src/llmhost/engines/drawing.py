"""What all runners mean by a draw: at which places, after which text, and which tokens are barred there.

It knows no logits. A place is where one token is drawn; a row with guesses has one after its known tokens and one
after each guess. What is drawn at a place depends on nothing but the text before it, so a guess is right exactly if it
is what would have been drawn: answers are the same with guesses and without, and guesses only save steps.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from llmhost.core.errors import EngineFailed, FormTooComplex
from llmhost.core.output import TokenLogprobs
from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, Draw, Drawn, Row

Picked = int | EngineFailed
"""What came of one place."""
Ids = np.ndarray[tuple[int], np.dtype[np.int64]]
Numbers = np.ndarray[tuple[int], np.dtype[np.float32]]


_shaping = attrgetter(
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
)
_UNSHAPED = _shaping(Sampling())


class Place(NamedTuple):
    """Where one token is drawn: after what is known of `row`, and its first `depth` guesses taken as true."""

    row: Row
    depth: int = 0

    @property
    def position(self) -> int:
        """Of the token to draw, counted from the sequence's beginning."""
        row = self.row
        return row.start + len(row.tokens) - row.drafts + self.depth

    @property
    def guesses(self) -> Sequence[int]:
        """Those that are part of the text before this place."""
        first = len(self.row.tokens) - self.row.drafts
        return self.row.tokens[first : first + self.depth]

    @property
    def is_pending(self) -> bool:
        """The last token of the text before it is known to the device alone."""
        return self.row.tokens[0] == PENDING


def settled(row: Row) -> Row:
    """A row of a step that was begun ahead, once the step before it has been taken in: with the token that was pending,
    and held to its grammar only if that holds anything by now."""
    grammar = row.grammar
    if grammar is not None and (grammar.is_free or grammar.is_ended):
        row = row._replace(grammar=None)
    if row.tokens[0] == PENDING and len(row.known) > row.start:
        row = row._replace(tokens=[row.known[row.start]])
    return row


def places_of(row: Row) -> int:
    """At how many places a row's tokens are drawn: the last so many of those that it feeds."""
    return row.drafts + 1 if row.wants_token else 0


def scored_of(row: Row) -> int:
    """After how many of a row's first tokens the next one is a prompt token whose log probability is asked for."""
    if row.sampling.prompt_logprobs is None:
        return 0
    return max(0, min(len(row.tokens), row.prompt_tokens - 1 - row.start))


def scored_tokens(row: Row) -> Sequence[int]:
    """The prompt tokens that are scored."""
    return row.known[row.start + 1 : row.start + 1 + scored_of(row)]


def is_plain(row: Row) -> bool:
    """Whether one token is all that is wanted of a row, and nothing touches its logits but temperature and filters.

    Quick: it is asked for every row of every step.
    """
    return row.drafts == 0 and row.grammar is None and not row.barred and row.sampling.is_plain


def is_shaped(place: Place) -> bool:
    """Whether anything but temperature and the filters after it touches the logits of a place."""
    row = place.row
    return (
        row.grammar is not None
        or _shaping(row.sampling) != _UNSHAPED
        or (place.position < row.barred_until and bool(row.barred))
    )


def has_penalty(asked: Sampling) -> bool:
    return bool(
        asked.repetition_penalty != 1.0 or asked.presence_penalty or asked.frequency_penalty
    )


def bars(place: Place) -> Iterator[int]:
    """Ids that must not be drawn: ends of an answer that is too short, last tokens of bad words. Of a place that is
    pending those that are barred whatever its last token is; `bars_after` has the others."""
    row = place.row
    if place.position < row.barred_until:
        yield from row.barred
    words = row.sampling.bad_words
    if not words:
        return
    if place.is_pending:
        yield from (word[-1] for word in words if len(word) == 1)
        return
    tail = _tail(place)
    yield from (word[-1] for word in words if _ends_with(tail, word[:-1]))


def bars_after(place: Place) -> Iterator[tuple[int, int]]:
    """Of a place that is pending: ids, each after the token that bars it if the text before the place ends in it."""
    tail = _tail(place)
    for word in place.row.sampling.bad_words:
        if len(word) > 1 and _ends_with(tail, word[:-2]):
            yield word[-2], word[-1]


def _tail(place: Place) -> tuple[int, ...]:
    """As much of what is known before a place as bad words look at."""
    known = place.row.known
    longest = max((len(word) for word in place.row.sampling.bad_words), default=1) - 1
    return (*known[max(0, len(known) - longest) :], *place.guesses)


def _ends_with(tail: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return len(end) <= len(tail) and tail[len(tail) - len(end) :] == end


class Tally:
    """Which tokens a growing text holds, each once, and how often its answer has each of them.

    Kept from step to step: counting anew what has been counted costs more than a small model's step.
    """

    def __init__(self, known: Sequence[int], prompt_tokens: int) -> None:
        self._known = known
        self._prompt_tokens = prompt_tokens
        self._counted = 0
        self._where: dict[int, int] = {}
        self._ids: Ids = np.zeros(64, np.int64)
        self._counts: Numbers = np.zeros(64, np.float32)

    def belongs_to(self, row: Row) -> bool:
        """Whether this counts the row's text: that very list, which only grows."""
        return self._known is row.known and self._prompt_tokens == row.prompt_tokens

    def read(self, guesses: Sequence[int] = ()) -> tuple[Ids, Numbers]:
        """Ids and how often the answer has it, as if it went on by `guesses`. Valid until the next call."""
        self._catch_up()
        size = len(self._where)
        ids, counts = self._ids[:size], self._counts[:size]
        if not guesses:
            return ids, counts
        extended = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        for token in guesses:
            extended[token] = extended.get(token, 0) + 1
        return (
            np.fromiter(extended.keys(), np.int64, len(extended)),
            np.fromiter(extended.values(), np.float32, len(extended)),
        )

    def _catch_up(self) -> None:
        known, where = self._known, self._where
        for place in range(self._counted, len(known)):
            token = known[place]
            index = where.get(token)
            if index is None:
                index = where[token] = len(where)
                self._make_room(index)
                self._ids[index] = token
                self._counts[index] = 0
            if place >= self._prompt_tokens:
                self._counts[index] += 1
        self._counted = len(known)

    def _make_room(self, index: int) -> None:
        if index >= len(self._ids):
            self._ids = np.resize(self._ids, 2 * len(self._ids))
            self._counts = np.resize(self._counts, 2 * len(self._counts))


def confirm(row: Row, picked: Sequence[Picked]) -> tuple[int, ...] | EngineFailed:
    """What a row says, from what was drawn at each of its places: guesses that were right, and one token more.

    A failure counts only where the text before it is right. What came before it is said; the next step fails.
    """
    guesses = row.tokens[len(row.tokens) - row.drafts :] if row.drafts else ()
    said: list[int] = []
    for place, token in enumerate(picked):
        if isinstance(token, EngineFailed):
            return tuple(said) if said else token
        said.append(token)
        if place == len(guesses) or guesses[place] != token:
            break
    return tuple(said)


def answer(
    said: tuple[int, ...],
    logprobs: tuple[TokenLogprobs, ...] = (),
    prompt_logprobs: tuple[TokenLogprobs, ...] = (),
) -> Drawn:
    """A row's answer in its plainest form: a token, nothing, or all that there is to say."""
    if logprobs or prompt_logprobs or len(said) > 1:
        return Draw(said, logprobs, prompt_logprobs)
    return said[0] if said else None


def nothing_left(place: Place) -> EngineFailed:
    """The failure of a row for which everything is barred."""
    asked = place.row.sampling
    reasons = [
        *(["the grammar"] if place.row.grammar is not None else []),
        *(["allowed_token_ids"] if asked.allowed_token_ids is not None else []),
        *(["bad_words"] if asked.bad_words else []),
        *(["min_tokens"] if place.position < place.row.barred_until else []),
    ]
    if reasons == ["the grammar"]:
        return FormTooComplex(
            f"After {place.position} tokens the form of the answer left nothing to go on with: it is too complex."
            " Ask for one with fewer alternatives."
        )
    return EngineFailed(
        f"No token may follow after {place.position} tokens of sequence {place.row.seq_id}:"
        f" {' and '.join(reasons) or 'the request'} left none of the vocabulary. Ask for less at once."
    )
