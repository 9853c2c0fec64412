"""What can be asked about a request without running it: nothing of it is metered."""

from collections.abc import Callable, Mapping

from llmhost.core.caller import Caller
from llmhost.core.errors import ContextTooLong
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.authenticate import check_run
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.estimate import Estimate
from llmhost.pipeline.stages import Stages

Arrived = Callable[
    [GenerationRequest, str | None, Mapping[str, str], Caller | None], RequestContext
]


class Inquiries:
    """Asks of the stages what is wanted. `arrived` makes the context of a request that comes in."""

    def __init__(self, stages: Stages, arrived: Arrived) -> None:
        self._stages = stages
        self._arrived = arrived

    async def estimate(
        self, request: GenerationRequest, headers: Mapping[str, str], caller: Caller
    ) -> Estimate:
        """What a request would take and may cost. It is not run, not metered, and counted by limits as a request.

        Raises what would refuse it, but for budgets without room.
        """
        context, stages = self._arrived(request, None, headers, caller), self._stages
        check_run(headers)
        stages.screen.check_length(context)
        tokenizer = await stages.resolve.find(context)
        await stages.limit.count(context)
        await stages.resolve.read(context, tokenizer)
        stages.limit.check(context)
        await stages.resolve.compile_grammar(context)
        estimate = await stages.bill.estimate(context)
        try:
            if await stages.screen(context):
                await stages.resolve(context)
                estimate = await stages.bill.estimate(context)
            if context.verdict is not None:
                await context.verdict
        finally:
            context.let_go()
            stages.bill.drop(context)
        return estimate

    async def count_tokens(
        self, request: GenerationRequest, headers: Mapping[str, str], caller: Caller
    ) -> RequestContext:
        """The context of a request that is not run, with its prompt's tokens: those of one that is too long, too.

        It is not metered, and counted by limits as a request. Raises what would refuse it, but for its length.
        """
        check_run(headers)
        context = self._arrived(request, None, headers, caller)
        await self._looked_up(context, is_counted=True)
        return context

    async def measure(self, request: GenerationRequest, caller: Caller) -> tuple[int, int]:
        """The tokens of a prompt, and those that its model takes in all, of a request that is about to be opened.

        It is neither metered nor counted, which `open` does, but prompts of callers beyond their limits are not read.
        Raises what would refuse it, but for its length.
        """
        context = self._arrived(request, None, {}, caller)
        await self._looked_up(context)
        return context.prompt_tokens, context.longest_tokens

    async def _looked_up(self, context: RequestContext, *, is_counted: bool = False) -> None:
        stages = self._stages
        stages.screen.check_length(context)
        tokenizer = await stages.resolve.find(context)
        if is_counted:
            await stages.limit.count(context)
        else:
            stages.limit.glance(context)
        try:
            await stages.resolve.read(context, tokenizer)
        except ContextTooLong:
            assert context.terms is not None, "how long it is was known"

    async def tokenizer(
        self, request: GenerationRequest, headers: Mapping[str, str], caller: Caller
    ) -> RequestContext:
        """The context of a request that wants no more of its model than the tokenizer. It is not metered, and counted
        by limits as a request. Raises what would refuse it."""
        context, stages = self._arrived(request, None, headers, caller), self._stages
        check_run(headers)
        stages.screen.check_length(context)
        await stages.resolve.find_only(context)
        await stages.limit.count(context)
        return context
