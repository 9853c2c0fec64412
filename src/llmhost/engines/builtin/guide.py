"""Shows attention where to look while the tiny model learns to copy.

Left alone, a model this small needs millions of tokens to find out that the next token of a copy stands behind the last
place where the same tokens were. So three kinds of heads are told: those of the first layer to look at the tokens just
before, some of later layers at the token that comes next in a copy, or at the one with which a copy begins. What they
make of it is learnt as ever.
"""

from typing import Any

import torch
from torch import Tensor

Heads = tuple[tuple[int, int], ...]
"""Of each its layer and its place there."""

BEFORE: dict[int, Heads] = {1: ((0, 0), (0, 1)), 2: ((0, 2),)}
"""Those that look so many tokens back."""
COPYING: Heads = ((2, 0), (2, 2), (3, 0))
"""Those that look at the next token of a copy; of both groups of keys and values."""
STARTING: Heads = ((2, 1), (3, 2))
"""Those that look at the token with which a copy begins."""
LEAST = 1e-9


def canonical(tokenizer: Any) -> Tensor:
    """For each token the first one with the same text, whether a space leads it or not."""
    first: dict[str, int] = {}
    count = len(tokenizer)
    names = tokenizer.convert_ids_to_tokens(range(count))
    return torch.tensor(
        [first.setdefault(name.lstrip("Ġ") or name, i) for i, name in enumerate(names)]
    )


def misses(attentions: tuple[Tensor, ...], ids: Tensor, learnt: Tensor, same: Tensor) -> Tensor:
    """How far the told heads look elsewhere: minus the mean log of the attention at the right places.

    `attentions`: per layer (rows, heads, tokens, tokens) of `ids[:, :-1]`; `learnt` marks what the assistant says.
    """
    wanted, is_copied = sources(same[ids], learnt)
    begun, is_begun = starts(same[ids], learnt)
    is_begun &= ~is_copied
    place = torch.arange(ids.shape[1] - 1)
    losses = []
    for back, heads in BEFORE.items():
        for layer, head in heads:
            losses.append(
                _miss(
                    attentions[layer][:, head, back:], place[None, :-back].expand(len(ids), -1)
                ).mean()
            )
    for heads, places, there in ((COPYING, wanted, is_copied), (STARTING, begun, is_begun)):
        for layer, head in heads if there.any() else ():
            losses.append(_miss(attentions[layer][:, head], places)[there].mean())
    return torch.stack(losses).mean()


def sources(ids: Tensor, learnt: Tensor) -> tuple[Tensor, Tensor]:
    """For each token but the last, where the next one was copied from, and whether it was copied at all.

    The place is the one whose past agrees longest with the token's own past, the latest one where several do.
    """
    rows, count = ids.shape
    wanted = torch.zeros(rows, count - 1, dtype=torch.long)
    length = torch.zeros(rows, count, dtype=torch.long)
    agreed = torch.zeros(rows, count - 1, dtype=torch.long)
    before = torch.cat([torch.full((rows, 1), -1), ids[:, :-1]], 1)
    for place in range(count - 1):
        longer = torch.cat([torch.zeros(rows, 1, dtype=torch.long), length[:, :-1]], 1) + 1
        length = longer * (before == ids[:, place, None])
        fits = length * (ids == ids[:, place + 1, None])
        fits[:, place + 1 :] = 0
        best = (count - 1 - fits.flip(1).argmax(1)).clamp_max(count - 2)
        wanted[:, place], agreed[:, place] = best, fits.gather(1, best[:, None])[:, 0]
    return wanted, (agreed > 0) & learnt[:, 1:]


def starts(ids: Tensor, learnt: Tensor) -> tuple[Tensor, Tensor]:
    """For each token but the last, an earlier place of the next one from where both go on alike, and whether it exists.

    The place is the one after which most tokens agree, at least two, the latest one where several do.
    """
    rows, count = ids.shape
    wanted = torch.zeros(rows, count - 1, dtype=torch.long)
    agreed = torch.zeros(rows, count - 1, dtype=torch.long)
    length = torch.zeros(rows, count, dtype=torch.long)
    for place in range(count - 2, -1, -1):
        longer = torch.cat([length[:, 1:], torch.zeros(rows, 1, dtype=torch.long)], 1) + 1
        length = longer * (ids == ids[:, place + 1, None])
        fits = length.clone()
        fits[:, place + 1 :] = 0
        best = (count - 1 - fits.flip(1).argmax(1)).clamp_max(count - 2)
        wanted[:, place], agreed[:, place] = best, fits.gather(1, best[:, None])[:, 0]
    return wanted, (agreed > 1) & learnt[:, 1:]


def _miss(attention: Tensor, wanted: Tensor) -> Tensor:
    return -attention.gather(2, wanted[..., None])[..., 0].clamp_min(LEAST).log()
