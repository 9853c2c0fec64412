"""Drawing the next tokens, for all rows of a step at once.

Stateless: the draw of a row depends on its logits, what it asks for, its known tokens, its seed and the position of
the drawn token, and on nothing else. So it doesn't change with the batch, with guesses, with preemption, or with a move
to another machine of the same kind.

On the CPU each place takes one uniform number and finds it in the cumulated probabilities in token order; filters only
set probabilities to zero. On a GPU a kernel holds a race (`kernels/draw.py`), and a step waits for the device once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmhost.core.errors import EngineFailed
from llmhost.core.output import TokenLogprobs
from llmhost.core.sampling import Sampling
from llmhost.core.step import Drawn, Row
from llmhost.engines.drawing import (
    Picked,
    Place,
    answer,
    confirm,
    is_plain,
    is_shaped,
    nothing_left,
)
from llmhost.engines.masks import Masks
from llmhost.engines.torch.asked import to_device
from llmhost.engines.torch.device_draws import NO_NUMBERS, DeviceDraws, has_kernels
from llmhost.engines.torch.lines import largest, top, zero_below
from llmhost.engines.torch.logprobs import measure, read, report
from llmhost.engines.torch.shaping import Shaper

NUCLEUS_CANDIDATES = (256, 4096)
"""Most likely tokens that are looked at for `top_p`, first and then; after that the whole vocabulary is sorted."""
_LANE = 256
"""Probabilities are cumulated in two levels: over groups of so many tokens, then inside one group."""
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
KERNELS = "cuda"
"""The kind of device on which kernels draw."""
Said = tuple[int, ...] | EngineFailed


class Reports(NamedTuple):
    """Log probabilities of what is drawn, before anybody has read them."""

    asked: Sequence[tuple[int, int]]
    """Lines of a step, and how many of the likeliest tokens each wants beside its own."""
    measured: Tensor
    """One line for each, as `measure` has it."""


class Sampler:
    """Draws for one runner. What it keeps from step to step saves work and changes no draw."""

    def __init__(self) -> None:
        self._shaper = Shaper()
        self._device_draws = DeviceDraws()

    def sample(
        self, logits: Tensor, rows: Sequence[Row], masks: Masks | None = None
    ) -> list[Drawn]:
        """What each row says, from `logits` [places, vocabulary]: a row has one place, and one more per guess.

        Ties at the edge of a filter stay in together. A row whose logits hold NaN or positive infinity fails, and
        fails alone; so does one that may draw nothing.
        """
        if logits.device.type == KERNELS and has_kernels():
            return self._sample_there(logits, rows, masks or Masks())
        if all(row.sampling.temperature == 0.0 and is_plain(row) for row in rows):
            return [*_best(logits, lambda line: broken(rows[line]))[1]]
        places = _places(rows)
        picked = self._pick(logits, places, masks or Masks())
        if all(row.drafts == 0 and row.sampling.logprobs is None for row in rows):
            return [*picked]
        said, firsts = _said(rows, places, picked)
        return _answers(rows, said, firsts, _reports(logits, rows, said, firsts))

    def _sample_there(self, logits: Tensor, rows: Sequence[Row], masks: Masks) -> list[Drawn]:
        """`sample` where kernels draw. The device is waited for once, for all that is read."""
        places = _places(rows)
        tokens = self._device_draws.pick(logits, places, masks, self._shaper)
        asked = [
            (line, min(place.row.sampling.logprobs, logits.shape[1]))
            for line, place in enumerate(places)
            if place.row.sampling.logprobs is not None
        ]
        if not asked:
            picked = _picked(places, tokens.tolist())
            if len(places) == len(rows):
                return [*picked]
            said, firsts = _said(rows, places, picked)
            return _answers(rows, said, firsts, {})
        lines, tops = zip(*asked, strict=True)
        at = to_device(torch.tensor(lines), logits.device)
        measured = measure(logits, at, tokens[at], max(tops))
        numbers = torch.cat([tokens, measured.view(-1)]).cpu().numpy()
        drawn = numbers[: len(places)].tolist()
        table = zip(asked, numbers[len(places) :].reshape(len(asked), -1), strict=True)
        reports = {line: read(one, drawn[line], count) for (line, count), one in table}
        said, firsts = _said(rows, places, _picked(places, drawn))
        return _answers(rows, said, firsts, reports)

    def draw_ahead(
        self,
        logits: Tensor,
        rows: Sequence[Row],
        special: Sequence[int],
        fed: Tensor,
        drawn: Tensor,
        masks: Masks | None = None,
    ) -> Reports | None:
        """Draw where kernels draw, for the rows at the places `special`, which want more than a token or have logits
        that are shaped. None has guesses. `drawn` [at least rows] gets the tokens. The device is not waited for.

        `logits` [rows, vocabulary] and `fed` [rows], the token that each row fed last, are on the device.
        """
        places = {line: Place(rows[line]) for line in special}
        shaped = [line for line, place in places.items() if is_shaped(place)]
        if shaped:
            at = to_device(torch.tensor(shaped), logits.device)
            those = [places[line] for line in shaped]
            picked = self._device_draws.pick_shaped(
                logits[at], those, masks or Masks(), self._shaper, fed[at]
            )
            drawn.index_copy_(0, at, picked)
        asked = [
            (line, min(rows[line].sampling.logprobs or 0, logits.shape[1]))
            for line in special
            if rows[line].sampling.logprobs is not None
        ]
        if not asked:
            return None
        lines, tops = zip(*asked, strict=True)
        at = to_device(torch.tensor(lines), logits.device)
        return Reports(asked, measure(logits, at, drawn[at], max(tops)))

    def _pick(self, logits: Tensor, places: Sequence[Place], masks: Masks) -> list[Picked]:
        """What would be drawn at each place if the text before it is right."""
        best, picked = _best(logits, lambda line: broken(places[line].row))
        fine = [line for line, one in enumerate(picked) if isinstance(one, int)]
        shaped = [line for line in fine if is_shaped(places[line])]
        hot = [line for line in fine if not places[line].row.sampling.is_greedy]
        _heat(logits, best, places, sorted({*hot} - {*shaped}) if shaped else hot, picked)
        if shaped:
            some = [places[line] for line in shaped]
            for line, one in zip(
                shaped, self._pick_shaped(logits[shaped], some, masks), strict=True
            ):
                picked[line] = one
        return picked

    def _pick_shaped(self, logits: Tensor, places: Sequence[Place], masks: Masks) -> list[Picked]:
        scores = logits.float()
        self._shaper.shape(scores, places, masks)
        best, picked = _best(scores, lambda line: nothing_left(places[line]))
        hot = [
            line
            for line, one in enumerate(picked)
            if isinstance(one, int) and not places[line].row.sampling.is_greedy
        ]
        _heat(scores, best, places, hot, picked)
        return picked


def sample(logits: Tensor, rows: Sequence[Row], masks: Masks | None = None) -> list[Drawn]:
    """As `Sampler.sample`, once."""
    return Sampler().sample(logits, rows, masks)


def _best(logits: Tensor, failure: Callable[[int], EngineFailed]) -> tuple[Tensor, list[Picked]]:
    """The largest logit of each line, and its token, or the line's `failure` where that is no number."""
    best, tokens = largest(logits)
    picked: list[Picked] = [*tokens]
    for line, is_sound in enumerate(best.isfinite().tolist()):
        if not is_sound:  # the largest logit is NaN or infinite when any is
            picked[line] = failure(line)
    return best, picked


