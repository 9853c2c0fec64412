"""Takes one choice's deltas through its screen, in order, off the engine's delivery path."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from llmhost.core.errors import SafetyUnavailable
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.pipeline.begin import begin
from llmhost.safety.output import OutputScreen

log = logging.getLogger("llmhost.request")


class ScreenPump:
    """Takes one choice's deltas through its screen, in order, off the engine's delivery path."""

    def __init__(
        self,
        index: int,
        screen: OutputScreen,
        publish: Callable[[Delta], None],
        stop: Callable[[], None],
        lose: Callable[[Delta], None],
    ) -> None:
        self._index = index
        self._screen = screen
        self._publish = publish
        self._stop = stop
        self._lose = lose
        self._waiting: deque[Delta] = deque()
        self._usage: Usage | None = None
        """Of the choice, once its last delta is looked at."""
        self._has_failed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def held_by(self) -> str | None:
        """The review that this choice waits for."""
        return self._screen.held_by

    def push(self, delta: Delta) -> None:
        """Most text is only held back until there is more of it, for which no task need wake."""
        if self._has_failed:
            self._lose(delta)
            return
        is_last = delta.finish_reason is not None
        if self._task is None:
            if not is_last and self._screen.hold(delta.text):
                if delta.tokens:
                    self._publish(delta.but(text=""))
                return
            if is_last and (text := self._passed_whole(delta.text)) is not None:
                self._publish(delta if text == delta.text else delta.but(text=text))
                return
        self._waiting.append(delta)
        if self._task is not None:
            return
        running = self._run()
        if self._screen.has_guard:
            self._task = asyncio.create_task(running)
        elif (left := begin(running)) is None:
            return
        else:
            self._task = left
        self._task.add_done_callback(self._check_end)

    def _passed_whole(self, text: str) -> str | None:
        try:
            return self._screen.pass_whole(text)
        except Exception:  # noqa: BLE001 - nobody would end the choice here; `_run` does, if it meets the same
            return None

    async def _run(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            delta = self._waiting.popleft()
            self._usage = delta.usage
            was_refused = self._screen.is_refused
            text = "" if was_refused else await self._screen.push(delta.text)
            if delta.finish_reason is not None:
                self._publish(await self._last(delta, text, was_refused=was_refused))
            elif self._screen.is_refused:
                self._stop()  # what still comes is surplus; the last delta brings the usage
            elif text or delta.tokens:
                self._publish(delta.but(text=text, cuts=self._screen.take_cuts()))
        self._task = None

    def _check_end(self, task: "asyncio.Task[None]") -> None:
        """A screen that fails, fails closed: the choice ends, or its stream would wait for ever."""
        if task.cancelled() or (failure := task.exception()) is None:
            return
        if not isinstance(failure, SafetyUnavailable):
            log.error("screen.failed choice=%d", self._index, exc_info=failure)
        self._has_failed = True
        while self._waiting:
            self._lose(self._waiting.popleft())
        self._stop()
        error = SafetyUnavailable("The answer could not be checked, so it was ended. Try again.")
        last = Delta(self._index, finish_reason=FinishReason.ERROR, usage=self._usage, error=error)
        self._publish(last)

    async def _last(self, delta: Delta, text: str, *, was_refused: bool) -> Delta:
        """A choice that failed or was left has ended so, whatever is found in its last words: they are kept back."""
        is_cut = delta.finish_reason in (FinishReason.CANCELLED, FinishReason.ERROR)
        if not self._screen.is_refused:
            text += await self._screen.finish(is_cut=is_cut)
        cuts = self._screen.take_cuts()
        if self._screen.is_refused and (was_refused or not is_cut):
            reason = FinishReason.CONTENT_FILTER
            return delta.but(text=text, finish_reason=reason, error=None, cuts=cuts)
        return delta.but(text=text, cuts=cuts)
