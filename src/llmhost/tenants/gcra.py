"""One rate limit: GCRA over whole numbers, with costs that are held first and settled later. Pure.

Time is counted in nanoseconds times the rate, so that the space between two units is the whole number 60 * 10**9
at every rate and nothing is ever rounded in anybody's favour.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import msgspec

UNIT = 60 * 10**9
"""What one unit adds to a debt, at every rate."""
_NEVER = -(10**60)
"""Earlier than any time, after whatever is added to it."""


class Hold(msgspec.Struct, eq=False, gc=False):
    """Units that were taken for a request of which it is not known yet how many it needs. It equals itself alone."""

    units: int
    is_open: bool = True
    """Not settled. Of a hold that was used as it is buckets are told nothing more: they look for it when they have
    many."""


CLOSED_HOLDS = 8
"""So many more may come before a bucket looks for those that are closed."""


class Bucket:
    """At most `burst` units at once, and `per_minute` in the long run.

    Counted when they are taken, at most `burst + per_minute * t` units are taken in any window of t minutes, whatever
    the pattern. What a hold did not use is given back as if it had never been taken: the theoretical arrival time
    becomes what it would be without. That is why it is kept in parts. It is the latest of "began to take at time s,
    and took all that came after", over every s; only the parts that begin before a hold contain it.
    Source: ITU-T I.371, the virtual scheduling form; the maximum is its recursion written out.
    """

    __slots__ = ("_added", "_holds", "_last", "_most_holds", "_peaks", "burst", "per_minute", "tat")

    def __init__(self, per_minute: int, burst: int) -> None:
        self.per_minute = per_minute
        self.burst = burst
        self._added = 0
        """All that was taken; every peak is kept without it."""
        self._holds: list[Hold] = []
        """Open ones in the order of their making, and some that are closed."""
        self._most_holds = 2 * CLOSED_HOLDS
        self._peaks: list[int] = []
        """Of each hold, the latest of the parts that begin after the hold before, up to this one; `_last` is that of
        the parts after all of them. A list of its own, since all of it is looked at for every hold that comes back."""
        self._last = 0
        self.tat = 0
        """The theoretical arrival time, in time times the rate."""

    def retune(self, per_minute: int, burst: int, now_ns: int) -> None:
        """Go on at another rate: as many units are owed as before."""
        if per_minute != self.per_minute:
            shift = now_ns * (per_minute - self.per_minute)
            self._added += shift
            self.tat += shift
            self.per_minute = per_minute
        self.burst = burst

    def wait_ns(self, units: int, now_ns: int) -> int:
        """Until so many may be taken: 0 is now. Waiting that long is enough if nobody else comes, and not too long.

        For more than `burst` no wait would do; ask `burst` first.
        """
        late = self.debt(now_ns) + (units - self.burst) * UNIT
        return _up(late, self.per_minute) if late > 0 else 0

    def take(self, units: int, now_ns: int) -> None:
        """Take units for good, whether or not they fit: what was used was used."""
        now = now_ns * self.per_minute
        peak = now - self._added
        if peak > self._last:
            self._last = peak
        cost, tat = units * UNIT, self.tat
        self._added += cost
        self.tat = (tat if tat > now else now) + cost

    def hold(self, units: int, now_ns: int) -> Hold:
        """Take units until it is known how many are used: `settle` it exactly once."""
        hold = Hold(units)
        self._open(hold, now_ns)
        return hold

    def settle(self, hold: Hold, used: int, now_ns: int) -> None:
        """Give back what was not used; take what was used beyond it."""
        settle_each((self,), hold, used, now_ns)

    def remaining(self, now_ns: int) -> int:
        """Units that could be taken right now."""
        return self.standing(now_ns)[0]

    def reset_ns(self, now_ns: int) -> int:
        """Until all of the burst is there again."""
        return self.standing(now_ns)[1]

    def standing(self, now_ns: int) -> tuple[int, int]:
        """`remaining` and `reset_ns` together."""
        debt = self.debt(now_ns)
        return self.left(debt), _up(debt, self.per_minute)

    def left(self, debt: int) -> int:
        """Units that could be taken with so much debt."""
        left = self.burst + -debt // UNIT
        return left if left > 0 else 0

    def has_open_holds(self) -> bool:
        """Whether something is held of it."""
        return any(hold.is_open for hold in self._holds)

    def is_idle(self, now_ns: int) -> bool:
        """It could as well be a new one."""
        return self.debt(now_ns) == 0 and not self.has_open_holds()

    def debt(self, now_ns: int) -> int:
        """What the theoretical arrival time is ahead by."""
        debt = self.tat - now_ns * self.per_minute
        return debt if debt > 0 else 0

    def _open(self, hold: Hold, now_ns: int) -> None:
        if len(self._holds) >= self._most_holds:
            self._forget_closed()
        now, tat, added, last = now_ns * self.per_minute, self.tat, self._added, self._last
        self._holds.append(hold)
        peak = now - added
        self._peaks.append(peak if peak > last else last)
        self._last = _NEVER
        cost = hold.units * UNIT
        self._added = added + cost
        self.tat = (tat if tat > now else now) + cost

    def _close(self, hold: Hold, used: int, now_ns: int) -> None:
        if not self._holds[0].is_open:
            self._forget_closed()
        unused, peaks, holds = hold.units - used, self._peaks, self._holds
        if unused < 0:
            self.take(-unused, now_ns)
        place = holds.index(hold)
        del holds[place]
        if unused > 0:
            back = unused * UNIT
            for before in range(place + 1):
                peaks[before] -= back
        peak = peaks.pop(place)
        if place == len(peaks):
            if peak > self._last:
                self._last = peak
        elif peak > peaks[place]:
            peaks[place] = peak
        if unused > 0:
            latest = max(peaks) if peaks else _NEVER
            self.tat = self._added + (latest if latest > self._last else self._last)

    def _forget_closed(self) -> None:
        """Of holds that were made one after the other, and are closed, the parts are those of the next one."""
        holds, closed = self._holds, 0
        for hold in holds:
            if hold.is_open:
                break
            closed += 1
        if closed:
            latest = max(self._peaks[:closed])
            del holds[:closed], self._peaks[:closed]
            if not holds:
                if latest > self._last:
                    self._last = latest
            elif latest > self._peaks[0]:
                self._peaks[0] = latest
        if closed < CLOSED_HOLDS and len(holds) >= self._most_holds:
            self._forget_all_closed()
        else:
            self._most_holds = len(holds) + 2 * CLOSED_HOLDS

    def _forget_all_closed(self) -> None:
        """The same where open ones are in front of most of them."""
        holds: list[Hold] = []
        peaks: list[int] = []
        latest = _NEVER
        for hold, peak in zip(self._holds, self._peaks, strict=True):
            if peak > latest:
                latest = peak
            if hold.is_open:
                holds.append(hold)
                peaks.append(latest)
                latest = _NEVER
        if latest > self._last:
            self._last = latest
        self._holds, self._peaks = holds, peaks
        self._most_holds = 2 * (len(holds) + CLOSED_HOLDS)


Standing = tuple[int, int, int]
"""Units that are left, nanoseconds until all are there, and units per minute."""


def tightest(
    buckets: Iterable[Bucket], units: int, now_ns: int, *, most: int = 0
) -> Standing | None:
    """How the tightest of some buckets stands once units are taken from each, of each as many as it ever has; None
    where one has no room for them, or never has `most`. Of two with as little left, that which fills up later."""
    least, owed, than = -1, 0, 0  # units that are left where the fewest are, its debt, its rate
    for bucket in buckets:
        burst, rate = bucket.burst, bucket.per_minute
        taken = units if units < burst else burst
        debt = bucket.tat - now_ns * rate  # as `debt` says, which would be a call for each limit
        if debt > 0:
            debt += taken * UNIT
            left = burst + -debt // UNIT
        else:
            debt, left = taken * UNIT, burst - taken
        if most > burst or left < 0:
            return None
        if left <= least or least < 0:
            if left == least:
                if rate == than:
                    if debt <= owed:
                        continue
                elif (_up(debt, rate), rate) <= (_up(owed, than), than):
                    continue
            least, owed, than = left, debt, rate
    return None if least < 0 else (least, -(-owed // than), than)


def tightest_in_turn(
    buckets: Sequence[Bucket], units: Sequence[int], now_ns: int, *, most: int = 0
) -> list[Standing] | None:
    """What `tightest` says of each of those that take so many units, one after the other, at one moment, and want
    `most` at most. None where that is not known at once: one of them finds no room, a bucket never has as many, or two
    that have as little left fill up at different rates, so that either may be the one that answers."""
    first = tightest(buckets, units[0], now_ns, most=most)
    if first is None:
        return None
    largest, behind = max(units), sum(units) - units[0]
    least, _, than = first
    if least < behind:
        return None
    owed = 0
    for bucket in buckets:
        if largest > bucket.burst:
            return None
        rate = bucket.per_minute
        debt = bucket.tat - now_ns * rate
        debt = (debt if debt > 0 else 0) + units[0] * UNIT
        if bucket.burst + -debt // UNIT == least:
            if rate != than:
                return None
            if debt > owed:
                owed = debt
    taken, stood = -units[0], []
    for each in units:
        taken += each
        stood.append((least - taken, -(-(owed + taken * UNIT) // than), than))
    return stood


def take_each(buckets: Iterable[Bucket], units: int, now_ns: int) -> None:
    """As `take` of each, without a call for each."""
    cost = units * UNIT
    for bucket in buckets:
        now, tat, added = now_ns * bucket.per_minute, bucket.tat, bucket._added
        peak = now - added
        if peak > bucket._last:
            bucket._last = peak
        bucket._added = added + cost
        bucket.tat = (tat if tat > now else now) + cost


def hold_each(buckets: Sequence[Bucket], units: int, now_ns: int) -> Hold | tuple[Hold, ...]:
    """As `hold` of each, as many as each ever has, without a call for each: settle them all by `settle_each`."""
    hold, cost = Hold(units), units * UNIT
    for bucket in buckets:
        if units > bucket.burst:
            return _hold_less(buckets, units, now_ns)
    for bucket in buckets:
        holds = bucket._holds
        if len(holds) >= bucket._most_holds:
            bucket._forget_closed()
            holds = bucket._holds
        now, tat, added, last = now_ns * bucket.per_minute, bucket.tat, bucket._added, bucket._last
        holds.append(hold)
        peak = now - added
        bucket._peaks.append(peak if peak > last else last)
        bucket._last = _NEVER
        bucket._added = added + cost
        bucket.tat = (tat if tat > now else now) + cost
    return hold


def hold_in_turn(buckets: Sequence[Bucket], units: Sequence[int], now_ns: int) -> list[Hold]:
    """As `hold_each`, for each of those that come at one moment, of units that no bucket has fewer of."""
    holds, cost = [Hold(each) for each in units], sum(units) * UNIT
    behind = [each * UNIT for each in accumulate(units[:-1])]
    """What those before each but the first take."""
    for bucket in buckets:
        if len(bucket._holds) >= bucket._most_holds:
            bucket._forget_closed()
        now, tat, added = now_ns * bucket.per_minute, bucket.tat, bucket._added
        peak = now - added
        bucket._holds += holds
        bucket._peaks.append(peak if peak > bucket._last else bucket._last)
        bucket._peaks += [peak - before for before in behind]
        bucket._last = _NEVER
        bucket._added = added + cost
        bucket.tat = (tat if tat > now else now) + cost
    return holds


def _hold_less(buckets: Sequence[Bucket], units: int, now_ns: int) -> tuple[Hold, ...]:
    holds = tuple(Hold(min(units, bucket.burst)) for bucket in buckets)
    for bucket, hold in zip(buckets, holds, strict=True):
        bucket._open(hold, now_ns)
    return holds


def settle_each(
    buckets: Sequence[Bucket], holds: Hold | tuple[Hold, ...], used: int, now_ns: int
) -> None:
    """As `settle` of each."""
    if isinstance(holds, tuple):
        for bucket, hold in zip(buckets, holds, strict=True):
            bucket._close(hold, used, now_ns)
        return
    if holds.units != used:
        for bucket in buckets:
            bucket._close(holds, used, now_ns)
    holds.is_open = False


def _up(scaled: int, rate: int) -> int:
    return -(-scaled // rate)
