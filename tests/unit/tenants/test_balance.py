from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from llmhost.tenants.balance import Balance, Grant
from llmhost.tenants.periods import EVER_NS


def balance(*grants: Grant, since_ns: int = 0) -> Balance:
    made = Balance(since_ns)
    for grant in grants:
        made.grant(grant)
    return made


def test_what_was_paid_in_can_be_used_and_no_more():
    money = balance(Grant("a", 10, 0))
    money.spend(4, 5)
    money.hold(3, 6)

    assert money.room(7) == 3
    assert (money.spent, money.held, money.granted) == (4, 3, 10)


def test_nothing_can_be_used_before_anything_was_paid_in():
    assert balance().room(5) == 0


def test_what_expires_first_is_used_first():
    money = balance(Grant("late", 10, 0, 100), Grant("never", 10, 0), Grant("soon", 10, 0, 50))
    money.spend(15, 10)

    assert money.left(10) == {"late": 5, "never": 10}
    assert money.next_expiry_ns(10) == 100


def test_what_was_not_used_in_time_is_gone():
    money = balance(Grant("promo", 10, 0, 50), Grant("paid", 20, 0))
    money.spend(4, 10)

    assert money.room(49) == 26
    assert money.room(50) == 20


def test_use_before_a_grant_was_made_is_not_its_use():
    money = balance(Grant("paid", 20, 0))
    money.spend(5, 10)
    money.grant(Grant("promo", 10, money.cut(20), 50))

    assert money.room(30) == 25
    assert money.room(50) == 15  # the promotion did not pay for what came before


def test_a_debt_is_paid_by_the_next_grant():
    money = balance(Grant("a", 10, 0))
    money.spend(13, 5)
    assert money.room(6) == -3

    money.grant(Grant("b", 5, money.cut(10)))

    assert money.room(11) == 2


def test_a_request_that_came_before_an_expiry_can_still_use_what_was_there():
    money = balance(Grant("promo", 10, 0, 50))
    money.hold(2, 49)

    assert money.room(60) == 0
    assert money.room(49) == 8


def test_a_request_that_came_before_a_payment_can_use_it():
    money = balance(Grant("a", 10, 0))
    money.hold(10, 5)
    assert money.room(5) == 0

    money.grant(Grant("b", 7, money.cut(8)))

    assert money.room(5) == 7


def test_money_that_later_requests_used_is_not_there_for_earlier_ones():
    money = balance(Grant("a", 10, 0), Grant("promo", 3, 0, 50))
    money.spend(10, 60)

    assert money.room(40) == 0  # the promotion only: too careful by 3, and never by less


def test_grants_may_begin_right_after_the_latest_arrival_when_the_clock_was_set_back():
    money = balance(Grant("a", 10, 0))
    money.spend(1, 100)

    assert money.cut(50) == 101


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["grant", "spend", "hold", "free"]),
        st.integers(0, 30),
        st.integers(0, 5),
        st.integers(0, 40) | st.none(),
    ),
    max_size=30,
)


@given(ACTS)
def test_whatever_happens_no_more_is_used_than_was_paid_in_and_a_new_start_finds_the_same(
    acts: Sequence[tuple[str, int, int, int | None]],
):
    money, now_ns = Balance(0), 1
    grants: list[Grant] = []
    spent: list[tuple[int, int]] = []
    held: list[tuple[int, int]] = []
    for act, nano, passed, lasts in acts:
        now_ns += passed
        if act == "grant":
            since = now_ns = money.cut(now_ns)
            until = EVER_NS if lasts is None else since + lasts + 1
            grants.append(Grant(str(len(grants)), nano, since, until))
            money.grant(grants[-1])
        elif act == "free" and held:
            taken, at = held.pop(nano % len(held))
            used = min(taken, nano)
            money.hold(-taken, at)
            money.spend(used, at)
            spent.append((used, at))
        else:
            at = max(now_ns - (lasts or 0), 0) if act == "hold" else now_ns
            if money.room(at) >= nano:
                room = money.room(at)
                money.hold(nano, at)
                held.append((nano, at))
                assert money.room(at) >= room - nano
        assert money.spent == sum(one for one, _ in spent)
        assert money.held == sum(one for one, _ in held)
        assert money.spent + money.held <= money.granted
        assert money.room(now_ns) >= 0  # whoever was let in was let in with money that was there

    again = Balance(0)
    for grant in grants:
        again.grant(grant)
    for one, at in held:
        again.hold(one, at)
    for begin, end in again.stretches:
        if nano := sum(one for one, at in spent if begin <= at < end):
            again.spend(nano, begin)
    assert again.room(now_ns) == money.room(now_ns)
    assert again.left(now_ns) == money.left(now_ns)
