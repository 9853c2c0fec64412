"""The scheduler: `plan -> run -> absorb`. It owns sequences and KV books; no torch, no thread, no clock.

A caller adds sequences, asks for a plan, has it run, and hands the result back. Between two plans it may cancel,
resize or export. Every sequence that was added ends in exactly one last delta. Times are handed in, on one clock.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from heapq import heappop, heappush
from itertools import repeat
from operator import attrgetter

from llmhost.core.errors import DeadlineExceeded, EngineFailed, LlmhostError
from llmhost.core.output import Delta, FinishReason
from llmhost.core.ports import DraftAsk, EngineLoad, TextWatch
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import DecodeRows, Drawn, GrammarState, KvMove, Row, StepResult
from llmhost.schedule.accounts import Accounts
from llmhost.schedule.kv_books import KvBooks
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.patience import prompt_budget
from llmhost.schedule.plan import Budget, Hit, StepPlan, Work, plan_step
from llmhost.schedule.predictor import StepPredictor, StepWork, work_of
from llmhost.schedule.rows import next_row, row_of
from llmhost.schedule.saying import has_no_room, say
from llmhost.schedule.sequence import NOWHERE, Sequence
from llmhost.schedule.sequence_kv import SequenceKv
from llmhost.schedule.steady import Chorus, Convoy, decode_rows, depart, may_be_convoy, take_decoded
from llmhost.schedule.together import begin_together, rows_together, take_fresh
from llmhost.schedule.waiting import FairShares, WaitingQueue

Emission = tuple[int, Delta]
"""A sequence's id and what it has to say."""

_by_key = attrgetter("key")


