"""The seam for whoever attends to rows of several tokens: our own kernel, or a library that is installed.

One-token rows are not part of it. They are bound by memory, which our decode kernel reads nearly as fast as there is,
and they are captured in graphs, which a library that plans each step on the host can't be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kernels.attention import prefill_attention
from llmhost.engines.torch.kv import KeyValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What all layers of a model have in common."""

    heads: int
    kv_heads: int
    dim: int
    block_tokens: int
    dtype: torch.dtype
    """Of queries and of what comes out."""
    stored: torch.dtype
    """Of keys and values in the cache."""


class Kind(NamedTuple):
    """What layers of a model differ in, as far as kernels are made for it."""

    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False

    @classmethod
    def of(cls, scores: Scores) -> "Kind":
        return cls(scores.window, scores.softcap, scores.sinks is not None)


class RowsThere(NamedTuple):
    """The numbers of rows on the device, in int32."""

    starts: Tensor
    ends: Tensor
    offsets: Tensor


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """R rows of several tokens in one step."""

    block_tables: Tensor
    """[R, W]; a shorter row repeats its own last block."""
    starts: Sequence[int]
    ends: Sequence[int]
    offsets: Sequence[int]
    """R + 1 numbers, from 0 on."""
    there: RowsThere
    longest: int
    """Tokens of the longest row."""
    made: dict[Any, Any] = field(default_factory=dict)
    """What an implementation made of these rows, for the layers to come."""

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` makes for `key`, in the first layer that asks."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


class PrefillAttention(Protocol):
    """Of one loaded model."""

    @property
    def name(self) -> str:
        """As the option `attention` calls it."""
        ...

    def refusal(self, kind: Kind) -> str | None:
        """Why it can't attend in such layers; None if it can."""
        ...

    def is_built(self, kind: Kind) -> bool:
        """Whether its kernels for such layers are there, and need not be compiled when they are first used."""
        ...

    def attend(
        self, rows: PrefillRows, query: Tensor, cache: KeyValue, scores: Scores, out: Tensor
    ) -> None:
        """Each token of `query` [T, heads, dim] sees its own position and those before it, as `scores` has it.

        `out` is contiguous and of the same shape. What lies behind a row's end in its last block may be anything.
        """
        ...


class TritonPrefill:
    """Our own kernel, which can do everything."""

    name = "triton"

    def refusal(self, kind: Kind) -> None:
        return None

    def is_built(self, kind: Kind) -> bool:
        return True

    def attend(
        self, rows: PrefillRows, query: Tensor, cache: KeyValue, scores: Scores, out: Tensor
    ) -> None:
        prefill_attention(
            query,
            *cache,
            rows.block_tables,
            rows.there.starts,
            rows.there.offsets,
            out,
            longest=rows.longest,
            scaling=scaling_of(scores, query),
            window=scores.window,
            softcap=scores.softcap,
            sinks=scores.sinks,
        )


OWN = TritonPrefill()


@dataclass(frozen=True, slots=True)
class ByLibrary:
    """A library for the kinds of layers that it was tried in, and our kernel for all others."""

    library: PrefillAttention
    kinds: frozenset[Kind]

    def for_layer(self, scores: Scores) -> PrefillAttention:
        return self.library if Kind.of(scores) in self.kinds else OWN


def scaling_of(scores: Scores, query: Tensor) -> float:
    return float(query.shape[-1] ** -0.5) if scores.scaling is None else scores.scaling
