"""The headers that say how limits stand, as OpenAI's and Anthropic's APIs have them: of the tightest limit of each
kind."""

from datetime import UTC, datetime
from operator import attrgetter

from llmhost.core.units import show_duration
from llmhost.tenants.refusals import Allowance, Allowances

_NAMES = {
    kind: tuple(f"x-ratelimit-{fact}-{kind}" for fact in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}
_BOTH = tuple(_NAMES.values())
NAMES = (*_NAMES["requests"], *_NAMES["tokens"])
_REQUESTS, _TOKENS = ("{}: %d\r\n{}: %d\r\n{}: %s\r\n".format(*names) for names in _BOTH)
_BOTH_LINES = _REQUESTS + _TOKENS

_ANTHROPICS = tuple(
    (
        attrgetter(kind.replace("-", "_")),
        tuple(f"anthropic-ratelimit-{kind}-{fact}" for fact in ("limit", "remaining", "reset")),
    )
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
)
ANTHROPIC_NAMES = tuple(name for _, names in _ANTHROPICS for name in names)


def limit_headers(allowances: Allowances) -> dict[str, str]:
    """Those of requests, of tokens, of both, or none: whatever is limited."""
    headers: dict[str, str] = {}
    for names, allowance in zip(_BOTH, (allowances.requests, allowances.tokens), strict=True):
        if allowance is not None:
            limit, remaining, reset = names
            headers[limit] = str(allowance.limit)
            headers[remaining] = str(allowance.remaining)
            headers[reset] = show_duration(allowance.reset_ns)
    return headers


def limit_lines(allowances: Allowances) -> str:
    """The same as lines; both are made at once, since they are most often both there."""
    one, other = allowances.requests, allowances.tokens
    if one is not None and other is not None:
        return _BOTH_LINES % (
            one.limit,
            one.remaining,
            show_duration(one.reset_ns),
            other.limit,
            other.remaining,
            show_duration(other.reset_ns),
        )
    if one is not None:
        return _REQUESTS % (one.limit, one.remaining, show_duration(one.reset_ns))
    if other is not None:
        return _TOKENS % (other.limit, other.remaining, show_duration(other.reset_ns))
    return ""


def anthropic_limit_headers(allowances: Allowances, now_utc_ns: int) -> dict[str, str]:
    """The same under Anthropic's names, with the times at which limits will be whole again, to the second."""
    headers: dict[str, str] = {}
    for allowance_of, names in _ANTHROPICS:
        allowance: Allowance | None = allowance_of(allowances)
        if allowance is not None:
            at = -(-(now_utc_ns + allowance.reset_ns) // 10**9)
            when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            said = (str(allowance.limit), str(allowance.remaining), when)
            headers.update(zip(names, said, strict=True))
    return headers
