"""How many tokens of prompts a step may have, so that those who decode do not wait for long. Pure."""

from collections.abc import Sequence as Seq

from llmhost.schedule.limits import LEAST_CHUNK_TOKENS, SchedulerLimits
from llmhost.schedule.predictor import StepPredictor, StepWork, prompt_room
from llmhost.schedule.sequence import Sequence

TARGET_ITL_MS = 50.0
"""Without a configured target, a step may take this long, or so many times what it takes without prompts as follows, if
that is more."""
FEW_WAIT, AS_MANY_WAIT = 1.8, 2.0
"""Where fewer sequences wait for their first token than write; and as many. Streams get longer meanwhile, and steps
differ from what was predicted: what is left to two and a half times is for that."""
FEW_AT_ONCE = 4
"""With more than so many times what a runner takes at once it matters little how the last of them is filled."""
MOST_PATIENCE = 8.0
"""That is so many times as long at most, where more sequences wait than write."""


def prompt_budget(
    predictor: StepPredictor, running: Seq[Sequence], waiting: int, limits: SchedulerLimits
) -> int | None:
    """Prompt tokens for which those of `running` that decode can wait; None when nobody decodes or no prompt is there.

    `waiting` is how many sequences are still to be admitted.
    """
    # As `todo - drafts > 1`, which takes three times as long: this is asked for every token.
    prompts = [s for s in running if len(s.tokens) + s.owed - s.fed > 1 and not s.is_held_up]
    if len(prompts) == len(running) or not (prompts or waiting):
        return None
    decoding = _decoding(running)
    if not decoding.rows:
        return None
    start = prompts[0].fed if prompts else 0
    target_ms, least = limits.target_itl_ms, LEAST_CHUNK_TOKENS
    if target_ms is None:
        least = limits.least_chunk_tokens
        target_ms = _bound_ms(predictor, decoding, len(prompts) + waiting)
        if predictor.is_stale and not decoding.prompt_tokens:
            expected_ms = predictor.predict(decoding.plus(start, least))
            if expected_ms is not None and max(expected_ms, target_ms) > TARGET_ITL_MS:
                return 0  # a step for those who decode alone, to measure what it takes
    room = prompt_room(
        predictor,
        decoding,
        start=start,
        target_ms=target_ms,
        least=least,
        most=limits.max_tokens_per_batch,
    )
    return even_chunk(room, decoding.rows, limits)


def even_chunk(room: int, decoders: int, limits: SchedulerLimits) -> int:
    """A chunk that the runner computes well: with those who decode a multiple of what it takes at once, or else whole
    blocks."""
    at_once, block = limits.rows_at_once, limits.block_tokens
    if at_once > 1 and room < FEW_AT_ONCE * at_once:
        even = (decoders + room) // at_once * at_once - decoders
        if even > room / 2:
            return even
    return room - room % block if room > block else room


def _decoding(running: Seq[Sequence]) -> StepWork:
    """The part of the next step that nobody has to wait for."""
    decoding = StepWork()
    for sequence in running:
        if sequence.todo - sequence.drafts == 1:
            decoding = decoding.plus(sequence.fed, sequence.todo)
    return decoding


def _bound_ms(predictor: StepPredictor, decoding: StepWork, prompts: int) -> float:
    """What a step may take where no target is configured."""
    alone_ms = predictor.predict(decoding) or 0.0
    times = max(FEW_WAIT, AS_MANY_WAIT * min(prompts / decoding.rows, MOST_PATIENCE))
    return max(TARGET_ITL_MS, alone_ms * times)
