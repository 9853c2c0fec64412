"""The decision of each step, as a pure function: who gets how many tokens of the next forward pass.

Running sequences first, then waiting ones in the order in which they come. Whoever only decodes has a token set aside
before a prompt takes its chunk, so a long prompt stalls nobody; guesses come on top where there is room. KV room is
promised to a sequence for all its known tokens before it is admitted, so admission alone never causes a preemption;
only growth does, and the last of the running gives way.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct


class Work(Protocol):
    """What the plan must know of a sequence."""

    @property
    def seq_id(self) -> int: ...
    @property
    def fed(self) -> int:
        """Tokens whose keys and values are in the cache, or will be once what runs is done."""
        ...

    @property
    def todo(self) -> int:
        """Tokens to feed, guesses among them."""
        ...

    @property
    def drafts(self) -> int:
        """Of `todo`, guesses: they may be left out."""
        ...

    @property
    def held(self) -> int: ...
    @property
    def is_atomic(self) -> bool:
        """All of it in one step or none, and without KV blocks."""
        ...


class Hit(Struct, frozen=True, gc=False):
    """The part of a waiting sequence that need not be computed."""

    tokens: int = 0
    blocks: int = 0
    kept_blocks: int = 0
    """Of `blocks`, those that are free until they are shared."""


NO_HIT = Hit()

Lookup = Callable[[Work], Hit | None]
"""What is known of a waiting sequence's text; None when it should wait, because another is computing it right now."""


Freed = Callable[[Work], int]
"""Blocks that are free for certain once a sequence gives back its own: others may hold some of them too."""


def _no_lookup(_: Work) -> Hit:
    return NO_HIT


def _all_held(work: Work) -> int:
    return work.held


class Budget(NamedTuple):
    """The limits of one step."""

    tokens: int
    sequences: int
    """Most sequences that may be running after this step's admissions."""
    free_blocks: int
    block_tokens: int
    watermark_blocks: int = 0
    """Blocks that admission leaves free for the growth of what runs."""
    prompt_tokens: int | None = None
    """Most tokens of prompts, so that who decodes isn't kept waiting; None for no such limit."""


class StepPlan(NamedTuple):
    """`grants` are (seq_id, tokens to feed), admitted sequences among them."""

    grants: tuple[tuple[int, int], ...] = ()
    admitted: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()
    short_of: str | None = None
    """Why the next waiting sequence waits: "tokens", "sequences" or "blocks"."""


def plan_step(
    running: Sequence[Work],
    waiting: Iterable[Work],
    budget: Budget,
    lookup: Lookup = _no_lookup,
    freed: Freed = _all_held,
) -> StepPlan:
    """Share one forward pass. `running` comes in key order, `waiting` in the order of admission."""
    sharing = _Sharing(running, budget, freed)
    sharing.grant_running()
    short_of = None if sharing.preempted else sharing.admit(waiting, lookup)
    return StepPlan(
        tuple(sharing.grants), tuple(sharing.admitted), tuple(sharing.preempted), short_of
    )


