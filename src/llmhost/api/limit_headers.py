"""The `x-ratelimit-*` headers, as OpenAI's API has them: of the limit that is tightest now."""

from llmhost.core.units import show_duration
from llmhost.tenants.refusals import Allowance, Allowances

_NAMES = {
    kind: tuple(f"x-ratelimit-{fact}-{kind}" for fact in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}
NAMES = (*_NAMES["requests"], *_NAMES["tokens"])


def limit_headers(allowances: Allowances) -> dict[str, str]:
    """Those of requests, of tokens, of both, or none: whatever is limited."""
    headers: dict[str, str] = {}
    if allowances.requests is not None:
        headers.update(_headers("requests", allowances.requests))
    if allowances.tokens is not None:
        headers.update(_headers("tokens", allowances.tokens))
    return headers


def _headers(kind: str, allowance: Allowance) -> dict[str, str]:
    limit, remaining, reset = _NAMES[kind]
    return {
        limit: str(allowance.limit),
        remaining: str(allowance.remaining),
        reset: show_duration(allowance.reset_ns),
    }
