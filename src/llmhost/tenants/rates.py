"""Requests and tokens per minute on every level at once: all are asked before any is changed, and the tightest answers.

Tokens are held when a request is admitted and settled when it has ended; what it did not use comes back.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

import msgspec

from llmhost.core.errors import ExceedsLimit
from llmhost.core.units import show_duration
from llmhost.tenants.gcra import (
    UNIT,
    Bucket,
    Hold,
    Standing,
    hold_each,
    hold_in_turn,
    settle_each,
    take_each,
    tightest,
    tightest_in_turn,
)
from llmhost.tenants.levels import INPUT, OUTPUT, REQUESTS, Level, Rate
from llmhost.tenants.refusals import Allowance, Allowances, LimitReached

_NS = 10**9
KEPT_LEVELS = 1_000
KEPT_BUCKETS = 64
"""So many are kept whatever they owe: they would be made again in a moment."""


_Found = tuple[list[Bucket], list[Bucket], list[Bucket]]


class Wish(msgspec.Struct, frozen=True, gc=False):
    """What a request is expected to use."""

    input_tokens: int
    """Exact: its prompts are tokenised."""
    output_tokens: int = 0
    """A guess, of all its choices together."""
    most_output_tokens: int | None = None
    """As many as it asks for at most; None when it says nothing."""
    requests: int = 1
    """0 where it was counted before."""


class Used(msgspec.Struct, frozen=True, gc=False):
    """What a request has used."""

    input_tokens: int
    output_tokens: int


_Share = tuple[Level, str, Bucket, int, int]
"""What a request takes from one bucket: whose it is, its kind, itself, the units, and its debt before. A bare tuple,
because each request has one for each of its limits."""


class Taken(msgspec.Struct, eq=False):
    """What was taken for one request, until it is settled."""

    allowances: Allowances
    """How limits stood then."""
    _fed: Sequence[Bucket]
    _fed_holds: Hold | tuple[Hold, ...]
    _said: Sequence[Bucket]
    _said_holds: Hold | tuple[Hold, ...]
    _is_settled: bool = False

    @property
    def has_output(self) -> bool:
        """Whether output tokens are limited on any level."""
        return bool(self._said)

    def settle(self, input_tokens: int, output_tokens: int, now_ns: int) -> None:
        """Count what was used instead of what was held. Idempotent: the first call counts."""
        if not self._is_settled:
            self._is_settled = True
            settle_each(self._fed, self._fed_holds, input_tokens, now_ns)
            settle_each(self._said, self._said_holds, output_tokens, now_ns)


class Rates:
    """Remembers what is owed on each level, and forgets those that owe nothing. Used from one thread."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()
        self._new = 0
        """Buckets that were made and have not had others looked at in turn."""
        self._changes = 0
        """Of which buckets there are, and of their rates."""
        self._known: dict[int, tuple[Sequence[Level], int, _Found]] = {}
        """What was looked up for levels, by the id of their list, which is kept alive here, and `_changes`."""

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, levels: Iterable[Level], wish: Wish, now_ns: int) -> list[_Share]:
        """Raises ExceedsLimit for what no wait would help, LimitReached with the exact time to wait."""
        if self._new:
            self._forget_idle(now_ns)
        shares: list[_Share] = []
        longest_ns, tightest, buckets = 0, None, self._buckets
        for level in levels:
            for rate in level.rates:
                kind, whose, per_minute, burst = rate
                units = wish.requests if kind == REQUESTS else _units(level, rate, wish)
                bucket = buckets.get(whose)
                if bucket is None or bucket.per_minute != per_minute or bucket.burst != burst:
                    bucket = self._bucket(rate, now_ns)
                debt = (
                    bucket.tat - now_ns * per_minute
                )  # as `debt` says, which would be a call for each limit
                if debt < 0:
                    debt = 0
                share = (level, kind, bucket, units, debt)
                shares.append(share)
                if debt + (units - burst) * UNIT > 0:
                    wait_ns = bucket.wait_ns(units, now_ns)
                    if wait_ns > longest_ns:
                        longest_ns, tightest = wait_ns, share
        if tightest is not None:
            raise _refusal(tightest, longest_ns, shares, now_ns)
        return shares

    def take(self, levels: Sequence[Level], wish: Wish, now_ns: int) -> Taken:
        """Take from every level, or raise as `check` does and take from none. `now_ns` is monotonic."""
        if id(levels) not in self._known:
            self.check(levels, wish, now_ns)  # nothing is made for what is refused for good
        buckets = self._buckets_of(levels, now_ns)
        allowances = self._stand(buckets, levels, wish, now_ns)
        requests, fed, said = buckets
        take_each(requests, wish.requests, now_ns)
        fed_holds = hold_each(fed, wish.input_tokens, now_ns)
        return Taken(allowances, fed, fed_holds, said, hold_each(said, wish.output_tokens, now_ns))

    def take_in_turn(
        self, levels: Sequence[Level], wishes: Sequence[Wish], now_ns: int
    ) -> list[Taken] | None:
        """As `take` for each of several that come at one moment. None, and nothing is taken, where each has to ask for
        itself."""
        if id(levels) not in self._known:
            return None
        requests, fed, said = self._buckets_of(levels, now_ns)
        counts = [wish.requests for wish in wishes]
        tokens = [wish.input_tokens for wish in wishes]
        guesses = [wish.output_tokens for wish in wishes]
        nobody: list[Standing | None] = [None] * len(wishes)
        stood: Sequence[Standing | None] | None = nobody
        stood_fed = stood_said = stood
        if requests:
            stood = tightest_in_turn(requests, counts, now_ns)
        if fed:
            stood_fed = tightest_in_turn(fed, tokens, now_ns, most=max(tokens))
        if said:
            most = max([wish.most_output_tokens or 0 for wish in wishes])
            stood_said = tightest_in_turn(said, guesses, now_ns, most=most)
        if stood is None or stood_fed is None or stood_said is None:
            return None
        take_each(requests, sum(counts), now_ns)
        fed_holds = hold_in_turn(fed, tokens, now_ns)
        said_holds = hold_in_turn(said, guesses, now_ns)
        columns = zip(stood, stood_fed, stood_said, fed_holds, said_holds, strict=True)
        return [
            Taken(_told(of_requests, of_fed, of_said), fed, fed_hold, said, said_hold)
            for of_requests, of_fed, of_said, fed_hold, said_hold in columns
        ]

    def spend(
        self, levels: Sequence[Level], wish: Wish, used: "Used", now_ns: int
    ) -> tuple[Allowances, bool]:
        """As `take` and at once `settle`: how limits stood, and whether output tokens are limited on any level."""
        buckets = self._buckets_of(levels, now_ns)
        allowances = self._stand(buckets, levels, wish, now_ns)
        requests, fed, said = buckets
        take_each(requests, wish.requests, now_ns)
        take_each(fed, used.input_tokens, now_ns)
        take_each(said, used.output_tokens, now_ns)
        return allowances, bool(said)

    def _stand(
        self, buckets: "_Found", levels: Sequence[Level], wish: Wish, now_ns: int
    ) -> Allowances:
        """How limits stand once a wish is taken, which fits. Raises as `check` does."""
        requests, fed, said = buckets
        most = wish.most_output_tokens or 0
        stood = tightest(requests, wish.requests, now_ns)
        stood_fed = tightest(fed, wish.input_tokens, now_ns, most=wish.input_tokens)
        stood_said = tightest(said, wish.output_tokens, now_ns, most=most)
        if (
            (requests and stood is None)
            or (fed and stood_fed is None)
            or (said and stood_said is None)
        ):
            self.check(levels, wish, now_ns)
            raise AssertionError("it is refused, and why was found")
        return _told(stood, stood_fed, stood_said)

    def _buckets_of(self, levels: Sequence[Level], now_ns: int) -> "_Found":
        """Those of requests, of input and of output tokens; looked up once for as long as none is made or changed."""
        if self._new:
            self._forget_idle(now_ns)
        known = self._known.get(id(levels))
        if known is not None and known[0] is levels and known[1] == self._changes:
            return known[2]
        found: dict[str, list[Bucket]] = {REQUESTS: [], INPUT: [], OUTPUT: []}
        for level in levels:
            for rate in level.rates:
                bucket = self._buckets.get(rate.whose)
                if bucket is None or (bucket.per_minute, bucket.burst) != rate[2:]:
                    bucket = self._bucket(rate, now_ns)
                found[rate.kind].append(bucket)
        buckets = (found[REQUESTS], found[INPUT], found[OUTPUT])
        if len(self._known) >= KEPT_LEVELS:
            self._known.clear()
        self._known[id(levels)] = (levels, self._changes, buckets)
        return buckets

    def _bucket(self, rate: Rate, now_ns: int) -> Bucket:
        """One that is to be made, or goes on at another rate."""
        self._changes += 1
        bucket = self._buckets.get(rate.whose)
        if bucket is None:
            bucket = self._buckets[rate.whose] = Bucket(rate.per_minute, rate.burst)
            self._new += 1
        else:
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
            if bucket.is_idle(now_ns):
                self._changes += 1
            else:
                self._buckets[who] = bucket