class _Sharing:
    """What is left while one plan is made."""

    def __init__(self, running: Sequence[Work], budget: Budget, freed: Freed) -> None:
        self.running = running
        self.freed = freed
        self.budget = budget
        self.tokens = budget.tokens
        self.prompt_tokens = budget.tokens if budget.prompt_tokens is None else budget.prompt_tokens
        self.free = budget.free_blocks
        self.kept = len(running)  # the preempted are the tail of `running`
        self.decodes = [not work.is_atomic and work.todo - work.drafts == 1 for work in running]
        self.decoders = sum(self.decodes)  # not granted yet: a token each
        self.grants: list[tuple[int, int]] = []
        self.admitted: list[int] = []
        self.preempted: list[int] = []

    def grant_running(self) -> None:
        size = self.budget.block_tokens
        for place, (work, is_decoder) in enumerate(zip(self.running, self.decodes, strict=True)):
            if place >= self.kept:
                return
            if is_decoder:
                self.decoders -= 1
                if self.tokens and not work.drafts and work.fed < work.held * size:
                    self.tokens -= 1  # by far the most common: one token into a block that it has
                    self.grants.append((work.seq_id, 1))
                else:
                    self._grant(place, work, self._decode_share(work))
            elif work.is_atomic:
                self._grant_whole(work)
            else:
                room = min(self.tokens - self.decoders, self.prompt_tokens)
                share = min(work.todo - work.drafts, max(room, 0))
                self.prompt_tokens -= self._grant(place, work, share)

    def _decode_share(self, work: Work) -> int:
        """A token, and guesses as far as nobody has to give way for them."""
        if self.tokens == 0:
            return 0
        if work.drafts == 0:
            return 1
        share = max(min(work.todo, self.tokens - self.decoders), 1)
        if self._missing(work, share) > self.free:
            share = (work.held + self.free) * self.budget.block_tokens - work.fed
        return max(share, 1)

    def _grant(self, place: int, work: Work, share: int) -> int:
        missing = self._missing(work, share)
        if missing > self.free:
            share = self._make_room(place, work, share)
            missing = self._missing(work, share)
        if share:
            self._take(work, share, missing)
        return share

    def _make_room(self, place: int, work: Work, share: int) -> int:
        """Preempt from the end until `work` can have its share. A prefill chunk may shrink to the room there is."""
        while self._missing(work, share) > self.free:
            if place < self.kept - 1:
                self._preempt_last()
            else:
                share = (work.held + self.free) * self.budget.block_tokens - work.fed
                if share == 0:
                    self._preempt_last()
        return share

    def _preempt_last(self) -> None:
        self.kept -= 1
        work = self.running[self.kept]
        self.preempted.append(work.seq_id)
        self.free += self.freed(work)

    def _missing(self, work: Work, share: int) -> int:
        """Blocks that `work` must be given to have room for `share` more tokens."""
        missing = -(-(work.fed + share) // self.budget.block_tokens) - work.held
        return missing if missing > 0 else 0

    def _take(self, work: Work, share: int, missing: int) -> None:
        self.free -= missing
        self.tokens -= share
        self.grants.append((work.seq_id, share))

    def admit(self, waiting: Iterable[Work], lookup: Lookup) -> str | None:
        """Take in the next ones in order; returns why one waits.

        Tokens are left here only when all that run got theirs, so no room that a running prompt needs is given away.
        """
        room = self.budget.sequences - len(self.running)
        for work in waiting:
            if room <= 0:
                return "sequences"
            if self.tokens == 0 or self.prompt_tokens <= 0:
                return "tokens"
            hit = lookup(work)
            if hit is None:
                continue
            short_of = self._admit_whole(work) if work.is_atomic else self._admit(work, hit)
            if short_of is not None:
                return short_of
            self.admitted.append(work.seq_id)
            room -= 1
        return None

    def _admit(self, work: Work, hit: Hit) -> str | None:
        is_alone = not self.running and not self.admitted
        spare = self.free - (0 if is_alone else self.budget.watermark_blocks)
        known = work.fed + work.todo - work.drafts
        if self._blocks(known) - hit.blocks + hit.kept_blocks > spare:
            return "blocks"
        share = min(known - hit.tokens, self.tokens, self.prompt_tokens)
        self.prompt_tokens -= share
        self._take(work, share, self._blocks(hit.tokens + share) - hit.blocks + hit.kept_blocks)
        return None

    def _admit_whole(self, work: Work) -> str | None:
        return None if self._grant_whole(work) else "tokens"

    def _grant_whole(self, work: Work) -> bool:
        """A text that is computed in one step. One that is longer than any step may be has a step of its own."""
        if work.todo > min(self.tokens, self.prompt_tokens) and self.grants:
            return False
        share = work.todo
        self.grants.append((work.seq_id, share))
        self.tokens = max(self.tokens - share, 0)
        self.prompt_tokens -= share
        return True

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.budget.block_tokens)
