"""What a request asks of the next token beside temperature and filters: logits are barred, lowered and raised.

In the order of `Sampling`. All of it touches few tokens of few rows, so it is done as lists of (place, token id), for
all places at once; only an allowed list or a grammar writes whole lines.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.drawing import (
    Ids,
    Numbers,
    Place,
    Tally,
    bars,
    bars_after,
    has_penalty,
)
from llmhost.engines.masks import Masks
from llmhost.engines.torch.asked import to_device
from llmhost.engines.torch.lines import bar, bar_bits


class Spots(NamedTuple):
    """Some tokens at some places."""

    lines: Tensor
    tokens: Tensor


class Shaper:
    """Shapes logits, and keeps between two steps what need not be made again."""

    def __init__(self) -> None:
        self._kept: dict[int, Wishes] = {}

    def shape(
        self, scores: Tensor, places: Sequence[Place], masks: Masks, fed: Tensor | None = None
    ) -> None:
        """Change `scores` [places, vocabulary], float32, in place. What may not be drawn becomes negative infinity.

        `fed` [places] has the token that was fed last before each place, where some of these are pending.
        """
        wishes = self._wishes(places, scores.shape[1])
        pending = None if fed is None else _Pending.of(places, fed)
        _allow(scores, wishes)
        _mask(scores, places, masks)
        _bar(scores, places)
        if pending is not None:
            pending.bar(scores, places)
        _penalise(scores, places, wishes, pending)
        _favour(scores, wishes)

    def _wishes(self, places: Sequence[Place], vocabulary: int) -> list["Wishes"]:
        """One for each place; of earlier ones only those of sequences that are here again are kept."""
        kept: dict[int, Wishes] = {}
        found = []
        for row, _ in places:
            wishes = kept.get(row.seq_id) or self._kept.get(row.seq_id)
            if wishes is None or not wishes.belongs_to(row):
                wishes = Wishes(row, vocabulary)
            kept[row.seq_id] = wishes
            found.append(wishes)
        self._kept = kept
        return found


class Wishes:
    """What one sequence asks for, as arrays. Ids that the vocabulary lacks are left out: nothing draws them anyway."""

    def __init__(self, row: Row, vocabulary: int) -> None:
        asked = self._sampling = row.sampling
        self.tally = Tally(row.known, row.prompt_tokens) if has_penalty(asked) else None
        self.allowed = None
        if asked.allowed_token_ids is not None:
            self.allowed = _present(np.array(asked.allowed_token_ids, np.int64), vocabulary)
        self.favoured = _present(np.array([t for t, _ in asked.logit_bias], np.int64), vocabulary)
        biases = [bias for token, bias in asked.logit_bias if 0 <= token < vocabulary]
        self.biases: Numbers = np.array(biases, np.float32)

    def belongs_to(self, row: Row) -> bool:
        is_counted = self.tally is None or self.tally.belongs_to(row)
        return is_counted and self._sampling is row.sampling


def _present(ids: Ids, vocabulary: int) -> Ids:
    return ids[(ids >= 0) & (ids < vocabulary)]


def _spots(parts: Iterable[tuple[int, Ids]], device: torch.device) -> Spots | None:
    """Lists of tokens at lines as one; None when there are none."""
    some = [(line, ids) for line, ids in parts if len(ids)]
    if not some:
        return None
    lines = np.repeat([line for line, _ in some], [len(ids) for _, ids in some])
    tokens = np.concatenate([ids for _, ids in some])
    return Spots(_there(lines, device), _there(tokens, device))


def _there(numbers: "np.ndarray[Any, Any]", device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(numbers), device)


def _allow(scores: Tensor, wishes: Sequence[Wishes]) -> None:
    limited = [(line, one.allowed) for line, one in enumerate(wishes) if one.allowed is not None]
    if not limited:
        return
    spots = _spots(limited, scores.device)
    kept = None if spots is None else scores[spots]
    scores[_there(np.array([line for line, _ in limited]), scores.device)] = float("-inf")
    if spots is not None and kept is not None:
        scores[spots] = kept


def _mask(scores: Tensor, places: Sequence[Place], masks: Masks) -> None:
    held = [line for line, place in enumerate(places) if place.row.grammar is not None]
    if held:
        _wish(scores, places, masks)
        those = [places[line] for line in held]
        if scores.device.type == "cpu":
            bar(scores, held, ~masks.allowed(those, scores.shape[1]))
        else:
            at = _there(np.array(held), scores.device)
            bar_bits(scores, at, _there(masks.packed_at(those), scores.device))


def _wish(scores: Tensor, places: Sequence[Place], masks: Masks) -> None:
    """Where a grammar allows no end, the probability of one goes to what brings the answer nearer to it."""
    found = [(line, masks.closing(place)) for line, place in enumerate(places)]
    closing = [(line, one.token, one.ends) for line, one in found if one is not None]
    if not closing:
        return
    lines, tokens, (ends, *_) = zip(*closing, strict=True)  # one model has the same ends everywhere
    ends_ = _present(np.array(ends, np.int64), scores.shape[1])
    spots = (_there(np.array(lines), scores.device), _there(np.array(tokens), scores.device))
    wish = scores[spots[0][:, None], _there(ends_, scores.device)].logsumexp(-1)
    scores[spots] = torch.logaddexp(scores[spots], wish)


def _bar(scores: Tensor, places: Sequence[Place]) -> None:
    barred = ((line, np.array([*bars(place)], np.int64)) for line, place in enumerate(places))
    parts = ((line, _present(ids, scores.shape[1])) for line, ids in barred)
    if spots := _spots(parts, scores.device):
        scores[spots] = float("-inf")


class _Pending(NamedTuple):
    """Places whose last token only the device knows."""

    is_at: Sequence[bool]
    fed: Tensor
    """[places]: that token, and at other places one that is known."""

    @classmethod
    def of(cls, places: Sequence[Place], fed: Tensor) -> "_Pending | None":
        is_at = [place.is_pending for place in places]
        return cls(is_at, fed.long()) if any(is_at) else None

    def bar(self, scores: Tensor, places: Sequence[Place]) -> None:
        """Bar what would end a bad word, if that token was the one before its end."""
        found = [
            (line, before, barred)
            for line, (place, is_here) in enumerate(zip(places, self.is_at, strict=True))
            if is_here and place.row.sampling.bad_words
            for before, barred in bars_after(place)
            if 0 <= barred < scores.shape[1]
        ]
        if found:
            lines, before, barred = _there(np.array(found).T.copy(), scores.device)
            fall = torch.where(self.fed[lines] == before, float("-inf"), 0.0)
            scores.index_put_((lines, barred), fall, accumulate=True)  # one may be there twice


def _penalise(
    scores: Tensor, places: Sequence[Place], wishes: Sequence[Wishes], pending: _Pending | None
) -> None:
    read = [
        (line, places[line].row.sampling, *one.tally.read(places[line].guesses))
        for line, one in enumerate(wishes)
        if one.tally is not None
    ]
    spots = _spots(((line, ids) for line, _, ids, _ in read), scores.device)
    if spots is None:
        return
    lengths = [len(ids) for _, _, ids, _ in read]
    counts = _there(np.concatenate([counts for *_, counts in read]), scores.device)
    columns = _penalties([asked for _, asked, _, _ in read])
    values = _penalised(scores[spots], counts, [np.repeat(column, lengths) for column in columns])
    some = [] if pending is None else [i for i, (at, *_) in enumerate(read) if pending.is_at[at]]
    if pending is None or not some:
        scores[spots] = values
        return
    # The token that is not known here is in the answer once more than what is known of it says.
    lines = _there(np.array([read[i][0] for i in some]), scores.device)
    at = Spots(lines, pending.fed[lines])
    had = counts * (pending.fed[spots.lines] == spots.tokens)
    times = torch.zeros(len(places), device=scores.device).index_add_(0, spots.lines, had)[lines]
    again = _penalised(scores[at], times + 1, [column[some] for column in columns])
    scores[spots] = values
    scores[at] = again


def _penalised(values: Tensor, counts: Tensor, columns: Sequence[Numbers]) -> Tensor:
    """Logits of tokens that the text has, and that the answer has so many times, by the penalties in `columns`."""
    repetition, presence, frequency = (_there(column, values.device) for column in columns)
    values = torch.where(values > 0, values / repetition, values * repetition)
    return values.sub_(frequency * counts + presence * (counts > 0))


def _penalties(asked: Sequence[Sampling]) -> tuple[Numbers, ...]:
    table = [(a.repetition_penalty, a.presence_penalty, a.frequency_penalty) for a in asked]
    return tuple(np.array(table, np.float32).T)


def _favour(scores: Tensor, wishes: Sequence[Wishes]) -> None:
    parts = ((line, one.favoured) for line, one in enumerate(wishes))
    if spots := _spots(parts, scores.device):
        biases = _there(np.concatenate([one.biases for one in wishes]), scores.device)
        scores.index_put_(spots, biases, accumulate=True)
