"""A step's logits: rows in groups of one adapter, in calls of llama.cpp, in the order in which they were asked for."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llmhost.core.step import Row
from llmhost.engines.llama.adapters import LlamaAdapters
from llmhost.engines.llama.context import Context, Logits
from llmhost.engines.llama.passes import (
    Pass,
    aligned,
    alignment,
    may_align,
    one_each,
    passes,
    takes_one_each,
)
from llmhost.engines.llama.results import lines_of, look_at
from llmhost.engines.torch.scoring import Scores


class Computing:
    """Runs rows over whichever context there is."""

    def __init__(
        self, adapters: LlamaAdapters, *, vocab_size: int, outputs: int, watches: bool
    ) -> None:
        """`outputs`: most places in one call whose logits are wanted. With `watches` each row has one."""
        self._adapters = adapters
        self._vocab_size = vocab_size
        self._outputs = outputs
        self._watches = watches
        self.is_roomy = True
        """There may be cells for a token or two that nobody looks at."""

    def run(
        self, context: Context, rows: Sequence[Row], sequences: Sequence[int]
    ) -> tuple[Logits, Mapping[int, Scores]]:
        """Logits [places to draw at, vocabulary], and the scores of prompts by row."""
        groups = self._adapters.groups(rows)
        if len(groups) == 1:
            context.adapt(groups[0][0])
            return self._alike(context, rows, sequences)
        parts: list[Logits] = []
        scores: dict[int, Scores] = {}
        for adapter, places in groups:
            context.adapt(adapter)
            logits, told = self._alike(
                context, [rows[at] for at in places], [sequences[at] for at in places]
            )
            parts.append(logits.copy())
            scores |= {places[at]: scored for at, scored in told.items()}
        order = [at for _, places in groups for at in places]
        return np.concatenate(parts)[lines_of(rows, order)], scores

    def _alike(
        self, context: Context, rows: Sequence[Row], sequences: Sequence[int]
    ) -> tuple[Logits, Mapping[int, Scores]]:
        """The same for rows of one adapter."""
        if not context.room.buffers:
            return self._in_order(context, rows, sequences)
        # As llama.cpp batches.
        keys: list[Any] = [*sequences]
        if aligns := may_align(rows, context.batch.most):
            keys = [*map(alignment, rows, sequences)]
        if any(one > other for one, other in pairwise(keys)):
            order = sorted(range(len(rows)), key=keys.__getitem__)
            logits, scores = self._in_order(
                context,
                [rows[at] for at in order],
                [sequences[at] for at in order],
                aligns=aligns,
            )
            return logits[lines_of(rows, order)], {order[at]: told for at, told in scores.items()}
        return self._in_order(context, rows, sequences, aligns=aligns)

    def _in_order(
        self,
        context: Context,
        rows: Sequence[Row],
        sequences: Sequence[int],
        *,
        aligns: bool = False,
    ) -> tuple[Logits, Mapping[int, Scores]]:
        batch, outputs = context.batch, self._outputs
        if takes_one_each(rows, min(batch.most, outputs)):
            call = one_each(rows, sequences)
            context.decode(batch.fill(call.tokens, call.positions, call.sequences, call.wants))
            return context.logits(call.outputs), {}
        parts: list[Logits] = []
        scores: dict[int, Scores] = {}
        calls = self._calls(context, rows, sequences, aligns=aligns)
        for call in calls:
            context.decode(batch.fill(call.tokens, call.positions, call.sequences, call.wants))
            for sequence, end in call.surplus:
                context.cut(sequence, end)
            if call.outputs:
                found = context.logits(call.outputs)
                look_at(rows, call, found, scores)
                if len(call.drawn) < call.outputs:
                    found = found[call.drawn]
                elif len(calls) > 1:
                    found = found.copy()
                parts.append(found)
        if not parts:
            return np.empty((0, self._vocab_size), np.float32), scores
        return parts[0] if len(parts) == 1 else np.concatenate(parts), scores

    def _calls(
        self, context: Context, rows: Sequence[Row], sequences: Sequence[int], *, aligns: bool
    ) -> list[Pass]:
        most, watches = context.batch.most, self._watches
        if aligns:
            cells = context.room.cells
            return [*aligned(rows, sequences, most_tokens=most, cells=cells, watches=watches)]
        outputs = self._outputs
        return [*passes(rows, sequences, most_tokens=most, most_outputs=outputs, watches=watches)]
