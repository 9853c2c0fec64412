"""A sequence's part of a step as a row, with the blocks that it needs taken. Pure."""

from llmhost.core.step import PENDING, Row
from llmhost.schedule.sequence import Sequence
from llmhost.schedule.sequence_kv import SequenceKv
from llmhost.schedule.steady import row_end

_NOTHING_BARRED: frozenset[int] = frozenset()


def next_row(sequence: Sequence, kv: SequenceKv) -> Row:
    """`row_of` for one token of a sequence that wants nothing special: by far the most common.

    The tuple is made without the class's own `__new__`, which is written in Python.
    """
    start, tokens, owed = sequence.fed, sequence.tokens, sequence.owed
    known = len(tokens) + owed
    if start != known - 1 or sequence.draft or (owed and sequence.grammar is not None):
        return row_of(sequence, 1, kv)
    if start >= len(sequence.blocks) * kv.books.block_tokens:
        kv.grow(sequence, known)
    spec = sequence.spec
    sequence.row_end = row_end(sequence)
    sequence.fed = known
    sequence.owed = owed + 1
    prompt_tokens = len(spec.prompt)
    return tuple.__new__(
        Row,
        (
            *(sequence.seq_id, [PENDING if owed else tokens[start]], start, sequence.blocks),
            *(spec.sampling, spec.seed, True, spec.purpose, prompt_tokens, tokens),
            *(0, _NOTHING_BARRED, prompt_tokens, None, None, None),
        ),
    )


def row_of(sequence: Sequence, share: int, kv: SequenceKv) -> Row:
    """Feed so many tokens of a sequence, guesses last."""
    start, known = sequence.fed, len(sequence.tokens) + sequence.owed
    end = start + share
    if not sequence.is_atomic:
        kv.grow(sequence, end)
    spec, drafts, prompt_tokens = sequence.spec, 0, len(sequence.spec.prompt)
    tokens = sequence.tokens[start:end]
    if sequence.owed:
        tokens.append(PENDING)
    elif end > known:
        drafts = end - known
        tokens += sequence.draft[:drafts]
    wants_token = end >= known and not (spec.max_new_tokens == 0 and sequence.is_scored_only)
    grammar = None if sequence.grammar is None else sequence.holding
    sequence.fed = end
    sequence.owed += wants_token
    return tuple.__new__(
        Row,
        (
            *(sequence.seq_id, tokens, start, sequence.blocks, spec.sampling, spec.seed),
            *(wants_token, spec.purpose, prompt_tokens, sequence.tokens, drafts),
            *(sequence.barred, prompt_tokens + spec.min_new_tokens),
            *(grammar, spec.adapter, spec.pooling),
        ),
    )
