"""Where a loaded model sleeps: its weights in host memory, its KV cache given back, and nothing of it found any more.

It runs on the engine's thread, between two steps, when no sequence is left.
"""

from typing import cast

from llmhost.core.ports import Runner, SleepingRunner
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.scheduler import Scheduler


class Bed:
    """Puts the parts of one engine to sleep, and wakes them."""

    def __init__(self, runner: Runner, scheduler: Scheduler, guesser: Guesser | None) -> None:
        self._runner = cast(SleepingRunner, runner)
        self._scheduler = scheduler
        self._guesser = guesser
        self._blocks = 0
        """The KV lease that comes back."""
        self._is_asleep = False

    def lie_down(self) -> None:
        """Idempotent. Raises what the runner raises, and then all is as before."""
        assert self._runner.facts.can_sleep, "this runner can't sleep"
        if self._is_asleep:
            return
        assert not self._scheduler.has_work, "a sequence would never end"
        self._blocks = self._scheduler.books.total
        self._scheduler.forget_texts()
        self._scheduler.resize_kv(0)
        try:
            self._runner.set_kv_blocks(0)
            self._runner.sleep()
            if self._guesser is not None:
                self._guesser.sleep()
        except BaseException:
            self._runner.wake()  # in case that it slept already
            self._runner.set_kv_blocks(self._blocks)
            self._scheduler.resize_kv(self._blocks)
            raise
        self._is_asleep = True

    def get_up(self) -> None:
        """Idempotent. Raises what the runner raises, and then all of it sleeps on."""
        if not self._is_asleep:
            return
        self._runner.wake()
        try:
            self._runner.set_kv_blocks(self._blocks)
            if self._guesser is not None:
                self._guesser.wake()
        except BaseException:
            self._runner.set_kv_blocks(0)
            self._runner.sleep()
            raise
        self._scheduler.resize_kv(self._blocks)
        self._is_asleep = False
