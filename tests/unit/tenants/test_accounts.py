from dataclasses import replace
from datetime import UTC, datetime

import pytest

from llmhost.core.caller import Caller
from llmhost.core.errors import QuotaExhausted
from llmhost.tenants import pots
from llmhost.tenants.accounts import HOLD_NS, Accounts, BudgetHold, Tightest
from llmhost.tenants.balance import Grant
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period

HOUR_NS = 3_600 * 10**9
DAY_NS = 24 * HOUR_NS
NOON_NS = int(datetime(2026, 5, 10, 12, tzinfo=UTC).timestamp()) * 10**9
DOLLAR = 10**9

LAPTOP = Caller(key_id="laptop", org="acme", team="search")
PHONE = Caller(key_id="phone", org="acme", team="search")
ADS = Caller(key_id="ads", org="acme", team="ads")
STRANGER = Caller(key_id="other", org="other")


def budget(limit_nano: int = 100, period: Period = Period.TOTAL, **facts: object) -> Budget:
    given = {"id": "bud_1", "org": "acme", "created_ns": NOON_NS, **facts}
    return Budget(limit_nano=limit_nano, period=period, **given)  # type: ignore[arg-type]


def accounts(*budgets: Budget) -> Accounts:
    made = Accounts()
    for number, one in enumerate(budgets):
        made.install(replace(one, id=f"bud_{number}"), NOON_NS)
    return made


def held(made: Accounts, nano: int, caller: Caller = LAPTOP, run: str | None = None) -> BudgetHold:
    hold = made.hold(caller, run, nano, NOON_NS)
    assert hold is not None
    return hold


def refused(
    made: Accounts, nano: int, caller: Caller = LAPTOP, run: str | None = None, at_ns: int = NOON_NS
) -> QuotaExhausted:
    with pytest.raises(QuotaExhausted) as refusal:
        made.hold(caller, run, nano, at_ns)
    return refusal.value


# -- holds


def test_where_no_budget_is_nothing_is_held():
    made = accounts(budget(key_id="phone"))

    assert Accounts().hold(LAPTOP, None, 10, NOON_NS) is None
    assert made.hold(LAPTOP, None, 10, NOON_NS) is None
    assert not made.is_budgeted(LAPTOP, None)
    assert made.is_budgeted(PHONE, None)
    assert made.live_holds() == ()


def test_what_is_held_is_free_again_but_for_what_was_used():
    made = accounts(budget(100))
    hold = held(made, 60)
    assert hold.remaining_nano == 40

    hold.settle(25)

    assert held(made, 75).remaining_nano == 0
    refused(made, 1)


def test_a_voided_hold_cost_nothing():
    made = accounts(budget(100))

    held(made, 100).void()

    assert held(made, 100).held_nano == 100


def test_the_first_end_of_a_hold_counts():
    made = accounts(budget(100))
    settled, voided = held(made, 10), held(made, 10)

    settled.settle(10)
    settled.settle(10)
    settled.void()
    voided.void()
    voided.settle(10)

    assert held(made, 0).remaining_nano == 90
    assert settled.raise_by(5) == 0


def test_a_hold_grows_as_far_as_there_is_room():
    made = accounts(budget(100))
    hold = held(made, 60)

    assert hold.raise_by(30) == 30
    assert hold.raise_by(30) == 10
    assert hold.raise_by(30) == 0
    assert hold.held_nano == 100


def test_a_hold_that_can_not_grow_by_the_least_does_not_grow():
    made = accounts(budget(100))
    hold = held(made, 60)

    assert hold.raise_by(50, least=41) == 0
    assert hold.raise_by(50, least=40) == 40


def test_all_levels_must_have_room_and_are_asked_before_any_is_changed():
    made = accounts(
        budget(100), budget(100, team="search"), budget(50, key_id="laptop"), budget(70, key_id="x")
    )

    assert refused(made, 60).level == "key"
    assert held(made, 100, PHONE).remaining_nano == 0
    assert refused(made, 1, ADS).level == "org"
    assert refused(made, 1, PHONE).level == "team"
    assert made.refusals == {"key": 1, "org": 1, "team": 1}


def test_the_tightest_budget_says_what_remains():
    made = accounts(budget(100), budget(30, Period.DAY, key_id="laptop"))
    hold = held(made, 10)

    assert hold.remaining_nano == 20
    assert hold.reset_utc_ns == NOON_NS + 12 * HOUR_NS
    assert made.tightest(PHONE, None, NOON_NS) == Tightest("org", 100, 90, None)
    assert made.tightest(STRANGER, None, NOON_NS) is None


