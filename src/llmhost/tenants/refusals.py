"""What a limit says when it is reached, and what it says of itself on every answer."""

import msgspec

from llmhost.core.errors import RateLimited


class Allowance(msgspec.Struct, frozen=True, gc=False):  # a request has up to four
    """One limit at one moment, as the `x-ratelimit-*` headers say it."""

    limit: int
    """Units per minute."""
    remaining: int
    """Units that would be admitted right now."""
    reset_ns: int
    """Until all of the burst is there again."""


class Allowances(msgspec.Struct, frozen=True, gc=False):
    """The tightest limit of each kind; None where there is none."""

    requests: Allowance | None = None
    tokens: Allowance | None = None
    """Of input and output, that of which less is left."""
    input_tokens: Allowance | None = None
    output_tokens: Allowance | None = None


NO_ALLOWANCES = Allowances()


class LimitReached(RateLimited):
    """Knows which limit it was, for metrics and logs, and how all stand, for headers."""

    def __init__(
        self,
        message: str,
        *,
        dimension: str,
        limit: str,
        retry_after_s: float,
        allowances: Allowances = NO_ALLOWANCES,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.dimension = dimension
        """run, key, team, org, model or ip."""
        self.limit = limit
        """requests, input_tokens, output_tokens, concurrency or failed_auth."""
        self.allowances = allowances
