"""The steps in which every sequence says one more token and nothing else is to be decided: nearly all that there are.

What `Scheduler` does with a step is done here in one pass over its sequences, without a call for each of them; whatever
a pass does not know goes the scheduler's general way. Both ways have the same outcome, which tests compare.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmhost.core.output import Delta
from llmhost.core.request import Purpose
from llmhost.core.step import PENDING, DecodeRows, Drawn, Row
from llmhost.schedule.sequence import Sequence as Live
from llmhost.schedule.sequence_kv import SequenceKv

Said = list[tuple[int, Delta]]
"""Sequences' ids and what they have to say."""
Otherwise = Callable[[Row, Drawn, int, int], Said]
"""Takes a row of which more is to be said: what was drawn, and its share of the time and of what that cost."""

_NOTHING_BARRED: frozenset[int] = frozenset()


def row_end(sequence: Live) -> tuple[Any, ...] | None:
    """What all rows of a plain sequence's answer have after their blocks, from `sampling` on. None for those of which
    more than their tokens is looked at."""
    spec, prompt_tokens, start = sequence.spec, len(sequence.spec.prompt), sequence.fed
    if sequence.grammar is not None or spec.stop or spec.purpose is Purpose.PROBE:
        return None
    if start < prompt_tokens or start < sequence.high_water:  # of the prompt, or computed again
        return None
    return (
        *(spec.sampling, spec.seed, True, spec.purpose, prompt_tokens, sequence.tokens),
        *(0, _NOTHING_BARRED, prompt_tokens, None, None, None),
    )


def decode_rows(running: Iterable[Live], kv: SequenceKv) -> DecodeRows | None:
    """A row for each, with the block that it may need taken; None, and nothing has changed but for such blocks, where
    one of them is fed anything else or nothing.

    The tuples are made without the class's own `__new__`, which is written in Python.
    """
    rows, size, new = DecodeRows(), kv.books.block_tokens, tuple.__new__
    append, owners = rows.append, rows.owners
    for sequence in running:
        end, start, owed, tokens = sequence.row_end, sequence.fed, sequence.owed, sequence.tokens
        known = start + 1
        if end is None or known != len(tokens) + owed or known >= sequence.halts_at:
            break
        blocks = sequence.blocks
        if not start % size and start >= len(blocks) * size:
            if not kv.books.free:
                break
            kv.grow(sequence, known)
        sequence.fed, sequence.owed = known, owed + 1
        fed = PENDING if owed else tokens[start]
        append(new(Row, (sequence.seq_id, (fed,), start, blocks, *end)))
        owners.append(sequence)
    else:
        return rows
    for sequence in owners:
        sequence.fed -= 1
        sequence.owed -= 1
    return None


def take_decoded(
    rows: DecodeRows,
    drawn: Sequence[Drawn],
    shares: Iterable[tuple[int, int]],
    kv: SequenceKv,
    *,
    longest: int,
    otherwise: Otherwise,
    serve: Callable[[str, int], None] | None,
) -> tuple[Said, int, int]:
    """Take each token into its sequence: what they say, and the time of those that went this way and what it cost.

    `serve` is told whose time it was, where more than one tenant is there.
    """
    emissions: Said = []
    size, all_ns, all_nano = kv.books.block_tokens, 0, 0
    for sequence, row, token, (ns, nano) in zip(rows.owners, rows, drawn, shares, strict=True):
        tokens, end = sequence.tokens, row.start + 1
        count = len(tokens) + 1
        if (
            type(token) is not int
            or not sequence.blocks  # it ended or was preempted while the step ran
            or count >= longest
            or count >= sequence.most_tokens
            or token in sequence.ends
        ):
            emissions += otherwise(row, token, ns, nano)
            continue
        sequence.computed = sequence.high_water = end
        sequence.owed -= 1
        sequence.engine_ns += ns
        sequence.cost_nano += nano
        all_ns += ns
        all_nano += nano
        if serve is not None:
            serve(sequence.spec.tenant, ns)
        if end >= (sequence.recorded + 1) * size:
            kv.record(sequence)
        tokens.append(token)
        delta = Delta(sequence.index, sequence.watch.push(token), (token,))
        emissions.append((sequence.seq_id, delta))
    return emissions, all_ns, all_nano
