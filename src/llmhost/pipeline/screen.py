"""Stage 4: is the prompt acceptable. The answer is screened window by window while it is executed."""

import asyncio

from llmhost.core.caller import Caller
from llmhost.core.request import Kind
from llmhost.pipeline.context import RequestContext
from llmhost.safety.output import OutputScreen
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Direction, Screening

MODERATION = Kind.MODERATION


class ScreenStage:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def check_length(self, context: RequestContext) -> None:
        """Before the prompt is tokenised, which is what a long one would cost."""
        self._screen.check_length(context.request)

    async def __call__(self, context: RequestContext) -> bool:
        """Whether the prompt is another now, because something of it was redacted.

        Where a guard judges it, too, the context has its `verdict` to be awaited.
        """
        if context.request.kind is MODERATION:
            return False  # who asks what is wrong with a text is told, and not refused for it
        assert context.tokenizer is not None
        passed = await self._screen.check_input(
            context.request,
            context.known_caller,
            model=context.model,
            decode=context.tokenizer.decode,
            note=context.note_screening,
        )
        if passed.guarded is not None:
            context.verdict = asyncio.create_task(passed.guarded)
            context.verdict.add_done_callback(_look)
        is_changed = passed.request is not context.request
        context.request = passed.request
        context.is_redacted = context.is_redacted or is_changed
        return is_changed

    def judged_by(self, caller: Caller, direction: Direction) -> str | None:
        """The policy under which somebody judges a caller's texts; None where nobody does."""
        return self._screen.judged_by(caller, direction)

    def is_light(self, caller: Caller) -> bool:
        """No model judges a caller's texts, and no prompt is kept in which nothing was found."""
        return self._screen.is_light(caller)

    def is_clean(self, context: RequestContext) -> bool:
        """Whether rules are sure to find nothing in a prompt of short texts; False says nothing."""
        return self._screen.is_clean(context.request, context.known_caller)

    def windows(self, caller: Caller, text: str) -> list[str]:
        """The parts of an answer that plugins are asked about."""
        return self._screen.windows(caller, text)

    def note_passed(self, context: RequestContext, direction: Direction, policy: str) -> None:
        """A text passed that is known to have nothing in it. Raises SafetyUnavailable."""
        self._screen.note_passed(
            context.request, context.known_caller, context.model, direction, policy
        )

    def count_passed(self, caller: Caller, direction: Direction, policy: str, texts: int) -> bool:
        """The same of texts of one caller; False, and nothing is written down, where that is done for each."""
        return self._screen.count_passed(caller, direction, policy, texts)

    def policy_of(self, caller: Caller) -> str:
        """Name and version of the policy by which a caller's texts are judged."""
        return self._screen.policy_of(caller)

    def output(self, context: RequestContext) -> OutputScreen | None:
        """Judges one choice; None when nothing judges answers, so that streams pay nothing."""
        request = context.request
        if request.kind is MODERATION:
            return None
        screen = self._screen.watch_output(request, context.known_caller, context)
        context.can_wait = screen is not None and screen.can_wait
        return screen


def _look(verdict: "asyncio.Task[Screening]") -> None:
    """A request that ended before its verdict did has nobody who would look at it."""
    if not verdict.cancelled():
        verdict.exception()
