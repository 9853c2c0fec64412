"""Shared pools and loads add up, whoever comes and goes."""

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.meter import HOUR_NS, Rate
from llmhost.cost.pools import Booked, Infrastructure, LoadShare, SharedPool
from llmhost.cost.rates import NodeRates
from llmhost.testing import at


@given(
    st.builds(Rate, st.integers(0, 10**10), st.integers(1, HOUR_NS)),
    st.lists(st.tuples(st.sampled_from(["join", "leave", "use"]), st.integers(0, 10**9))),
)
def test_what_those_in_flight_bear_and_what_nobody_does_is_all_that_arose(
    rate: Rate, acts: list[tuple[str, int]]
) -> None:
    pool, inside, borne = SharedPool(rate), list[int](), 0
    for act, number in acts:
        if act == "use":
            pool.use(number)
        elif act == "join":
            inside.append(pool.join())
        elif inside:
            borne += pool.leave(inside.pop(number % len(inside)))
        assert pool.open_nano == sum(pool.level - level for level in inside)
        assert borne + pool.open_nano + pool.unowned_nano + pool.rest == pool.meter.nano
        assert pool.error_nano == 0


def test_two_in_flight_share_the_hour_evenly_and_one_alone_bears_it_whole() -> None:
    clock = at("2026-01-01T00:00Z")
    pools = Infrastructure(NodeRates(host=Rate(3_600 * 10**9, HOUR_NS)), clock)
    clock.advance(10)
    first = pools.join()
    clock.advance(4)
    second = pools.join()
    clock.advance(6)

    assert pools.leave(first) == (4 + 3) * 10**9
    clock.advance(1)
    assert pools.leave(second) == (3 + 1) * 10**9
    assert pools.leave(second) == 0, "it has left"
    assert pools.host.unowned_nano == 10 * 10**9


def test_those_who_come_together_bear_what_each_would() -> None:
    clock = at("2026-01-01T00:00Z")
    rates = NodeRates(host=Rate(3_600 * 10**9, HOUR_NS))
    together, alone = Infrastructure(rates, clock), Infrastructure(rates, clock)
    both = [*zip([together.join()], [alone.join()], strict=True)]
    clock.advance(7)
    both += zip(together.join_all(3), [alone.join() for _ in range(3)], strict=True)
    for one, other in both:
        clock.advance(5)
        assert together.leave(one) == alone.leave(other)
    assert together.host.error_nano == 0 and together.host.open_nano == 0


def test_those_who_leave_in_one_moment_bear_what_each_would() -> None:
    clock = at("2026-01-01T00:00Z")
    rates = NodeRates(host=Rate(3_600 * 10**9, HOUR_NS))
    together, alone = Infrastructure(rates, clock), Infrastructure(rates, clock)
    tickets = list(zip(together.join_all(3), alone.join_all(3), strict=True))
    clock.advance(6)
    together.bring_up_to_date()
    for one, other in tickets:
        assert together.leave(one, is_now=True) == alone.leave(other) == 2 * 10**9
    for pools in (together, alone):
        assert pools.host.error_nano == 0 and pools.host.open_nano == 0


def test_bytes_are_shared_by_those_who_are_there_while_they_are_sent() -> None:
    sent = [0]
    pools = Infrastructure(
        NodeRates(egress=Rate(2**31, 2**30)), at("2026-01-01T00:00Z"), lambda: sent[0]
    )
    ticket = pools.join()
    sent[0] = 500

    assert pools.leave(ticket) == 1_000


def test_a_pool_of_which_somebody_leaves_twice_does_not_add_up() -> None:
    pool = SharedPool(Rate(1, 1))
    level = pool.join()
    pool.use(5)
    pool.leave(level)
    assert pool.error_nano == 0
    pool.leave(level)

    assert pool.error_nano == 5


stretches = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=30)


@given(stretches)
def test_time_in_which_several_loads_ran_is_booked_once(loads: list[tuple[int, int]]) -> None:
    booked, now, all_of_it = Booked(), 0, set[int]()
    for lasted, after in loads:
        now += after
        since = max(now - lasted, 0)
        fresh = set(range(since, now)) - all_of_it
        all_of_it |= fresh
        assert booked.add(since, now) == len(fresh)


@given(st.integers(0, 10**12), st.integers(1, 500), st.integers(0, 1_000))
def test_a_load_is_borne_whole_by_the_expected_requests_and_by_nobody_after_them(
    cost: int, expected: int, requests: int
) -> None:
    share = LoadShare("load_1", cost, expected, load_ns=2 * cost)
    taken = [share.take() for _ in range(requests)]
    parts = [nano for nano, _ in taken]

    times = sum(load_ns for _, load_ns in taken)
    assert times == (2 * cost if requests >= expected else 2 * cost * requests // expected)
    assert sum(parts) == (cost if requests >= expected else cost * requests // expected)
    assert all(part in (cost // expected, cost // expected + 1) for part in parts[:expected])
    assert not any(parts[expected:])
