"""The thread that drives a model: what it delivers, how it stops, and what it survives."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.schedule.kit import BLOCK_TOKENS, VOCAB, SpelledWatch, a_spec, some_limits

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed, LlmhostError, Overloaded
from llmhost.core.output import Delta, FinishReason
from llmhost.core.step import Drawn, Row, StepResult
from llmhost.engines.fake import FakeRunner, fake_answer
from llmhost.gpu.lane import FreeLane
from llmhost.observe.clock import SystemClock
from llmhost.schedule.engine_loop import EngineLoop
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def no_engine_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("engine-"):
            thread.join(
                PATIENCE_S
            )  # its last act is to tell the HTTP loop, a moment before it is gone
            assert not thread.is_alive()


class Gate:
    """A `sleep` in which every step stops until it is let through."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)

    def __call__(self, seconds: float) -> None:
        self._entered.release()
        assert self._passes.acquire(timeout=PATIENCE_S)

    async def step_begun(self) -> None:
        assert await asyncio.to_thread(self._entered.acquire, True, PATIENCE_S)

    def let_through(self, steps: int = 1) -> None:
        self._passes.release(steps)

    def open(self) -> None:
        self.let_through(5_000)


class Spoilt(FakeRunner):
    """Raises the scripted errors, one for each run, before it works; None lets a run pass."""

    def __init__(self, *script: BaseException | None, sleep: Callable[[float], None] | None = None):
        gate = {} if sleep is None else {"sleep": sleep}
        options = FakeOptions(vocab=VOCAB, token_delay_ms=0.0 if sleep is None else 1.0)
        super().__init__(options, block_tokens=BLOCK_TOKENS, **gate)
        self.script = list(script)
        self.closed = 0
        self.close_error: Exception | None = None

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        drawn = super().run(rows)
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        return drawn

    def close(self) -> None:
        self.closed += 1
        super().close()
        if self.close_error is not None:
            raise self.close_error


class Speller:
    """The part of a tokenizer that an engine loop uses. The stop string "poison" can't be compiled."""

    def watch(self, stop: Sequence[str] = (), shown: Sequence[str] = ()) -> SpelledWatch:
        if "poison" in stop:
            raise ValueError("no such stop string")
        return SpelledWatch(stop)


