"""Stage 3: may this caller ask now, and so much; and, when the request has ended, what it really was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llmhost.core.caller import Caller
from llmhost.core.errors import Forbidden, LlmhostError, ShuttingDown
from llmhost.core.output import Outcome, Usage
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.observe.limits import LimitMetrics
from llmhost.pipeline.context import RequestContext
from llmhost.tenants.limiter import Limiter, NoPlace, Size
from llmhost.tenants.rates import Used
from llmhost.tenants.refusals import LimitReached


class Limit:
    """Rates and places of every level, then the opinion of `admit_request`."""

    def __init__(self, limiter: Limiter, plugins: Plugins, metrics: LimitMetrics) -> None:
        self._limiter = limiter
        self._plugins = plugins
        self._metrics = metrics
        self.is_draining = False
        """Set when the process is about to end: new requests are sent elsewhere."""

    async def __call__(self, context: RequestContext) -> None:
        self._check_draining()
        # A batch has its own pace, which is slower than any limit is for.
        if context.request.batch is None:
            try:
                context.limits_pass = await self._limiter.admit(*_wish(context))
            except LimitReached as refusal:
                self._note(context, refusal)
                raise
        await self._ask(context)

    def pass_through(self, context: RequestContext, size: Size, usage: Usage) -> bool:
        """Let a request in, and count what it uses, that is answered whole in this turn; False, and nothing is counted,
        for one that has to wait or is refused."""
        model = context.known_deployment.entry.name
        try:
            context.stood = self._limiter.take_at_once(
                context.known_caller,
                model,
                context.run_id,
                size,
                Used(usage.prompt_tokens, usage.completion_tokens),
            )
        except (NoPlace, LlmhostError):
            return False
        return True

    def enter(self, context: RequestContext, size: Size) -> bool:
        """Let a request in that runs; False, and nothing is counted, for one that has to wait or is refused."""
        try:
            name = context.known_deployment.entry.name
            context.limits_pass = self._limiter.admit_now(
                context.known_caller, name, context.run_id, size
            )
        except (NoPlace, LlmhostError):
            return False
        return True

    def enter_all(self, contexts: Sequence[RequestContext], size: Size | None = None) -> list[bool]:
        """As `enter`, for each of some requests of one caller to one model that come at one moment, and are of one size
        if it is given."""
        first = contexts[0]
        name = first.known_deployment.entry.name
        sizes = [size] * len(contexts) if size is not None else list(map(size_of, contexts))
        passes = self._limiter.admit_in_turn(first.known_caller, name, first.run_id, sizes)
        if passes is None:
            return [self.enter(each, of) for each, of in zip(contexts, sizes, strict=True)]
        for context, one in zip(contexts, passes, strict=True):
            context.limits_pass = one
        return [True] * len(contexts)

    async def count(self, context: RequestContext) -> None:
        """Of a request that will not run: it counts as a request, and takes no tokens and no place.

        It is asked before the prompt is read, which costs much where that is long.
        """
        self._check_draining()
        with self._noted(context):
            context.limits_pass = self._limiter.count(*_who(context))
        await self._ask(context)

    def check(self, context: RequestContext) -> None:
        """Of such a one, when its prompt is known: whether there are as many tokens for it."""
        with self._noted(context):
            self._limiter.check(*_wish(context))

    def glance(self, context: RequestContext) -> None:
        """Before the prompt of one is read that is counted afterwards: whether that is worth while."""
        self._check_draining()
        if context.request.batch is None:
            with self._noted(context):
                self._limiter.glance(*_who(context))

    def settle(self, context: RequestContext) -> None:
        """The request has ended: what it did not use comes back, and its place is free. Idempotent."""
        if context.limits_pass is not None:
            usage = context.usage
            context.limits_pass.settle(
                usage.prompt_tokens,
                usage.completion_tokens,
                is_whole=context.outcome is Outcome.ANSWERED,
            )

    def send_away(self, error: LlmhostError) -> None:
        """Those who wait for a place need not wait any longer."""
        self._limiter.places.send_away(error)

    def _check_draining(self) -> None:
        if self.is_draining:
            raise ShuttingDown("This server is shutting down. Try again.", retry_after_s=1)

    async def _ask(self, context: RequestContext) -> None:
        if not self._plugins.has("admit_request"):
            return
        answer = await ask(
            self._plugins, "admit_request", request=context.request, caller=context.known_caller
        )
        if answer is not None:
            raise answer.opinion.as_error(Forbidden)

    @contextmanager
    def _noted(self, context: RequestContext) -> Iterator[None]:
        try:
            yield
        except LimitReached as refusal:
            self._note(context, refusal)
            raise

    def _note(self, context: RequestContext, refusal: LimitReached) -> None:
        caller = context.known_caller
        who = {"org": caller.org, "team": caller.team, "key": caller.key_id, "model": context.model}
        self._metrics.refused(
            refusal.dimension,
            refusal.limit,
            refusal.retry_after_s,
            **{name: value for name, value in who.items() if value is not None},
        )


def _who(context: RequestContext) -> tuple[Caller, str, str | None]:
    return context.known_caller, context.known_deployment.entry.name, context.run_id


def _wish(context: RequestContext) -> tuple[Caller, str, str | None, Size]:
    name = context.known_deployment.entry.name
    return context.known_caller, name, context.run_id, size_of(context)


def size_of(context: RequestContext) -> Size:
    """A request as limits see it, once its prompt is known."""
    request, terms, longest = context.request, context.known_terms, context.max_new_tokens
    if terms.poolings or request.questions:
        return Size(input_tokens=terms.prompt_tokens)
    most = request.max_tokens
    return Size(
        input_tokens=terms.prompt_tokens,
        choices=len(terms.prompts) * request.runs,
        longest_tokens=longest,
        asked_tokens=most if most is None or most < longest else longest,
    )
