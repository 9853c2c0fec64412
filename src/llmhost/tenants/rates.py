"""Requests and tokens per minute on every level at once: all are asked before any is changed, and the tightest answers.

Tokens are held when a request is admitted and settled when it has ended; what it did not use comes back.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from llmhost.core.errors import ExceedsLimit
from llmhost.core.units import show_duration
from llmhost.tenants.gcra import UNIT, Bucket, Hold
from llmhost.tenants.levels import INPUT, OUTPUT, REQUESTS, Level, Rate
from llmhost.tenants.refusals import Allowance, Allowances, LimitReached

_NS = 10**9
KEPT_BUCKETS = 64
"""So many are kept whatever they owe: they would be made again in a moment."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request is expected to use."""

    input_tokens: int
    """Exact: its prompts are tokenised."""
    output_tokens: int = 0
    """A guess, of all its choices together."""
    most_output_tokens: int | None = None
    """As many as it asks for at most; None when it says nothing."""
    requests: int = 1
    """0 where it was counted before."""


class _Share(NamedTuple):
    """What a request takes from one bucket."""

    level: Level
    kind: str
    bucket: Bucket
    units: int
    debt: int
    """The bucket's, before anything is taken."""


class Taken:
    """What was taken for one request, until it is settled."""

    __slots__ = ("_holds", "allowances")

    def __init__(self, holds: list[tuple[str, Bucket, Hold]], allowances: Allowances) -> None:
        self._holds = holds
        self.allowances = allowances

    @property
    def has_output(self) -> bool:
        """Whether output tokens are limited on any level."""
        return any(kind == OUTPUT for kind, _, _ in self._holds)

    def settle(self, input_tokens: int, output_tokens: int, now_ns: int) -> None:
        """Count what was used instead of what was held. Idempotent: the first call counts."""
        holds, self._holds = self._holds, []
        for kind, bucket, hold in holds:
            bucket.settle(hold, input_tokens if kind == INPUT else output_tokens, now_ns)


