"""No pattern of requests gets more than a rate allows, and holds come out even, whatever happens in between."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from llmhost.tenants.gcra import CLOSED_HOLDS, Bucket, Hold, hold_each, settle_each

SECOND = 10**9
MINUTE = 60 * SECOND

rates = st.integers(1, 1_000_000)
bursts = st.integers(1, 50)
starts = st.integers(0, 10**18)
gap = st.integers(0, 3 * MINUTE) | st.integers(0, 1000)
gaps = st.lists(gap, min_size=1, max_size=80)


def running_sum(start: int, steps: list[int]) -> list[int]:
    times = [start]
    for step in steps:
        times.append(times[-1] + step)
    return times


def take_if_it_fits(bucket: Bucket, now_ns: int, units: int = 1) -> bool:
    fits = units <= bucket.burst and bucket.wait_ns(units, now_ns) == 0
    if fits:
        bucket.take(units, now_ns)
    return fits


# -- one at a time --------------------------------------------------------------------------------------------------


@given(rates, bursts, starts, gaps)
def test_no_window_ever_holds_more_than_burst_and_rate(
    rate: int, burst: int, start: int, steps: list[int]
) -> None:
    bucket = Bucket(rate, burst)
    times = [now for now in running_sum(start, steps) if take_if_it_fits(bucket, now)]
    for i, begin in enumerate(times):
        for j in range(i, len(times)):
            assert (j - i + 1 - burst) * MINUTE <= rate * (times[j] - begin)


@given(rates, st.integers(2, 50), starts, st.integers(0, 100))
def test_a_caller_who_hammers_gets_exactly_that_many(
    rate: int, burst: int, start: int, more: int
) -> None:
    bucket, now_ns, admitted = Bucket(rate, burst), start, 0
    last = start + more * MINUTE // rate
    while now_ns <= last:
        admitted += take_if_it_fits(bucket, now_ns)
        now_ns += bucket.wait_ns(1, now_ns)
    assert admitted == burst + rate * (last - start) // MINUTE


@given(rates, bursts, starts, gaps, st.data())
def test_waiting_as_told_is_enough_and_not_too_much(
    rate: int, burst: int, start: int, steps: list[int], data: st.DataObject
) -> None:
    bucket = Bucket(rate, burst)
    units = data.draw(st.integers(1, burst))
    for now_ns in running_sum(start, steps):
        take_if_it_fits(bucket, now_ns, units)
        wait_ns = bucket.wait_ns(units, now_ns)
        assert bucket.wait_ns(units, now_ns + wait_ns) == 0
        if wait_ns:
            assert bucket.wait_ns(units, now_ns + wait_ns - 1) == 1


@given(rates, bursts, starts, gaps)
def test_remaining_is_what_fits_and_reset_is_when_all_does(
    rate: int, burst: int, start: int, steps: list[int]
) -> None:
    bucket = Bucket(rate, burst)
    for now_ns in running_sum(start, steps):
        take_if_it_fits(bucket, now_ns)
        remaining, later = bucket.remaining(now_ns), now_ns + bucket.reset_ns(now_ns)
        assert bucket.wait_ns(remaining, now_ns) == 0
        assert remaining == burst or bucket.wait_ns(remaining + 1, now_ns) > 0
        assert bucket.remaining(later) == burst
        assert bucket.is_idle(later)


# -- held, then settled ---------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """A bucket, and what was really used of it by the time that it was taken."""

    bucket: Bucket
    now_ns: int
    held: list[tuple[Hold, int]] = field(default_factory=list)
    """Open holds, each with its place in `charges`."""
    charges: list[list[int]] = field(default_factory=list)
    """[time, units] as they stand now."""
    excess: int = 0

    def hold(self, units: int) -> None:
        if units > self.bucket.burst or self.bucket.wait_ns(units, self.now_ns):
            return
        self.held.append((self.bucket.hold(units, self.now_ns), len(self.charges)))
        self.charges.append([self.now_ns, units])

    def settle(self, which: int, used: int) -> None:
        if not self.held:
            return
        hold, place = self.held.pop(which % len(self.held))
        before = self.bucket.remaining(self.now_ns)
        self.bucket.settle(hold, used, self.now_ns)
        gained = self.bucket.remaining(self.now_ns) - before
        assert gained <= max(hold.units - used, 0) + 1, "no more comes back than was held"
        self.charges[place][1] = min(used, hold.units)
        if used > hold.units:
            self.charges.append([self.now_ns, used - hold.units])
            self.excess += used - hold.units

    def debt(self) -> int:
        """By GCRA's plain recursion over what really was used."""
        rate, tat = self.bucket.per_minute, 0
        for now_ns, units in self.charges:
            tat = max(tat, now_ns * rate) + units * MINUTE
        return max(tat - self.now_ns * rate, 0)


