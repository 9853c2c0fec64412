"""A device's time: turns exclude each other, and busy and idle add up to all the time there was."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.gpu.lane import DeviceLane, FreeLane


class ManualClock:
    """Moves when it is told to; every reading can also move it by a nanosecond, so that no two are alike."""

    def __init__(self, *, tick_ns: int = 0) -> None:
        self.now_ns = 1_000
        self._tick_ns = tick_ns
        self._lock = threading.Lock()

    def monotonic_ns(self) -> int:
        with self._lock:
            self.now_ns += self._tick_ns
            return self.now_ns

    def utc_ns(self) -> int:
        return self.monotonic_ns()


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=20))
@settings(max_examples=60, deadline=None)
def test_busy_and_idle_tile_the_time(pauses_and_stays: list[tuple[int, int]]) -> None:
    clock = ManualClock()
    lane, opened_ns = DeviceLane("cuda:0", clock), clock.now_ns
    for pause_ns, stay_ns in pauses_and_stays:
        clock.now_ns += pause_ns
        with lane.turn() as turn:
            clock.now_ns += stay_ns
        assert turn.ended_ns - turn.started_ns == stay_ns
        assert sum(lane.totals()) == turn.ended_ns - opened_ns
    assert lane.totals() == (
        sum(stay for _, stay in pauses_and_stays),
        sum(pause for pause, _ in pauses_and_stays),
    )


@pytest.mark.parametrize("threads", [2, 4])
def test_turns_of_several_threads_never_overlap(threads: int) -> None:
    clock = ManualClock(tick_ns=1)
    lane, opened_ns = DeviceLane("cuda:0", clock), clock.now_ns
    together = threading.Barrier(threads)
    inside = []

    def take_turns() -> list[tuple[int, int]]:
        together.wait(timeout=60)
        turns = []
        for _ in range(200):
            with lane.turn() as turn:
                inside.append(1)
                assert len(inside) == 1
                inside.pop()
            turns.append((turn.started_ns, turn.ended_ns))
        return turns

    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(take_turns) for _ in range(threads)]
        turns = sorted(turn for job in jobs for turn in job.result(timeout=60))
    assert len(turns) == threads * 200
    assert all(ended < started for (_, ended), (started, _) in itertools.pairwise(turns))
    busy_ns, idle_ns = lane.totals()
    assert busy_ns == sum(ended - started for started, ended in turns)
    assert busy_ns + idle_ns == turns[-1][1] - opened_ns


def test_a_turn_that_raises_is_measured_and_lets_the_next_one_in() -> None:
    clock = ManualClock()
    lane = DeviceLane("cuda:0", clock)
    with pytest.raises(RuntimeError), lane.turn():
        clock.now_ns += 7
        raise RuntimeError("the step failed")
    with lane.turn():
        clock.now_ns += 1
    assert lane.totals() == (8, 0)


def test_the_totals_can_be_read_while_a_step_runs() -> None:
    clock = ManualClock()
    lane = DeviceLane("cuda:0", clock)
    with ThreadPoolExecutor(1) as pool, lane.turn():
        clock.now_ns += 5
        reading = pool.submit(lane.totals)
        try:
            totals = reading.result(timeout=60)
        except TimeoutError:
            totals = None
    assert totals == (0, 0)


def test_the_free_lane_measures_and_excludes_nobody() -> None:
    clock = ManualClock()
    lane = FreeLane(clock)
    with lane.turn() as outer:
        with lane.turn() as inner:
            clock.now_ns += 3
        clock.now_ns += 2
    assert inner.ended_ns - inner.started_ns == 3
    assert outer.ended_ns - outer.started_ns == 5