def _units(level: Level, rate: Rate, wish: Wish) -> int:
    """What a request takes of a rate of tokens. Raises ExceedsLimit for more than there ever is."""
    if rate.kind == INPUT:
        if wish.input_tokens > rate.burst:
            raise _too_large(level, INPUT, rate.per_minute, wish.input_tokens)
        return wish.input_tokens
    if wish.most_output_tokens is not None and wish.most_output_tokens > rate.burst:
        raise _too_large(level, OUTPUT, rate.per_minute, wish.most_output_tokens)
    return min(wish.output_tokens, rate.burst)


def _refusal(share: _Share, wait_ns: int, shares: Sequence[_Share], now_ns: int) -> LimitReached:
    (level, kind, bucket, units, _), wait_s = share, wait_ns / _NS
    if kind == REQUESTS:
        text = f"{level.name} may make {bucket.per_minute} requests per minute, {bucket.burst} of them at once."
    else:
        what, left = kind.replace("_", " "), bucket.remaining(now_ns)
        text = (
            f"{level.name} may use {bucket.per_minute} {what} per minute. {left} of them are left now, and this"
            f" request needs {units}."
        )
    return LimitReached(
        f"{text} Try again in {show_duration(wait_ns)}.",
        dimension=level.dimension,
        limit=kind,
        retry_after_s=wait_s,
        allowances=_allowances(_untaken([share, *_others(share, shares)])),
    )


