"""Log probabilities to report: the model's own, in float32, before anything that a request asks for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmhost.core.output import TokenLogprobs
from llmhost.engines.torch.lines import at_least, ranks, top

SLICE_NUMBERS = 2**24
"""Logits that are worked on at once: what is taken beside them stays a small multiple of 64 MiB."""


def report(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    """For each line of `logits` [lines, vocabulary] its token's log probability and rank, and the `tops` likeliest.

    Of equals the lower id is the likelier. A line must hold no NaN and no positive infinity.
    """
    size = max(1, SLICE_NUMBERS // logits.shape[1])
    reports: list[TokenLogprobs] = []
    for first in range(0, len(tokens), size):
        part = slice(first, first + size)
        reports += _report(logits[part].float(), tokens[part], tops[part])
    return reports


def _report(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    whole = logits.logsumexp(-1, keepdim=True)
    ids = torch.tensor(tokens, device=logits.device)[:, None]
    shares = (logits.gather(1, ids) - whole)[:, 0].tolist()
    likeliest = _likeliest(logits, whole, tops)
    parts = zip(tokens, shares, ranks(logits, tokens), likeliest, strict=True)
    return [TokenLogprobs(*part) for part in parts]


def _likeliest(
    logits: Tensor, whole: Tensor, tops: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    """(token, log probability) of each line's likeliest. topk alone might settle ties by what else is in the batch."""
    wanted = [min(count, logits.shape[1]) for count in tops]
    most = max(wanted)
    if most == 0:
        return [()] * len(tops)
    lasts = torch.tensor([max(count - 1, 0) for count in wanted], device=logits.device)[:, None]
    lines, ids = at_least(logits, top(logits, most).gather(1, lasts))
    values = logits[lines, ids]
    order = np.lexsort([key.cpu().numpy() for key in (ids, -values, lines)])
    starts = torch.searchsorted(lines, torch.arange(len(tops), device=lines.device)).tolist()
    pairs = [ids.cpu().numpy(), (values - whole[lines, 0]).cpu().numpy()]
    best = (order[start : start + count] for start, count in zip(starts, wanted, strict=True))
    return [tuple(zip(*(part[some].tolist() for part in pairs), strict=True)) for some in best]
