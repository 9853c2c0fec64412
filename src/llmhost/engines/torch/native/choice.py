"""Which rows are attended to by machine code of our own. It knows nothing of LLVM, which not everybody needs."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmhost.engines.torch.layout import StepLayout
from llmhost.observe.logs import log_event

if TYPE_CHECKING:
    from llmhost.engines.torch.native.rows import NativeRows

log = logging.getLogger(__name__)

MOST_QUERIES = 16
"""That share a head of the cache: each has code of its own."""


@dataclass(frozen=True, slots=True)
class RowsShape:
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


@cache
def code_for(shape: RowsShape) -> "NativeRows | None":
    """The code, made at the first call; None where torch's ways are to be taken.

    In float32 torch's are as fast. Takes a fifth of a second, and 50 MB of memory for the first.
    """
    if shape.dtype not in (torch.bfloat16, torch.float16):
        return None
    if shape.head_dim % 16 or shape.queries > MOST_QUERIES:
        return None
    try:
        from llmhost.engines.torch.native import machine, rows

        if not machine.is_fit():
            return None
        return rows.NativeRows(shape)
    except (ImportError, OSError, RuntimeError) as error:
        log_event(log, "native.off", level=logging.WARNING, why=str(error))
        return None