def _others(share: _Share, shares: Sequence[_Share]) -> Iterable[_Share]:
    """Beside the limit that answers, one of the other kind has headers too."""
    is_requests = share[1] == REQUESTS
    return (other for other in shares if (other[1] == REQUESTS) != is_requests)


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
    return [(level, kind, bucket, 0, debt) for level, kind, bucket, _, debt in shares]


def _allowances(shares: Iterable[_Share]) -> Allowances:
    """How limits stand once all of this is taken."""
    requests: Standing | None = None
    fed: Standing | None = None
    said: Standing | None = None
    for _, kind, bucket, units, before in shares:
        debt = before + units * UNIT
        left = bucket.burst + -debt // UNIT
        if left < 0:
            left = 0
        if kind == REQUESTS:
            if requests is None or left <= requests[0]:
                requests = _tighter(requests, left, debt, bucket)
        elif kind == INPUT:
            if fed is None or left <= fed[0]:
                fed = _tighter(fed, left, debt, bucket)
        elif said is None or left <= said[0]:
            said = _tighter(said, left, debt, bucket)
    return _told(requests, fed, said)


def _told(requests: Standing | None, fed: Standing | None, said: Standing | None) -> Allowances:
    of_input, of_output = _allowance(fed), _allowance(said)
    return Allowances(
        _allowance(requests),
        of_input if _is_tighter(fed, said) else of_output,
        of_input,
        of_output,
    )


def _is_tighter(one: Standing | None, other: Standing | None) -> bool:
    """Whether less is left of the one; of two with as much, it takes longer to fill up."""
    if one is None or other is None:
        return other is None
    return one[0] < other[0] or (one[0] == other[0] and one > other)


def _tighter(known: Standing | None, left: int, debt: int, bucket: Bucket) -> Standing:
    """Where the least is left, which is not `known` unless as much is; of two, the one that takes longer to fill up."""
    found = (left, -(-debt // bucket.per_minute), bucket.per_minute)
    return found if known is None or left < known[0] or found > known else known


def _allowance(standing: Standing | None) -> Allowance | None:
    return None if standing is None else Allowance(standing[2], standing[0], standing[1])