def test_a_budget_of_nothing_lets_only_what_is_free_through():
    made = accounts(budget(0))

    assert held(made, 0).raise_by(1) == 0
    refused(made, 1)


def test_more_used_than_held_is_a_bug_and_is_counted_all_the_same():
    made = accounts(budget(100))
    hold = held(made, 10)

    with pytest.raises(AssertionError, match="12 nano-dollars were used"):
        hold.settle(12)

    assert made.live_holds() == ()
    assert held(made, 0).remaining_nano == 88


# -- what a refusal says


def test_a_refusal_says_whose_budget_it_is_how_it_stands_and_when_it_begins_anew():
    made = accounts(budget(DOLLAR, Period.DAY, zone="Europe/Berlin"))
    held(made, DOLLAR // 2).settle(DOLLAR // 4)
    held(made, DOLLAR // 4)

    error = refused(made, DOLLAR)

    assert error.message == (
        "The organisation 'acme' may spend $1.00 per day; $0.25 is spent and $0.25 is held by requests that run."
        " This request needs $1.00 to begin. The budget begins anew at 2026-05-11 00:00 Europe/Berlin."
    )
    assert (error.status, error.type, error.code) == (
        429,
        "insufficient_quota",
        "organization_spend_limit_exceeded",
    )
    assert error.retry_after_s is None  # becomes x-should-retry: false


@pytest.mark.parametrize(
    ("facts", "says", "code"),
    [
        (
            {"key_id": "laptop"},
            "This key may spend $0.00 in all; $0.00 is spent.",
            "insufficient_quota",
        ),
        ({"team": "search"}, "The team 'search' may", "project_spend_limit_exceeded"),
        ({"is_per_run": True}, "The run 'r' may", "insufficient_quota"),
        ({}, "does not begin anew: ask for a higher one", "organization_spend_limit_exceeded"),
        (
            {"until_ns": NOON_NS},
            "was good until 2026-05-10 12:00 UTC",
            "organization_spend_limit_exceeded",
        ),
        (
            {"period": Period.BALANCE},
            "has been given credits of $0.00; $0.00 is spent.",
            "credit_balance_exhausted",
        ),
    ],
)
def test_a_refusal_fits_its_budget(facts: dict[str, object], says: str, code: str):
    error = refused(accounts(budget(0, **facts)), 1, run="r")  # type: ignore[arg-type]

    assert says in error.message
    assert (error.type, error.code) == ("insufficient_quota", code)


# -- spans


def test_a_new_day_begins_with_all_of_it():
    made = accounts(budget(100, Period.DAY))
    held(made, 100).settle(100)
    refused(made, 1)

    assert made.hold(LAPTOP, None, 100, NOON_NS + 12 * HOUR_NS) is not None


def test_a_request_belongs_to_the_day_of_its_arrival():
    made = accounts(budget(100, Period.DAY))
    late = held(made, 40)
    made.hold(LAPTOP, None, 100, NOON_NS + 12 * HOUR_NS)

    assert late.raise_by(80) == 60
    late.settle(100)

    refused(made, 1, at_ns=NOON_NS + 12 * HOUR_NS)


def test_after_a_clock_that_was_ahead_budgets_begin_anew_each_day():
    made = accounts(budget(period=Period.DAY))

    def spend(nano: int, at_ns: int) -> None:
        hold = made.hold(LAPTOP, None, nano, at_ns)
        assert hold is not None
        hold.settle(nano)

    spend(90, NOON_NS)
    spend(100, NOON_NS + 30 * DAY_NS)
    refused(made, 20, at_ns=NOON_NS)
    for day in range(1, 5):
        spend(100, NOON_NS + day * DAY_NS)
        refused(made, 1, at_ns=NOON_NS + day * DAY_NS)
    refused(made, 1, at_ns=NOON_NS + 30 * DAY_NS)


def test_a_clock_that_was_set_back_brings_no_budget_back():
    made = accounts(budget(100, Period.DAY))
    for days in range(1, 4):
        made.hold(LAPTOP, None, 100, NOON_NS + days * DAY_NS)

    refused(made, 1, at_ns=NOON_NS)


def test_a_total_can_end_on_a_date():
    made = accounts(budget(100, until_ns=NOON_NS + 5))
    hold = held(made, 10)

    refused(made, 1, at_ns=NOON_NS + 5)
    assert hold.raise_by(10) == 10  # it came in time


# -- runs


def test_each_run_has_its_own():
    made = accounts(budget(100, is_per_run=True))
    held(made, 100, run="a").settle(100)

    refused(made, 1, run="a")
    assert held(made, 100, run="b").held_nano == 100
    assert held(made, 100, PHONE, run="a").held_nano == 100  # another key's run of that name
    assert held(made, 100).held_nano == 100
    assert held(made, 100).held_nano == 100  # without a run each request is one


def test_a_run_that_cost_nothing_is_forgotten():
    made = accounts(budget(100, is_per_run=True))
    account = made.install(budget(9, is_per_run=True, id="two"), NOON_NS)
    first, second = held(made, 0, run="a"), held(made, 0, run="a")
    assert first.raise_by(5) == 5
    assert second.raise_by(5) == 4
    assert len(account.pots()) == 1

    first.void()
    second.void()

    assert account.pots() == []


def test_the_runs_heard_of_last_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pots, "KEPT_RUNS", 3)
    made = Accounts()
    account = made.install(budget(100, is_per_run=True), NOON_NS)
    busy = held(made, 7, run="busy")
    for run in "abcd":
        held(made, 10, run=run).settle(10)

    kept = {pot.run[2] for pot in account.pots() if pot.run is not None}

    assert "busy" in kept
    assert "d" in kept
    assert len(kept) <= 4
    busy.settle(7)
    assert [run[2] for run, _ in account.runs(NOON_NS)][-1] == "busy"


# -- budgets that come and go


def test_a_new_budget_counts_what_is_held_already():
    made = accounts(budget(100))
    hold = held(made, 40)
    made.install(budget(50, key_id="laptop", id="two"), NOON_NS)

    assert hold.raise_by(20) == 10
    hold.settle(45)

    assert made.tightest(LAPTOP, None, NOON_NS) == Tightest("key", 50, 5, None)


def test_a_new_budget_counts_requests_that_held_nothing():
    made = Accounts()
    made.install(budget(50), NOON_NS)
    made.charge(LAPTOP, None, 30, NOON_NS - 5)
    made.charge(STRANGER, None, 30, NOON_NS)

    assert made.tightest(LAPTOP, None, NOON_NS) == Tightest("org", 50, 20, None)


def test_a_charge_of_a_day_that_is_over_is_not_todays():
    made = Accounts()
    made.install(budget(50, Period.DAY), NOON_NS)

    made.charge(LAPTOP, None, 30, NOON_NS - DAY_NS)

    assert made.tightest(LAPTOP, None, NOON_NS).remaining_nano == 50  # type: ignore[union-attr]


def test_what_was_charged_in_vain_is_given_back():
    made = accounts(budget(50))
    held(made, 30).settle(30)

    made.charge(LAPTOP, None, -30, NOON_NS)

    assert held(made, 50).held_nano == 50


def test_a_correction_that_is_on_disk_is_in_the_sum_of_a_budget_that_is_being_made():
    made = accounts(budget(100, key_id="laptop"))
    account = made.install(budget(50, id="two"), NOON_NS, is_counting=True)

    made.correct(LAPTOP, None, -20, NOON_NS)
    made.correct(STRANGER, None, -20, NOON_NS)
    account.counted({None: 10})

    assert account.standing(NOON_NS).spent == 10
    assert made.tightest(LAPTOP, None, NOON_NS) == Tightest("org", 50, 40, None)
    made.correct(LAPTOP, None, 5, NOON_NS)
    assert account.standing(NOON_NS).spent == 15


def test_until_it_has_been_summed_a_budget_refuses_nobody_and_counts_all():
    made = Accounts()
    account = made.install(budget(50), NOON_NS, is_counting=True)
    hold = held(made, 80)
    assert hold.remaining_nano is None
    hold.settle(20)

    account.counted({None: 25})

    assert made.tightest(LAPTOP, None, NOON_NS) == Tightest("org", 50, 5, None)


def test_runs_are_summed_each():
    made = Accounts()
    account = made.install(budget(50, is_per_run=True), NOON_NS, is_counting=True)
    held(made, 20, run="a").settle(20)

    account.counted({("laptop", "search", "a"): 25, ("phone", "search", "b"): 50})

    refused(made, 6, run="a")
    refused(made, 1, PHONE, run="b")


def test_a_budget_that_ended_limits_nobody():
    made = accounts(budget(50), budget(70, key_id="laptop"))
    hold = held(made, 40)
    made.remove(budget(50, id="bud_0"))

    assert hold.raise_by(100) == 30
    made.remove(budget(70, key_id="laptop", id="bud_1"))
    assert hold.raise_by(1_000) == 1_000
    assert hold.remaining_nano is None
    hold.settle(1_000)
    assert made.hold(LAPTOP, None, 10, NOON_NS) is None


def test_a_limit_that_is_lowered_takes_nothing_from_who_holds():
    made = Accounts()
    account = made.install(budget(50), NOON_NS)
    hold = held(made, 40)
    account.change(budget(10))

    assert hold.raise_by(1) == 0
    refused(made, 0)
    hold.settle(40)
    account.change(budget(60))
    assert held(made, 20).held_nano == 20


# -- balances


def test_a_balance_is_spent_and_paid_in_again():
    made = Accounts()
    account = made.install(budget(0, Period.BALANCE), NOON_NS)
    refused(made, 1)
    account.grant([Grant("a", 100, account.balance.cut(NOON_NS))])
    hold = held(made, 90)
    assert hold.raise_by(20) == 10

    hold.settle(100)

    assert "credits of $0.0000001;" in refused(made, 1, at_ns=NOON_NS + 1).message
    account.grant([Grant("b", 50, account.balance.cut(NOON_NS + 2))])
    assert made.tightest(LAPTOP, None, NOON_NS + 3) == Tightest("org", 150, 50, None)


def test_what_came_before_a_balance_is_not_taken_from_it():
    made = Accounts()
    account = made.install(budget(0, Period.BALANCE), NOON_NS)
    account.grant([Grant("a", 100, account.balance.cut(NOON_NS))])

    made.charge(LAPTOP, None, 30, NOON_NS - 1)

    assert account.standing(NOON_NS).spent == 0


# -- the sweep


def test_a_hold_whose_request_is_gone_is_freed():
    made = accounts(budget(100))
    running, left = held(made, 30), held(made, 50)

    assert made.sweep(NOON_NS + HOLD_NS - 1, lambda hold: False) == []
    assert made.sweep(NOON_NS + HOLD_NS, lambda hold: hold is running) == [left]
    assert made.sweep(NOON_NS + HOLD_NS, lambda hold: False) == []

    assert made.live_holds() == (running,)
    assert held(made, 70).held_nano == 70
    assert made.audit() == 0


def test_a_request_that_ends_after_the_sweep_is_charged_once():
    made = accounts(budget(100))
    left = held(made, 50)
    made.sweep(NOON_NS + HOLD_NS, lambda hold: False)

    left.settle(20)
    left.settle(20)

    assert made.tightest(LAPTOP, None, NOON_NS) == Tightest("org", 100, 80, None)


def test_organisations_standings_are_for_metrics():
    made = accounts(budget(100), budget(50, team="search"), budget(9, is_per_run=True))
    held(made, 9, ADS, run="a").settle(3)
    held(made, 4, ADS, run="a")

    ((one, standing),) = made.org_standings(NOON_NS)

    assert one.level == "org"
    assert (standing.limit, standing.spent, standing.held, standing.remaining) == (100, 3, 4, 93)


# -- several of one moment


def test_several_hold_what_one_after_the_other_would():
    wishes = [(NOON_NS + at, f"req_{at}", 30 - at) for at in (2, 0, 1)]
    budgets = (budget(100), budget(95, team="search"), budget(500, key_id="laptop"))
    together, alone = accounts(*budgets), accounts(*budgets)

    holds = together.hold_in_turn(LAPTOP, None, wishes)
    assert holds is not None
    for hold, (utc_ns, request_id, nano) in zip(holds, wishes, strict=True):
        other = alone.hold(LAPTOP, None, nano, utc_ns, request_id=request_id)
        assert hold is not None and other is not None
        facts = ("held_nano", "utc_ns", "request_id", "expires_ns", "first_remaining_nano")
        assert [getattr(hold, name) for name in facts] == [getattr(other, name) for name in facts]
    assert together.audit() == 0 and len(together.live_holds()) == 3
    for at, hold in enumerate(holds):
        assert hold is not None
        hold.settle(10 * at)
    assert together.tightest(LAPTOP, None, NOON_NS) == Tightest("team", 95, 65, None)


@pytest.mark.parametrize(
    ("budgets", "run"),
    [
        ((budget(89),), None),
        ((budget(1_000), budget(89, key_id="laptop")), None),
        ((budget(1_000, is_per_run=True),), "r"),
        ((budget(1_000, until_ns=NOON_NS + 1),), None),
    ],
)
def test_where_each_has_to_ask_for_itself_nothing_is_held(budgets: tuple[Budget, ...], run: str):
    made = accounts(*budgets)
    wishes = [(NOON_NS + at, "", 30) for at in range(3)]

    assert made.hold_in_turn(LAPTOP, run, wishes) is None
    assert made.live_holds() == () and made.audit() == 0


def test_several_of_two_days_ask_each_for_itself():
    made = accounts(budget(1_000, Period.DAY))
    wishes = [(NOON_NS, "a", 30), (NOON_NS + DAY_NS, "b", 30)]

    assert made.hold_in_turn(LAPTOP, None, wishes) is None
    assert made.hold_in_turn(STRANGER, None, wishes) == [None, None]
