import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema import LimitSettings
from llmhost.core.errors import RateLimited
from llmhost.tenants.limits import (
    Allowance,
    RequestLimiter,
    RequestRateExceeded,
    duration_text,
    gcra,
)

SECOND = 10**9
MINUTE = 60 * SECOND

rates = st.integers(1, 1_000_000)
bursts = st.integers(1, 50)
starts = st.integers(0, 10**18)
gaps = st.lists(st.integers(0, 3 * MINUTE) | st.integers(0, 1000), min_size=1, max_size=80)


def admitted_at(times: list[int], rate: int, burst: int) -> list[int]:
    tat, admitted = 0, []
    for now_ns in times:
        verdict = gcra(tat, now_ns, rate_per_minute=rate, burst=burst)
        tat = verdict.tat
        if verdict.is_admitted:
            admitted.append(now_ns)
    return admitted


def running_sum(start: int, steps: list[int]) -> list[int]:
    times = [start]
    for step in steps:
        times.append(times[-1] + step)
    return times


@given(rates, bursts, starts, gaps)
def test_no_window_ever_holds_more_than_burst_and_rate(
    rate: int, burst: int, start: int, steps: list[int]
) -> None:
    times = admitted_at(running_sum(start, steps), rate, burst)
    for i, begin in enumerate(times):
        for j in range(i, len(times)):
            assert (j - i + 1 - burst) * MINUTE <= rate * (times[j] - begin)


@given(rates, st.integers(2, 50), starts, st.integers(0, 100))
def test_a_caller_who_hammers_gets_exactly_that_many(
    rate: int, burst: int, start: int, more: int
) -> None:
    now_ns, tat, admitted = start, 0, 0
    last = start + more * MINUTE // rate
    while now_ns <= last:
        verdict = gcra(tat, now_ns, rate_per_minute=rate, burst=burst)
        tat, admitted = verdict.tat, admitted + verdict.is_admitted
        now_ns += verdict.wait_ns
    assert admitted == burst + rate * (last - start) // MINUTE


@given(rates, bursts, starts, gaps)
def test_waiting_as_told_is_enough_and_not_too_much(
    rate: int, burst: int, start: int, steps: list[int]
) -> None:
    tat = 0
    for now_ns in running_sum(start, steps):
        verdict = gcra(tat, now_ns, rate_per_minute=rate, burst=burst)
        tat = verdict.tat
        later = now_ns + verdict.wait_ns
        assert gcra(tat, later, rate_per_minute=rate, burst=burst).is_admitted
        if verdict.wait_ns:
            assert not gcra(tat, later - 1, rate_per_minute=rate, burst=burst).is_admitted


@given(rates, bursts, starts, gaps)
def test_remaining_is_what_would_be_admitted_at_once(
    rate: int, burst: int, start: int, steps: list[int]
) -> None:
    tat = 0
    for now_ns in running_sum(start, steps):
        verdict = gcra(tat, now_ns, rate_per_minute=rate, burst=burst)
        tat = verdict.tat
        probe, count = verdict, -1
        while True:
            probe = gcra(probe.tat, now_ns, rate_per_minute=rate, burst=burst)
            count += 1
            if not probe.is_admitted:
                break
        assert verdict.remaining == count
        rested = gcra(tat, now_ns + verdict.reset_ns, rate_per_minute=rate, burst=burst)
        assert rested.remaining == burst - 1


@given(rates, bursts, starts, gaps)
def test_a_refusal_costs_nothing(rate: int, burst: int, start: int, steps: list[int]) -> None:
    tat = 0
    for now_ns in running_sum(start, steps):
        verdict = gcra(tat, now_ns, rate_per_minute=rate, burst=burst)
        assert verdict.is_admitted or verdict.tat == tat
        tat = verdict.tat


def refusal(limiter: RequestLimiter, *args: int | str | None) -> RequestRateExceeded:
    with pytest.raises(RequestRateExceeded) as refused:
        limiter.admit(*args)  # type: ignore[arg-type]
    return refused.value


def test_headers_count_down_and_recover() -> None:
    limiter = RequestLimiter(LimitSettings())
    assert limiter.admit("k", 60, 3, 0) == Allowance(60, 2, 1.0)
    assert limiter.admit("k", 60, 3, 0) == Allowance(60, 1, 2.0)
    assert limiter.admit("k", 60, 3, 0) == Allowance(60, 0, 3.0)
    refused = refusal(limiter, "k", 60, 3, SECOND // 4)
    assert refused.allowance == Allowance(60, 0, 2.75)
    assert refused.retry_after_s == 0.75
    assert limiter.admit("k", 60, 3, SECOND) == Allowance(60, 0, 3.0)


def test_the_refusal_names_the_limit_and_the_wait() -> None:
    limiter = RequestLimiter(LimitSettings(requests_per_minute=30, burst_requests=1))
    limiter.admit("k", None, None, 0)
    refused = refusal(limiter, "k", None, None, 0)
    assert isinstance(refused, RateLimited)
    assert refused.message == (
        "This key may make 30 requests per minute, 1 of them at once. Try again in 2s."
    )


def test_without_any_limit_nothing_is_counted() -> None:
    limiter = RequestLimiter(LimitSettings())
    assert all(limiter.admit("k", None, None, 0) is None for _ in range(1000))
    assert len(limiter) == 0


def count_at_once(limiter: RequestLimiter, rate: int | None, burst: int | None) -> int:
    for count in range(10_000):
        try:
            limiter.admit("k", rate, burst, 0)
        except RateLimited:
            return count
    raise AssertionError("never refused")


@pytest.mark.parametrize(
    ("default_rate", "default_burst", "rate", "burst", "expected"),
    [
        (30, None, None, None, 30),
        (30, 5, None, None, 5),
        (30, 45, None, None, 45),
        (30, 5, 100, None, 5),
        (30, 45, 10, None, 10),
        (30, 5, 100, 7, 7),
        (None, None, 12, None, 12),
    ],
)
def test_how_many_may_come_at_once(
    default_rate: int | None,
    default_burst: int | None,
    rate: int | None,
    burst: int | None,
    expected: int,
) -> None:
    settings = LimitSettings(requests_per_minute=default_rate, burst_requests=default_burst)
    assert count_at_once(RequestLimiter(settings), rate, burst) == expected


def test_keys_do_not_share_their_limits() -> None:
    limiter = RequestLimiter(LimitSettings(requests_per_minute=1))
    for key in ("a", "b", None):
        assert limiter.admit(key, None, None, 0)
        refusal(limiter, key, None, None, 0)


def test_a_changed_rate_keeps_what_is_owed() -> None:
    limiter = RequestLimiter(LimitSettings())
    for _ in range(10):
        limiter.admit("k", 10, 10, MINUTE)
    allowance = limiter.admit("k", 600, 20, MINUTE)
    assert allowance is not None
    assert allowance.remaining == 9


def test_idle_keys_are_forgotten_and_busy_ones_never() -> None:
    limiter = RequestLimiter(LimitSettings(requests_per_minute=60, burst_requests=1))
    limiter.admit("busy", 1, 10, 0)  # owes a minute
    for i in range(50_000):
        limiter.admit(f"key {i}", None, None, i * SECOND // 1000)  # each owes a second
    assert len(limiter) < 3_000
    assert "busy" in limiter._debts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (0.0000001, "1ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (10, "10s"),
        (59.9999, "1m0s"),
        (90.25, "1m30.25s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3661.001, "1h1m1.001s"),
    ],
)
def test_durations_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
