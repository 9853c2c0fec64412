"""The steps in which every sequence says one more token and nothing else is to be decided: nearly all that there are.

What `Scheduler` does with a step is done here for all sequences at once, column by column; whatever that does not know
goes the scheduler's general way. Both ways have the same outcome, which tests compare.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import add
from typing import Any, overload

from llmhost.core.output import Delta
from llmhost.core.sequence import Purpose
from llmhost.core.step import PENDING, DecodeRows, Drawn, Row, Shares, StepResult, units_of
from llmhost.schedule.predictor import StepWork
from llmhost.schedule.sequence import Sequence as Live
from llmhost.schedule.sequence_kv import SequenceKv
from llmhost.schedule.shares import TimeOfStep, shares_of

Said = list[tuple[int, Delta]]
"""Sequences' ids and what they have to say."""
Otherwise = Callable[[Row, Drawn, int, int], Said]
"""Takes a row of which more is to be said: what was drawn, and its share of the time and of what that cost."""

Learn = Callable[[StepWork, int], None]
"""Told of the work of a step and of the nanoseconds that it took."""

_NOTHING_BARRED: frozenset[int] = frozenset()
_ONLY_TOKENS = {int}
SPLIT_TOGETHER = 64
"""Steps of a convoy whose time is split in one go, and learnt from: what is done now and then between two steps takes
several times as long as what is done again and again."""


class Chorus(Sequence[tuple[int, Delta]]):
    """What a step has to say of whom it makes go on by a token, as columns. It can be read as what it stands for."""

    __slots__ = ("indexes", "seq_ids", "texts", "tokens")

    def __init__(
        self,
        seq_ids: Sequence[int],
        indexes: Sequence[int],
        texts: Sequence[str],
        tokens: Sequence[int],
    ) -> None:
        self.seq_ids = seq_ids
        """One list for all steps in which the same sequences speak."""
        self.indexes = indexes
        self.texts = texts
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.seq_ids)

    def __iter__(self) -> Iterator[tuple[int, Delta]]:
        columns = zip(self.seq_ids, self.indexes, self.texts, self.tokens, strict=True)
        for seq_id, index, text, token in columns:
            yield seq_id, Delta(index, text, (token,))

    @overload
    def __getitem__(self, place: int) -> tuple[int, Delta]: ...
    @overload
    def __getitem__(self, place: slice) -> Said: ...
    def __getitem__(self, place: int | slice) -> tuple[int, Delta] | Said:
        return list(self)[place]


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


