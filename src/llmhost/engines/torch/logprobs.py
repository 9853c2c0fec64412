"""Log probabilities to report: the model's own, in float32, before anything that a request asks for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmhost.core.output import TokenLogprobs
from llmhost.engines.torch.asked import to_device
from llmhost.engines.torch.lines import at_least, ranks, top

Measured = np.ndarray[tuple[int], np.dtype[np.int32]]

SLICE_NUMBERS = 2**24
"""Logits that are worked on at once: what is taken beside them stays a small multiple of 64 MiB."""


def report(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    """For each line of `logits` [lines, vocabulary] its token's log probability and rank, and the `tops` likeliest.

    Of equals the lower id is the likelier. A line must hold no NaN and no positive infinity.
    """
    if logits.device.type != "cpu":
        return _report_there(logits, tokens, tops)
    size = max(1, SLICE_NUMBERS // logits.shape[1])
    reports: list[TokenLogprobs] = []
    for first in range(0, len(tokens), size):
        part = slice(first, first + size)
        reports += _report(logits[part].float(), tokens[part], tops[part])
    return reports


def _report_there(
    logits: Tensor, tokens: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprobs]:
    if not tokens:
        return []
    lines = torch.arange(len(tokens), device=logits.device)
    ids = to_device(torch.tensor(tokens), logits.device)
    most = min(max(tops), logits.shape[1])
    measured = measure(logits, lines, ids, most).cpu().numpy()
    return [read(*one) for one in zip(measured, tokens, tops, strict=True)]


def measure(logits: Tensor, lines: Tensor, tokens: Tensor, most: int) -> Tensor:
    """What `read` needs for reports of `lines`, [lines, 2 + 2 * most] in int32: all on the device, nothing waits.

    `tokens` [lines] are there, and may be negative where there is nothing to report.
    """
    size = max(1, SLICE_NUMBERS // logits.shape[1])
    parts = zip(torch.split(lines, size), torch.split(tokens, size), strict=True)
    return torch.cat([_measure(logits[at].float(), ids, most) for at, ids in parts])


def _measure(logits: Tensor, tokens: Tensor, most: int) -> Tensor:
    ids = torch.arange(logits.shape[1], device=logits.device)
    at = tokens.clamp(min=0).long()[:, None]
    whole, own = logits.logsumexp(-1, keepdim=True), logits.gather(1, at)
    is_before = (logits > own) | ((logits == own) & (ids < at))
    rank = is_before.sum(-1, keepdim=True, dtype=torch.int32) + 1
    columns = [(own - whole).view(torch.int32), rank]
    if most:
        # One number for a logit and its id, so that no two are equal: of equals the lower id is the larger.
        bits = (logits + 0.0).view(torch.int32)
        order = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()
        best = ((order << 32) + (2**31 - 1 - ids)).topk(most, dim=-1).values
        likeliest = 2**31 - 1 - (best & 0xFFFFFFFF)
        shares = logits.gather(1, likeliest) - whole
        columns += [likeliest.int(), shares.view(torch.int32)]
    return torch.cat(columns, dim=-1)


def read(measured: Measured, token: int, count: int) -> TokenLogprobs:
    """The report of one line of `measure`: its token, and `count` of the likeliest."""
    most = (len(measured) - 2) // 2
    logprob, rank = measured[:1].view(np.float32), int(measured[1])
    ids, shares = measured[2 : 2 + most], measured[2 + most :].view(np.float32)
    pairs = zip(ids[:count].tolist(), shares[:count].tolist(), strict=True)
    return TokenLogprobs(token, float(logprob[0]), rank, tuple(pairs))


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
