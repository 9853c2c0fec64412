"""Takes one choice's deltas through its screen, in order, off the engine's delivery path."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmhost.core.errors import SafetyUnavailable
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.pipeline.begin import begin
from llmhost.pipeline.voice import Voice
from llmhost.safety.output import OutputScreen, pass_all

if TYPE_CHECKING:
    from llmhost.pipeline.generation import Generation

log = logging.getLogger("llmhost.request")


class ScreenPump:
    """Takes one choice's deltas through its screen, in order, off the engine's delivery path."""

    __slots__ = (
        *("_generation", "_has_failed", "_is_ready", "_passed", "_screen", "_task", "_usage"),
        *("_voice", "_waiting"),
    )

    def __init__(self, screen: OutputScreen, voice: Voice, generation: "Generation") -> None:
        self._screen = screen
        self._voice = voice
        self._generation = generation
        self._has_failed = self._is_ready = False
        """`_is_ready`: it has been looked whether all of its answer passes."""
        self._passed: str | None = None
        self._waiting: deque[Delta] | None = None
        self._usage: Usage | None = None
        """Of the choice, once its last delta is looked at."""
        self._task: asyncio.Task[None] | None = None

    def get_ready(self, told: Sequence[tuple["ScreenPump", Delta]]) -> None:
        """Have answers judged that are all there. The ReadySink port."""
        first = [
            (pump, delta)
            for pump, delta in told
            if pump._task is None and not (pump._has_failed or pump._is_ready)
        ]
        passed = pass_all([(pump._screen, delta.text) for pump, delta in first])
        for (pump, _), text in zip(first, passed, strict=True):
            pump._is_ready, pump._passed = True, text

    def __call__(self, delta: Delta) -> None:
        if self._has_failed:
            self._generation.lose(delta)
        elif self._task is not None or not self._is_taken_now(delta):
            self._wait(delta)

    def _is_taken_now(self, delta: Delta) -> bool:
        """Most text is only held back until there is more of it, or is all of an answer with nothing in it."""
        screen, voice = self._screen, self._voice
        if delta.finish_reason is None:
            if not screen.hold(delta.text):
                return False
            if delta.tokens:
                voice.hear(delta.but(text=""))
            return True
        try:
            text = self._passed if self._is_ready else screen.pass_whole(delta.text)
        except Exception:  # noqa: BLE001 - nobody would end the choice here; `_run` does, if it meets the same
            return False
        if text is None:
            return False
        voice.hear(delta if text == delta.text else delta.but(text=text))
        return True

    def _wait(self, delta: Delta) -> None:
        """Have it judged by whoever has to be waited for."""
        if self._waiting is None:
            self._waiting = deque()
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

    async def _run(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            delta = self._waiting.popleft()
            self._usage = delta.usage
            was_refused = self._screen.is_refused
            text = "" if was_refused else await self._screen.push(delta.text)
            if delta.finish_reason is not None:
                self._voice.hear(await self._last(delta, text, was_refused=was_refused))
            elif self._screen.is_refused:
                self._stop()  # what still comes is surplus; the last delta brings the usage
            elif text or delta.tokens:
                self._voice.hear(delta.but(text=text, cuts=self._screen.take_cuts()))
        self._task = None

    def _check_end(self, task: "asyncio.Task[None]") -> None:
        """A screen that fails, fails closed: the choice ends, or its stream would wait for ever."""
        if task.cancelled() or (failure := task.exception()) is None:
            return
        if not isinstance(failure, SafetyUnavailable):
            log.error("screen.failed choice=%d", self._voice.index, exc_info=failure)
        self._has_failed = True
        while self._waiting:
            self._generation.lose(self._waiting.popleft())
        self._stop()
        error = SafetyUnavailable("The answer could not be checked, so it was ended. Try again.")
        last = Delta(
            self._voice.index, finish_reason=FinishReason.ERROR, usage=self._usage, error=error
        )
        self._voice.hear(last)

    def _stop(self) -> None:
        self._generation.cancel_choice(self._voice.index)

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
