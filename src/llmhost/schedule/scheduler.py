"""The scheduler: `plan -> run -> absorb`. It owns sequences and KV books; no torch, no thread, no clock.

A caller adds sequences, asks for a plan, has it run, and hands the result back. Between two plans it may cancel,
resize or export. Every sequence that was added ends in exactly one last delta.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

from llmhost.core.errors import EngineFailed, LlmhostError
from llmhost.core.output import Delta, FinishReason
from llmhost.core.ports import EngineLoad, TextWatch
from llmhost.core.request import SequenceSpec
from llmhost.core.step import Row, StepResult
from llmhost.schedule.kv_books import KvBooks
from llmhost.schedule.plan import Budget, StepPlan, plan_step
from llmhost.schedule.sequence import Sequence

Emission = tuple[int, Delta]
"""A sequence's id and what it has to say."""

_by_key = attrgetter("key")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Limits of one model's steps; `kv_blocks` comes from the memory lease."""

    max_batch_size: int
    max_tokens_per_batch: int
    max_sequence_length: int
    kv_blocks: int
    block_tokens: int
    watermark_share: float = 0.02
    """Part of the KV blocks that admission leaves free for growth."""


class Scheduler:
    """State machine of one engine loop."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.books = KvBooks(limits.kv_blocks, limits.block_tokens)
        self.operator_ns = 0
        """Device time that no caller pays for: recomputed prefill after preemptions."""
        self.preemptions = 0
        self.steps = 0
        self._sequences: dict[int, Sequence] = {}
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def longest_tokens(self) -> int:
        """Most tokens that one sequence can have, by the model's limit and by KV room."""
        return min(self.limits.max_sequence_length, self.books.capacity_tokens)

    def load(self) -> EngineLoad:
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_used=self.books.total - self.books.free,
            kv_blocks_total=self.books.total,
            steps=self.steps,
            preemptions=self.preemptions,
            operator_ns=self.operator_ns,
        )

    def add(self, seq_id: int, spec: SequenceSpec, watch: TextWatch) -> Emission | None:
        """Queue a sequence; one without room for a single token more ends now, with `length`.

        The door has checked the length against the limits of its time; they may have shrunk since.
        """
        assert spec.prompt, "a sequence without a prompt has nothing to draw from"
        sequence = Sequence.start(seq_id, spec, watch)
        self._sequences[seq_id] = sequence
        insort(self._waiting, sequence, key=_by_key)
        if self._has_no_room(sequence):
            return self._end(seq_id, FinishReason.LENGTH)
        return None

    def cancel(self, seq_id: int) -> Emission | None:
        """End a sequence now. None if it has ended already."""
        return self._end(seq_id, FinishReason.CANCELLED)

    def fail(self, seq_ids: Iterable[int], error: LlmhostError) -> list[Emission]:
        """End sequences with an error, giving back what they hold."""
        return self._end_all(seq_ids, FinishReason.ERROR, error)

    def export(self) -> list[tuple[int, SequenceSpec]]:
        """Every sequence as data, in the order in which they would run."""
        everyone = sorted(self._sequences.values(), key=_by_key)
        return [(s.seq_id, s.export()) for s in everyone]

    def ids(self) -> list[int]:
        return list(self._sequences)

    def resize_kv(self, blocks: int) -> list[Emission]:
        """Change the KV lease. Who holds a block that goes is preempted; who can never fit again ends here."""
        for sequence in [s for s in self._running if any(b >= blocks for b in s.blocks)]:
            self._preempt(sequence)
        self.books.resize(blocks)
        self.limits = replace(self.limits, kv_blocks=blocks)
        too_long = [s.seq_id for s in self._sequences.values() if self._has_no_room(s)]
        return self._end_all(too_long, FinishReason.LENGTH)

    def plan(self) -> list[Row]:
        """The next step's rows, with their blocks taken; empty when nothing can run."""
        plan = plan_step(self._running, self._waiting, self._budget())
        self._requeue(plan)
        return [self._row(self._sequences[seq_id], share) for seq_id, share in plan.grants]

    def absorb(self, result: StepResult) -> list[Emission]:
        """Take a step's tokens into their sequences; what each of them has to say, in row order.

        A sequence that ended while the step ran is skipped: its token is surplus and belongs to nobody.
        """
        self.steps += 1
        longest = self.longest_tokens
        emissions: list[Emission] = []
        for row, drawn, share_ns in zip(result.rows, result.drawn, result.shares_ns, strict=True):
            sequence = self._sequences.get(row.seq_id)
            if sequence is None:
                self.operator_ns += share_ns
                continue
            self._charge(sequence, row, share_ns)
            if isinstance(drawn, EngineFailed):
                emissions += self.fail([row.seq_id], drawn)
                continue
            assert (drawn is not None) is row.wants_token, "a token where none was wanted, or none"
            if isinstance(drawn, int):
                emissions.append((row.seq_id, self._accept(sequence, drawn, longest)))
        return emissions

    def check(self) -> None:
        """Audit: the KV books balance and every sequence is in exactly one queue."""
        self.books.check(s.blocks for s in self._sequences.values())
        queued = [*self._running, *self._waiting]
        assert {s.seq_id for s in queued} == set(self._sequences), "a sequence is in no queue"
        assert len(queued) == len(self._sequences), "a sequence is in two queues"
        assert not any(s.blocks for s in self._waiting), "a waiting sequence holds blocks"

    def _budget(self) -> Budget:
        return Budget(
            tokens=self.limits.max_tokens_per_batch,
            sequences=self.limits.max_batch_size,
            free_blocks=self.books.free,
            block_tokens=self.limits.block_tokens,
            watermark_blocks=int(self.books.total * self.limits.watermark_share),
        )

    def _requeue(self, plan: StepPlan) -> None:
        for seq_id in plan.preempted:
            self._preempt(self._sequences[seq_id])
        if plan.admitted:
            del self._waiting[: len(plan.admitted)]
            for seq_id in plan.admitted:
                insort(self._running, self._sequences[seq_id], key=_by_key)

    def _row(self, sequence: Sequence, share: int) -> Row:
        """The grant as a row, with the blocks that it needs taken."""
        start, end = sequence.computed, sequence.computed + share
        needed = self.books.blocks_for(end) - sequence.held
        if needed > 0:
            sequence.blocks += self.books.take(needed)
        return Row(
            sequence.seq_id,
            sequence.tokens[start:end],
            start,
            sequence.blocks,
            sequence.spec.sampling,
            sequence.spec.seed,
            end == len(sequence.tokens),
            sequence.spec.purpose,
        )

    def _charge(self, sequence: Sequence, row: Row, share_ns: int) -> None:
        is_repeated = row.start < sequence.high_water
        end = row.start + len(row.tokens)
        if sequence.blocks:  # else it was preempted while the step ran: nothing of it is kept
            sequence.computed = end
        sequence.high_water = max(sequence.high_water, end)
        if is_repeated:
            self.operator_ns += share_ns
        else:
            sequence.engine_ns += share_ns

    def _accept(self, sequence: Sequence, token: int, longest: int) -> Delta:
        delta = sequence.accept(token)
        if delta.finish_reason is None and len(sequence.tokens) >= longest:
            delta = sequence.end(FinishReason.LENGTH, text=delta.text, tokens=delta.tokens)
        if delta.finish_reason is not None:
            self._remove(sequence)
        return delta

    def _has_no_room(self, sequence: Sequence) -> bool:
        return len(sequence.tokens) >= min(self.longest_tokens, sequence.most_tokens)

    def _end_all(
        self, seq_ids: Iterable[int], reason: FinishReason, error: LlmhostError | None = None
    ) -> list[Emission]:
        ended = (self._end(seq_id, reason, error) for seq_id in list(seq_ids))
        return [emission for emission in ended if emission is not None]

    def _end(
        self, seq_id: int, reason: FinishReason, error: LlmhostError | None = None
    ) -> Emission | None:
        sequence = self._sequences.get(seq_id)
        if sequence is None:
            return None
        self._remove(sequence)
        return seq_id, replace(sequence.end(reason), error=error)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.seq_id]
        queue = self._running if sequence in self._running else self._waiting
        queue.remove(sequence)
        self.books.give_back(sequence.blocks)
        sequence.blocks = []

    def _preempt(self, sequence: Sequence) -> None:
        """Preemption by recompute: the blocks go back, the tokens stay, the prefill is done again later."""
        self._running.remove(sequence)
        self.books.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
        insort(self._waiting, sequence, key=_by_key)
        self.preemptions += 1