def _heat(
    logits: Tensor, best: Tensor, places: Sequence[Place], hot: list[int], picked: list[Picked]
) -> None:
    """Replace what was picked on the lines `hot` by draws."""
    if not hot:
        return
    is_all = len(hot) == len(places)
    chosen = [places[line] for line in hot]
    drawn = _draw(logits if is_all else logits[hot], best if is_all else best[hot], chosen)
    for line, token in zip(hot, drawn, strict=True):
        picked[line] = token


def _places(rows: Sequence[Row]) -> list[Place]:
    return [Place(row, depth) for row in rows for depth in range(row.drafts + 1)]


def _picked(places: Sequence[Place], drawn: Sequence[int]) -> list[Picked]:
    """What kernels drew, with a failure where that is no token."""
    picked: list[Picked] = [*drawn]
    for line, token in enumerate(drawn):
        if token < 0:
            picked[line] = failed_draw(places[line], token)
    return picked


def failed_draw(place: Place, token: int) -> EngineFailed:
    """Why a kernel drew a negative number. Of logits that nothing shapes it is always that they are no numbers."""
    if token == NO_NUMBERS or not is_shaped(place):
        return broken(place.row)
    return nothing_left(place)


def _said(
    rows: Sequence[Row], places: Sequence[Place], picked: Sequence[Picked]
) -> tuple[list[Said], list[int]]:
    """What each row says, and the line of its first place."""
    firsts = [line for line, place in enumerate(places) if place.depth == 0]
    said = [
        confirm(row, picked[first : first + row.drafts + 1])
        for row, first in zip(rows, firsts, strict=True)
    ]
    return said, firsts


def _answers(
    rows: Sequence[Row],
    said: Sequence[Said],
    firsts: Sequence[int],
    reports: Mapping[int, TokenLogprobs],
) -> list[Drawn]:
    """`reports` are those of lines, of all that rows say which ask for some."""
    answers: list[Drawn] = []
    for row, tokens, first in zip(rows, said, firsts, strict=True):
        if isinstance(tokens, EngineFailed):
            answers.append(tokens)
        elif row.sampling.logprobs is None:
            answers.append(answer(tokens))
        else:
            answers.append(answer(tokens, tuple(reports[first + at] for at in range(len(tokens)))))
    return answers


