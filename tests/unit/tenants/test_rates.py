"""Rates of several levels: all or nothing, the tightest answers, and its message says whose it is."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.caller import Limits
from llmhost.core.errors import ExceedsLimit, LlmhostError, RateLimited
from llmhost.tenants.levels import Level
from llmhost.tenants.rates import Rates, Taken, Used, Wish
from llmhost.tenants.refusals import Allowance, Allowances, LimitReached

SECOND = 10**9
ONE = Wish(input_tokens=1)


def key(burst: int | None = None, *, who: str = "k", **limits: int) -> Level:
    return Level.of("key", who, "This key", Limits(**limits), burst_requests=burst)


def org(**limits: int) -> Level:
    return Level.of("org", "acme", "The organisation 'acme'", Limits(**limits))


def refusal(rates: Rates, levels: list[Level], wish: Wish, now_ns: int = 0) -> LimitReached:
    with pytest.raises(LimitReached) as refused:
        rates.take(levels, wish, now_ns)
    return refused.value


def test_headers_count_down_and_recover() -> None:
    rates, levels = Rates(), [key(3, requests_per_minute=60)]
    for left in (2, 1, 0):
        taken = rates.take(levels, ONE, 0)
        assert taken.allowances.requests == Allowance(60, left, (3 - left) * SECOND)
    refused = refusal(rates, levels, ONE, SECOND // 4)
    assert refused.allowances.requests == Allowance(60, 0, 2_750_000_000)
    assert refused.retry_after_s == 0.75
    assert rates.take(levels, ONE, SECOND).allowances.requests == Allowance(60, 0, 3 * SECOND)


def test_the_refusal_of_a_rate_names_the_limit_and_the_wait() -> None:
    rates, levels = Rates(), [key(1, requests_per_minute=30)]
    rates.take(levels, ONE, 0)
    refused = refusal(rates, levels, ONE)
    assert isinstance(refused, RateLimited)
    assert (refused.dimension, refused.limit) == ("key", "requests")
    assert refused.message == (
        "This key may make 30 requests per minute, 1 of them at once. Try again in 2s."
    )


def test_the_refusal_of_tokens_says_what_is_left_and_what_is_needed() -> None:
    rates, levels = Rates(), [org(input_tokens_per_minute=60)]
    rates.take(levels, Wish(50), 0)
    refused = refusal(rates, levels, Wish(15))
    assert (refused.dimension, refused.limit) == ("org", "input_tokens")
    assert refused.message == (
        "The organisation 'acme' may use 60 input tokens per minute. 10 of them are left now, and this"
        " request needs 15. Try again in 5s."
    )


def test_a_refusal_on_one_level_charges_no_other() -> None:
    rates = Rates()
    levels = [
        key(requests_per_minute=10, input_tokens_per_minute=100),
        org(output_tokens_per_minute=20),
    ]
    rates.take(levels, Wish(10, 20), 0)
    refusal(rates, levels, Wish(10, 5))
    taken = rates.take([key(requests_per_minute=10, input_tokens_per_minute=100)], Wish(10), 0)
    assert taken.allowances.requests is not None
    assert taken.allowances.tokens is not None
    assert (taken.allowances.requests.remaining, taken.allowances.tokens.remaining) == (8, 80)


def test_of_two_limits_the_longer_wait_answers() -> None:
    rates = Rates()
    levels = [key(1, requests_per_minute=60), org(input_tokens_per_minute=60)]
    rates.take(levels, Wish(60), 0)
    refused = refusal(rates, levels, Wish(30))
    assert (refused.dimension, refused.limit, refused.retry_after_s) == ("org", "input_tokens", 30)
    assert refused.allowances == Allowances(
        requests=Allowance(60, 0, SECOND),
        tokens=Allowance(60, 0, 60 * SECOND),
        input_tokens=Allowance(60, 0, 60 * SECOND),
    )


def test_headers_show_the_limit_with_the_least_left() -> None:
    levels = [
        key(input_tokens_per_minute=1000, output_tokens_per_minute=500, requests_per_minute=9),
        org(input_tokens_per_minute=300, requests_per_minute=50),
    ]
    allowances = Rates().take(levels, Wish(100, 50), 0).allowances
    assert allowances.requests is not None
    assert allowances.tokens is not None
    assert (allowances.requests.limit, allowances.requests.remaining) == (9, 8)
    assert (allowances.tokens.limit, allowances.tokens.remaining) == (300, 200)


def test_a_prompt_larger_than_a_whole_minute_is_refused_for_good() -> None:
    with pytest.raises(ExceedsLimit) as refused:
        Rates().take([org(input_tokens_per_minute=99)], Wish(100), 0)
    assert refused.value.retry_after_s is None
    assert refused.value.message == (
        "The prompt is 100 tokens, and the organisation 'acme' may use 99 input tokens per minute. No wait would help:"
        " shorten the prompt, or ask for a higher limit."
    )


def test_an_answer_asked_for_that_is_larger_than_a_whole_minute_is_refused_for_good() -> None:
    with pytest.raises(ExceedsLimit, match=r"up to 100 output tokens.*99 output tokens") as refused:
        Rates().take([key(output_tokens_per_minute=99)], Wish(1, 10, 100), 0)
    assert refused.value.param == "max_tokens"


def test_a_guess_larger_than_a_whole_minute_waits_for_a_full_one() -> None:
    rates, levels = Rates(), [key(output_tokens_per_minute=60)]
    taken = rates.take(levels, Wish(1, 256), 0)
    assert refusal(rates, levels, Wish(1, 256)).retry_after_s == 60
    taken.settle(1, 6, 0)
    assert refusal(rates, levels, Wish(1, 256)).retry_after_s == 6


def test_settling_twice_counts_once() -> None:
    rates, levels = Rates(), [key(input_tokens_per_minute=100)]
    taken = rates.take(levels, Wish(90), 0)
    taken.settle(10, 0, 0)
    taken.settle(0, 0, 0)
    tokens = rates.take(levels, Wish(0), 0).allowances.tokens
    assert tokens is not None
    assert tokens.remaining == 90


@given(
    st.lists(
        st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(0, 90), st.integers(0, 90)),
        max_size=30,
    )
)
def test_at_one_moment_the_books_hold_exactly_what_was_used(
    requests: list[tuple[int, int, int, int]],
) -> None:
    rates = Rates()
    levels = [key(input_tokens_per_minute=100, output_tokens_per_minute=90), org()]
    levels[1] = org(input_tokens_per_minute=150, requests_per_minute=12)
    used = [0, 0, 0]
    for held_in, held_out, used_in, used_out in requests:
        try:
            taken = rates.take(levels, Wish(held_in, held_out), 0)
        except LlmhostError:
            continue
        taken.settle(used_in, used_out, 0)
        used = [used[0] + used_in, used[1] + used_out, used[2] + 1]
    buckets = {
        (kind, dimension): bucket.reset_ns(0) * bucket.per_minute
        for (kind, (dimension, _)), bucket in rates._buckets.items()  # type: ignore[misc]
    }
    minute = 60 * SECOND
    for (kind, _), debt in buckets.items():
        spent = {"input_tokens": used[0], "output_tokens": used[1], "requests": used[2]}[kind]
        assert 0 <= debt - spent * minute < 200  # reset is rounded up to a nanosecond


def test_keys_do_not_share_their_limits() -> None:
    rates = Rates()
    for who in ("a", "b"):
        rates.take([key(who=who, requests_per_minute=1)], ONE, 0)
        refusal(rates, [key(who=who, requests_per_minute=1)], ONE)


def test_a_changed_limit_keeps_what_is_owed() -> None:
    rates = Rates()
    for _ in range(10):
        rates.take([key(requests_per_minute=10)], ONE, 60 * SECOND)
    allowance = rates.take([key(20, requests_per_minute=600)], ONE, 60 * SECOND).allowances.requests
    assert allowance is not None
    assert allowance.remaining == 9


def test_idle_keys_are_forgotten_and_busy_ones_never() -> None:
    rates = Rates()
    held = rates.take([key(who="busy", input_tokens_per_minute=10)], Wish(5), 0)
    for i in range(20_000):
        now_ns = i * SECOND // 100
        rates.take([key(1, who=f"key {i}", requests_per_minute=60)], ONE, now_ns)
    assert len(rates) < 1_000
    held.settle(10, 0, now_ns)
    refusal(rates, [key(who="busy", input_tokens_per_minute=10)], Wish(6), now_ns)


small = st.integers(1, 40)
limits = st.builds(
    Limits,
    requests_per_minute=st.none() | small,
    input_tokens_per_minute=st.none() | small,
    output_tokens_per_minute=st.none() | small,
)
wishes = st.builds(Wish, small, st.integers(0, 40), st.none() | small, st.just(1))


@given(
    st.lists(limits, min_size=1, max_size=3),
    st.lists(st.tuples(wishes, small, small, st.integers(0, 90 * SECOND)), max_size=12),
)
def test_what_is_spent_at_once_is_taken_and_settled(
    of_levels: list[Limits], asked: list[tuple[Wish, int, int, int]]
) -> None:
    levels = [Level.of("key", at, "This key", each) for at, each in enumerate(of_levels)]
    quick, slow, now_ns = Rates(), Rates(), 10**12
    for wish, used_in, used_out, later_ns in asked:
        now_ns += later_ns
        try:
            taken = slow.take(levels, wish, now_ns)
        except LlmhostError as refused:
            with pytest.raises(type(refused)) as refusal:
                quick.spend(levels, wish, Used(used_in, used_out), now_ns)
            assert refusal.value.message == refused.message
            continue
        taken.settle(used_in, used_out, now_ns)
        spent = quick.spend(levels, wish, Used(used_in, used_out), now_ns)
        assert spent == (taken.allowances, any(each.output_tokens_per_minute for each in of_levels))


def test_rates_that_change_hold_at_once_for_what_is_spent_at_once() -> None:
    rates, before, after = Rates(), [key(requests_per_minute=60)], [key(requests_per_minute=2)]
    assert rates.spend(before, ONE, Used(1, 0), 0)[0].requests == Allowance(60, 59, SECOND)
    assert rates.spend(after, ONE, Used(1, 0), 0)[0].requests == Allowance(2, 0, 60 * SECOND)
    with pytest.raises(LimitReached):
        rates.spend(after, ONE, Used(1, 0), 0)
    allowances, _ = rates.spend(before, ONE, Used(1, 0), 0)
    assert allowances.requests == Allowance(60, 57, 3 * SECOND)


@given(
    st.lists(limits, min_size=1, max_size=3),
    st.lists(
        st.tuples(
            st.lists(wishes, min_size=1, max_size=5)
            | st.builds(lambda wish, count: [wish] * count, wishes, st.integers(1, 5)),
            small,
            st.integers(0, 90 * SECOND),
        ),
        max_size=12,
    ),
)
def test_several_of_one_moment_take_what_one_after_the_other_would(
    of_levels: list[Limits], asked: list[tuple[list[Wish], int, int]]
) -> None:
    levels = [Level.of("key", at, "This key", each) for at, each in enumerate(of_levels)]
    quick, slow, now_ns = Rates(), Rates(), 10**12
    held: list[tuple[Taken, Taken]] = []
    for each, used, later_ns in asked:
        now_ns += later_ns
        together = quick.take_in_turn(levels, each, now_ns)
        if together is None:
            together = list(taken_by_each(quick, levels, each, now_ns))
        alone = list(taken_by_each(slow, levels, each, now_ns))
        assert [one.allowances for one in together] == [one.allowances for one in alone]
        held += zip(together, alone, strict=True)
        if len(held) > 3:
            for one in held.pop(used % len(held)):
                one.settle(used, used // 2, now_ns)
    for pair in held:
        for one in pair:
            one.settle(1, 1, now_ns)
    for bucket, other in zip(quick._buckets.values(), slow._buckets.values(), strict=True):
        assert (bucket.tat, bucket.standing(now_ns)) == (other.tat, other.standing(now_ns))


def taken_by_each(
    rates: Rates, levels: list[Level], wishes: list[Wish], now_ns: int
) -> Iterator[Taken]:
    for wish in wishes:
        try:
            yield rates.take(levels, wish, now_ns)
        except LlmhostError:
            continue


def test_of_several_with_one_wish_nobody_takes_anything_where_the_last_would_be_refused() -> None:
    rates, levels = Rates(), [key(3, requests_per_minute=60), org(input_tokens_per_minute=60)]
    assert rates.take_in_turn(levels, [ONE] * 2, 0) is None, "nothing is known of them yet"
    rates.take(levels, ONE, 0)
    assert rates.take_in_turn(levels, [ONE] * 3, 0) is None
    two = rates.take_in_turn(levels, [ONE] * 2, 0)
    assert two is not None
    assert [one.allowances.requests for one in two] == [
        Allowance(60, 1, 2 * SECOND),
        Allowance(60, 0, 3 * SECOND),
    ]