class Scheduler:
    """State machine of one engine loop."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.books = KvBooks(limits.kv_blocks, limits.block_tokens, limits.host_kv_blocks)
        self.kv = SequenceKv(self.books, is_kept=limits.prefix_cache)
        self.longest_tokens = min(limits.max_sequence_length, self.books.capacity_tokens)
        """Most tokens that one sequence can have, by the model's limit and by KV room."""
        self.predictor = StepPredictor()
        self.accounts = Accounts()
        self.preemptions = 0
        self.steps = 0
        self._sequences: dict[int, Sequence] = {}
        self._running: list[Sequence] = []
        self._waiting = WaitingQueue()
        self._shares = FairShares()
        self._deadlines: list[tuple[int, int]] = []
        self._ns_per_token = 0.0
        self._intricate = 0
        """Sequences whose next step can't be made before their last token is known."""
        self._formal = 0
        """Sequences with a grammar, whether it holds them at the moment or not."""
        self._convoy: Convoy | None = None
        self._has_drafts = False
        """The next step checks guesses."""
        self.is_held_up = False
        """The last plan came to nothing, and the next one will, until something is added, allowed or ended: whoever
        is here waits for payment, or for the room of somebody who does."""

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def running(self) -> int:
        """Sequences that have been admitted."""
        return len(self._running)

    @property
    def next_deadline_ns(self) -> int | None:
        """When `expire` may have somebody to end."""
        return self._deadlines[0][0] if self._deadlines else None

    def load(self) -> EngineLoad:
        books, kv, accounts = self.books, self.kv, self.accounts
        return EngineLoad(  # after each step, and by names it would take four times as long
            len(self._running),
            len(self._waiting),
            books.total - books.free,
            books.total,
            self.steps,
            self.preemptions,
            accounts.operator_ns,
            accounts.callers_nano,
            accounts.operator_nano,
            accounts.probe_nano,
            0.0,
            kv.query_tokens,
            kv.hit_tokens,
            books.known,
            books.evicted,
            kv.host_hit_tokens,
            books.host.used,
        )

    # ------------------------------------------------------------ coming and going

    def add(
        self,
        seq_id: int,
        spec: SequenceSpec,
        watch: TextWatch,
        grammar: GrammarState | None = None,
    ) -> Emission | None:
        """Queue a sequence; one without room for a single token more ends now, with `length`.

        The door has checked the length against the limits of its time; they may have shrunk since.
        """
        ended = self.let_in([Sequence.start(seq_id, spec, watch, grammar)])
        return ended[0] if ended else None

    def let_in(self, sequences: Seq[Sequence]) -> list[Emission]:
        """Queue some that have just been started; those end at once that have no room."""
        self._part()
        longest, known = self.longest_tokens, self._sequences
        full: list[int] = []
        for sequence in sequences:
            sequence.halt(longest)
            known[sequence.seq_id] = sequence
            self._intricate += not sequence.goes_ahead
            self._formal += sequence.grammar is not None
            is_short = len(sequence.tokens) < sequence.halts_at != NOWHERE
            if not is_short and self._is_full(sequence):
                full.append(sequence.seq_id)
            elif (deadline_ns := sequence.spec.deadline_ns) is not None:
                heappush(self._deadlines, (deadline_ns, sequence.seq_id))
        self._shares.join(*[sequence.spec.tenant for sequence in sequences])
        self._waiting.add(*sequences)
        self.kv.join(sequences)
        return self._end_all(full, FinishReason.LENGTH) if full else []

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> Emission | None:
        """More tokens of a sequence are paid for; its end, if it has made all that ever will be."""
        sequence = self._sequences.get(seq_id)
        if sequence is None:
            return None
        self._part()
        sequence.allow(held_tokens, is_final=is_final)
        if self._is_full(sequence):
            return self._end(seq_id, FinishReason.LENGTH)
        sequence.halt(self.longest_tokens)
        return None

    def cancel(self, seq_id: int) -> Emission | None:
        """End a sequence now. None if it has ended already."""
        return self._end(seq_id, FinishReason.CANCELLED)

    def expire(self, now_ns: int) -> list[Emission]:
        """End the sequences whose deadline has passed."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            late.append(heappop(self._deadlines)[1])
        if not late:
            return []
        error = DeadlineExceeded("The answer was not complete before its deadline.")
        return self._end_all(late, FinishReason.ERROR, error)

    def fail(self, seq_ids: Iterable[int], error: LlmhostError) -> list[Emission]:
        """End sequences with an error, giving back what they hold."""
        return self._end_all(seq_ids, FinishReason.ERROR, error)

    def export(self) -> list[tuple[int, SequenceSpec]]:
        """Every sequence as data, in the order in which they would run."""
        self._part()
        everyone = sorted(self._sequences.values(), key=_by_key)
        return [(s.seq_id, s.export()) for s in everyone]

    def ids(self) -> list[int]:
        return list(self._sequences)

    def preempt(self, seq_ids: Iterable[int]) -> None:
        """Have running sequences wait again. What they hold stays to be found, for as long as there is room."""
        self._part()
        for seq_id in list(seq_ids):
            sequence = self._sequences.get(seq_id)
            if sequence is not None and sequence in self._running:
                self._preempt(sequence)

    def resize_kv(self, blocks: int) -> list[Emission]:
        """Change the KV lease. Who holds a block that goes is preempted; who can never fit again ends here."""
        self._part()
        for sequence in [s for s in self._running if any(b >= blocks for b in s.blocks)]:
            self._preempt(sequence)
        self.books.resize(blocks)
        self.limits = replace(self.limits, kv_blocks=blocks)
        self.longest_tokens = min(self.limits.max_sequence_length, self.books.capacity_tokens)
        for sequence in self._sequences.values():
            sequence.halt(self.longest_tokens)
        too_long = [s.seq_id for s in self._sequences.values() if self._is_full(s)]
        return self._end_all(too_long, FinishReason.LENGTH)

    # ------------------------------------------------------------ guesses

    def draft_asks(self, most: int) -> list[DraftAsk]:
        """Guesses that the next step could check: at most `most` after each sequence that decodes."""
        self._part()
        asks = (sequence.draft_ask(most) for sequence in self._running)
        return [ask for ask in asks if ask is not None]

    def set_drafts(self, drafts: Mapping[int, Seq[int]]) -> None:
        """Have the next step check these guesses, as far as their tokens may be said; of those for a grammar, only
        what it would take."""
        self._part()
        for seq_id, tokens in drafts.items():
            self._sequences[seq_id].guess(tokens)
        self._has_drafts = True

    # ------------------------------------------------------------ plan

    def plan(self, now_ns: int = 0) -> Seq[Row]:
        """The next step's rows, with their blocks taken; empty when nothing can run."""
        preemptions = self.preemptions
        rows = self._plan(now_ns)
        self.is_held_up = not rows and self.preemptions == preemptions
        return rows

    def plan_ahead(self, now_ns: int = 0) -> Seq[Row]:
        """The rows of the step after one that still runs. Their first token may be `PENDING`: what that one draws.

        Empty when nothing can run, or when there is more to know first: what was drawn, or who gives way to whom.
        """
        return [] if self._intricate else self._plan(now_ns, is_ahead=True)

    def unplan(self, rows: Iterable[Row]) -> None:
        """What was planned of these sequences isn't run, or came to nothing: they are planned anew.

        Of several plans for one sequence the last one is given back first.
        """
        self._part()
        for row in rows:
            sequence = self._sequences.get(row.seq_id)
            if sequence is not None and sequence.fed == row.start + len(row.tokens):
                sequence.fed = row.start
                sequence.owed -= row.wants_token

    def _plan(self, now_ns: int, *, is_ahead: bool = False) -> Seq[Row]:
        if not (is_ahead and self._formal) and (steady := self._steady()) is not None:
            return steady
        self._part()
        if not self._running and (begun := self._begin_together()) is not None:
            self._running = begun
            self._has_drafts = False
            return rows_together(begun, self.kv)
        hits: dict[int, Hit] = {}
        about_to: set[int] = set()

        def lookup(work: Work) -> Hit | None:
            sequence = self._sequences[work.seq_id]
            if sequence.is_held_up:
                return None
            hit = self.kv.hit(sequence, about_to)
            if hit is not None:
                hits[work.seq_id] = hit
            return hit

        order = self._waiting.in_order(now_ns, self._shares, self._ns_per_token)
        plan = plan_step(self._running, order, self._budget(), lookup, self._freed)
        if is_ahead and plan.preempted:
            return []
        self._requeue(plan, hits)
        sequences = self._sequences
        rows = self._rows((sequences[seq_id], share) for seq_id, share in plan.grants)
        for sequence in self._running:
            if sequence.draft:
                sequence.draft = ()
        self._has_drafts = False
        return rows

    def _begin_together(self) -> list[Sequence] | None:
        return begin_together(self._waiting, self.kv, self.limits)

    def _rows(self, grants: Iterable[tuple[Sequence, int]]) -> list[Row]:
        kv = self.kv
        return [
            next_row(sequence, kv)
            if share == 1 and sequence.is_plain
            else row_of(sequence, share, kv)
            for sequence, share in grants
        ]

    def _steady(self) -> DecodeRows | None:
        """The next step's rows, where everybody who runs decodes and nobody can be let in."""
        count, limits = len(self._running), self.limits
        if self._has_drafts or not 0 < count <= limits.max_tokens_per_batch:
            return None
        if self._waiting and count < limits.max_batch_size:
            return None
        if self._convoy is not None:
            return self._convoy.plan(self.kv)
        rows = decode_rows(self._running, self.kv)
        if rows is None:
            return None
        if may_be_convoy(rows, self.limits.block_tokens):
            longest, size = self.longest_tokens, self.limits.block_tokens
            self._convoy = Convoy(rows, longest, size, self._learn)
        else:
            depart(rows)
        return rows

    def _part(self) -> None:
        """Have each sequence know what has become of it: somebody is about to look, or to change one."""
        if self._convoy is not None:
            self._convoy.part(self._shares.serve)
            self._convoy = None

    def take_moves(self) -> list[KvMove]:
        """What the runner must move between device and host before it runs the rows of the last plan."""
        return self.kv.take_moves()

    def forget_texts(self) -> None:
        """Have nothing found that was computed until now: what blocks hold is not certain any more."""
        self._part()
        self.kv.forget_texts(self._running)

    def _budget(self) -> Budget:
        return Budget(
            tokens=self.limits.max_tokens_per_batch,
            sequences=self.limits.max_batch_size,
            free_blocks=self.books.free,
            block_tokens=self.limits.block_tokens,
            watermark_blocks=int(self.books.total * self.limits.watermark_share),
            prompt_tokens=prompt_budget(
                self.predictor, self._running, len(self._waiting), self.limits
            ),
        )

    def _freed(self, work: Work) -> int:
        return self.books.count_sole(self._sequences[work.seq_id].blocks)

    def _requeue(self, plan: StepPlan, hits: Mapping[int, Hit]) -> None:
        for seq_id in plan.preempted:
            self._preempt(self._sequences[seq_id])
        for seq_id in plan.admitted:
            self._waiting.remove(self._sequences[seq_id])
            insort(self._running, self._sequences[seq_id], key=_by_key)
            found = len(self._sequences[seq_id].found) * self.limits.block_tokens
            assert found == hits[seq_id].tokens, "it was found before"
        self.kv.begin([self._sequences[seq_id] for seq_id in plan.admitted])

    # ------------------------------------------------------------ absorb

    def absorb(self, result: StepResult) -> Seq[Emission]:
        """Take a step's tokens into their sequences; what each of them has to say, in row order.

        A sequence that ended while the step ran is skipped: its token is surplus and belongs to nobody.
        """
        self.steps += 1
        if (chorus := self._absorb_convoy(result)) is not None:
            return chorus
        self._part()
        self._learn(work_of(result.rows), result.busy_ns)
        shares_nano: Iterable[int] = result.shares_nano() if result.nano else repeat(0)
        shares = zip(result.shares_ns, shares_nano, strict=False)
        if type(result.rows) is DecodeRows:
            return self._absorb_decoded(result.rows, result.drawn, shares)
        return self._absorb_fresh(result.rows, result.drawn, shares)

    def _absorb_convoy(self, result: StepResult) -> Chorus | None:
        if self._convoy is None or not self._convoy.has_made(result.rows):
            return None
        chorus = self._convoy.take(result, self.kv)
        if chorus is not None:
            self.accounts.callers_nano += result.nano
        return chorus

    def _absorb_decoded(
        self, rows: DecodeRows, drawn: Seq[Drawn], shares: Iterable[tuple[int, int]]
    ) -> list[Emission]:
        tenant = self._shares.only
        emissions, ns, nano = take_decoded(
            *(rows, drawn, shares, self.kv),
            longest=self.longest_tokens,
            otherwise=self._absorb,
            serve=self._shares.serve if tenant is None else None,
        )
        self.accounts.callers_nano += nano
        if tenant is not None:
            self._shares.serve(tenant, ns)
        return emissions

    def _absorb_fresh(
        self, rows: Seq[Row], drawn: Seq[Drawn], shares: Iterable[tuple[int, int]]
    ) -> list[Emission]:
        tenant = self._shares.only
        taken = take_fresh(
            *(rows, drawn, shares, self._sequences, self.kv),
            longest=self.longest_tokens,
            otherwise=self._absorb,
            serve=self._shares.serve if tenant is None else None,
        )
        self.accounts.callers_nano += taken.nano
        if tenant is not None:
            self._shares.serve(tenant, taken.ns)
        if taken.ended:
            self._remove_ended(taken.ended)
        return taken.said

    def _absorb(self, row: Row, drawn: Drawn, share_ns: int, share_nano: int) -> list[Emission]:
        """Any row, alone."""
        sequence = self._sequences.get(row.seq_id)
        if sequence is None:
            self.accounts.pay(share_ns, share_nano)
            return []
        self.accounts.charge(sequence, row, drawn, share_ns, share_nano)
        self._shares.serve(sequence.spec.tenant, share_ns)
        if isinstance(drawn, EngineFailed):
            return self.fail([row.seq_id], drawn)
        if sequence.computed >= (sequence.recorded + 1) * self.limits.block_tokens:
            self.kv.record(sequence)
        delta = say(sequence, row, drawn, self.longest_tokens)
        if delta is not None and delta.finish_reason is not None:
            self._remove(sequence)
        if sequence.grammar is not None and row.seq_id in self._sequences:
            sequence.look_again()
        return [] if delta is None else [(row.seq_id, delta)]

    def check(self) -> None:
        """Audit: the KV books balance and every sequence is in exactly one queue."""
        self._part()
        self.books.check(s.blocks for s in self._sequences.values())
        queued = [*self._running, *self._waiting]
        assert {s.seq_id for s in queued} == set(self._sequences), "a sequence is in no queue"
        assert len(queued) == len(self._sequences), "a sequence is in two queues"
        assert not any(s.blocks for s in self._waiting), "a waiting sequence holds blocks"
        held = (s for s in self._sequences.values() if s.spec.held_tokens is not None)
        assert all(s.generated + s.owed <= (s.spec.held_tokens or 0) for s in held), "not paid for"
        self.kv.check(self._running)

    def _learn(self, work: StepWork, busy_ns: int) -> None:
        self.predictor.learn(work, busy_ns / 1e6)
        if work.tokens:
            rate = busy_ns / work.tokens
            self._ns_per_token += 0.05 * (rate - self._ns_per_token)

    # ------------------------------------------------------------ ends

    def _is_full(self, sequence: Sequence) -> bool:
        return has_no_room(sequence, self.longest_tokens, self.limits.max_sequence_length)

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
        self._part()
        self._remove(sequence)
        return seq_id, sequence.end(reason).but(error=error)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.seq_id]
        self._intricate -= not sequence.goes_ahead
        self._formal -= sequence.grammar is not None
        self._shares.leave(sequence.spec.tenant)
        running = self._running
        is_first = bool(running) and running[0] is sequence  # most often, as steps tell of them
        place = 0 if is_first else bisect_left(running, sequence.key, key=_by_key)
        if place < len(running) and running[place] is sequence:
            del running[place]
            self.kv.let_go(sequence)
        else:
            self._waiting.remove(sequence)

    def _remove_ended(self, ended: Seq[Sequence]) -> None:
        """`_remove` for plain ones that run."""
        known = self._sequences
        for sequence in ended:
            del known[sequence.seq_id]
        self._shares.leave(*[sequence.spec.tenant for sequence in ended])
        self._running = [s for s in self._running if s.seq_id in known] if known else []
        for sequence in ended:
            self.kv.let_go(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Preemption by recompute: the blocks go back, the tokens stay. What is still found later isn't done again."""
        self._running.remove(sequence)
        self.kv.let_go(sequence)
        sequence.computed = sequence.fed = sequence.owed = 0
        sequence.row_end = None
        sequence.was_preempted = True
        self._waiting.add(sequence)
        self.preemptions += 1
