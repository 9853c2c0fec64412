"""The seam between the scheduler and whatever runs a model: one forward pass as plain data.

Decode, chunked prefill, prefix hits and speculation are one case: a row feeds `tokens` of a sequence, starting at
position `start`, and wants a token drawn after the last of them, or not.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple, Protocol, overload

from llmhost.core.errors import EngineFailed
from llmhost.core.output import TokenLogprobs
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling, Purpose


class GrammarState(Protocol):
    """Where one sequence stands in the grammar that its answer must follow. Used on the engine's thread only."""

    @property
    def is_ended(self) -> bool:
        """Nothing may follow but the end of the answer."""
        ...

    @property
    def is_free(self) -> bool:
        """Anything may follow, for now. What is said then is looked at all the same."""
        ...

    def accept(self, token: int) -> None:
        """Go on by a token that `mask` allowed."""
        ...

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, one after the other, the grammar would take from here."""
        ...


PENDING = -1
"""In place of a row's token: what the step before draws for this sequence, which only the device knows yet."""


class Row(NamedTuple):
    """One sequence's part of a step."""

    seq_id: int
    tokens: Sequence[int]
    """Token ids to feed, at positions start .. start + len(tokens) - 1."""
    start: int
    """Positions below this are in the KV cache already."""
    blocks: Sequence[int]
    """Block table: position p lives in blocks[p // block_tokens] at offset p % block_tokens."""
    sampling: Sampling
    seed: int
    wants_token: bool
    """False for a prefill chunk that does not reach the end of what is known."""
    purpose: Purpose = Purpose.CALLER
    prompt_tokens: int = 0
    """So many of the sequence's tokens are its prompt."""
    known: Sequence[int] = ()
    """All tokens of the sequence that are known, its prompt first, guesses not among them: what penalties, bad words
    and log probabilities of the prompt look at. The sequence's own list, to be read during the step only; from step to
    step it only grows."""
    drafts: int = 0
    """The last so many of `tokens` are guesses. The runner draws after the token before them and after each guess
    that its draws have confirmed."""
    barred: frozenset[int] = frozenset()
    """Ids that are not drawn at positions below `barred_until`: the end of an answer that is still too short."""
    barred_until: int = 0
    grammar: GrammarState | None = None
    """What the draw is held to. While the row's token is `PENDING` it stands before that token."""
    adapter: str | None = None
    pooling: Pooling | None = None
    """Set where the row's whole text is fed at once and a vector is wanted, not a token."""


class DecodeRows(Sequence[Row]):
    """The rows of a step in which each sequence is fed the one token that it said last, and nothing but one more is
    wanted of it: most steps. Whoever goes through rows may go through these without looking at what each is, and whom
    the columns are enough never has a row made."""

    __slots__ = ("_rows", "ends", "fed", "owners", "seq_ids", "starts", "tables")

    def __init__(
        self,
        owners: Sequence[Any],
        seq_ids: Sequence[int],
        fed: Sequence[int],
        starts: Sequence[int],
        tables: Sequence[Sequence[int]],
        ends: Sequence[tuple[Any, ...]],
    ) -> None:
        self.owners = owners
        """Whose rows they are, in their order: the scheduler's own business, as is what all rows have in `ends`."""
        self.seq_ids = seq_ids
        self.fed = fed
        self.starts = starts
        self.tables = tables
        self.ends = ends
        """What comes after the blocks of each."""
        self._rows: list[Row] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._made())

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        return self._made()[place]

    def _made(self) -> list[Row]:
        """The tuples are made without the class's own `__new__`, which is written in Python."""
        if self._rows is None:
            new = tuple.__new__
            columns = zip(self.seq_ids, self.fed, self.starts, self.tables, self.ends, strict=True)
            self._rows = [
                new(Row, (seq_id, (token,), start, blocks, *end))
                for seq_id, token, start, blocks, end in columns
            ]
        return self._rows


class Draw(NamedTuple):
    """What a runner has to say of one row when it is more than one token."""

    tokens: tuple[int, ...] = ()
    """The drawn tokens: confirmed guesses, and one that no guess foretold."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `tokens`, if the row's sampling asks for them."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the known prompt tokens at positions start + 1 up to start + len(tokens) of the row, if asked for."""
    pooled: Sequence[float] | None = None