class Rates:
    """Remembers what is owed on each level, and forgets those that owe nothing. Used from one thread."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()
        self._new = 0
        """Buckets that were made and have not had others looked at in turn."""

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, levels: Iterable[Level], wish: Wish, now_ns: int) -> list[_Share]:
        """Raises ExceedsLimit for what no wait would help, LimitReached with the exact time to wait."""
        if self._new:
            self._forget_idle(now_ns)
        shares, longest_ns, tightest = [], 0, None
        for level in levels:
            for rate in level.rates:
                units, bucket = _units(level, rate, wish), self._bucket(rate, now_ns)
                debt = bucket.debt(now_ns)
                share = _Share(level, rate.kind, bucket, units, debt)
                shares.append(share)
                if debt + (units - bucket.burst) * UNIT > 0:
                    wait_ns = bucket.wait_ns(units, now_ns)
                    if wait_ns > longest_ns:
                        longest_ns, tightest = wait_ns, share
        if tightest is not None:
            raise _refusal(tightest, longest_ns, shares, now_ns)
        return shares

    def take(self, levels: Iterable[Level], wish: Wish, now_ns: int) -> Taken:
        """Take from every level, or raise as `check` does and take from none. `now_ns` is monotonic."""
        shares, holds = self.check(levels, wish, now_ns), []
        for share in shares:
            if share.kind == REQUESTS:
                share.bucket.take(1, now_ns)
            else:
                holds.append((share.kind, share.bucket, share.bucket.hold(share.units, now_ns)))
        return Taken(holds, _allowances(shares))

    def _bucket(self, rate: Rate, now_ns: int) -> Bucket:
        bucket = self._buckets.get(rate.whose)
        if bucket is None:
            bucket = self._buckets[rate.whose] = Bucket(rate.per_minute, rate.burst)
            self._new += 1
        elif bucket.per_minute != rate.per_minute or bucket.burst != rate.burst:
            bucket.retune(rate.per_minute, rate.burst, now_ns)
        return bucket

    def _forget_idle(self, now_ns: int) -> None:
        """Look at a few buckets for each that was made, in turn: a large table stays about as large as those in debt,
        at no pause, and who comes again and again pays nothing for it."""
        looks, self._new = 4 * self._new, 0
        if len(self._buckets) <= KEPT_BUCKETS:
            return
        for _ in range(min(looks, len(self._buckets))):
            who, bucket = self._buckets.popitem(last=False)
            if not bucket.is_idle(now_ns):
                self._buckets[who] = bucket


def _units(level: Level, rate: Rate, wish: Wish) -> int:
    """What a request takes of a rate. Raises ExceedsLimit for more than there ever is."""
    if rate.kind == REQUESTS:
        return wish.requests
    if rate.kind == INPUT:
        if wish.input_tokens > rate.burst:
            raise _too_large(level, INPUT, rate.per_minute, wish.input_tokens)
        return wish.input_tokens
    if wish.most_output_tokens is not None and wish.most_output_tokens > rate.burst:
        raise _too_large(level, OUTPUT, rate.per_minute, wish.most_output_tokens)
    return min(wish.output_tokens, rate.burst)


def _refusal(share: _Share, wait_ns: int, shares: Sequence[_Share], now_ns: int) -> LimitReached:
    level, bucket, wait_s = share.level, share.bucket, wait_ns / _NS
    if share.kind == REQUESTS:
        text = f"{level.name} may make {bucket.per_minute} requests per minute, {bucket.burst} of them at once."
    else:
        what, left = share.kind.replace("_", " "), bucket.remaining(now_ns)
        text = (
            f"{level.name} may use {bucket.per_minute} {what} per minute. {left} of them are left now, and this"
            f" request needs {share.units}."
        )
    return LimitReached(
        f"{text} Try again in {show_duration(wait_ns)}.",
        dimension=level.dimension,
        limit=share.kind,
        retry_after_s=wait_s,
        allowances=_allowances(_untaken([share, *_others(share, shares)])),
    )


def _others(share: _Share, shares: Sequence[_Share]) -> Iterable[_Share]:
    """Beside the limit that answers, one of the other kind has headers too."""
    is_requests = share.kind == REQUESTS
    return (other for other in shares if (other.kind == REQUESTS) != is_requests)


def _too_large(level: Level, kind: str, rate: int, asked: int) -> ExceedsLimit:
    if kind == INPUT:
        return ExceedsLimit(
            f"The prompt is {asked} tokens, and {_lowered(level.name)} may use {rate} input tokens per minute. No wait"
            " would help: shorten the prompt, or ask for a higher limit."
        )
    return ExceedsLimit(
        f"The request asks for up to {asked} output tokens in all its choices, and {_lowered(level.name)} may use"
        f" {rate} output tokens per minute. No wait would help: set max_tokens or n lower.",
        param="max_tokens",
    )


def _lowered(name: str) -> str:
    return name[0].lower() + name[1:]


def _untaken(shares: Iterable[_Share]) -> list[_Share]:
    return [share._replace(units=0) for share in shares]


def _allowances(shares: Iterable[_Share]) -> Allowances:
    """How limits stand once all of this is taken."""
    requests: list[_Standing] = []
    tokens: list[_Standing] = []
    for _, kind, bucket, units, before in shares:
        debt = before + units * UNIT
        left = bucket.burst + -debt // UNIT
        (requests if kind == REQUESTS else tokens).append((left if left > 0 else 0, debt, bucket))
    return Allowances(_tightest(requests), _tightest(tokens))


_Standing = tuple[int, int, Bucket]
"""Units that are left, the debt, and the bucket."""


def _tightest(standings: Sequence[_Standing]) -> Allowance | None:
    """Where the least is left; of two, the one that takes longer to fill up."""
    if not standings:
        return None
    least = min(standings, key=_left)[0]
    reset_ns, per_minute = max(
        (-(-debt // bucket.per_minute), bucket.per_minute)
        for left, debt, bucket in standings
        if left == least
    )
    return Allowance(per_minute, least, reset_ns)


_left = itemgetter(0)
