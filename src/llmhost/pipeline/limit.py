"""Stage 3: may this caller ask now."""

from llmhost.core.errors import Forbidden, Overloaded
from llmhost.core.ports import Clock
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.pipeline.context import RequestContext
from llmhost.tenants.limits import RequestLimiter


class Limit:
    """The request rate of the key, then the opinion of `admit_request`."""

    def __init__(self, limiter: RequestLimiter, plugins: Plugins, clock: Clock) -> None:
        self._limiter = limiter
        self._plugins = plugins
        self._clock = clock
        self.is_draining = False
        """Set when the process is about to end: new requests are sent elsewhere."""

    async def __call__(self, context: RequestContext) -> None:
        if self.is_draining:
            raise Overloaded("This server is shutting down. Try again.", retry_after_s=1)
        caller = context.known_caller
        context.allowance = self._limiter.admit(
            (caller.key_id, caller.org, caller.team),  # a plugin's callers need not have keys
            caller.limits.requests_per_minute,
            None,
            self._clock.monotonic_ns(),
        )
        answer = await ask(self._plugins, "admit_request", request=context.request, caller=caller)
        if answer is not None:
            raise answer.opinion.as_error(Forbidden)