def _reports(
    logits: Tensor, rows: Sequence[Row], said: Sequence[Said], firsts: Sequence[int]
) -> dict[int, TokenLogprobs]:
    """The log probabilities of what was said, by lines, for rows that ask for them."""
    asked = [
        (first + at, token, row.sampling.logprobs)
        for row, tokens, first in zip(rows, said, firsts, strict=True)
        if row.sampling.logprobs is not None and not isinstance(tokens, EngineFailed)
        for at, token in enumerate(tokens)
    ]
    if not asked:
        return {}
    lines, tokens_, tops = zip(*asked, strict=True)
    return dict(zip(lines, report(logits[[*lines]], tokens_, tops), strict=True))


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to a seed and a position (splitmix64: Steele et al., 2014)."""
    bits = _mix(_mix(seed & _MASK) + (position + 1) * _GOLDEN & _MASK)
    return float(bits >> 11) * 2.0**-53


def _mix(bits: int) -> int:
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & _MASK
    return bits ^ bits >> 31


def broken(row: Row) -> EngineFailed:
    """The failure of a row whose logits are no numbers."""
    return EngineFailed(
        f"The model computed NaN or infinite logits for sequence {row.seq_id}. The checkpoint is damaged,"
        " or its numbers are too large for the dtype: try options.dtype = 'bfloat16' or 'float32'."
    )


def _draw(logits: Tensor, best: Tensor, places: Sequence[Place]) -> list[int]:
    asked = [place.row.sampling for place in places]
    weights = _weights(logits, best, asked)
    if any(_has_filter(one, weights.shape[1]) for one in asked):
        zero_below(weights, _edges(weights, asked))
    at = [uniform(place.row.seed, place.position) for place in places]
    where = torch.tensor(at, dtype=torch.float64, device=weights.device)
    tokens: list[int] = _invert(weights, where).tolist()
    return tokens


def _weights(logits: Tensor, best: Tensor, asked: Sequence[Sampling]) -> Tensor:
    """Probabilities at each line's temperature, as shares of the best token's; zero below 2e-38.

    torch's exp is up to a hundred times slower where its result is no normal float32 number.
    """
    # Below 1e-30 float32 would divide by zero; what is drawn at such temperatures is the best token.
    temperatures = [max(one.temperature, 1e-30) for one in asked]
    weights = logits.float() - best.float()[:, None]
    weights /= torch.tensor(temperatures, device=weights.device)[:, None]
    F.threshold(weights, -87.0, -87.0, inplace=True).exp_()
    return F.threshold(weights, 2e-38, 0.0, inplace=True)


def _has_filter(asked: Sampling, vocabulary: int) -> bool:
    return asked.min_p > 0.0 or _has_nucleus(asked, vocabulary)


def _has_nucleus(asked: Sampling, vocabulary: int) -> bool:
    return asked.top_p < 1.0 or (asked.top_k is not None and 0 < asked.top_k < vocabulary)


def _edges(weights: Tensor, asked: Sequence[Sampling]) -> Tensor:
    """The least weight that the filters of each line let through: [lines, 1]."""
    shares = torch.tensor([one.min_p for one in asked], device=weights.device)
    narrow = [line for line, one in enumerate(asked) if _has_nucleus(one, weights.shape[1])]
    if not narrow:
        return shares[:, None]
    edges = torch.zeros((len(asked), 1), dtype=weights.dtype, device=weights.device)
    some = weights if len(narrow) == len(asked) else weights[narrow]
    edges[narrow] = _nucleus_edges(some, [asked[line] for line in narrow])
    return torch.maximum(edges, shares[:, None])


def _nucleus_edges(weights: Tensor, asked: Sequence[Sampling]) -> Tensor:
    """The least weight that `top_k`, then `top_p` of what is left, let through: [lines, 1]."""
    vocabulary = weights.shape[1]
    limits = [min(one.top_k or vocabulary, vocabulary) for one in asked]
    whole = weights.sum(-1).double()
    edges = torch.empty((len(asked), 1), dtype=weights.dtype, device=weights.device)
    open_lines = list(range(len(asked)))
    widest = max((limit for limit in limits if limit < vocabulary), default=0)
    for candidates in (*NUCLEUS_CANDIDATES, vocabulary):
        count = min(max(candidates, widest), vocabulary)
        is_all = len(open_lines) == len(asked)
        found, is_certain = _edges_among(
            top(weights if is_all else weights[open_lines], count),
            whole[open_lines],
            [limits[line] for line in open_lines],
            [asked[line].top_p for line in open_lines],
        )
        edges[open_lines] = found
        open_lines = [
            line for line, done in zip(open_lines, is_certain.tolist(), strict=True) if not done
        ]
        if not open_lines:
            break
    return edges


def _edges_among(
    best: Tensor, whole: Tensor, limits: Sequence[int], shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Edges found by looking at the `best` weights [lines, count], and whether that was enough, per line."""
    count, device = best.shape[1], best.device
    places = torch.tensor([min(limit, count) - 1 for limit in limits], device=device)[:, None]
    kept = best.masked_fill(torch.arange(count, device=device) > places, 0.0).double()
    is_limited = torch.tensor([limit <= count for limit in limits], device=device)
    wanted = torch.tensor(shares, dtype=torch.float64, device=device)
    wanted *= torch.where(is_limited, kept.sum(-1), whole)
    reached = kept.cumsum(-1)
    inside = (reached - kept < wanted[:, None]) & (kept > 0.0)
    inside[:, 0] = True
    edges = best.gather(1, inside.sum(-1, keepdim=True) - 1)
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
