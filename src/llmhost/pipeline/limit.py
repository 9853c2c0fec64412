"""Stage 3: may this caller ask now."""

from llmhost.core.errors import Overloaded
from llmhost.core.ports import Clock
from llmhost.hooks.call import Asker
from llmhost.pipeline.context import RequestContext
from llmhost.tenants.limits import RequestLimiter


class Limit:
    """The request rate of the key, then the opinion of `admit_request`, then the price that is frozen here."""

    def __init__(self, limiter: RequestLimiter, asker: Asker, clock: Clock) -> None:
        self._limiter = limiter
        self._asker = asker
        self._clock = clock
        self.is_draining = False
        """Set when the process is about to end: new requests are sent elsewhere."""

    async def __call__(self, context: RequestContext) -> None:
        if self.is_draining:
            raise Overloaded("This server is shutting down. Try again.", retry_after_s=1)
        caller = context.known_caller
        context.allowance = self._limiter.admit(
            caller.key_id or f"local:{caller.org}",
            caller.requests_per_minute,
            now_ns=self._clock.monotonic_ns(),
        )
        await self._asker.admit_request(context.request, caller)
