"""What is made of a step's logits where the sampler is not needed, and in which order they are."""

from collections.abc import Sequence
from math import isfinite

import numpy as np
import torch

from llmhost.core.errors import EngineFailed
from llmhost.core.step import Drawn, Row
from llmhost.engines.drawing import places_of
from llmhost.engines.llama.context import Logits
from llmhost.engines.llama.passes import Pass
from llmhost.engines.torch.logprobs import report
from llmhost.engines.torch.sampler import broken
from llmhost.engines.torch.scoring import Scores


def likeliest(logits: "np.ndarray[tuple[int], np.dtype[np.float32]]", row: Row) -> Drawn:
    token = int(logits.argmax())
    best = logits.item(token)  # NaN or infinite when any number is
    return token if isfinite(best) else broken(row)


def has_no_numbers(logits: Logits) -> bool:
    return bool((np.isnan(logits) | np.isposinf(logits)).any())


def lines_of(rows: Sequence[Row], order: Sequence[int]) -> list[int]:
    """Where the logits of the rows' places are, one row after the other, when they were computed in that order."""
    begins, at = [0] * len(rows), 0
    for place in order:
        begins[place] = at
        at += places_of(rows[place])
    return [begins[at] + n for at, row in enumerate(rows) for n in range(places_of(row))]


def look_at(rows: Sequence[Row], call: Pass, logits: Logits, scores: dict[int, Scores]) -> None:
    """Take from a call's logits what is drawn of none of them."""
    if call.scored:
        score(rows, call, logits, scores)
    for line, at in call.watched:
        if has_no_numbers(logits[line]):
            scores[at] = broken(rows[at])


def score(rows: Sequence[Row], call: Pass, logits: Logits, scores: dict[int, Scores]) -> None:
    """Add what a call tells of prompt tokens to `scores`, which has them by row."""
    outputs, owners, tokens = zip(*call.scored, strict=True)
    lines = torch.from_numpy(logits[[*outputs]])
    is_sound = lines.amax(-1).isfinite().tolist()
    tops = [rows[at].sampling.prompt_logprobs or 0 for at in owners]
    for at, told, sound in zip(owners, report(lines, tokens, tops), is_sound, strict=True):
        before = scores.get(at, ())
        if isinstance(before, EngineFailed):
            continue
        scores[at] = (*before, told) if sound else broken(rows[at])