class Reader:
    """What one caller hears."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.at_end = asyncio.Event()

    def __call__(self, delta: Delta) -> None:
        assert not self.at_end.is_set(), "something was said after the last delta"
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            self.at_end.set()

    async def end(self) -> Delta:
        async with asyncio.timeout(PATIENCE_S):
            await self.at_end.wait()
        return self.deltas[-1]

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.tokens]


class Broken:
    """Counts how often the loop says that it gave up."""

    def __init__(self) -> None:
        self.errors: list[LlmhostError] = []

    def __call__(self, error: LlmhostError) -> None:
        self.errors.append(error)


def make_engine(
    runner: FakeRunner,
    *,
    limits: SchedulerLimits | None = None,
    max_queue: int = 16,
    on_step: Callable[[StepResult], None] | None = None,
    on_broken: Callable[[EngineFailed], None] | None = None,
    scheduler: Scheduler | None = None,
    guesser: Guesser | None = None,
    **more: Any,
) -> EngineLoop:
    limits = limits or some_limits()
    runner.set_kv_blocks(limits.kv_blocks)
    return EngineLoop(
        "fake@1",
        runner,
        scheduler or Scheduler(limits),
        lane=FreeLane(SystemClock()),
        max_queue=max_queue,
        on_step=on_step,
        on_broken=on_broken,
        guesser=guesser,
        **({"tokenizer": Speller()} | more),
    )


@asynccontextmanager
async def running(runner: FakeRunner, **options: object) -> AsyncIterator[EngineLoop]:
    engine = make_engine(runner, **options)  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await engine.stop()


# ---------------------------------------------------------------- delivery


async def test_every_reader_hears_its_own_answer_in_order() -> None:
    async with running(Spoilt()) as engine:
        readers = {n: Reader() for n in range(6)}
        for n, reader in readers.items():
            engine.submit(a_spec((n, 1, 2), index=n, max_new_tokens=5 + n), reader)
        for n, reader in readers.items():
            last = await reader.end()
            assert reader.tokens == fake_answer((n, 1, 2), 5 + n, VOCAB)
            assert last.finish_reason is FinishReason.LENGTH
            assert {delta.index for delta in reader.deltas} == {n}
            assert "".join(delta.text for delta in reader.deltas).split() == list(
                map(str, reader.tokens)
            )
        assert engine.live == 0


async def test_a_runner_that_goes_ahead_gives_the_same_answers() -> None:
    runner = FakeRunner(FakeOptions(vocab=VOCAB), block_tokens=BLOCK_TOKENS, runs_ahead=True)
    async with running(runner) as engine:
        readers = {n: Reader() for n in range(6)}
        for n, reader in readers.items():
            engine.submit(a_spec((n, 1, 2), index=n, max_new_tokens=20 + n), reader)
        cut = Reader()
        engine.cancel(engine.submit(a_spec(max_new_tokens=50), cut))
        engine.resize_kv(64)
        for n, reader in readers.items():
            await reader.end()
            assert reader.tokens == fake_answer((n, 1, 2), 20 + n, VOCAB)
        assert (await cut.end()).finish_reason is FinishReason.CANCELLED


async def test_a_stop_amid_steps_that_overlap_ends_every_stream() -> None:
    options = FakeOptions(vocab=VOCAB, token_delay_ms=1.0)
    runner = FakeRunner(options, block_tokens=BLOCK_TOKENS, runs_ahead=True)
    async with running(runner) as engine:
        reader = Reader()
        engine.submit(a_spec(max_new_tokens=60), reader)
    assert reader.at_end.is_set()


async def test_the_http_loop_is_woken_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, gate = asyncio.get_running_loop(), Gate()
    wakes, steps = [], []
    wake = loop.call_soon_threadsafe

    def count(callback: Callable[..., object], *args: object) -> object:
        if threading.current_thread().name.startswith("engine-"):
            wakes.append(callback)
        return wake(callback, *args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    runner = Spoilt(sleep=gate)
    async with running(runner, on_step=lambda result: steps.append(result)) as engine:
        readers = [Reader() for _ in range(4)]
        for reader in readers:
            engine.submit(a_spec(max_new_tokens=6), reader)
        gate.open()
        for reader in readers:
            await reader.end()
        assert max(len(result.rows) for result in steps) > 1
        assert len(wakes) == len(steps)


async def test_a_step_that_only_computes_a_chunk_wakes_nobody() -> None:
    heard_after = []
    reader = Reader()
    async with running(
        Spoilt(),
        limits=some_limits(max_tokens_per_batch=2),
        on_step=lambda result: heard_after.append([row.wants_token for row in result.rows]),
    ) as engine:
        engine.submit(a_spec(range(6), max_new_tokens=1), reader)
        await reader.end()
    assert heard_after == [[False], [False], [True]]
    assert len(reader.deltas) == 1


async def test_the_observer_sees_the_steps_whole_time_shared_out() -> None:
    steps: list[StepResult] = []
    async with running(Spoilt(), on_step=lambda result: steps.append(result)) as engine:
        readers = [Reader(), Reader()]
        for reader in readers:
            engine.submit(a_spec(), reader)
        ends = [await reader.end() for reader in readers]
    assert all(sum(step.shares_ns) == step.busy_ns for step in steps)
    charged = sum(end.usage.engine_ns for end in ends if end.usage)
    assert charged == sum(step.busy_ns for step in steps)


async def test_a_reader_that_raises_costs_the_others_nothing() -> None:
    def broken(delta: Delta) -> None:
        raise RuntimeError("a bug in a reader")

    gate = Gate()
    async with running(Spoilt(sleep=gate)) as engine:
        good = Reader()
        engine.submit(a_spec((1, 2)), broken)
        engine.submit(a_spec((3, 4)), good)
        gate.open()
        await good.end()
        assert good.tokens == fake_answer((3, 4), 4, VOCAB)
        assert engine.live == 0


# ---------------------------------------------------------------- cancel


async def test_a_cancel_stops_within_two_steps() -> None:
    gate = Gate()
    async with running(Spoilt(sleep=gate)) as engine:
        reader = Reader()
        seq_id = engine.submit(a_spec(max_new_tokens=40), reader)
        for _ in range(3):
            await gate.step_begun()
            gate.let_through()
        await gate.step_begun()
        engine.cancel(seq_id)
        gate.let_through(2)
        last = await reader.end()
        assert last.finish_reason is FinishReason.CANCELLED
        assert reader.tokens == fake_answer((1, 2, 3), 4, VOCAB)
        assert last.usage is not None
        assert last.usage.completion_tokens == 4


async def test_a_cancel_of_someone_waiting_takes_effect_without_its_turn() -> None:
    gate = Gate()
    async with running(Spoilt(sleep=gate), limits=some_limits(max_batch_size=1)) as engine:
        first, second = Reader(), Reader()
        engine.submit(a_spec(max_new_tokens=40), first)
        waiting = engine.submit(a_spec(), second)
        await gate.step_begun()
        engine.cancel(waiting)
        engine.cancel(waiting)
        gate.let_through(2)
        assert (await second.end()).finish_reason is FinishReason.CANCELLED
        assert second.tokens == []
        gate.open()
        await first.end()


async def test_a_cancel_of_nobody_is_ignored() -> None:
    async with running(Spoilt()) as engine:
        reader = Reader()
        seq_id = engine.submit(a_spec(), reader)
        await reader.end()
        engine.cancel(seq_id)
        engine.cancel(12345)
        again = Reader()
        engine.submit(a_spec(), again)
        assert (await again.end()).finish_reason is FinishReason.LENGTH


# ---------------------------------------------------------------- failures


async def test_a_step_that_raises_fails_its_sequences_and_the_loop_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, gate = Broken(), Gate()
    runner = Spoilt(*[ValueError("out of luck") for _ in range(3)], sleep=gate)
    limits = some_limits(max_batch_size=1)
    async with running(runner, limits=limits, on_broken=broken) as engine:
        readers = [Reader() for _ in range(3)]
        for reader in readers:
            engine.submit(a_spec(max_new_tokens=3), reader)
        await gate.step_begun()
        gate.open()
        ends = [await reader.end() for reader in readers]
        assert ends[0].finish_reason is FinishReason.ERROR
        assert isinstance(ends[0].error, EngineFailed)
        assert "out of luck" not in ends[0].error.message
        assert ends[2].finish_reason is FinishReason.LENGTH
        assert readers[2].tokens == fake_answer((1, 2, 3), 3, VOCAB)
    assert broken.errors == []
    assert "step.failed" in caplog.text


async def test_the_time_of_a_failed_step_is_the_operators() -> None:
    scheduler = Scheduler(some_limits())
    runner = Spoilt(ValueError("boom"), ValueError("boom"))
    async with running(runner, scheduler=scheduler) as engine:
        reader = Reader()
        engine.submit(a_spec(), reader)
        last = await reader.end()
    assert last.usage is not None
    assert last.usage.engine_ns == 0
    assert scheduler.accounts.operator_ns > 0


async def test_three_failures_in_a_row_end_the_loop_and_every_stream_hears_of_it() -> None:
    broken, gate = Broken(), Gate()
    runner = Spoilt(*[ValueError(f"failure {n}") for n in range(9)], sleep=gate)
    limits = some_limits(max_batch_size=1)
    async with running(runner, limits=limits, on_broken=broken) as engine:
        readers = [Reader() for _ in range(6)]
        for reader in readers:
            engine.submit(a_spec(), reader)
        gate.open()
        ends = [await reader.end() for reader in readers]
        assert all(end.finish_reason is FinishReason.ERROR and end.error for end in ends)
        assert len(broken.errors) == 1
        with pytest.raises(Overloaded):
            engine.submit(a_spec(), Reader())
        assert engine.live == 0
    assert runner.closed == 1
    assert len(broken.errors) == 1


async def test_failures_with_a_good_step_between_them_do_not_add_up() -> None:
    broken = Broken()
    oops = ValueError("now and then")
    twice = [oops, oops]  # a sequence alone in its step is given one more chance
    runner = Spoilt(*twice, *twice, None, *twice, *twice, None)
    async with running(runner, on_broken=broken) as engine:
        for n in range(6):
            reader = Reader()
            engine.submit(a_spec(max_new_tokens=1), reader)
            expected = FinishReason.LENGTH if n in (2, 5) else FinishReason.ERROR
            assert (await reader.end()).finish_reason is expected
    assert broken.errors == []


async def test_an_engines_own_words_reach_the_caller() -> None:
    lost = EngineFailed("The device was lost.")
    async with running(Spoilt(lost, lost)) as engine:
        reader = Reader()
        engine.submit(a_spec(), reader)
        last = await reader.end()
    assert last.error is not None
    assert last.error.message == "The device was lost."


async def test_a_failed_row_hits_only_its_sequence() -> None:
    options = FakeOptions(vocab=VOCAB, fail_after_tokens=3)
    broken = Broken()
    async with running(FakeRunner(options, block_tokens=BLOCK_TOKENS), on_broken=broken) as engine:
        long, short = Reader(), Reader()
        engine.submit(a_spec((1, 2), max_new_tokens=9), long)
        engine.submit(a_spec((3, 4), max_new_tokens=3), short)
        assert (await long.end()).finish_reason is FinishReason.ERROR
        assert long.tokens == fake_answer((1, 2), 3, VOCAB)
        assert (await short.end()).finish_reason is FinishReason.LENGTH
    assert broken.errors == []


async def test_a_sequence_that_can_not_be_watched_fails_alone() -> None:
    broken, gate = Broken(), Gate()
    async with running(Spoilt(sleep=gate), on_broken=broken) as engine:
        poisoned, empty, good = Reader(), Reader(), Reader()
        engine.submit(a_spec(), good)
        await gate.step_begun()
        engine.submit(a_spec(stop=("poison",), index=7), poisoned)
        engine.submit(a_spec(()), empty)
        gate.open()
        last = await poisoned.end()
        assert (last.finish_reason, last.index) == (FinishReason.ERROR, 7)
        assert (await empty.end()).finish_reason is FinishReason.ERROR
        assert (await good.end()).finish_reason is FinishReason.LENGTH
    assert broken.errors == []


def _raise_in_observer(result: StepResult) -> None:
    raise RuntimeError("a bug in the observer")


class OneTooMany(Spoilt):
    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        return [*super().run(rows), 1]


class Silent(Spoilt):
    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        return [None for _ in super().run(rows)]


class Unclosable(OneTooMany):
    def close(self) -> None:
        self.close_error = OSError("the driver hangs")
        super().close()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Spoilt, {"on_step": _raise_in_observer}),
        (OneTooMany, {}),
        (Silent, {}),
        (Unclosable, {}),
    ],
    ids=["observer raises", "one result too many", "no token where one is due", "close raises too"],
)
async def test_whatever_breaks_the_loop_every_stream_ends_and_it_is_reported_once(
    kind: type[Spoilt], options: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    broken, gate = Broken(), Gate()
    runner = kind(sleep=gate)
    async with running(
        runner, limits=some_limits(max_batch_size=2), on_broken=broken, **options
    ) as engine:
        readers = [Reader() for _ in range(4)]
        for n, reader in enumerate(readers):
            engine.submit(a_spec(max_new_tokens=1, index=n), reader)
        gate.open()
        ends = [await reader.end() for reader in readers]
        assert [end.index for end in ends] == [0, 1, 2, 3]
        assert all(end.finish_reason is FinishReason.ERROR for end in ends)
        assert len(broken.errors) == 1
    assert runner.closed == 1
    assert "engine.broken" in caplog.text


async def test_even_what_is_no_exception_ends_every_stream() -> None:
    broken = Broken()
    async with running(Spoilt(SystemExit(3)), on_broken=broken) as engine:
        reader = Reader()
        engine.submit(a_spec(), reader)
        assert (await reader.end()).finish_reason is FinishReason.ERROR
        assert len(broken.errors) == 1


# ---------------------------------------------------------------- the queue


async def test_a_full_queue_refuses_with_a_time_to_wait() -> None:
    gate = Gate()
    limits = some_limits(max_batch_size=1)
    async with running(Spoilt(sleep=gate), limits=limits, max_queue=2) as engine:
        readers = [Reader() for _ in range(3)]
        for reader in readers:
            engine.submit(a_spec(max_new_tokens=1), reader)
        with pytest.raises(Overloaded) as refusal:
            engine.submit(a_spec(), Reader())
        assert refusal.value.retry_after_s is not None
        assert refusal.value.retry_after_s >= 1.0
        assert "3 sequences" in refusal.value.message
        assert engine.live == 3
        gate.open()
        for reader in readers:
            await reader.end()
        engine.submit(a_spec(max_new_tokens=1), Reader())


async def test_the_load_tells_what_runs_and_waits_and_is_empty_at_the_end() -> None:
    gate = Gate()
    async with running(Spoilt(sleep=gate), limits=some_limits(max_batch_size=1)) as engine:
        readers = [Reader(), Reader()]
        for reader in readers:
            engine.submit(a_spec(), reader)
        await gate.step_begun()
        gate.let_through()
        await gate.step_begun()
        assert (engine.load().running, engine.load().waiting) == (1, 1)
        gate.open()
        for reader in readers:
            await reader.end()
    assert (engine.load().running, engine.load().waiting, engine.load().kv_blocks_used) == (0, 0, 0)


# ---------------------------------------------------------------- resize


async def test_a_resize_between_steps_changes_no_answer() -> None:
    gate = Gate()
    async with running(Spoilt(sleep=gate), limits=some_limits(kv_blocks=12)) as engine:
        readers = [Reader() for _ in range(3)]
        for n, reader in enumerate(readers):
            engine.submit(a_spec((n, 2, 3), max_new_tokens=16), reader)
        for blocks in (6, 20, 8, 5):
            await gate.step_begun()
            engine.resize_kv(blocks)
            gate.let_through()
        gate.open()
        for n, reader in enumerate(readers):
            await reader.end()
            assert reader.tokens == fake_answer((n, 2, 3), 16, VOCAB)
        assert engine.load().kv_blocks_total == 5


async def test_who_has_no_room_after_a_resize_ends_with_length() -> None:
    gate = Gate()
    async with running(Spoilt(sleep=gate)) as engine:
        long, short = Reader(), Reader()
        engine.submit(a_spec(range(7), max_new_tokens=30), long)
        engine.submit(a_spec((1,), max_new_tokens=3), short)
        await gate.step_begun()
        engine.resize_kv(2)
        gate.open()
        assert (await long.end()).finish_reason is FinishReason.LENGTH
        await short.end()
        assert short.tokens == fake_answer((1,), 3, VOCAB)


class Stubborn(Spoilt):
    """Can't change its cache once it runs."""

    def set_kv_blocks(self, count: int) -> None:
        if count and len(self._states):
            raise MemoryError("no room for a copy")
        super().set_kv_blocks(count)


