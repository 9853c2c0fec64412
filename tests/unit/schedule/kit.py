"""What the scheduler's tests share: a watch, specs, and a workbench that audits every step that it drives."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from msgspec import structs

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.meter import Meter, Rate
from llmhost.core.output import Delta, FinishReason, TokenLogprobs
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.core.step import Row, StepResult, split_exactly, work_units
from llmhost.engines.fake import FakeRunner, fake_answer
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Emission, Scheduler
from llmhost.schedule.sequence import Sequence

VOCAB = 16
BLOCK_TOKENS = 4


class SpelledWatch:
    """Text of a token is its number and a space; a stop string ends the text right before it."""

    def __init__(self, stop: Seq[str] = ()) -> None:
        self.is_stopped = False
        self.stop: str | None = None
        self.is_armed = True
        self._stop = stop
        self._text = ""

    def push(self, token: int) -> str:
        said = len(self._text)
        self._text += f"{token} "
        found = [at for at in (self._text.find(stop) for stop in self._stop) if at >= 0]
        self.is_stopped = bool(found)
        self.stop = next((stop for stop in self._stop if stop in self._text), None)
        return self._text[said : min(found)] if found else self._text[said:]

    def flush(self) -> str:
        return ""


def a_spec(prompt: Iterable[int] = (1, 2, 3), **changes: object) -> SequenceSpec:
    spec = SequenceSpec(
        request_id="req",
        index=0,
        model=ModelRef("fake", 1),
        prompt=tuple(prompt),
        sampling=Sampling(temperature=0.0),
        seed=0,
        max_new_tokens=4,
    )
    return structs.replace(spec, **changes)  # type: ignore[arg-type]


def some_limits(**changes: object) -> SchedulerLimits:
    limits = SchedulerLimits(
        max_batch_size=4,
        max_tokens_per_batch=8,
        max_sequence_length=64,
        kv_blocks=32,
        block_tokens=BLOCK_TOKENS,
    )
    return replace(limits, **changes)  # type: ignore[arg-type]


@dataclass
class Heard:
    """What one caller was told."""

    spec: SequenceSpec
    tokens: list[int] = field(default_factory=list)
    reports: list[TokenLogprobs] = field(default_factory=list)
    last: Delta | None = None
    limit_at_end: int = 0
    """`longest_tokens` when it ended."""


class Workbench:
    """Drives a scheduler with a fake runner whose KV is real, and audits everything that can be seen of a step."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.heard: dict[int, Heard] = {}
        self.busy_ns = 0
        self.moving_ns = 0
        """Charged to sequences that moved elsewhere: their time does not travel with them."""
        self.operator_ns = 0
        """Of schedulers that were left behind."""
        self.meter, self.moving_nano, self.operator_nano = Meter(Rate(7, 3)), 0, 0
        """The same in money."""
        self.idle_plans = 0
        self.steps_without_token = 0
        self._ids = iter(range(1, 1_000_000))
        self._settle_in(limits)

    def _settle_in(self, limits: SchedulerLimits) -> None:
        self.scheduler = Scheduler(limits)
        self.runner = FakeRunner(FakeOptions(vocab=VOCAB), block_tokens=limits.block_tokens)
        self.runner.set_kv_blocks(limits.kv_blocks)
        self.runner.set_host_blocks(limits.host_kv_blocks)
        self.callers: dict[int, Heard] = {}  # by this scheduler's sequence ids

    # ------------------------------------------------------------ acts

    def add(self, spec: SequenceSpec) -> int:
        seq_id = next(self._ids)
        self._join(seq_id, Heard(spec), spec)
        return seq_id

    def _join(self, seq_id: int, heard: Heard, spec: SequenceSpec) -> None:
        self.heard[seq_id] = self.callers[seq_id] = heard
        emission = self.scheduler.add(seq_id, spec, SpelledWatch(spec.stop))
        self._hear([emission] if emission else [])
        self.audit()

    def cancel(self, seq_id: int) -> None:
        had_ended = self.heard[seq_id].last is not None
        emission = self.scheduler.cancel(seq_id)
        assert (emission is None) is had_ended
        self._hear([emission] if emission else [])
        self.audit()

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> None:
        heard = self.heard[seq_id]
        if heard.last is None:
            heard.spec = heard.spec.allowed(held_tokens, is_final=is_final)
        emission = self.scheduler.allow(seq_id, held_tokens, is_final=is_final)
        assert emission is None or emission[1].finish_reason is FinishReason.LENGTH
        self._hear([emission] if emission else [])
        self.audit()

    def fail(self, seq_ids: Iterable[int]) -> None:
        self._hear(self.scheduler.fail(seq_ids, EngineFailed("as the test wants it")))
        self.audit()

    def guess(self, right: Seq[bool], most: int = 5) -> None:
        """Have the next step check guesses that are right or wrong, as `right` says for one after the other."""
        drafts = {}
        for ask in self.scheduler.draft_asks(most):
            assert 1 <= ask.most <= most
            spec = self.callers[ask.seq_id].spec
            said = len(ask.tokens) - len(spec.prompt)
            words = fake_answer(spec.prompt, said + ask.most, VOCAB)[said:]
            drafts[ask.seq_id] = [
                word if is_right else (word + 1) % VOCAB
                for word, is_right in zip(words, right, strict=False)
            ]
        self.scheduler.set_drafts(drafts)

    def resize(self, blocks: int) -> None:
        self._hear(self.scheduler.resize_kv(blocks))
        self.runner.set_kv_blocks(blocks)
        assert self.scheduler.books.total == blocks
        self.audit()

    def move(self, limits: SchedulerLimits) -> None:
        """Export everything and go on in another scheduler, with another runner and an empty cache."""
        exported, callers = self.scheduler.export(), self.callers
        assert {seq_id for seq_id, _ in exported} == {i for i in callers if callers[i].last is None}
        keys = [(spec.priority, spec.arrival_ns, seq_id) for seq_id, spec in exported]
        assert keys == sorted(keys)
        self.operator_ns += self.scheduler.accounts.operator_ns
        self.operator_nano += self.scheduler.accounts.operator_nano
        self.moving_ns = sum(spec.engine_ns for _, spec in exported)
        self.moving_nano = sum(spec.cost_nano for _, spec in exported)
        self._settle_in(limits)
        for seq_id, spec in exported:
            self.moving_ns -= spec.engine_ns
            self.moving_nano -= spec.cost_nano
            assert list(spec.generated) == callers[seq_id].tokens
            assert spec.held_tokens == callers[seq_id].spec.held_tokens
            self._join(seq_id, callers[seq_id], spec)

    def step(
        self, interval_ns: int = 1_000, *, amid: "Callable[[Workbench], None] | None" = None
    ) -> list[Row]:
        """One plan, run and absorb; `amid` acts while the step runs."""
        rows = self.plan()
        if not rows:
            return rows
        self.runner.move_blocks(self.scheduler.take_moves())
        drawn = self.runner.run(rows)
        if amid is not None:
            amid(self)
        shares = split_exactly(interval_ns, [work_units(row) for row in rows])
        self.busy_ns += interval_ns
        nano = self.meter.take(interval_ns)
        emissions = self.scheduler.absorb(StepResult(rows, drawn, 0, interval_ns, shares, nano))
        assert len({seq_id for seq_id, _ in emissions}) == len(emissions), "one delta per step"
        self.steps_without_token = 0 if emissions else self.steps_without_token + 1
        self._hear(emissions)
        self.audit()
        return rows

    def run_to_the_end(self) -> None:
        """Every sequence must end, and no stretch without a new token may be longer than all tokens there are."""
        self.steps_without_token = 0
        while self.scheduler.has_work:
            self.step(997)
            if self.scheduler.is_held_up:
                for seq_id in [s.seq_id for s in self._live() if s.is_held_up]:
                    self.allow(seq_id, (self.heard[seq_id].spec.held_tokens or 0) + 3)
            live = [*self.scheduler._running, *self.scheduler._waiting]
            patience = sum(len(s.tokens) for s in live) + 2 * len(live) + 2
            assert self.steps_without_token + self.idle_plans <= patience, "no progress"
        self.audit()
        assert self.scheduler.ids() == []
        assert self.scheduler.books.free == self.scheduler.books.total
        for heard in self.heard.values():
            check_answer(heard)

    def _live(self) -> list[Sequence]:
        return list(self.scheduler._sequences.values())

    # ------------------------------------------------------------ audits

    def plan(self) -> list[Row]:
        """The scheduler's plan, with everything checked that must hold of any plan."""
        scheduler = self.scheduler
        running = list(scheduler._running)
        waiting = list(scheduler._waiting.in_order(0, scheduler._shares, scheduler._ns_per_token))
        decoders = [s for s in running if s.todo == 1]
        preemptions = scheduler.preemptions
        rows = scheduler.plan()
        scheduler.check()
        assert len(waiting) == len({s.seq_id for s in waiting})
        self._check_rows(rows)
        granted = {row.seq_id for row in rows}
        preempted = [s for s in running if s in scheduler._waiting]
        admitted = [s for s in waiting if s in scheduler._running]
        assert scheduler.preemptions - preemptions == len(preempted)
        passed = waiting[: waiting.index(admitted[-1])] if admitted else []
        for sequence in [s for s in passed if s not in admitted]:
            promised = set(sequence.hashes) & set(scheduler.kv._promised)
            salt = scheduler.kv._salt(sequence.spec)
            fetched = scheduler.books.match(salt, sequence.tokens, len(sequence.tokens) - 1)
            is_next = not (promised or fetched or sequence.is_held_up)
            assert not is_next, "one was passed over whose prompt nobody computes"
        assert preempted == running[len(running) - len(preempted) :], "the largest keys give way"
        assert not (preempted and admitted)
        assert granted.issuperset(s.seq_id for s in admitted)
        if len(decoders) <= scheduler.limits.max_tokens_per_batch:
            assert granted.issuperset(s.seq_id for s in decoders if s not in preempted)
        self.idle_plans = 0 if rows else self.idle_plans + 1
        is_unpaid = any(s.is_held_up for s in self._live())
        is_idle = is_unpaid or not scheduler.has_work
        assert self.idle_plans < 2 or is_idle, "work, and nothing planned twice over"
        assert scheduler.is_held_up or self.idle_plans < 2
        assert is_idle or not scheduler.is_held_up
        return rows

    def _check_rows(self, rows: list[Row]) -> None:
        limits, size = self.scheduler.limits, self.scheduler.books.block_tokens
        assert len({row.seq_id for row in rows}) == len(rows), "a sequence was granted twice"
        assert sum(len(row.tokens) for row in rows) <= limits.max_tokens_per_batch
        assert len(rows) <= limits.max_batch_size
        assert len(self.scheduler._running) <= limits.max_batch_size
        for row in rows:
            known = [*self.heard[row.seq_id].spec.prompt, *self.heard[row.seq_id].tokens]
            end = row.start + len(row.tokens)
            fed = len(row.tokens) - row.drafts
            assert fed > 0
            assert list(row.tokens[:fed]) == known[row.start : end - row.drafts]
            assert row.wants_token is (end - row.drafts == len(known))
            assert row.drafts == 0 or (row.wants_token and fed == 1)
            self._check_is_paid(row)
            assert len(row.blocks) >= -(-end // size), "as many blocks as its positions need"
            assert all(0 <= block < limits.kv_blocks for block in row.blocks)

    def _check_is_paid(self, row: Row) -> None:
        heard = self.heard[row.seq_id]
        if row.wants_token and heard.spec.held_tokens is not None:
            assert len(heard.tokens) + 1 + row.drafts <= heard.spec.held_tokens

    def audit(self) -> None:
        scheduler = self.scheduler
        scheduler.check()
        assert all(not s.blocks and s.computed == 0 for s in scheduler._waiting)
        assert [s.key for s in scheduler._running] == sorted(s.key for s in scheduler._running)
        assert all(s.computed <= len(s.blocks) * BLOCK_TOKENS for s in scheduler._running)
        live = scheduler._sequences.values()
        assert all(len(s.tokens) < scheduler.longest_tokens for s in live)
        ended_ns = sum(h.last.usage.engine_ns for h in self.heard.values() if h.last)  # type: ignore[union-attr]
        charged = ended_ns + sum(s.engine_ns for s in live) + self.moving_ns
        assert charged + self.operator_ns + scheduler.accounts.operator_ns == self.busy_ns
        ended_nano = sum(h.last.usage.cost_nano for h in self.heard.values() if h.last)  # type: ignore[union-attr]
        charged = ended_nano + sum(s.cost_nano for s in live) + self.moving_nano
        assert charged + self.operator_nano + scheduler.accounts.operator_nano == self.meter.nano

    def _hear(self, emissions: list[Emission]) -> None:
        for seq_id, delta in emissions:
            heard = self.callers[seq_id]
            assert heard.last is None, "something was said after the last delta"
            heard.tokens += delta.tokens
            held_tokens = heard.spec.held_tokens
            assert held_tokens is None or len(heard.tokens) <= held_tokens, "not paid for"
            if delta.finish_reason is not None:
                heard.last = delta
                heard.limit_at_end = self.scheduler.longest_tokens


def check_answer(heard: Heard) -> None:
    """The caller got the oracle's words, all that were asked for, and was charged for exactly those."""
    spec, tokens, last = heard.spec, heard.tokens, heard.last
    assert last is not None
    assert tokens == fake_answer(spec.prompt, len(tokens), VOCAB)
    assert last.usage is not None
    if last.finish_reason in (FinishReason.CANCELLED, FinishReason.ERROR):
        assert last.usage.prompt_tokens <= len(spec.prompt)  # what had been computed of it
    else:
        assert last.usage.prompt_tokens == len(spec.prompt)
    assert last.usage.completion_tokens == len(tokens)
    assert len(tokens) <= spec.max_new_tokens
    assert not spec.stop_token_ids.intersection(tokens[:-1])
    ended_by_stop = bool(spec.stop_token_ids.intersection(tokens[-1:]))
    assert ended_by_stop is (last.finish_reason is FinishReason.STOP)
    if last.finish_reason is FinishReason.LENGTH:
        length, limit = len(spec.prompt) + len(tokens), heard.limit_at_end
        assert len(tokens) == spec.max_new_tokens or length >= limit
        assert length <= limit or not last.tokens, "a token was made beyond the limit"
