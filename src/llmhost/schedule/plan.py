"""The decision of each step, as a pure function: who gets how many tokens of the next forward pass.

Running sequences first, those that only decode before those still prefilling, then waiting ones in order. KV room is
promised to a sequence for all its known tokens before it is admitted, so admission alone never causes a preemption;
only growth does, and then the sequence with the largest key gives way.
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
        self.promised = 0  # blocks that admitted prompts will still take
        self.grants: list[tuple[int, int]] = []
        self.admitted: list[int] = []
        self.preempted: list[int] = []
        self._settled: set[int] = set()  # granted or preempted in this plan
        self._next_victim = len(running) - 1

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.budget.block_tokens)

    def grant_running(self) -> None:
        for wants_prefill in (False, True):
            for work in self.running:
                if (work.todo > 1) is wants_prefill and work.seq_id not in self._settled:
                    self._grant(work)

    def _grant(self, work: Work) -> None:
        share = min(work.todo, self.tokens)
        while share and self._blocks(work.computed + share) - work.held > self.free:
            victim = self._worst_unsettled()
            if victim is work:
                share = self._what_fits(work, share)
                if share == 0:
                    self._preempt(work)
                    return
                break
            self._preempt(victim)
        if share:
            self._take(work, share)
            self._settled.add(work.seq_id)
        self.promised += self._blocks(work.computed + work.todo) - max(
            work.held, self._blocks(work.computed + share)
        )

    def _what_fits(self, work: Work, share: int) -> int:
        """A prefill chunk may shrink to the room there is; a decode can't."""
        if work.todo == 1:
            return 0
        room = (work.held + self.free) * self.budget.block_tokens - work.computed
        return max(min(share, room), 0)

    def _worst_unsettled(self) -> Work:
        """The running sequence with the largest key that this plan has not granted or preempted yet."""
        while self.running[self._next_victim].seq_id in self._settled:
            self._next_victim -= 1
        return self.running[self._next_victim]

    def _preempt(self, work: Work) -> None:
        self.preempted.append(work.seq_id)
        self._settled.add(work.seq_id)
        self.free += work.held

    def _take(self, work: Work, share: int) -> None:
        self.free -= max(self._blocks(work.computed + share) - work.held, 0)
        self.tokens -= share
        self.grants.append((work.seq_id, share))

    def admit(self, waiting: Sequence[Work]) -> str | None:
        room = self.budget.sequences - len(self.running)
        for work in waiting:
            if room == 0:
                return "sequences"
            if self.tokens == 0:
                return "tokens"
            needed = self._blocks(work.computed + work.todo) - work.held
            spare = self.free - self.promised
            is_alone = not self.running and not self.admitted
            if needed > spare - (0 if is_alone else self.budget.watermark_blocks):
                return "blocks"
            share = min(work.todo, self.tokens)
            before = self.free
            self._take(work, share)
            self.promised += needed - (before - self.free)
            self.admitted.append(work.seq_id)
            room -= 1
        return None
