"""One rate limit: GCRA over whole numbers, with costs that are held first and settled later. Pure.

Time is counted in nanoseconds times the rate, so that the space between two units is the whole number 60 * 10**9
at every rate and nothing is ever rounded in anybody's favour.
"""

from collections.abc import Iterable, Sequence

UNIT = 60 * 10**9
"""What one unit adds to a debt, at every rate."""
_NEVER = -(10**60)
"""Earlier than any time, after whatever is added to it."""


class Hold:
    """Units that were taken for a request of which it is not known yet how many it needs."""

    __slots__ = ("units",)

    def __init__(self, units: int) -> None:
        self.units = units


class Bucket:
    """At most `burst` units at once, and `per_minute` in the long run.

    Counted when they are taken, at most `burst + per_minute * t` units are taken in any window of t minutes, whatever
    the pattern. What a hold did not use is given back as if it had never been taken: the theoretical arrival time
    becomes what it would be without. That is why it is kept in parts. It is the latest of "began to take at time s,
    and took all that came after", over every s; only the parts that begin before a hold contain it.
    Source: ITU-T I.371, the virtual scheduling form; the maximum is its recursion written out.
    """

    __slots__ = ("_added", "_holds", "_last", "_peaks", "burst", "per_minute", "tat")

    def __init__(self, per_minute: int, burst: int) -> None:
        self.per_minute = per_minute
        self.burst = burst
        self._added = 0
        """All that was taken; every peak is kept without it."""
        self._holds: list[Hold] = []
        """Open ones in the order of their making."""
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
        now = now_ns * self.per_minute
        hold = Hold(units)
        self._holds.append(hold)
        peak = now - self._added
        self._peaks.append(peak if peak > self._last else self._last)
        self._last = _NEVER
        cost, tat = units * UNIT, self.tat
        self._added += cost
        self.tat = (tat if tat > now else now) + cost  # `max` would be a call, for each limit
        return hold

    def settle(self, hold: Hold, used: int, now_ns: int) -> None:
        """Give back what was not used; take what was used beyond it."""
        settle_each((self,), (hold,), used, now_ns)

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

    def is_idle(self, now_ns: int) -> bool:
        """It could as well be a new one."""
        return not self._holds and self.debt(now_ns) == 0

    def debt(self, now_ns: int) -> int:
        """What the theoretical arrival time is ahead by."""
        debt = self.tat - now_ns * self.per_minute
        return debt if debt > 0 else 0


Standing = tuple[int, int, int]
"""Units that are left, nanoseconds until all are there, and units per minute."""


def tightest(
    buckets: Iterable[Bucket], units: int, now_ns: int, *, most: int = 0
) -> Standing | None:
    """How the tightest of some buckets stands once units are taken from each, of each as many as it ever has; None
    where one has no room for them, or never has `most`. Of two with as little left, that which fills up later."""
    best: Standing | None = None
    for bucket in buckets:
        burst, rate = bucket.burst, bucket.per_minute
        taken = units if units < burst else burst
        debt = bucket.tat - now_ns * rate  # as `debt` says, which would be a call for each limit
        if debt <= 0:
            debt, left = taken * UNIT, burst - taken
        else:
            debt += taken * UNIT
            left = burst + -debt // UNIT
        if most > burst or left < 0:
            return None
        if best is None or left <= best[0]:
            found = (left, -(-debt // rate), rate)
            if best is None or left < best[0] or found > best:
                best = found
    return best


def take_each(buckets: Iterable[Bucket], units: int, now_ns: int) -> None:
    """As `take` of each, without a call for each."""
    cost = units * UNIT
    for bucket in buckets:
        now, tat = now_ns * bucket.per_minute, bucket.tat
        peak = now - bucket._added
        if peak > bucket._last:
            bucket._last = peak
        bucket._added += cost
        bucket.tat = (tat if tat > now else now) + cost


def hold_each(buckets: Sequence[Bucket], units: int, now_ns: int) -> list[Hold]:
    """As `hold` of each, as many as each ever has, without a call for each: settle them all by `settle_each`."""
    same = Hold(units)
    holds = [same] * len(buckets)
    for place, bucket in enumerate(buckets):
        now, tat, cost = now_ns * bucket.per_minute, bucket.tat, units * UNIT
        if units > bucket.burst:
            holds[place] = Hold(bucket.burst)
            cost = bucket.burst * UNIT
        bucket._holds.append(holds[place])
        peak = now - bucket._added
        bucket._peaks.append(peak if peak > bucket._last else bucket._last)
        bucket._last = _NEVER
        bucket._added += cost
        bucket.tat = (tat if tat > now else now) + cost
    return holds


def settle_each(buckets: Sequence[Bucket], holds: Sequence[Hold], used: int, now_ns: int) -> None:
    """As `settle` of each."""
    for bucket, hold in zip(buckets, holds, strict=True):
        unused, peaks = hold.units - used, bucket._peaks
        if unused < 0:
            bucket.take(-unused, now_ns)
        place = bucket._holds.index(hold)
        del bucket._holds[place]
        if unused > 0:
            back = unused * UNIT
            for before in range(place + 1):
                peaks[before] -= back
        peak = peaks.pop(place)
        if place == len(peaks):
            if peak > bucket._last:
                bucket._last = peak
        elif peak > peaks[place]:
            peaks[place] = peak
        if unused > 0:
            latest = max(peaks) if peaks else _NEVER
            bucket.tat = bucket._added + (latest if latest > bucket._last else bucket._last)


def _up(scaled: int, rate: int) -> int:
    return -(-scaled // rate)
