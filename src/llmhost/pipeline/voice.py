"""What one choice of a request says, on its way from its engine into the request's stream.

`hear` runs for every token of every answer, so it asks others only where something comes of it: budgets when a raise
is due, histograms when there is much to count.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmhost.core.output import Delta
from llmhost.cost.under_way import OUTPUT
from llmhost.observe.loop import Gaps
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.spending import Allow, Spending

MANY_GAPS = 1024


@dataclass(slots=True)
class Said:
    """By all choices of one request."""

    tokens: int = 0
    is_detached: bool = False
    """Nobody is told any more."""


class Voice:
    """The sink of one choice."""

    __slots__ = (
        *("_allow", "_context", "_end", "_gaps", "_index", "_last_ns", "_lose", "_now_ns", "_push"),
        *("_said", "_spending", "_unheard", "_until_raise"),
    )

    def __init__(
        self,
        context: RequestContext,
        said: Said,
        index: int,
        *,
        now_ns: Callable[[], int],
        gaps: Gaps,
        push: Callable[[Delta], None],
        end: Callable[[Delta], None],
        lose: Callable[[Delta], None],
    ) -> None:
        """`push` takes what it says, `end` its last words, `lose` what comes once nobody is told any more."""
        self._context = context
        self._said = said
        self._index = index
        self._now_ns = now_ns
        self._gaps = gaps
        self._push = push
        self._end = end
        self._lose = lose
        self._last_ns = 0
        self._spending: Spending | None = None
        self._allow: Allow | None = None
        self._until_raise = self._unheard = 0

    def spend(self, spending: Spending, allow: Allow) -> None:
        """Keep the budgets' ceiling ahead of it."""
        self._spending, self._allow = spending, allow
        self._until_raise = spending.until_raise(self._index)

    def hear(self, delta: Delta) -> None:
        """Take what it said."""
        said = self._said
        if said.is_detached:
            self._lose(delta)
            return
        is_last = delta.finish_reason is not None
        if tokens := delta.tokens:
            count = len(tokens)
            if self._spending is not None and not is_last:
                self._unheard += count
                if self._unheard >= self._until_raise:
                    self._raise(self._spending)
            now_ns, last_ns = self._now_ns(), self._last_ns
            self._last_ns = now_ns
            if last_ns:
                self._gaps.append(now_ns - last_ns)
                if len(self._gaps) >= MANY_GAPS:
                    self._gaps.fold()
            elif self._context.first_token_ns is None:
                self._context.first_token_ns = now_ns
            if (slot := self._context.slot) is not None:
                said.tokens += count
                slot.count(OUTPUT, said.tokens)
        if is_last:
            self._end(delta)
        else:
            self._push(delta)

    def _raise(self, spending: Spending) -> None:
        assert self._allow is not None
        unheard, self._unheard = self._unheard, 0
        spending.made(self._index, unheard, self._allow)
        self._until_raise = spending.until_raise(self._index)
        if spending.is_over(self._index):
            self._spending = None
