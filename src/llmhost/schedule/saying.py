"""What a sequence has to say for what was drawn, and whether it is its last word. Pure."""

from llmhost.core.output import Delta, FinishReason
from llmhost.core.step import Draw, Row
from llmhost.schedule.sequence import Sequence


def say(sequence: Sequence, row: Row, drawn: int | Draw | None, longest: int) -> Delta | None:
    """The sequence's delta; None when it has nothing to say. `longest` is how many tokens any sequence can have."""
    if isinstance(drawn, int):  # by far the most common
        assert row.wants_token, "a token where none was wanted"
        return say_next(sequence, drawn, longest)
    if sequence.is_atomic:
        assert isinstance(drawn, Draw) and drawn.pooled is not None, "a vector was wanted"
        return sequence.end(FinishReason.STOP).but(pooled=drawn.pooled)
    has_token = drawn is not None and bool(drawn.tokens)
    assert has_token is row.wants_token, "a token where none was wanted, or none"
    if drawn is None:
        return _last_if_full(sequence, None, longest)
    if drawn.prompt_logprobs:
        fresh = sequence.fresh_logprobs(row.start, drawn.prompt_logprobs)
        drawn = drawn._replace(prompt_logprobs=fresh)
    return _last_if_full(sequence, sequence.take(drawn), longest)


def say_next(sequence: Sequence, token: int, longest: int) -> Delta:
    """The same for a token alone."""
    delta = sequence.accept(token)
    if delta.finish_reason is not None or len(sequence.tokens) < longest:
        return delta
    return _last_if_full(sequence, delta, longest) or delta


def _last_if_full(sequence: Sequence, delta: Delta | None, longest: int) -> Delta | None:
    if delta is None or delta.finish_reason is None:
        is_full = len(sequence.tokens) >= longest and delta is not None and bool(delta.tokens)
        is_scored = sequence.is_scored_only and sequence.computed >= len(sequence.tokens)
        if is_full or is_scored:
            last = delta or Delta(sequence.spec.index)
            ended = sequence.end(FinishReason.LENGTH, text=last.text, tokens=last.tokens)
            return ended.but(logprobs=last.logprobs, prompt_logprobs=last.prompt_logprobs)
    return delta


def has_no_room(sequence: Sequence, longest: int, longest_whole: int) -> bool:
    """It can't have a single token more; `longest_whole` is the limit of what is computed as a whole."""
    if sequence.is_atomic:
        return len(sequence.tokens) > longest_whole
    if sequence.is_scored_only:
        return len(sequence.tokens) > longest
    return len(sequence.tokens) >= min(longest, sequence.most_tokens)
