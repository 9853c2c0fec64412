"""Prompts that come while nothing runs, and that one step can take whole: short answers begin and end in such steps.

What `plan_step` decides, and what `row_of` makes of it, is done here for all of them in a few passes; whatever this
does not know goes the general way. Both ways have the same outcome, which tests compare.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from llmhost.core.sequence import Purpose
from llmhost.core.step import Drawn, Row
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.rows import row_of
from llmhost.schedule.saying import say_next
from llmhost.schedule.sequence import Sequence
from llmhost.schedule.sequence_kv import SequenceKv
from llmhost.schedule.steady import Otherwise, Said
from llmhost.schedule.waiting import WaitingQueue

_NOTHING_BARRED: frozenset[int] = frozenset()


def begin_together(
    waiting: WaitingQueue, kv: SequenceKv, limits: SchedulerLimits
) -> list[Sequence] | None:
    """All who wait, or as many of the first as may run at once, with what is known of them. None, and nobody holds
    anything, where more is to be decided."""
    line = waiting.only_line
    if line is None:
        return None
    first = line[: limits.max_batch_size]
    lengths = [len(sequence.tokens) for sequence in first]
    size = limits.block_tokens
    room = kv.books.free - int(kv.books.total * limits.watermark_share)
    if sum([-(-tokens // size) for tokens in lengths]) > room:  # perhaps not, with what is known
        return None
    for sequence, tokens in zip(first, lengths, strict=True):
        if sequence.is_atomic or tokens >= sequence.halts_at:
            return None
    if kv.books.host.used or not kv.look_up_all(first):
        return None
    found = size * sum([len(sequence.found) for sequence in first])
    if sum(lengths) - found > limits.max_tokens_per_batch:
        return None
    waiting.take_first(len(first))
    kv.begin(first)
    return first


def rows_together(begun: list[Sequence], kv: SequenceKv) -> list[Row]:
    """All that is known of each and not computed yet, with the blocks taken that it needs."""
    size = kv.books.block_tokens
    needs = [-(-len(sequence.tokens) // size) - len(sequence.blocks) for sequence in begun]
    fresh = iter(kv.books.take(sum(needs)))
    rows: list[Row] = []
    for sequence, needed in zip(begun, needs, strict=True):
        tokens, start = sequence.tokens, sequence.fed
        end = len(tokens)
        sequence.blocks += islice(fresh, needed)
        if not sequence.is_plain:
            rows.append(row_of(sequence, end - start, kv))
            continue
        spec, prompt_tokens = sequence.spec, len(sequence.spec.prompt)
        sequence.fed = end
        sequence.owed = 1
        row = tuple.__new__(  # as `row_of` does
            Row,
            (
                *(sequence.seq_id, tokens[start:], start, sequence.blocks, spec.sampling),
                *(spec.seed, True, spec.purpose, prompt_tokens, tokens),
                *(0, _NOTHING_BARRED, prompt_tokens, None, None, None),
            ),
        )
        rows.append(row)
    return rows


class Taken(NamedTuple):
    """What came of a step: what is said, who has ended and is still to be let go, and the time of those that went
    this way and what it cost."""

    said: Said
    ended: list[Sequence]
    ns: int
    nano: int


def take_fresh(
    rows: Iterable[Row],
    all_drawn: Iterable[Drawn],
    shares: Iterable[tuple[int, int]],
    sequences: Mapping[int, Sequence],
    kv: SequenceKv,
    *,
    longest: int,
    otherwise: Otherwise,
    serve: Callable[[str, int], None] | None,
) -> Taken:
    """Take each token into its sequence, where what was fed was right, and never computed before, and somebody pays
    for it: a prompt's, or one more of an answer. `serve` is as that of `take_decoded`."""
    said: Said = []
    ended: list[Sequence] = []
    size, all_ns, all_nano, probe = kv.books.block_tokens, 0, 0, Purpose.PROBE
    for row, token, (ns, nano) in zip(rows, all_drawn, shares, strict=True):
        sequence, start = sequences.get(row.seq_id), row.start
        if (
            sequence is None
            or type(token) is not int
            or not (sequence.is_plain and sequence.grammar is None)
            or not (sequence.blocks and row.wants_token)  # else it was preempted while the step ran
            or start < sequence.high_water
            or row.drafts
            or row.purpose is probe
        ):
            said += otherwise(row, token, ns, nano)
            continue
        end = start + len(row.tokens)
        sequence.computed = sequence.high_water = end
        if sequence.owed:
            sequence.owed -= 1
        sequence.engine_ns += ns
        all_ns += ns
        if nano:
            sequence.cost_nano += nano
            all_nano += nano
            if start < row.prompt_tokens:
                sequence.input_cost_nano += nano
        if serve is not None:
            serve(sequence.spec.tenant, ns)
        if end >= (sequence.recorded + 1) * size:
            kv.record(sequence)
        delta = sequence.accept(token) if end + 1 < longest else say_next(sequence, token, longest)
        if delta.finish_reason is not None:
            ended.append(sequence)
        said.append((row.seq_id, delta))
    return Taken(said, ended, all_ns, all_nano)