Drawn = int | Draw | None | EngineFailed
"""What a runner says of one row: the token, or more than that; nothing, because no token was wanted; or why this row
alone failed."""


class KvMove(NamedTuple):
    """Keys and values of one block, from the device to the host or back. Moves are carried out in their order."""

    block: int
    slot: int
    """Of host memory."""
    is_to_host: bool


def confirmed_drafts(row: Row, drawn: Drawn) -> int:
    """How many of a row's guesses its draws have confirmed."""
    return len(drawn.tokens) - 1 if row.drafts and isinstance(drawn, Draw) and drawn.tokens else 0


class Shares(Sequence[int]):
    """`split_exactly` of a total by the work of a step's rows, which is made when somebody looks."""

    __slots__ = ("_made", "rows", "total")

    def __init__(self, total: int, rows: Sequence[Row]) -> None:
        self.total = total
        self.rows = rows
        self._made: list[int] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        return self._all()[place]

    def _all(self) -> list[int]:
        if self._made is None:
            self._made = split_exactly(self.total, units_of(self.rows))
        return self._made


class StepResult(NamedTuple):
    """What one step did and what it cost: cost, latency prediction and capacity all read this one event.

    `drawn[i]` is the token drawn for row i, or None where none was wanted. `started_ns` and `ended_ns` bound the
    device's busy interval (monotonic nanoseconds). `shares_ns` splits that interval over the rows and adds up to it.
    """

    rows: Sequence[Row]
    drawn: Sequence[Drawn]
    started_ns: int
    ended_ns: int
    shares_ns: Sequence[int]
    nano: int = 0
    """What the interval cost, in nano-dollars."""

    def shares_nano(self) -> list[int]:
        """`nano` split over the rows as the time is; it adds up to it."""
        return split_exactly(self.nano, list(self.shares_ns))

    @property
    def work_units(self) -> list[int]:
        """Relative work of each row, by which `shares_ns` were made."""
        return units_of(self.rows)

    @property
    def fed_tokens(self) -> int:
        rows = self.rows
        return len(rows) if type(rows) is DecodeRows else sum([len(row.tokens) for row in rows])

    @property
    def busy_ns(self) -> int:
        return self.ended_ns - self.started_ns


def split_exactly(total: int, weights: Sequence[int]) -> list[int]:
    """Share `total` in proportion to `weights` in whole units; the shares add up to `total` exactly.

    Largest remainder; ties go to the earlier place. With all weights zero the shares are as even as they can be.
    """
    if len(weights) < 2:
        return [total] if weights else []
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    if 4 * len(set(weights)) <= len(weights):
        return _split_runs(total, weights, whole)
    shares = [total * weight // whole for weight in weights]
    left = total - sum(shares)
    if left:
        remainders = [total * weight % whole for weight in weights]
        for i in sorted(range(len(weights)), key=remainders.__getitem__, reverse=True)[:left]:
            shares[i] += 1
    return shares


def _split_runs(total: int, weights: Sequence[int], whole: int) -> list[int]:
    """The same where few weights differ, as of prompts that are as long as one another: run by run of equal ones."""
    runs = [(weight, len(list(run))) for weight, run in groupby(weights)]
    parts = [divmod(total * weight, whole) for weight, _ in runs]
    counts = [count for _, count in runs]
    left = total - sum([share * count for (share, _), count in zip(parts, counts, strict=True)])
    more = [0] * len(runs)
    for i in sorted(range(len(runs)), key=lambda at: parts[at][1], reverse=True):
        more[i] = min(counts[i], left)
        left -= more[i]
    columns = zip(parts, counts, more, strict=True)
    runs_of_shares = [
        [share + 1] * up + [share] * (count - up) for (share, _), count, up in columns
    ]
    return list(chain.from_iterable(runs_of_shares))


def units_of(rows: Sequence[Row]) -> list[int]:
    """`work_units` of each row."""
    if type(rows) is DecodeRows:
        return [start + 1025 for start in rows.starts]
    return [(fed := len(row.tokens)) * (1024 + row.start + fed) for row in rows]


def work_units(row: Row) -> int:
    """Relative work of a row: tokens fed, each weighted by the context it attends to.

    One unit is a token's matrix work; attention adds a unit per 1,024 tokens of context. The weights are a first
    model, to be fitted per deployment from measured steps.
    """
    fed = len(row.tokens)
    return fed * 1024 + fed * (row.start + fed)
