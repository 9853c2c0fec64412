"""Whether an implementation of `PrefillAttention` is right, on a few rows that have all that steps have.

Blocks lie strewn, and whatever no row owns is NaN: other blocks, what is behind a row's end, and the place of the
result. So what is read or left out wrongly shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.prefill import Form, PrefillAttention, PrefillRows, RowsThere, scaling_of

COUNTS = (150, 40, 20)
"""Tokens of the rows."""
PAST = 37
"""Positions before those of the second row; the last one's past is longer than the window."""
NO_WINDOW = 260
MOST_WINDOW = 4096
"""A window is a number that kernels are told: one of this size stands for larger ones."""
OTHERS = 3
"""Tokens of other rows before them."""


@dataclass(frozen=True, slots=True)
class Trial:
    rows: PrefillRows
    query: Tensor
    """[T, heads, dim], with the strides that models' modules give."""
    cache: KeyValue
    scores: Scores

    @classmethod
    def of(cls, form: Form, scores: Scores, device: torch.device) -> "Trial":
        """Random rows, always the same."""
        window = None if scores.window is None else min(scores.window, MOST_WINDOW)
        starts = [0, PAST, (window or NO_WINDOW) + 3]
        numbers = torch.Generator(device).manual_seed(0)
        rows = rows_of(starts, COUNTS, form.block_tokens, device, numbers)
        total = sum(COUNTS)
        owned = sum(-(-end // form.block_tokens) for end in rows.ends)
        query = torch.randn(
            (form.heads, OTHERS + total, form.dim), generator=numbers, device=device
        ).to(form.dtype)
        cache = KeyValue(*(_cache(form, rows, owned + 2, numbers) for _ in "kv"))
        return cls(rows, query.transpose(0, 1)[OTHERS:], cache, scores._replace(window=window))

    def error_of(self, attention: PrefillAttention) -> float:
        """Relative, of all results together; NaN where one is missing, or came of what should not have been read.

        Raises what the library raises.
        """
        shape = (OTHERS + len(self.query), *self.query.shape[1:])
        out = torch.full(shape, float("nan"), dtype=self.query.dtype, device=self.query.device)
        attention.attend(self.rows, self.query, self.cache, self.scores, out[OTHERS:])
        exact = self.exact()
        error = (out[OTHERS:].double() - exact).norm() / exact.norm()
        return float(torch.where(out[:OTHERS].isnan().all(), error, float("nan")))

    def exact(self) -> Tensor:
        """[T, heads, dim] in float64."""
        rows = self.rows
        parts = []
        for row, (start, end) in enumerate(zip(rows.starts, rows.ends, strict=True)):
            query = self.query[rows.offsets[row] : rows.offsets[row + 1]]
            blocks = rows.block_tables[row].long()
            past = KeyValue(*(part[blocks].flatten(0, 1)[:end] for part in self.cache))
            parts.append(_exact(query, past, start, self.scores))
        return torch.cat(parts)


def rows_of(
    starts: Sequence[int],
    counts: Sequence[int],
    block_tokens: int,
    device: torch.device,
    numbers: torch.Generator,
) -> PrefillRows:
    """Rows whose blocks lie strewn over two more than they have."""
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    used = [-(-end // block_tokens) for end in ends]
    order = torch.randperm(sum(used) + 2, generator=numbers, device=device)
    firsts = [0, *accumulate(used)]
    tables = [
        order[[first + min(place, count - 1) for place in range(max(used))]]
        for first, count in zip(firsts, used, strict=False)
    ]
    offsets = [0, *accumulate(counts)]

    def there(given: Sequence[int]) -> Tensor:
        return torch.tensor(given, dtype=torch.int32, device=device)

    return PrefillRows(
        torch.stack(tables),
        starts,
        ends,
        offsets,
        RowsThere(there(starts), there(ends), there(offsets)),
        max(counts),
    )


def _cache(form: Form, rows: PrefillRows, blocks: int, numbers: torch.Generator) -> Tensor:
    device = rows.block_tables.device
    shape = (blocks, form.block_tokens, form.kv_heads, form.dim)
    cache = torch.full(shape, float("nan"), device=device)
    for row, end in enumerate(rows.ends):
        used = -(-end // form.block_tokens)
        owned = torch.full((used * form.block_tokens, *shape[2:]), float("nan"), device=device)
        owned[:end] = torch.randn((end, *shape[2:]), generator=numbers, device=device)
        cache[rows.block_tables[row, :used]] = owned.view(used, *shape[1:])
    return cache.to(form.stored)


def _exact(query: Tensor, past: KeyValue, start: int, scores: Scores) -> Tensor:
    keys, values = (part.double() for part in past)
    # [T, heads of keys, heads of queries for each, dim]
    groups = query.double().reshape(len(query), keys.shape[1], -1, query.shape[2])
    products = torch.einsum("tkgd,pkd->kgtp", groups, keys) * scaling_of(scores, query)
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    own = torch.arange(start, start + len(query), device=query.device)[:, None]
    at = torch.arange(len(keys), device=query.device)
    hidden = at > own
    if scores.window is not None:
        hidden |= at <= own - scores.window
    products.masked_fill_(hidden, float("-inf"))
    return torch.einsum("kgtp,pkd->tkgd", products.softmax(-1), values).flatten(1, 2)