class Convoy:
    """Sequences that decode together, until something happens to one of them. What is the same for all is known once;
    what each has become in the meantime is told to it when they part, and until then nobody else may look at them.
    """

    def __init__(self, rows: DecodeRows, longest: int, block_tokens: int, learn: Learn) -> None:
        """`rows` are those of its first step. No step before that is under way, and in none is anybody as long as
        `longest`. `learn` is told of each step, of many at once, before they part."""
        sequences: Sequence[Live] = rows.owners
        self._first = rows
        self._starts = [start + 1 for start in rows.starts]
        """Of the next step."""
        self._planned, self._taken = 1, 0
        """Steps, and how many there may be of them."""
        self._most_planned = min(
            [s.halts_at - start for s, start in zip(sequences, self._starts, strict=True)]
        )
        self._most_taken = min([min(s.most_tokens, longest) - len(s.tokens) - 1 for s in sequences])
        self._ns = self._nano = [0] * len(sequences)
        self._units = units_of(rows)
        self._times: list[TimeOfStep] = []
        """Of steps whose time nobody has been told of."""
        self._learn = learn
        self._busy_ns: list[int] = []
        """Of steps that nobody has learnt from, and what the first of them attends to."""
        self._attended = sum(rows.starts) + len(sequences)
        self._drawn: Sequence[int] = ()
        self._indexes = [s.index for s in sequences]
        self._appends = [s.tokens.append for s in sequences]
        self._pushes = [s.watch.push for s in sequences]
        self._stops: set[int] = set().union(*[s.ends for s in sequences])
        self._block_tokens = block_tokens
        self._at_block: list[list[Live]] = [[] for _ in range(block_tokens)]
        """Who begins a block in a step, by the number of the step."""
        for sequence, start in zip(sequences, rows.starts, strict=True):
            self._at_block[-start % block_tokens].append(sequence)

    def has_made(self, rows: Sequence[Row]) -> bool:
        return type(rows) is DecodeRows and rows.owners is self._first.owners

    def plan(self, kv: SequenceKv) -> DecodeRows | None:
        """The next step's rows, with the blocks that they need taken. None where more is to be decided."""
        if self._planned >= self._most_planned:
            return None
        for sequence in self._at_block[self._planned % self._block_tokens]:
            known = sequence.fed + self._planned + 1
            if known > len(sequence.blocks) * self._block_tokens:
                if not kv.books.free:
                    return None
                kv.grow(sequence, known)
        first, starts, is_flying = self._first, self._starts, self._planned > self._taken
        fed = [PENDING] * len(starts) if is_flying else self._drawn
        self._planned += 1
        self._starts = [start + 1 for start in starts]
        return DecodeRows(first.owners, first.seq_ids, fed, starts, first.tables, first.ends)

    def take(self, result: StepResult, kv: SequenceKv) -> Chorus | None:
        """Take in its next step. None, and nothing is taken in, where more is to be looked at."""
        drawn: Sequence[Any] = result.drawn
        is_more = self._taken >= self._most_taken or set(map(type, drawn)) != _ONLY_TOKENS
        if is_more or not self._stops.isdisjoint(drawn):
            return None
        self._note_time(result)
        self._busy_ns.append(result.busy_ns)
        if len(self._busy_ns) >= SPLIT_TOGETHER:
            self._tell_busy()
        self._taken += 1
        self._record(kv)
        for append, token in zip(self._appends, drawn, strict=True):
            append(token)
        self._drawn = drawn
        texts = [push(token) for push, token in zip(self._pushes, drawn, strict=True)]
        return Chorus(self._first.seq_ids, self._indexes, texts, drawn)

    def part(self, serve: Callable[[str, int], None]) -> None:
        """Tell each what has become of it, and `serve` whose the time was."""
        self._split_times()
        self._tell_busy()
        columns = zip(self._first.owners, self._ns, self._nano, strict=True)
        owed = self._planned - self._taken
        for sequence, ns, nano in columns:
            if self._taken:
                sequence.computed = sequence.high_water = sequence.fed + self._taken
                sequence.engine_ns += ns
                sequence.cost_nano += nano
                serve(sequence.spec.tenant, ns)
            sequence.fed += self._planned
            sequence.owed += owed

    def _note_time(self, result: StepResult) -> None:
        if type(result.shares_ns) is Shares:
            self._times.append(TimeOfStep(self._taken, result.shares_ns.total, result.nano))
            if len(self._times) >= SPLIT_TOGETHER:
                self._split_times()
            return
        self._add(result.shares_ns, result.shares_nano())

    def _tell_busy(self) -> None:
        count = len(self._indexes)
        for busy_ns in self._busy_ns:
            self._learn(StepWork(count, count, self._attended), busy_ns)
            self._attended += count
        self._busy_ns.clear()

    def _split_times(self) -> None:
        if self._times:
            self._add(*shares_of(self._units, self._times))
            self._times.clear()

    def _add(self, ns: Sequence[int], nano: Sequence[int]) -> None:
        self._ns = list(map(add, self._ns, ns))
        self._nano = list(map(add, self._nano, nano))

    def _record(self, kv: SequenceKv) -> None:
        """The blocks that the step has filled: of those who begin one in the step behind it."""
        for sequence in self._at_block[self._taken % self._block_tokens]:
            end = sequence.fed + self._taken
            if end >= (sequence.recorded + 1) * self._block_tokens:
                sequence.computed = end
                kv.record(sequence)


def decode_rows(running: Iterable[Live], kv: SequenceKv) -> DecodeRows | None:
    """A row for each, with the block that it may need taken; None where one of them is fed anything else or nothing.

    Nothing else has changed: whoever is content with them says so by `depart`, or makes a convoy of them.
    """
    size = kv.books.block_tokens
    owners: list[Live] = []
    seq_ids: list[int] = []
    fed: list[int] = []
    starts: list[int] = []
    tables: list[list[int]] = []
    ends: list[tuple[Any, ...]] = []
    for sequence in running:
        end, start, owed, tokens = sequence.row_end, sequence.fed, sequence.owed, sequence.tokens
        known = start + 1
        if end is None or known != len(tokens) + owed or known >= sequence.halts_at:
            return None
        blocks = sequence.blocks
        if not start % size and start >= len(blocks) * size:
            if not kv.books.free:
                return None
            kv.grow(sequence, known)
        owners.append(sequence)
        seq_ids.append(sequence.seq_id)
        fed.append(PENDING if owed else tokens[start])
        starts.append(start)
        tables.append(blocks)
        ends.append(end)
    return DecodeRows(owners, seq_ids, fed, starts, tables, ends)


def may_be_convoy(rows: DecodeRows, size: int) -> bool:
    """Nothing of them is under way, and all blocks of so many tokens that they have filled can be found."""
    return not any(s.owed or s.fed >= (s.recorded + 1) * size for s in rows.owners)


def depart(rows: DecodeRows) -> None:
    """They are about to be run."""
    for sequence in rows.owners:
        sequence.fed += 1
        sequence.owed += 1


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
    columns = zip(rows.owners, rows.starts, drawn, shares, strict=True)
    for place, (sequence, start, token, (ns, nano)) in enumerate(columns):
        tokens, end = sequence.tokens, start + 1
        count = len(tokens) + 1
        if (
            type(token) is not int
            or not sequence.blocks  # it ended or was preempted while the step ran
            or count >= longest
            or count >= sequence.most_tokens
            or token in sequence.ends
        ):
            emissions += otherwise(rows[place], token, ns, nano)
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
