"""How long a step will take, learned from the steps that were measured. Pure: no clock, no thread.

A step's time is modelled as a sum: something per step, per row, per token fed and per 1,024 positions attended to.
The four weights are fitted online by least squares on relative errors, older steps counting less and less. What is
left of the error for steps with prompts in them is tracked apart: its mean is corrected for, and its spread is left
as a margin when a prompt's chunk is cut.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmhost.core.step import Row

FORGET = 0.98
"""What each step keeps of the weight of those before it."""
RIDGE, TINY = 1e-4, 1e-12
"""Pull the weights that the steps seen so far don't tell apart towards zero, relative to what was seen."""
CORRECTION_SHARE = 0.2
"""Part of each new error that enters the correction."""
FIRST_SPREAD = 0.2
"""By how much a step with a prompt may differ from its prediction, before any was compared; in parts of it."""
STEADY_STEPS, FIT_EVERY = 64, 8
"""From so many steps on, one more changes the weights by little: they are fitted anew after every few."""
ENOUGH_STEPS = 4
"""Steps to have seen before anything is predicted."""


class StepWork(NamedTuple):
    """What a step's time depends on."""

    rows: int = 0
    tokens: int = 0
    attended: int = 0
    """Positions attended to, summed over the tokens."""
    prompt_tokens: int = 0
    """Of `tokens`, those of rows with more than one."""

    def plus(self, start: int, tokens: int) -> "StepWork":
        """With one more row that feeds `tokens` from position `start` on."""
        return StepWork(
            self.rows + 1,
            self.tokens + tokens,
            self.attended + tokens * (start + (tokens + 1) // 2),
            self.prompt_tokens + (tokens if tokens > 1 else 0),
        )


def work_of(rows: Iterable[Row]) -> StepWork:
    """The work of a step's rows: `plus` for each of them, in plain numbers."""
    count = fed = attended = prompts = 0
    for row in rows:
        tokens = len(row.tokens)
        count += 1
        fed += tokens
        attended += tokens * (row.start + (tokens + 1) // 2)
        if tokens > 1:
            prompts += tokens
    return StepWork(count, fed, attended, prompts)


class StepPredictor:
    """Milliseconds of steps; None while too little is known."""

    def __init__(self) -> None:
        self._seen = [0.0] * 14
        """Products of features, each with each from its place on, and the features themselves: four numbers are too few
        to be worth an array."""
        self._weights: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
        self._correction = 1.0
        self._spread = FIRST_SPREAD
        self._fitted = 0
        """How many steps the weights were fitted to."""
        self.tried_tokens = 0
        """The most prompt tokens that a step had beside decoders."""
        self.seen = 0
        self.seen_prompts = 0

    def learn(self, work: StepWork, ms: float) -> None:
        """Take in a step that was measured."""
        if ms <= 0:
            return
        if work.prompt_tokens and self.seen >= ENOUGH_STEPS:
            expected = self._model(work)
            if expected > 0 and self.seen_prompts:
                error = min(max(ms / expected, 0.25), 4.0)
                self._spread += CORRECTION_SHARE * (abs(error - self._correction) - self._spread)
                self._correction += CORRECTION_SHARE * (error - self._correction)
        each = 1.0 / ms
        rows, tokens, reach = work.rows * each, work.tokens * each, work.attended / 1024 * each
        fresh = (
            *(each * each, each * rows, each * tokens, each * reach),
            *(rows * rows, rows * tokens, rows * reach),
            *(tokens * tokens, tokens * reach, reach * reach),
            *(each, rows, tokens, reach),
        )
        self._seen = [FORGET * old + new for old, new in zip(self._seen, fresh, strict=True)]
        self.seen += 1
        self.seen_prompts += work.prompt_tokens > 0
        if work.tokens > work.prompt_tokens > self.tried_tokens:
            self.tried_tokens = work.prompt_tokens

    def predict(self, work: StepWork) -> float | None:
        """Milliseconds that a step would take."""
        if self.seen < ENOUGH_STEPS:
            return None
        return self._model(work) * (self._correction if work.prompt_tokens else 1.0)

    def predict_at_most(self, work: StepWork) -> float | None:
        """As `predict`, with what steps with prompts have usually differed by on top."""
        if self.seen < ENOUGH_STEPS:
            return None
        return self._model(work) * (self._correction + self._spread)

    def _model(self, work: StepWork) -> float:
        if self.seen - self._fitted >= (1 if self.seen < STEADY_STEPS else FIT_EVERY):
            self._fit()
        return sum(w * f for w, f in zip(self._weights, _features(work), strict=True))

    def _fit(self) -> None:
        """Weights of least squares, none of them negative: the worst one is dropped until none is."""
        kept, solved = [0, 1, 2, 3], list[float]()
        while kept:
            solved = _solved([self._line(place, kept) for place in kept])
            worst = min(solved)
            if worst >= 0:
                break
            del kept[solved.index(worst)]
        weights = [0.0] * 4
        for place, weight in zip(kept, solved if kept else [], strict=True):
            weights[place] = weight
        self._weights = weights
        self._fitted = self.seen

    def _line(self, place: int, kept: Sequence[int]) -> list[float]:
        """One of the equations that the weights of `kept` solve."""
        seen = self._seen
        line = [seen[_PAIRS[place][other]] for other in kept]
        line[kept.index(place)] += seen[_PAIRS[place][place]] * RIDGE + TINY
        return [*line, seen[_PRODUCTS + place]]


_PRODUCTS = 10
_PAIRS = ((0, 1, 2, 3), (1, 4, 5, 6), (2, 5, 7, 8), (3, 6, 8, 9))
"""Where the product of two features is among all."""


def _solved(lines: list[list[float]]) -> list[float]:
    """What solves these equations, by elimination. Their matrix is symmetric with positive eigenvalues, so no
    line has to be sought to begin with."""
    size = len(lines)
    for place in range(size):
        pivot = lines[place]
        for lower in range(place + 1, size):
            line = lines[lower]
            share = line[place] / pivot[place]
            for column in range(place, size + 1):
                line[column] -= share * pivot[column]
    found = [0.0] * size
    for place in reversed(range(size)):
        line = lines[place]
        known = sum(line[column] * found[column] for column in range(place + 1, size))
        found[place] = (line[size] - known) / line[place]
    return found


def _features(work: StepWork) -> tuple[float, float, float, float]:
    return (1.0, work.rows, work.tokens, work.attended / 1024)


def prompt_room(
    predictor: StepPredictor,
    decoding: StepWork,
    *,
    start: int,
    target_ms: float,
    least: int,
    most: int,
) -> int:
    """Prompt tokens, from position `start` on, that a step may feed beside `decoding` within `target_ms`.

    Never less than `least`, so that prompts get on however slow the machine is; `least` while nothing is known of
    prompts.
    """
    if most <= least:
        return most
    if not predictor.seen_prompts or predictor.predict(decoding) is None:
        return least
    # What was learned from whole prompts need not hold for pieces of them: they grow by steps that were measured.
    low, high = least, min(most, max(2 * predictor.tried_tokens, least))

    def fits(tokens: int) -> bool:
        ms = predictor.predict_at_most(decoding.plus(start, tokens))
        return ms is not None and ms <= target_ms

    if fits(high):
        return high
    while high - low >= least:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
