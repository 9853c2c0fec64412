"""Drawing the next tokens, for all rows of a step at once.

Stateless: the draw of a row depends on its logits, its seed and the position of the drawn token, and on nothing else.
So it doesn't change with the batch, with preemption, or with a move to another machine. Each row takes one uniform
number and finds its place in the cumulated probabilities in token order; filters only set probabilities to zero.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmhost.core.errors import EngineFailed
from llmhost.core.step import Drawn, Row

NUCLEUS_CANDIDATES = (256, 4096)
"""Most likely tokens that are looked at for `top_p`, first and then; after that the whole vocabulary is sorted."""
_LANE = 256
"""Probabilities are cumulated in two levels: over groups of so many tokens, then inside one group."""
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """One token per row from `logits` [rows, vocabulary]. Ties at the edge of a filter stay in together.

    A row whose logits hold NaN or positive infinity fails, and fails alone.
    """
    best, tokens = logits.max(dim=-1)
    drawn: list[Drawn] = tokens.tolist()
    is_sound = best.isfinite().tolist()  # the largest logit is NaN or infinite when any is
    for i, row in enumerate(rows):
        if not is_sound[i]:
            drawn[i] = _broken(row)
    hot = [i for i, row in enumerate(rows) if is_sound[i] and not row.sampling.is_greedy]
    if hot:
        chosen = [rows[i] for i in hot]
        picked = logits if len(hot) == len(rows) else logits[hot]
        for i, token in zip(hot, _draw(picked, best[hot], chosen), strict=True):
            drawn[i] = token
    return drawn


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to a seed and a position (splitmix64: Steele et al., 2014)."""
    bits = _mix(_mix(seed & _MASK) + (position + 1) * _GOLDEN & _MASK)
    return float(bits >> 11) * 2.0**-53


def _mix(bits: int) -> int:
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & _MASK
    return bits ^ bits >> 31


def _broken(row: Row) -> EngineFailed:
    return EngineFailed(
        f"The model computed NaN or infinite logits for sequence {row.seq_id}. The checkpoint is damaged,"
        " or its numbers are too large for the dtype: try options.dtype = 'bfloat16' or 'float32'."
    )


def _draw(logits: Tensor, best: Tensor, rows: Sequence[Row]) -> list[int]:
    # Below 1e-30 float32 would divide by zero; what is drawn at such temperatures is the best token.
    temperatures = [max(row.sampling.temperature, 1e-30) for row in rows]
    scores = logits.float() - best.float()[:, None]
    scores /= torch.tensor(temperatures, device=scores.device)[:, None]
    filtered = [i for i, row in enumerate(rows) if _has_filter(row, scores.shape[1])]
    if filtered:
        edges = _edges(scores[filtered], [rows[i] for i in filtered])
        floor = torch.full((len(rows), 1), float("-inf"), device=scores.device)
        floor[filtered] = edges
        scores.masked_fill_(scores < floor, float("-inf"))
    at = [uniform(row.seed, row.start + len(row.tokens)) for row in rows]
    where = torch.tensor(at, dtype=torch.float64, device=scores.device)
    tokens: list[int] = _invert(scores.exp_(), where).tolist()
    return tokens


def _has_filter(row: Row, vocabulary: int) -> bool:
    top_k = row.sampling.top_k
    return row.sampling.top_p < 1.0 or (top_k is not None and 0 < top_k < vocabulary)


def _edges(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """The lowest score that `top_k`, then `top_p` of what is left, let through: [rows, 1]."""
    vocabulary = scores.shape[1]
    limits = [min(row.sampling.top_k or vocabulary, vocabulary) for row in rows]
    edges = torch.empty((len(rows), 1), device=scores.device)
    open_rows = list(range(len(rows)))
    largest = max((limit for limit in limits if limit < vocabulary), default=0)
    for candidates in (*NUCLEUS_CANDIDATES, vocabulary):
        count = min(max(candidates, largest), vocabulary)
        found, is_certain = _edges_among(
            scores[open_rows],
            count,
            [limits[i] for i in open_rows],
            [rows[i].sampling.top_p for i in open_rows],
        )
        edges[open_rows] = found
        open_rows = [i for i, done in zip(open_rows, is_certain.tolist(), strict=True) if not done]
        if not open_rows:
            break
    return edges


def _edges_among(
    scores: Tensor, count: int, limits: Sequence[int], shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Edges found by looking at the `count` best tokens, and whether that was enough, per row."""
    top = scores.topk(count, dim=-1).values
    device = scores.device
    places = torch.tensor([min(limit, count) - 1 for limit in limits], device=device)[:, None]
    kept = top.masked_fill(torch.arange(count, device=device) > places, float("-inf"))
    weights = kept.double().exp_()
    is_limited = torch.tensor([limit <= count for limit in limits], device=device)
    whole = torch.where(is_limited, weights.sum(-1), scores.exp().sum(-1, dtype=torch.float64))
    wanted = torch.tensor(shares, dtype=torch.float64, device=device) * whole
    reached = weights.cumsum(-1)
    inside = (reached - weights < wanted[:, None]) & (kept > float("-inf"))
    inside[:, 0] = True
    edges = top.gather(1, inside.sum(-1, keepdim=True) - 1)
    return edges, is_limited | (reached[:, -1] >= wanted)


def _invert(weights: Tensor, where: Tensor) -> Tensor:
    """The token at which the cumulated `weights` [rows, vocabulary] pass the share `where` [rows] of their sum.

    Never one of weight zero: shares are searched from the right, and a remainder lost to rounding is cut off.
    """
    lanes = F.pad(weights, (0, -weights.shape[1] % _LANE)).view(len(weights), -1, _LANE)
    reached = lanes.sum(-1).double().cumsum(-1)
    target = _below(where[:, None] * reached[:, -1:], reached[:, -1:])
    lane = torch.searchsorted(reached, target, right=True)
    before = torch.where(lane > 0, reached.gather(1, (lane - 1).clamp_(min=0)), 0.0)
    inner = lanes.gather(1, lane[:, :, None].expand(-1, -1, _LANE))[:, 0].double().cumsum(-1)
    token = torch.searchsorted(inner, _below(target - before, inner[:, -1:]), right=True)
    return (lane * _LANE + token)[:, 0]


def _below(value: Tensor, end: Tensor) -> Tensor:
    return torch.minimum(value, torch.nextafter(end, torch.zeros_like(end)))
