"""Who is next: urgency, then fairness between tenants, then arrival."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.schedule.kit import SpelledWatch, Workbench, a_spec, some_limits

from llmhost.schedule.sequence import Sequence
from llmhost.schedule.waiting import AGING_NS, FairShares, WaitingQueue

S = 10**9


def a_queue(*asked: tuple[str, int, int]) -> tuple[WaitingQueue, FairShares]:
    """(tenant, priority, arrival in seconds), with ids from 0."""
    queue, shares = WaitingQueue(), FairShares()
    for seq_id, (tenant, priority, arrival_s) in enumerate(asked):
        spec = a_spec(tenant=tenant, priority=priority, arrival_ns=arrival_s * S)
        queue.add(Sequence.start(seq_id, spec, SpelledWatch()))
        shares.join(tenant)
    return queue, shares


def order(queue: WaitingQueue, shares: FairShares, now_s: int = 0) -> list[int]:
    return [s.seq_id for s in queue.in_order(now_s * S, shares, 1000.0)]


def test_a_smaller_priority_goes_first_then_who_came_first() -> None:
    queue, shares = a_queue(("a", 1, 0), ("a", 0, 2), ("a", 0, 1), ("a", -1, 3))
    assert order(queue, shares, 3) == [3, 2, 1, 0]


def test_a_long_wait_beats_a_better_priority() -> None:
    queue, shares = a_queue(("a", 2, 0), ("a", 0, 30))
    assert order(queue, shares, 5) == [1, 0]
    assert order(queue, shares, 30) == [0, 1]
    assert AGING_NS * 2 < 30 * S


def test_a_tenant_that_was_served_less_goes_first() -> None:
    queue, shares = a_queue(("greedy", 0, 0), ("greedy", 0, 0), ("modest", 0, 1))
    shares.serve("greedy", 5 * S)
    assert order(queue, shares, 1) == [2, 0, 1]


def test_tenants_take_turns_within_one_step() -> None:
    queue, shares = a_queue(*[("crowd", 0, 0)] * 4, ("one", 0, 1), ("one", 0, 1))
    assert order(queue, shares, 1) == [0, 4, 1, 5, 2, 3]


def test_a_tenant_that_was_away_gets_no_credit_for_it() -> None:
    shares = FairShares()
    shares.join("here")
    shares.serve("here", 7)
    shares.join("new")
    assert shares.of("new") == 7
    shares.leave("new")
    shares.serve("here", 10)
    shares.join("new")
    assert shares.of("new") == 17


def test_what_was_preempted_goes_before_what_has_not_begun() -> None:
    queue, shares = a_queue(("a", 0, 0), ("b", 0, 1))
    preempted = Sequence.start(9, a_spec(tenant="a", arrival_ns=5 * S), SpelledWatch())
    preempted.was_preempted = True
    queue.add(preempted)
    shares.serve("a", 99)
    assert order(queue, shares, 5) == [9, 1, 0]


lines = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-1, 2), st.integers(0, 60)), max_size=20
)


@given(lines, st.data())
@settings(max_examples=100, deadline=None)
def test_everyone_is_named_once_and_leaving_leaves_the_others(
    asked: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    queue, shares = a_queue(*asked)
    everyone = {s.seq_id: s for s in queue}
    gone = data.draw(st.sets(st.sampled_from(sorted(everyone)))) if everyone else set()
    for seq_id in gone:
        queue.remove(everyone[seq_id])
    named = order(queue, shares, 60)
    assert sorted(named) == sorted(set(everyone) - gone)
    assert len(queue) == len(named)


@given(lines.filter(bool))
@settings(max_examples=60, deadline=None)
def test_nobody_waits_for_ever(asked: list[tuple[str, int, int]]) -> None:
    """Whoever came long before all others is first, whatever its priority and its tenant."""
    queue, shares = a_queue(*asked, ("late", 5, 0))
    shares.serve("late", 10**15)
    for seq_id in range(100, 120):
        spec = a_spec(tenant="a", priority=-1, arrival_ns=10_000 * S)
        queue.add(Sequence.start(seq_id, spec, SpelledWatch()))
    named = order(queue, shares, 10_000)
    assert named.index(len(asked)) < min(named.index(i) for i in range(100, 120))


def test_in_the_scheduler_a_crowd_of_one_tenant_does_not_keep_out_another() -> None:
    bench = Workbench(some_limits(max_batch_size=2, kv_blocks=64))
    for _ in range(10):
        bench.add(a_spec(tenant="crowd", max_new_tokens=3))
    for _ in range(3):
        bench.step()
    guest = bench.add(a_spec(tenant="guest", arrival_ns=1, max_new_tokens=3))
    steps = 0
    while bench.heard[guest].last is None:
        bench.step()
        steps += 1
    assert steps <= 7