@pytest.mark.parametrize("blocks", [4, 64])
async def test_a_resize_that_the_runner_refuses_leaves_books_that_are_true(blocks: int) -> None:
    scheduler = Scheduler(some_limits(kv_blocks=8))
    limits = scheduler.limits
    async with running(Stubborn(), limits=limits, scheduler=scheduler) as engine:
        engine.resize_kv(blocks)
        readers = [Reader() for _ in range(4)]
        for n, reader in enumerate(readers):
            engine.submit(a_spec((n, 2, 3), max_new_tokens=9), reader)
        for n, reader in enumerate(readers):
            await reader.end()
            assert reader.tokens == fake_answer((n, 2, 3), 9, VOCAB)
    assert scheduler.books.total == min(blocks, 8)


# ---------------------------------------------------------------- acts between steps


async def test_an_act_is_done_on_the_engines_thread_between_two_steps() -> None:
    gate, seen = Gate(), []
    async with running(Spoilt(sleep=gate)) as engine:
        reader = Reader()
        engine.submit(a_spec(max_new_tokens=3), reader)
        await gate.step_begun()
        act = asyncio.create_task(engine.call(lambda: seen.append(threading.current_thread().name)))
        await asyncio.sleep(0)
        assert seen == []
        gate.open()
        await act
        await reader.end()

    assert len(seen) == 1
    assert seen[0].startswith("engine-")