def run(trial: Trial, steps: list[tuple[int, int, int, int]], check: Callable[[], None]) -> None:
    for wait, units, which, used in steps:
        trial.now_ns += wait
        if which % 2:
            trial.hold(units)
        else:
            trial.settle(which // 2, used)
        check()


steps = st.lists(
    st.tuples(gap, st.integers(0, 60), st.integers(0, 40), st.integers(0, 80)), max_size=60
)


@given(st.integers(1, 5000), bursts, starts, steps)
def test_the_books_are_those_of_what_was_really_used(
    rate: int, burst: int, start: int, steps: list[tuple[int, int, int, int]]
) -> None:
    trial = Trial(Bucket(rate, burst), start)

    def check() -> None:
        debt = -(-trial.debt() // rate)
        assert trial.bucket.reset_ns(trial.now_ns) == debt

    run(trial, steps, check)
    while trial.held:
        trial.settle(0, 0)
        check()


@given(st.integers(1, 5000), bursts, starts, steps)
def test_no_window_holds_more_than_burst_and_rate_even_with_what_comes_back(
    rate: int, burst: int, start: int, steps: list[tuple[int, int, int, int]]
) -> None:
    trial = Trial(Bucket(rate, burst), start)
    run(trial, steps, lambda: None)

    charges = trial.charges
    for i, (begin, _) in enumerate(charges):
        total = 0
        for now_ns, units in charges[i:]:
            total += units
            assert (total - burst - trial.excess) * MINUTE <= rate * (now_ns - begin)


@given(rates, bursts, starts, gaps)
def test_a_hold_that_comes_back_whole_leaves_no_trace(
    rate: int, burst: int, start: int, steps: list[int]
) -> None:
    one, other, held = Bucket(rate, burst), Bucket(rate, burst), []
    for place, now_ns in enumerate(running_sum(start, steps)):
        if place % 3 == 0:
            held.append(one.hold(burst, now_ns))
        else:
            one.take(1, now_ns)
            other.take(1, now_ns)
    for hold in reversed(held):
        one.settle(hold, 0, now_ns)
    assert one.reset_ns(now_ns) == other.reset_ns(now_ns)


def test_time_that_was_blocked_by_a_hold_gives_nothing_extra() -> None:
    bucket = Bucket(60, 60)
    hold = bucket.hold(60, 0)
    bucket.take(1, 10 * SECOND)  # without the hold the bucket would be full, and stay so
    bucket.settle(hold, 6, 30 * SECOND)

    assert bucket.remaining(30 * SECOND) == 60
    bucket.take(60, 30 * SECOND)
    assert bucket.remaining(30 * SECOND) == 0
    assert bucket.remaining(31 * SECOND) == 1


mostly_exact = st.lists(
    st.tuples(
        gap, st.integers(0, 3), st.booleans(), st.integers(0, 40), st.none() | st.integers(0, 5)
    ),
    max_size=150,
)


@given(st.integers(1, 5000), st.integers(20, 200), starts, mostly_exact)
def test_holds_that_are_used_as_they_are_leave_true_books_and_are_forgotten(
    rate: int, burst: int, start: int, steps: list[tuple[int, int, bool, int, int | None]]
) -> None:
    trial = Trial(Bucket(rate, burst), start)
    for wait, units, is_new, which, used in steps:
        trial.now_ns += wait
        if is_new:
            trial.hold(units)
        elif trial.held:
            exact = trial.held[which % len(trial.held)][0].units
            trial.settle(which, exact if used is None else used)
        assert trial.bucket.debt(trial.now_ns) == trial.debt()
        assert len(trial.bucket._holds) <= 2 * len(trial.held) + 3 * CLOSED_HOLDS + 1
        assert trial.bucket.has_open_holds() is bool(trial.held)


def test_one_that_runs_for_long_keeps_no_others_in_mind() -> None:
    bucket = Bucket(60, 1_000)
    bucket.hold(1, 0)
    for second in range(500):
        bucket.settle(bucket.hold(2, second * SECOND), 2, second * SECOND)
    assert len(bucket._holds) < 40


def test_a_changed_rate_keeps_what_is_owed_and_what_is_held() -> None:
    bucket = Bucket(10, 10)
    hold = bucket.hold(4, MINUTE)
    bucket.take(6, MINUTE)
    bucket.retune(600, 20, MINUTE)
    assert bucket.remaining(MINUTE) == 10
    bucket.settle(hold, 1, MINUTE)
    assert bucket.remaining(MINUTE) == 13


@given(
    st.lists(st.tuples(st.integers(1, 5000), bursts), min_size=1, max_size=4),
    starts,
    steps,
)
def test_many_limits_at_once_are_as_each_by_itself(
    limits: list[tuple[int, int]], start: int, steps: list[tuple[int, int, int, int]]
) -> None:
    alone, together = ([Bucket(*limit) for limit in limits] for _ in range(2))
    held: list[tuple[list[Hold], Hold | tuple[Hold, ...]]] = []
    now_ns = start
    for wait, units, which, used in steps:
        now_ns += wait
        if which % 2:
            each = [bucket.hold(min(units, bucket.burst), now_ns) for bucket in alone]
            held.append((each, hold_each(together, units, now_ns)))
        elif held:
            ours, theirs = held.pop(which // 2 % len(held))
            for bucket, hold in zip(alone, ours, strict=True):
                bucket.settle(hold, used, now_ns)
            settle_each(together, theirs, used, now_ns)
        assert [b.standing(now_ns) for b in alone] == [b.standing(now_ns) for b in together]
        assert [b.tat for b in alone] == [b.tat for b in together]
