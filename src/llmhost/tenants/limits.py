"""How many requests a key may make: GCRA, which needs one number per key and never overshoots.

Time is counted in nanoseconds times the rate, so that the space between two requests is the whole number 60 * 10**9
at every rate and nothing is ever rounded in anybody's favour.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from llmhost.config.schema import LimitSettings
from llmhost.core.errors import RateLimited

_MINUTE = 60 * 10**9
_NS = 10**9


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the `x-ratelimit-*-requests` headers say."""

    limit: int
    """Requests per minute."""
    remaining: int
    """Requests that would be admitted right now."""
    reset_s: float
    """Until all of the burst is there again."""


class RequestRateExceeded(RateLimited):
    """Carries the allowance too, because a refusal shows the same headers."""

    def __init__(self, message: str, *, allowance: Allowance, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.allowance = allowance


@dataclass(frozen=True, slots=True)
class Verdict:
    """`is_admitted`, and the state after it: `tat` is unchanged by a refusal."""

    is_admitted: bool
    tat: int
    """Theoretical arrival time of the next request, in nanoseconds times the rate."""
    remaining: int
    wait_ns: int
    """Until the next request would be admitted; 0 when one would be right now."""
    reset_ns: int


def gcra(tat: int, now_ns: int, *, rate_per_minute: int, burst: int) -> Verdict:
    """One request at `now_ns`: at most `burst` at once, and `rate_per_minute` in the long run.

    In any window of t minutes at most `burst + rate_per_minute * t` requests are admitted, whatever their pattern.
    Times come out rounded up to a nanosecond: waiting that long is enough.
    Source: ITU-T I.371, the virtual scheduling form.
    """
    now = now_ns * rate_per_minute
    debt = max(tat - now, 0)
    room = burst * _MINUTE
    is_admitted = debt + _MINUTE <= room
    if is_admitted:
        debt += _MINUTE
        tat = now + debt
    return Verdict(
        is_admitted=is_admitted,
        tat=tat,
        remaining=(room - debt) // _MINUTE if debt < room else 0,
        wait_ns=_up(max(debt + _MINUTE - room, 0), rate_per_minute),
        reset_ns=_up(debt, rate_per_minute),
    )


class RequestLimiter:
    """Remembers each key's debt, and forgets keys that have none. Used from one thread."""

    def __init__(self, default: LimitSettings) -> None:
        self._default = default
        self._debts: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._debts)

    def admit(
        self, who: Hashable, rate_per_minute: int | None, burst: int | None, now_ns: int
    ) -> Allowance | None:
        """Count one request of a caller, by whatever tells callers apart. None when nothing limits it.

        `burst` defaults to a minute's worth, and to the configured burst where that is smaller or the rate is
        the configured one too. `now_ns` is monotonic. Raises RateLimited with the exact time to wait.
        """
        rate = rate_per_minute or self._default.requests_per_minute
        if rate is None:
            return None
        if burst is None:
            burst = self._default.burst_requests or rate
            if rate_per_minute is not None:
                burst = min(burst, rate_per_minute)
        self._forget_idle(now_ns)
        tat = self._tat(who, rate, now_ns)
        verdict = gcra(tat, now_ns, rate_per_minute=rate, burst=burst)
        self._debts[who] = (verdict.tat, rate)
        allowance = Allowance(rate, verdict.remaining, verdict.reset_ns / _NS)
        if verdict.is_admitted:
            return allowance
        wait_s = verdict.wait_ns / _NS
        raise RequestRateExceeded(
            f"This key may make {rate} requests per minute, {burst} of them at once."
            f" Try again in {duration_text(wait_s)}.",
            allowance=allowance,
            retry_after_s=wait_s,
        )

    def _tat(self, who: Hashable, rate: int, now_ns: int) -> int:
        """A key whose rate was changed owes as many requests as before."""
        tat, old_rate = self._debts.get(who, (0, rate))
        return tat + now_ns * (rate - old_rate)

    def _forget_idle(self, now_ns: int) -> None:
        """Look at two keys a time, in turn: the table stays about as large as the keys in debt, at no pause."""
        for _ in range(min(2, len(self._debts))):
            who, (tat, rate) = self._debts.popitem(last=False)
            if tat > now_ns * rate:
                self._debts[who] = (tat, rate)


def duration_text(seconds: float) -> str:
    """As OpenAI's headers write it: `12ms`, `1s`, `1.5s`, `6m0s`, `1h0m30s`; rounded up to a millisecond."""
    total_ms = -(-round(seconds * _NS) // 1_000_000)
    if 0 < total_ms < 1000:
        return f"{total_ms}ms"
    minutes, rest_ms = divmod(total_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, part = divmod(rest_ms, 1000)
    text = f"{whole}.{part:03d}".rstrip("0").rstrip(".") + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _up(scaled: int, rate: int) -> int:
    return -(-scaled // rate)
