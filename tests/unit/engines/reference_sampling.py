"""The distribution that a request asks for, by its definition: one line at a time, in float64, without torch."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from llmhost.core.sampling import Sampling

Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]


def distribution(
    logits: Sequence[float], asked: Sampling, known: Sequence[int] = (), prompt_tokens: int = 0
) -> Numbers:
    """Probabilities of the token after `known`, of which the first `prompt_tokens` are the prompt."""
    scores = [float(logit) for logit in logits]
    for token in range(len(scores)):
        if asked.allowed_token_ids is not None and token not in asked.allowed_token_ids:
            scores[token] = -math.inf
    for *before, last in asked.bad_words:
        if not before or list(known)[-len(before) :] == before:
            scores[last] = -math.inf
    answer = Counter(known[prompt_tokens:])
    for token in {*known}:
        score = scores[token]
        score = score / asked.repetition_penalty if score > 0 else score * asked.repetition_penalty
        score -= answer[token] * asked.frequency_penalty
        scores[token] = score - (asked.presence_penalty if token in answer else 0.0)
    for token, bias in asked.logit_bias:
        scores[token] += bias
    if asked.temperature == 0.0:
        best = scores.index(max(scores))
        return np.eye(len(scores))[best]
    return _filtered(np.array(scores) / asked.temperature, asked)


def _filtered(scores: Numbers, asked: Sampling) -> Numbers:
    shares = _shares(scores)
    if asked.top_k is not None and asked.top_k > 0:
        kth = np.sort(shares)[::-1][: asked.top_k][-1]
        shares = shares * (shares >= kth)
        shares = shares / shares.sum()
    if asked.top_p < 1.0:
        order = np.argsort(-shares)
        before = np.cumsum(shares[order]) - shares[order]
        smallest = shares[order][before < asked.top_p][-1]
        shares = shares * (shares >= smallest)
    shares = shares * (shares >= asked.min_p * shares.max())
    return shares / shares.sum()


def _shares(scores: Numbers) -> Numbers:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def distance(tokens: Sequence[int], expected: Numbers) -> tuple[float, int]:
    """How far counts are from what is expected, in standard deviations, and the degrees of freedom.

    Pearson's chi-square as a standard normal (Wilson and Hilferty, 1931). Cells that expect less than 5 are one cell.
    A token of no probability is infinitely far.
    """
    counts = np.bincount(tokens, minlength=len(expected)).astype(np.float64)
    if counts[expected == 0.0].any():
        return math.inf, 0
    wanted = expected * len(tokens)
    is_rare = wanted < 5
    cells = [*zip(counts[~is_rare], wanted[~is_rare], strict=True)]
    if wanted[is_rare].sum() > 0:
        cells.append((counts[is_rare].sum(), wanted[is_rare].sum()))
    freedom = len(cells) - 1
    if freedom == 0:
        return 0.0, 0
    statistic = sum((count - want) ** 2 / want for count, want in cells)
    spread = 2.0 / (9.0 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - 1.0 + spread) / math.sqrt(spread)), freedom


PROMPT = (3, 9, 9, 27, 81)
ANSWER = (14, 9, 14, 5, 14, 60)
SETTINGS = {
    "temperature 1": Sampling(),
    "temperature 0.6": Sampling(temperature=0.6),
    "temperature 1.8": Sampling(temperature=1.8),
    "top_k 20": Sampling(top_k=20),
    "top_p 0.8": Sampling(top_p=0.8),
    "min_p 0.1": Sampling(min_p=0.1),
    "top_k 40, top_p 0.7, min_p 0.05": Sampling(top_k=40, top_p=0.7, min_p=0.05),
    "repetition 1.6": Sampling(repetition_penalty=1.6),
    "presence 1.2": Sampling(presence_penalty=1.2),
    "frequency 0.7": Sampling(frequency_penalty=0.7),
    "negative penalties": Sampling(
        repetition_penalty=0.7, presence_penalty=-1.0, frequency_penalty=-0.5
    ),
    "bias": Sampling(logit_bias=((2, 3.0), (9, -2.0), (14, 1.0), (300, 4.0), (301, -100.0))),
    "allowed ids": Sampling(allowed_token_ids=tuple(range(0, 400, 7))),
    "bad words": Sampling(bad_words=((9,), (14, 60, 2), (60, 33), (1, 60, 7), (14,))),
    "all at once": Sampling(
        temperature=1.4,
        top_k=100,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logit_bias=((2, 2.0), (14, 3.0), (60, 1.5)),
        allowed_token_ids=tuple(range(350)),
        bad_words=((5,), (60, 2)),
    ),
}
