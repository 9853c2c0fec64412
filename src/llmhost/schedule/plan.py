"""The decision of each step, as a pure function: who gets how many tokens of the next forward pass.

Running sequences first, then waiting ones, each in key order. Whoever only decodes has a token set aside before a
prompt takes its chunk, so a long prompt stalls nobody. KV room is promised to a sequence for all its known tokens
before it is admitted, so admission alone never causes a preemption; only growth does, and the largest key gives way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Work(Protocol):
    """What the plan must know of a sequence."""

    @property
    def seq_id(self) -> int: ...
    @property
    def key(self) -> tuple[int, int, int]: ...
    @property
    def computed(self) -> int: ...
    @property
    def todo(self) -> int: ...
    @property
    def held(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one step."""

    tokens: int
    sequences: int
    """Most sequences that may be running after this step's admissions."""
    free_blocks: int
    block_tokens: int
    watermark_blocks: int = 0
    """Blocks that admission leaves free for the growth of what runs."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """`grants` are (seq_id, tokens to feed), admitted sequences among them."""

    grants: tuple[tuple[int, int], ...] = ()
    admitted: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()
    short_of: str | None = None
    """Why the next waiting sequence waits: "tokens", "sequences" or "blocks"."""


def plan_step(running: Sequence[Work], waiting: Sequence[Work], budget: Budget) -> StepPlan:
    """Share one forward pass. Both lists come in key order."""
    sharing = _Sharing(running, budget)
    sharing.grant_running()
    short_of = None if sharing.preempted else sharing.admit(waiting)
    return StepPlan(
        tuple(sharing.grants), tuple(sharing.admitted), tuple(sharing.preempted), short_of
    )


class _Sharing:
    """What is left while one plan is made."""

    def __init__(self, running: Sequence[Work], budget: Budget) -> None:
        self.running = running
        self.budget = budget
        self.tokens = budget.tokens
        self.free = budget.free_blocks
        self.kept = len(running)  # the preempted are the tail of `running`
        self.decoders = sum(work.todo == 1 for work in running)  # not granted yet: a token each
        self.grants: list[tuple[int, int]] = []
        self.admitted: list[int] = []
        self.preempted: list[int] = []

    def grant_running(self) -> None:
        for place, work in enumerate(self.running):
            if place >= self.kept:
                return
            todo = work.todo
            if todo == 1:
                self.decoders -= 1
                self._grant(place, work, 1 if self.tokens else 0)
            else:
                self._grant(place, work, min(todo, max(self.tokens - self.decoders, 0)))

    def _grant(self, place: int, work: Work, share: int) -> None:
        missing = self._missing(work, share)
        if missing > self.free:
            share = self._make_room(place, work, share)
            missing = self._missing(work, share)
        if share:
            self._take(work, share, missing)

    def _make_room(self, place: int, work: Work, share: int) -> int:
        """Preempt from the end until `work` can have its share. A prefill chunk may shrink to the room there is."""
        while self._missing(work, share) > self.free:
            if place < self.kept - 1:
                self._preempt_last()
            else:
                share = (work.held + self.free) * self.budget.block_tokens - work.computed
                if share == 0:
                    self._preempt_last()
        return share

    def _preempt_last(self) -> None:
        self.kept -= 1
        work = self.running[self.kept]
        self.preempted.append(work.seq_id)
        self.free += work.held

    def _missing(self, work: Work, share: int) -> int:
        """Blocks that `work` must be given to have room for `share` more tokens."""
        missing = -(-(work.computed + share) // self.budget.block_tokens) - work.held
        return missing if missing > 0 else 0

    def _take(self, work: Work, share: int, missing: int) -> None:
        self.free -= missing
        self.tokens -= share
        self.grants.append((work.seq_id, share))

    def admit(self, waiting: Sequence[Work]) -> str | None:
        """Take in the next ones in order; returns why one waits.

        Tokens are left here only when all that run got theirs, so no room that a running prompt needs is given away.
        """
        room = self.budget.sequences - len(self.running)
        for work in waiting:
            if room <= 0:
                return "sequences"
            if self.tokens == 0:
                return "tokens"
            is_alone = not self.running and not self.admitted
            spare = self.free - (0 if is_alone else self.budget.watermark_blocks)
            if self._missing(work, work.todo) > spare:
                return "blocks"
            share = min(work.todo, self.tokens)
            self._take(work, share, self._missing(work, share))
            self.admitted.append(work.seq_id)
            room -= 1
        return None
