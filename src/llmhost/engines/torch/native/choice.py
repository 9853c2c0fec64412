"""Which rows are attended to by machine code of our own. It knows nothing of LLVM, which not everybody needs."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.native.permission import may_run_what_it_writes
from llmhost.observe.logs import log_event

if TYPE_CHECKING:
    from llmhost.engines.torch.native.chunks import NativeChunks
    from llmhost.engines.torch.native.rows import NativeRows

log = logging.getLogger(__name__)

MOST_QUERIES = 16
"""That share a head of the cache: each has code of its own."""
MOST_TOKENS = 128
"""Of a chunk: with more of them torch's large products are as quick, short pasts first."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What code is made for."""

    kv_heads: int
    queries: int
    """Heads of the query that share a head of the cache."""
    head_dim: int
    block_tokens: int
    dtype: torch.dtype
    """Of the cache."""
    softcap: float | None
    has_sinks: bool


class Seen:
    """What one-token rows of a step see: the place of each one's blocks, its first position and its end."""

    def __init__(self, layout: StepLayout, rows: int, window: int | None) -> None:
        """Of the first `rows` rows."""
        self.tables = layout.block_tables
        self.ends = np.array(layout.ends[:rows], np.int64)
        self.firsts = np.zeros_like(self.ends)
        if window is not None:
            np.maximum(self.ends - window, 0, out=self.firsts)


class SeenByChunk(NamedTuple):
    """What a chunk of one sequence sees: all before position `end`, the chunk's tokens last."""

    table: Tensor
    """[blocks]"""
    end: int


@cache
def rows_code(shape: Shape) -> "NativeRows | None":
    """The code of one-token rows, made at the first call; None where torch's ways are to be taken.

    In float32 torch's are as fast. Takes a fifth of a second; what it takes in memory is LLVM's, and there once.
    """
    if not _is_possible(shape):
        return None
    from llmhost.engines.torch.native.rows import NativeRows

    return NativeRows(shape)


@cache
def chunks_code(shape: Shape) -> "NativeChunks | None":
    """The same of a prompt's chunks."""
    if not _is_possible(shape):
        return None
    from llmhost.engines.torch.native.chunks import NativeChunks

    return NativeChunks(shape)


def by_code(
    shape: Shape,
    query: Tensor,
    cache: KeyValue,
    seen: Seen | SeenByChunk,
    scaling: float,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with `query` [tokens, heads, head_dim], one of each row or all of one, where there is code for them.

    Returns the same shape and type.
    """
    if isinstance(seen, Seen):
        rows = rows_code(shape)
        assert rows is not None
        return rows.attend(query, cache, seen, scaling, sinks)
    chunks = chunks_code(shape)
    assert chunks is not None
    return chunks.attend(query, cache, seen, scaling, sinks)


def _is_possible(shape: Shape) -> bool:
    is_half = shape.dtype in (torch.bfloat16, torch.float16)
    return is_half and shape.head_dim % 16 == 0 and shape.queries <= MOST_QUERIES and _has_llvm()


@cache
def _has_llvm() -> bool:
    if not may_run_what_it_writes():
        log_event(log, "native.off", level=logging.WARNING, why="memory_is_never_executable")
        return False
    try:
        from llmhost.engines.torch.native import machine
    except (ImportError, OSError) as error:
        log_event(log, "native.off", level=logging.WARNING, why=str(error))
        return False
    return machine.is_fit()
