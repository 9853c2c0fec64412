"""A step as calls of `llama_decode`: which tokens go into which call, and whose logits come out of it.

One call as a rule. Several when a step has more tokens than a batch, or wants more logits than there is room for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmhost.core.step import Row
from llmhost.engines.drawing import places_of, scored_of

GROUP_TOKENS = 192
"""Of prompts that are computed together: fewer read the weights more often, more overflow the caches."""
MOST_SURPLUS = 6
"""Tokens by which a row is made longer: to read the weights once more takes as long as five or so."""
AT_ONCE = 4
"""As many tokens as kernels for packed weights take at once; each that is left over takes as long as those."""


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
    surplus: list[tuple[int, int]] = field(default_factory=list)
    """(sequence, position) from where on what it holds is to be cut: tokens that bring rows to one length."""


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


def even(call: Pass, most_tokens: int) -> None:
    """Let a call with a prompt in it have a number of tokens that leaves nothing for slower kernels, where all
    sequences share one buffer: by tokens at the end of its last row, which are cut off again."""
    count, sequence = len(call.tokens), call.sequences[-1]
    more = -count % AT_ONCE
    if count < 2 * AT_ONCE or count + more > most_tokens or len({*call.sequences}) == count:
        return
    end = call.positions[-1] + 1
    call.tokens += [call.tokens[-1]] * more
    call.positions += range(end, end + more)
    call.sequences += [sequence] * more
    call.wants += [0] * more
    if more:
        call.surplus.append((sequence, end))


def may_align(rows: Sequence[Row], most_tokens: int) -> bool:
    """Whether a step is for `aligned`: it has prompts to bring to one length, and nothing out of the ordinary."""
    prompts = [row for row in rows if len(row.tokens) > 1]
    return len(prompts) > 1 and not any(
        row.drafts or scored_of(row) or len(row.tokens) > most_tokens for row in rows
    )


def alignment(row: Row, sequence: int) -> tuple[bool, int]:
    """By what `aligned` has rows sorted: those of a single token first."""
    return len(row.tokens) > 1, sequence


def aligned(
    rows: Sequence[Row],
    sequences: Sequence[int],
    *,
    most_tokens: int,
    cells: int,
    watches: bool = False,
) -> Iterator[Pass]:
    """A step where each sequence has a buffer of its own, with room for `cells`.

    llama.cpp computes such sequences together as far as the shortest goes, and what is left of each length apart, with
    all weights read once more. So prompts of nearly one length are brought to one by tokens at their ends, which are
    cut off again; and not too many go together, for what is computed in between is to stay in the caches. Where others
    decode the first token of each prompt is computed with theirs: their numbers have no gaps then.
    """
    is_mixed = len(rows[0].tokens) == 1
    if is_mixed:
        first = Pass()
        for at in sorted(range(len(rows)), key=sequences.__getitem__):
            _add(first, at, rows[at], sequences[at], 0, 1, _first_out(rows[at], watches), 0)
        yield first
    for group in _groups(rows, sequences, min(GROUP_TOKENS, most_tokens), cells):
        current, longest = Pass(), _length_of([rows[at] for at in group], int(is_mixed), cells)
        for at in group:
            row, sequence, count = rows[at], sequences[at], len(rows[at].tokens)
            start = int(is_mixed)
            _add(current, at, row, sequence, start, count, _first_out(row, watches), 0)
            if count < longest:
                _fill(current, row, sequence, longest)
        yield current


def _length_of(rows: Sequence[Row], begun: int, cells: int) -> int:
    """Of all rows of a group, whose first `begun` tokens are computed already: together a number that leaves nothing
    for slower kernels, where there are cells for it."""
    longest = max(len(row.tokens) for row in rows)
    further = next(
        more for more in range(AT_ONCE) if (longest - begun + more) * len(rows) % AT_ONCE == 0
    )
    fits = all(row.start + longest + further <= cells for row in rows)
    return longest + further if fits else longest


def _first_out(row: Row, watches: bool) -> int:
    return len(row.tokens) - max(places_of(row), watches)


def _groups(
    rows: Sequence[Row], sequences: Sequence[int], most_tokens: int, cells: int
) -> Iterator[list[int]]:
    """Prompts of nearly one length whose sequences follow one another."""
    group: list[int] = []
    shortest = longest = 0
    for at, row in enumerate(rows):
        count = len(row.tokens)
        if count == 1:
            continue
        low, high = min(shortest, count), max(longest, count)
        is_next = bool(group) and sequences[at] == sequences[group[-1]] + 1
        fits = all(rows[one].start + high <= cells for one in (*group, at))
        is_alike = high - low <= MOST_SURPLUS and high * (len(group) + 1) <= most_tokens
        if group and not (is_next and fits and is_alike):
            yield group
            group = []
        if not group:
            low = high = count
        group.append(at)
        shortest, longest = low, high
    if group:
        yield group


def _fill(into: Pass, row: Row, sequence: int, length: int) -> None:
    """Let a row be as long as `length`, by tokens that nobody looks at."""
    count = len(row.tokens)
    into.tokens += [row.tokens[-1]] * (length - count)
    into.positions += range(row.start + count, row.start + length)
    into.sequences += [sequence] * (length - count)
    into.wants += [0] * (length - count)
    into.surplus.append((sequence, row.start + count))


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
