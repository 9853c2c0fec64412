"""Prompts that come while nothing runs, and that one step can take whole: short answers begin and end in such steps.

What `plan_step` decides is decided here for all of them in one pass; whatever this does not know goes the general way.
Both ways have the same outcome, which tests compare.
"""

from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.plan import Hit
from llmhost.schedule.sequence import Sequence
from llmhost.schedule.sequence_kv import SequenceKv
from llmhost.schedule.waiting import WaitingQueue

Grants = list[tuple[Sequence, int]]
"""Sequences, and how many tokens of each are fed."""


def begin_together(waiting: WaitingQueue, kv: SequenceKv, limits: SchedulerLimits) -> Grants | None:
    """All who wait, with what is known of them. None, and nobody holds anything, where more is to be decided."""
    line = waiting.only_line
    if line is None or len(line) > limits.max_batch_size:
        return None
    if sum([len(sequence.tokens) for sequence in line]) > limits.max_tokens_per_batch:
        return None
    books, size = kv.books, limits.block_tokens
    about_to: set[int] = set()
    spare = books.free - int(books.total * limits.watermark_share)
    begun: list[tuple[Sequence, Hit]] = []
    for sequence in line:
        tokens = len(sequence.tokens)
        if sequence.is_atomic or tokens >= sequence.halts_at:
            return None
        hit = kv.hit(sequence, about_to)
        if (
            hit is None or hit.tokens > hit.blocks * size
        ):  # it waits for another, or for the host's memory
            return None
        spare -= books.blocks_for(tokens) - hit.blocks + hit.kept_blocks
        begun.append((sequence, hit))
    if spare < 0:
        return None
    waiting.clear()
    kv.begin(begun)
    return [(sequence, len(sequence.tokens) - hit.tokens) for sequence, hit in begun]
