"""How long a step will take, learned from the steps that were measured. Pure: no clock, no thread.

A step's time is modelled as what its decoding rows take, and what its prompts take on top: each a sum, of something per
step, per row or token, per 1,024 positions attended to, and for prompts also per 1,024 positions before them, which are
read once for one token as for several. The weights are fitted online by least squares on relative errors, older steps
counting less and less; those of decoding rows to steps without prompts alone, as many steps with one size of chunk
beside the same rows don't tell the two apart. What is left of the error for steps with prompts in them is tracked
apart: its mean is corrected for, and its spread is left as a margin when a prompt's chunk is cut.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmhost.core.step import DecodeRows, Row

FORGET, FORGET_DECODING = 0.98, 0.95
"""What each step keeps of the weight of those before it, with prompts and without: amid prompts these are few."""
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
UNMEASURED_STEPS = 16
"""After so many steps with prompts one without is worth its time: machines change, and those that decode get longer."""


class StepWork(NamedTuple):
    """What a step's time depends on."""

    rows: int = 0
    tokens: int = 0
    attended: int = 0
    """Positions attended to, summed over the tokens."""
    prompt_tokens: int = 0
    """Of `tokens`, those of rows with more than one."""
    prompt_rows: int = 0
    prompt_attended: int = 0
    prompt_past: int = 0
    """Positions before the tokens of rows with more than one, each once."""

    def plus(self, start: int, tokens: int) -> "StepWork":
        """With one more row that feeds `tokens` from position `start` on."""
        rows, fed, attended, prompts, prompt_rows, prompts_attended, past = self
        here = tokens * (start + (tokens + 1) // 2)
        if tokens > 1:
            prompts += tokens
            prompt_rows += 1
            prompts_attended += here
            past += start
        return StepWork(
            *(rows + 1, fed + tokens, attended + here),
            *(prompts, prompt_rows, prompts_attended, past),
        )


def work_of(rows: Iterable[Row]) -> StepWork:
    """The work of a step's rows: `plus` for each of them, in plain numbers."""
    if type(rows) is DecodeRows:
        return StepWork(len(rows), len(rows), sum(rows.starts) + len(rows))
    count = fed = attended = prompts = prompt_rows = prompts_attended = past = 0
    for row in rows:
        tokens = len(row.tokens)
        here = tokens * (row.start + (tokens + 1) // 2)
        count += 1
        fed += tokens
        attended += here
        if tokens > 1:
            prompts += tokens
            prompt_rows += 1
            prompts_attended += here
            past += row.start
    return StepWork(count, fed, attended, prompts, prompt_rows, prompts_attended, past)


class StepPredictor:
    """Milliseconds of steps; None while too little is known."""

    def __init__(self) -> None:
        self._decoding, self._prompts = _Fit(FORGET_DECODING), _Fit(FORGET)
        self._correction = 1.0
        self._spread = FIRST_SPREAD
        self._unmeasured = UNMEASURED_STEPS
        """Steps with prompts beside decoders since the last one without prompts; as many as are too many at first."""
        self.tried_tokens = 0
        """The most prompt tokens that a step had beside decoders."""
        self.seen = 0

    @property
    def seen_prompts(self) -> int:
        return self._prompts.seen

    @property
    def is_stale(self) -> bool:
        """What a step without prompts takes was last measured too long ago to be compared with."""
        return self._unmeasured >= UNMEASURED_STEPS

    def learn(self, work: StepWork, ms: float) -> None:
        """Take in a step that was measured."""
        is_beside = work.tokens > work.prompt_tokens > 0
        self._unmeasured = 0 if not work.prompt_tokens else self._unmeasured + is_beside
        if ms <= 0:
            return
        self.seen += 1
        of_decoding = _decoding_features(work)
        if not work.prompt_tokens:
            self._decoding.learn(of_decoding, ms, 1 / ms)
            return
        of_prompts, decoding_ms = _prompt_features(work), self._decoding.value(of_decoding)
        if self.seen > ENOUGH_STEPS and self.seen_prompts:
            self._correct(decoding_ms + self._prompts.value(of_prompts), ms)
        self._prompts.learn(of_prompts, max(ms - decoding_ms, 0.0), 1 / ms)
        if is_beside:
            self.tried_tokens = max(self.tried_tokens, work.prompt_tokens)

    def _correct(self, expected: float, ms: float) -> None:
        if expected > 0:
            error = min(max(ms / expected, 0.25), 4.0)
            self._spread += CORRECTION_SHARE * (abs(error - self._correction) - self._spread)
            self._correction += CORRECTION_SHARE * (error - self._correction)

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
        ms = self._decoding.value(_decoding_features(work))
        return ms + self._prompts.value(_prompt_features(work)) if work.prompt_tokens else ms


Features = tuple[float, float, float, float]


def _decoding_features(work: StepWork) -> Features:
    rows, attended = work.rows - work.prompt_rows, work.attended - work.prompt_attended
    return (1.0, rows, attended / 1024, 0.0)


def _prompt_features(work: StepWork) -> Features:
    attended, past = work.prompt_attended / 1024, work.prompt_past / 1024
    return (1.0, work.prompt_tokens, attended, past)


class _Fit:
    """Weights of four features, none of them negative, fitted to what was seen; older steps count less."""

    def __init__(self, forget: float) -> None:
        self._forget = forget
        self._sums = [0.0] * 14
        """Products of features, each with each from its place on, and those with the target: four numbers are too few
        to be worth an array."""
        self._weights: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
        self._fitted = 0
        """How many steps the weights were fitted to."""
        self.seen = 0

    def learn(self, features: Features, target: float, each: float) -> None:
        """An error of one in `target` counts as much as `each`."""
        a, b, c, d = features
        a, b, c, d, aim = each * a, each * b, each * c, each * d, each * target
        keep = self._forget
        aa, ab, ac, ad, bb, bc, bd, cc, cd, dd, at, bt, ct, dt = self._sums
        self._sums = [  # one by one: after every step, a loop over them is a good part of it
            *(keep * aa + a * a, keep * ab + a * b, keep * ac + a * c, keep * ad + a * d),
            *(keep * bb + b * b, keep * bc + b * c, keep * bd + b * d),
            *(keep * cc + c * c, keep * cd + c * d, keep * dd + d * d),
            *(keep * at + aim * a, keep * bt + aim * b, keep * ct + aim * c, keep * dt + aim * d),
        ]
        self.seen += 1

    def value(self, features: Features) -> float:
        if self.seen - self._fitted >= (1 if self.seen < STEADY_STEPS else FIT_EVERY):
            self._fit()
        (w, x, y, z), (a, b, c, d) = self._weights, features  # asked for three times a step
        return w * a + x * b + y * c + z * d

    def _fit(self) -> None:
        """Least squares; the worst weight is dropped until none is negative."""
        kept = [0, 1, 2, 3]
        solved: list[float] = []
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
        sums = self._sums
        line = [sums[_PAIRS[place][other]] for other in kept]
        line[kept.index(place)] += sums[_PAIRS[place][place]] * RIDGE + TINY
        return [*line, sums[_PRODUCTS + place]]


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
