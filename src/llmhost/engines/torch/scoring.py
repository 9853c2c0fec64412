"""Log probabilities of prompt tokens: the output layer over every place of a prompt, a few places at a time.

A chunk of a prompt has as many places as tokens, and logits of all of them at once would take more memory than the
model: 2,048 places of a vocabulary of 152,000 are 1.2 GB.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from torch import Tensor, nn

from llmhost.core.errors import EngineFailed
from llmhost.core.output import TokenLogprobs
from llmhost.core.step import Draw, Drawn, Row
from llmhost.engines.drawing import scored_of, scored_tokens
from llmhost.engines.torch.logprobs import SLICE_NUMBERS, report
from llmhost.engines.torch.sampler import broken

Scores = tuple[TokenLogprobs, ...] | EngineFailed


@contextmanager
def computed_once(body: nn.Module, outputs: Any) -> Iterator[None]:
    """Until the block ends a call of `body` gives `outputs`: so the layers after it can be run again and again.

    By whatever way a model gets from there to its logits: some scale them or bound them.
    """
    own = body.__dict__.get("forward")
    body.forward = lambda *args, **kwargs: outputs
    try:
        yield
    finally:
        del body.forward
        if own is not None:
            body.forward = own


def score(
    rows: Sequence[Row], places: Tensor, vocabulary: int, logits_at: Callable[[Tensor], Tensor]
) -> list[Scores]:
    """For each row what its prompt tokens are worth, or its failure. `places` are those of all rows, in their order."""
    tokens = [*chain.from_iterable(map(scored_tokens, rows))]
    tops = [row.sampling.prompt_logprobs or 0 for row in rows for _ in range(scored_of(row))]
    size = max(1, SLICE_NUMBERS // vocabulary)
    reports: list[TokenLogprobs] = []
    is_sound: list[bool] = []
    for first in range(0, len(tokens), size):
        part = slice(first, first + size)
        logits = logits_at(places[part])
        is_sound += logits.max(dim=-1).values.isfinite().tolist()
        reports += report(logits, tokens[part], tops[part])
    found = zip(reports, is_sound, strict=True)
    return [_of_row(row, [*islice(found, scored_of(row))]) for row in rows]


def _of_row(row: Row, found: Sequence[tuple[TokenLogprobs, bool]]) -> Scores:
    if not all(is_sound for _, is_sound in found):
        return broken(row)
    return tuple(reported for reported, _ in found)


def with_scores(drawn: Drawn, scores: Scores) -> Drawn:
    """A row's answer with the scores of its prompt tokens beside it."""
    if not scores or isinstance(drawn, EngineFailed):
        return drawn
    if isinstance(scores, EngineFailed):
        return scores
    match drawn:
        case Draw():
            return drawn._replace(prompt_logprobs=scores)
        case int():
            return Draw((drawn,), (), scores)
        case None:
            return Draw((), (), scores)