async def test_what_an_act_raises_is_raised_to_whoever_waits_and_ends_nothing() -> None:
    async with running(Spoilt()) as engine:
        with pytest.raises(ZeroDivisionError):
            await engine.call(lambda: 1 // 0 and None)
        reader = Reader()
        engine.submit(a_spec(max_new_tokens=3), reader)
        assert (await reader.end()).error is None


async def test_an_act_on_an_engine_that_has_ended_is_refused() -> None:
    async with running(Spoilt()) as engine:
        await engine.stop()
        with pytest.raises(EngineFailed):
            await engine.call(lambda: None)


# ---------------------------------------------------------------- stopping


async def test_stop_cancels_what_runs_and_waits() -> None:
    gate = Gate()
    runner = Spoilt(sleep=gate)
    engine = make_engine(runner, limits=some_limits(max_batch_size=1))
    engine.start()
    readers = [Reader(), Reader()]
    for reader in readers:
        engine.submit(a_spec(max_new_tokens=30), reader)
    await gate.step_begun()
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refusal:
        engine.submit(a_spec(), Reader())
    assert refusal.value.retry_after_s is not None
    gate.let_through()
    async with asyncio.timeout(PATIENCE_S):
        await stopping
    assert [reader.deltas[-1].finish_reason for reader in readers] == [FinishReason.ERROR] * 2
    assert readers[0].tokens == fake_answer((1, 2, 3), 1, VOCAB)
    assert runner.closed == 1


async def test_a_long_step_is_cut_short_when_the_runner_can_and_the_model_goes() -> None:
    gate = Gate()
    runner = Spoilt(sleep=gate)
    runner.facts = replace(runner.facts, can_be_interrupted=True)
    runner.interrupt = gate.open  # type: ignore[attr-defined]
    engine = make_engine(runner)
    engine.start()
    reader = Reader()
    engine.submit(a_spec(max_new_tokens=30), reader)
    await gate.step_begun()
    async with asyncio.timeout(PATIENCE_S):
        await engine.stop()
    assert reader.deltas[-1].finish_reason is FinishReason.ERROR
    assert runner.closed == 1


async def test_a_drain_lets_answers_end() -> None:
    gate = Gate()
    engine = make_engine(Spoilt(sleep=gate))
    engine.start()
    reader = Reader()
    engine.submit(a_spec(max_new_tokens=5), reader)
    await gate.step_begun()
    stopping = asyncio.create_task(engine.stop(drain_s=PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        engine.submit(a_spec(), Reader())
    gate.open()
    async with asyncio.timeout(PATIENCE_S):
        await stopping
    assert reader.deltas[-1].finish_reason is FinishReason.LENGTH
    assert reader.tokens == fake_answer((1, 2, 3), 5, VOCAB)


async def test_a_drain_that_takes_too_long_is_cut() -> None:
    gate = Gate()
    engine = make_engine(Spoilt(sleep=gate))
    engine.start()
    reader = Reader()
    engine.submit(a_spec(max_new_tokens=40), reader)
    await gate.step_begun()
    stopping = asyncio.create_task(engine.stop(drain_s=0.001))
    await gate_opens_once_stopping(engine, gate)
    async with asyncio.timeout(PATIENCE_S):
        await stopping
    assert reader.deltas[-1].finish_reason is FinishReason.ERROR


async def gate_opens_once_stopping(engine: EngineLoop, gate: Gate) -> None:
    """The drain has to run out while the step is still held."""
    async with asyncio.timeout(PATIENCE_S):
        while not engine._is_stopping:  # noqa: ASYNC110 - ends with the drain
            await asyncio.sleep(0)
    gate.let_through()


async def test_a_second_stop_cuts_the_drain_of_the_first() -> None:
    gate = Gate()
    runner = Spoilt(sleep=gate)
    engine = make_engine(runner)
    engine.start()
    reader = Reader()
    engine.submit(a_spec(max_new_tokens=40), reader)
    await gate.step_begun()
    draining = asyncio.create_task(engine.stop(drain_s=3600))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    gate.let_through()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(draining, stopping)
        await engine.stop()
    assert reader.deltas[-1].finish_reason is FinishReason.ERROR
    assert runner.closed == 1


async def test_an_idle_loop_stops_with_or_without_a_drain() -> None:
    for drain_s in (0.0, 3600.0):
        runner = Spoilt()
        engine = make_engine(runner)
        engine.start()
        async with asyncio.timeout(PATIENCE_S):
            await engine.stop(drain_s=drain_s)
        assert runner.closed == 1


async def test_a_loop_that_was_never_started_stops_and_gives_its_runner_back() -> None:
    runner = Spoilt()
    engine = make_engine(runner)
    with pytest.raises(Overloaded):
        engine.submit(a_spec(), Reader())
    async with asyncio.timeout(PATIENCE_S):
        await engine.stop(drain_s=3600)
        await engine.stop()
    assert runner.closed >= 1


async def test_a_sequence_that_slips_in_while_the_thread_ends_gets_its_end() -> None:
    engine = make_engine(Spoilt())
    engine.start()
    reader = Reader()

    def ids_that_take_their_time() -> Iterator[int]:
        engine._is_stopping = True  # as the thread itself does when it gives up
        engine._inbox.post(list)
        engine._thread.join(PATIENCE_S)
        yield 1

    engine._ids = ids_that_take_their_time()  # type: ignore[assignment]
    engine.submit(a_spec(index=3), reader)
    last = await reader.end()
    assert (last.finish_reason, last.index) == (FinishReason.ERROR, 3)
    async with asyncio.timeout(PATIENCE_S):
        await engine.stop()


async def test_a_reader_may_cancel_and_submit_from_within_its_delta() -> None:
    async with running(Spoilt()) as engine:
        next_reader = Reader()
        first_id: list[int] = []

        def restless(delta: Delta) -> None:
            if delta.finish_reason is None:
                engine.cancel(first_id[0])
            else:
                engine.submit(a_spec((5, 6)), next_reader)

        first_id.append(engine.submit(a_spec(max_new_tokens=40), restless))
        await next_reader.end()
        assert next_reader.tokens == fake_answer((5, 6), 4, VOCAB)


async def begin(runner: FakeRunner, spec_tokens: int) -> EngineLoop:
    engine = make_engine(runner)
    engine.start()
    if spec_tokens:
        engine.submit(a_spec(max_new_tokens=spec_tokens), Reader())
    return engine


def test_when_the_http_loop_is_gone_the_thread_ends_by_itself() -> None:
    gate = Gate()
    runner = Spoilt(sleep=gate)
    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(begin(runner, 40))
    loop.run_until_complete(gate.step_begun())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    gate.open()
    engine._thread.join(PATIENCE_S)
    assert not engine._thread.is_alive()
    assert runner.closed == 1
    assert engine.load().steps < 5


@pytest.mark.parametrize("drain_s", [0.0, 3600.0])
def test_an_idle_loop_can_be_stopped_after_the_http_loop_is_gone(drain_s: float) -> None:
    runner = Spoilt()
    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(begin(runner, 0))
    loop.close()

    async def stop() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await engine.stop(drain_s=drain_s)

    asyncio.run(stop())
    assert not engine._thread.is_alive()
    assert runner.closed == 1


# ------------------------------------------------------------ sleep


async def test_a_model_that_slept_answers_as_before_and_finds_nothing_of_what_it_knew() -> None:
    runner, found = Spoilt(), list[bool]()
    async with running(runner) as engine:
        prompt = tuple(range(12))
        for sleeps_before in (False, False, True, False):
            if sleeps_before:
                await engine.sleep()
                await engine.sleep()
                assert runner.is_asleep
                assert len(runner._states) == 0
                await engine.wake()
                await engine.wake()
                assert not runner.is_asleep
            reader = Reader()
            engine.submit(a_spec(prompt), reader)
            last = await reader.end()
            assert reader.tokens == fake_answer(prompt, 4, VOCAB)
            assert last.usage is not None
            found.append(last.usage.cached_tokens > 0)
    assert found == [False, True, False, True]


async def test_a_sleeper_lets_nobody_in() -> None:
    async with running(Spoilt()) as engine:
        await engine.sleep()
        with pytest.raises(Overloaded, match="put to sleep"):
            engine.submit(a_spec(), Reader())
        await engine.wake()
        reader = Reader()
        engine.submit(a_spec(), reader)
        await reader.end()


async def test_answers_end_before_a_model_sleeps() -> None:
    gate = Gate()
    runner = Spoilt(sleep=gate)
    async with running(runner) as engine:
        reader = Reader()
        engine.submit(a_spec(max_new_tokens=6), reader)
        await gate.step_begun()
        sleeping = asyncio.create_task(engine.sleep(drain_s=PATIENCE_S))
        await asyncio.sleep(0)
        assert not runner.is_asleep
        gate.open()
        await sleeping
        assert (await reader.end()).finish_reason is FinishReason.LENGTH
        assert runner.is_asleep


async def test_answers_that_take_too_long_are_cut_before_a_model_sleeps() -> None:
    gate = Gate()
    runner = Spoilt(sleep=gate)
    async with running(runner) as engine:
        readers = [Reader(), Reader()]
        engine.submit(a_spec(max_new_tokens=40), readers[0])
        await gate.step_begun()
        engine.submit(a_spec(max_new_tokens=40), readers[1])
        sleeping = asyncio.create_task(engine.sleep(drain_s=0))
        await asyncio.sleep(0)
        gate.open()
        await sleeping
        for reader in readers:  # as by an unload: their callers have not left, and pay nothing
            last = await reader.end()
            assert last.finish_reason is FinishReason.ERROR
            assert isinstance(last.error, EngineFailed)
            assert "was put to sleep before" in last.error.message
        assert runner.is_asleep and engine.live == 0


@pytest.mark.parametrize("act", ["sleep", "wake", "set_kv_blocks"])
async def test_whatever_fails_on_the_way_leaves_a_model_as_it_was(
    act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Spoilt()
    async with running(runner) as engine:
        if act != "sleep":
            await engine.sleep()
        with monkeypatch.context() as patch:
            real = getattr(runner, act)

            def fails(*args: int) -> None:
                if args == (0,):
                    return real(*args)
                raise EngineFailed("no room")

            patch.setattr(runner, act, fails)
            with pytest.raises(EngineFailed, match="no room"):
                await (engine.sleep() if act == "sleep" else engine.wake())
        assert runner.is_asleep is (act != "sleep")
        await engine.wake()
        reader = Reader()
        engine.submit(a_spec(), reader)
        await reader.end()
        assert reader.tokens == fake_answer((1, 2, 3), 4, VOCAB)


async def test_a_sleeper_can_be_stopped() -> None:
    runner = Spoilt()
    async with running(runner) as engine:
        await engine.sleep()
    assert runner.closed == 1
