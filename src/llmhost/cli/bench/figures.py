"""What a load test measured: from one record per request to percentiles, rates and goodput. Pure.

Latencies count from when a request was due. In a closed loop that is when it was sent; in an open loop a client that
is late would otherwise hide the wait that it caused (coordinated omission). How late it was is a figure of its own.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SLO_FIGURES = ("ttft", "itl", "tpot", "e2e")


@dataclass(slots=True, kw_only=True)
class Record:
    """One request, filled in while it runs. Times are seconds since the run began."""

    number: int
    due_s: float
    sent_s: float
    first_s: float | None = None
    """When the first piece of the answer came."""
    last_s: float = 0.0
    """When the last piece came."""
    ended_s: float | None = None
    """When the answer was complete, or the failure known."""
    gaps_s: list[float] = field(default_factory=list)
    """Between one piece and the next."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    has_usage: bool = False
    """The server counted the tokens; else each piece counts as one."""
    error: str | None = None
    """Status and code, or what broke."""
    message: str = ""
    was_cut: bool = False
    """Interrupted by us: neither answered nor failed."""

    @property
    def is_answered(self) -> bool:
        return self.ended_s is not None and self.error is None and not self.was_cut

    @property
    def pieces(self) -> int:
        return 0 if self.first_s is None else len(self.gaps_s) + 1

    @property
    def late_ms(self) -> float:
        return 1e3 * (self.sent_s - self.due_s)

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_s is None else 1e3 * (self.first_s - self.due_s)

    @property
    def e2e_ms(self) -> float | None:
        return None if self.ended_s is None else 1e3 * (self.ended_s - self.due_s)

    @property
    def tpot_ms(self) -> float | None:
        """Time per token after the first, up to the last piece."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return 1e3 * (self.last_s - self.first_s) / (self.output_tokens - 1)

    @property
    def itl_ms(self) -> float | None:
        """99th percentile of this answer's gaps: what its reader noticed."""
        return 1e3 * percentile(sorted(self.gaps_s), 99) if self.gaps_s else None


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Requests that met every limit of the SLO. Failed requests met none."""

    share: float
    requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    seconds: float
    """From the first request's due time to the last one's end."""
    requests: dict[str, int]
    """By how they ended: answered, failed, cut."""
    errors: dict[str, int]
    """Failed requests by status and code."""
    error_messages: dict[str, str]
    """The first message of each."""
    requests_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    tokens_per_piece: float | None
    """Above 1, gaps between pieces are longer than those between tokens."""
    are_tokens_counted: bool
    """The server counted the tokens of all answers."""
    ttft_ms: Spread | None
    itl_ms: Spread | None
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    late_ms: Spread | None
    goodput: Goodput | None


def summarise(records: Sequence[Record], slo: Mapping[str, float]) -> Summary:
    """`slo` has milliseconds by name of `SLO_FIGURES`; empty asks for no goodput."""
    answered = [record for record in records if record.is_answered]
    failed = [record for record in records if record.error is not None]
    seconds = _seconds(records)
    prompt = sum(record.prompt_tokens for record in answered)
    output = sum(record.output_tokens for record in answered)
    pieces = sum(record.pieces for record in answered)
    per_s = 1 / seconds if seconds else 0.0
    good = sum(meets(record, slo) for record in answered)
    ended = len(answered) + len(failed)
    return Summary(
        seconds=seconds,
        requests={
            "answered": len(answered),
            "failed": len(failed),
            "cut": sum(record.was_cut for record in records),
        },
        errors=dict(Counter(record.error for record in failed if record.error).most_common()),
        error_messages={r.error: r.message for r in reversed(failed) if r.error},
        requests_per_s=len(answered) * per_s,
        prompt_tokens=prompt,
        cached_tokens=sum(record.cached_tokens for record in answered),
        output_tokens=output,
        output_tokens_per_s=output * per_s,
        total_tokens_per_s=(prompt + output) * per_s,
        tokens_per_piece=output / pieces if pieces else None,
        are_tokens_counted=all(record.has_usage for record in answered),
        ttft_ms=_spread(record.ttft_ms for record in answered),
        itl_ms=_spread(1e3 * gap for record in answered for gap in record.gaps_s),
        tpot_ms=_spread(record.tpot_ms for record in answered),
        e2e_ms=_spread(record.e2e_ms for record in answered),
        late_ms=_spread(record.late_ms for record in records),
        goodput=Goodput(share=good / ended, requests_per_s=good * per_s) if slo and ended else None,
    )


def meets(record: Record, slo: Mapping[str, float]) -> bool:
    """A figure that an answer is too short to have breaks no limit."""
    figures = {name: getattr(record, f"{name}_ms") for name in slo}
    return all(value is None or value <= slo[name] for name, value in figures.items())


def parse_slo(text: str) -> dict[str, float]:
    """`ttft:500,itl:50`, in milliseconds. Raises ValueError."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        limit = _number(number)
        if name not in SLO_FIGURES or name in limits or limit is None:
            known = ", ".join(SLO_FIGURES)
            raise ValueError(
                f"{text!r} is not a list of limits in milliseconds such as ttft:500,itl:50; there is: {known}"
            )
        limits[name] = limit
    return limits


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` percent of the sorted numbers lie, linear between two of them."""
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _spread(values: Iterable[float | None]) -> Spread | None:
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    p50, p90, p99 = (percentile(ordered, share) for share in (50, 90, 99))
    return Spread(math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def _seconds(records: Sequence[Record]) -> float:
    ends = [record.ended_s for record in records if record.ended_s is not None]
    return max(ends) - min(record.due_s for record in records) if ends else 0.0


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None
