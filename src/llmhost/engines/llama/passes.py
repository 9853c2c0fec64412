"""A step as calls of `llama_decode`: which tokens go into which call, and whose logits come out of it.

One call as a rule. Several when a step has more tokens than a batch, or wants more logits than there is room for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmhost.core.step import Row
from llmhost.engines.drawing import places_of, scored_of


@dataclass(slots=True)
class Pass:
    """One call. The lists have an entry for each token."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    wants: list[int] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)
    """Of its outputs those at which tokens are drawn, in the order of rows and places."""
    scored: list[tuple[int, int, int]] = field(default_factory=list)
    """(output, row, prompt token that is scored there)."""
    watched: list[tuple[int, int]] = field(default_factory=list)
    """(output, row) at the end of rows that draw nothing: to see that it is a number."""
    outputs: int = 0


def passes(
    rows: Sequence[Row],
    sequences: Sequence[int],
    *,
    most_tokens: int,
    most_outputs: int,
    watches: bool = False,
) -> Iterator[Pass]:
    """Rows one after the other, each cut where a call is full. With `watches` each has an output."""
    current = Pass()
    for at, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        count = len(row.tokens)
        places, scores = places_of(row), scored_of(row)
        first_out = count - max(places, watches)
        done = 0
        while done < count:
            if not scores:  # all tokens that fit; its places to draw at are the last ones
                room = most_outputs - current.outputs
                end = min(
                    count, done + most_tokens - len(current.tokens), max(first_out, done) + room
                )
            else:
                end = min(
                    count,
                    done + min(most_tokens - len(current.tokens), most_outputs - current.outputs),
                )
            if end <= done:
                yield current
                current = Pass()
                continue
            _add(current, at, row, sequence, done, end, first_out, scores)
            done = end
    if current.tokens:
        yield current


def takes_one_each(rows: Sequence[Row], most: int) -> bool:
    """Whether one call of a token from each row is all of a step, as it is of most."""
    return len(rows) <= most and all(
        len(row.tokens) == 1 and row.wants_token and row.start >= row.prompt_tokens - 1
        for row in rows
    )


def one_each(rows: Sequence[Row], sequences: Sequence[int]) -> Pass:
    """That call. Nothing is scored: all are past their prompts."""
    count = len(rows)
    return Pass(
        [row.tokens[0] for row in rows],
        [row.start for row in rows],
        [*sequences],
        [1] * count,
        [*range(count)],
        outputs=count,
    )


def _add(
    into: Pass,
    at: int,
    row: Row,
    sequence: int,
    start: int,
    end: int,
    first_out: int,
    scores: int,
) -> None:
    count = end - start
    into.tokens += row.tokens[start:end]
    into.positions += range(row.start + start, row.start + end)
    into.sequences += [sequence] * count
    if end <= first_out and start >= scores:
        into.wants += [0] * count
        return
    for place in range(start, end):
        is_out, is_scored = place >= first_out, place < scores
        is_drawn = is_out and row.wants_token
        into.wants.append(int(is_out or is_scored))
        if is_drawn:
            into.drawn.append(into.outputs)
        if is_scored:
            into.scored.append((into.outputs, at, row.known[row.start + place + 1]))
        if is_out and not is_drawn:
            into.watched.append((into.outputs, at))
        into.outputs += is_out or is_scored
