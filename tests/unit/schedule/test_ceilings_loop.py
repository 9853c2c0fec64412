"""An engine whose sequences wait for their payment: it sleeps, and wakes for whatever may happen to them."""

import asyncio
import threading

import pytest
from tests.unit.schedule.kit import BLOCK_TOKENS, VOCAB, a_spec, some_limits
from tests.unit.schedule.test_engine_loop import PATIENCE_S, Reader, running

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import DeadlineExceeded, EngineFailed
from llmhost.core.output import Delta, FinishReason
from llmhost.core.step import Row
from llmhost.engines.fake import FakeRunner, fake_answer
from llmhost.schedule import engine_loop
from llmhost.schedule.scheduler import Scheduler


class Sleepy(Scheduler):
    """Says when it is held up, and counts the plans that came to nothing."""

    def __init__(self) -> None:
        super().__init__(some_limits())
        self.held_up = threading.Semaphore(0)
        self.vain_plans = 0

    def plan(self, now_ns: int = 0) -> list[Row]:
        rows = super().plan(now_ns)
        if self.is_held_up and self.has_work:
            self.vain_plans += 1
            self.held_up.release()
        return rows

    async def is_waiting(self) -> None:
        assert await asyncio.to_thread(self.held_up.acquire, True, PATIENCE_S)


def a_runner(*, runs_ahead: bool) -> FakeRunner:
    options = FakeOptions(vocab=VOCAB)
    return FakeRunner(options, block_tokens=BLOCK_TOKENS, runs_ahead=runs_ahead)


@pytest.fixture
def no_looking_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever wakes it, it is not that a second has passed."""
    monkeypatch.setattr(engine_loop, "QUIET_S", 600.0)


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.usefixtures("no_looking_up")
async def test_an_engine_sleeps_while_all_wait_and_wakes_when_one_is_paid_for(
    runs_ahead: bool,
) -> None:
    scheduler = Sleepy()
    async with running(a_runner(runs_ahead=runs_ahead), scheduler=scheduler) as engine:
        reader, other = Reader(), Reader()
        seq_id = engine.submit(a_spec(held_tokens=3, max_new_tokens=9), reader)
        await scheduler.is_waiting()
        engine.submit(a_spec((7,), held_tokens=2, max_new_tokens=9), other)
        await scheduler.is_waiting()
        assert scheduler.vain_plans == 2
        assert (len(reader.tokens), len(other.tokens)) == (3, 2)

        engine.allow(seq_id, 5)
        await scheduler.is_waiting()
        engine.allow(seq_id, 9)
        assert (await reader.end()).finish_reason is FinishReason.LENGTH
        assert reader.tokens == fake_answer((1, 2, 3), 9, VOCAB)
        assert engine.live == 1
        engine.allow(seq_id, 99)  # it is gone


@pytest.mark.usefixtures("no_looking_up")
async def test_the_word_that_no_more_is_paid_ends_who_waits() -> None:
    scheduler = Sleepy()
    async with running(a_runner(runs_ahead=False), scheduler=scheduler) as engine:
        reader = Reader()
        seq_id = engine.submit(a_spec(held_tokens=3, max_new_tokens=9), reader)
        await scheduler.is_waiting()
        engine.allow(seq_id, 3, is_final=True)
        last = await reader.end()

    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None
    assert last.usage.completion_tokens == len(reader.tokens) == 3


@pytest.mark.usefixtures("no_looking_up")
async def test_who_waits_can_be_cancelled() -> None:
    scheduler = Sleepy()
    async with running(a_runner(runs_ahead=True), scheduler=scheduler) as engine:
        reader = Reader()
        seq_id = engine.submit(a_spec(held_tokens=1, max_new_tokens=9), reader)
        await scheduler.is_waiting()
        engine.cancel(seq_id)
        assert (await reader.end()).finish_reason is FinishReason.CANCELLED


async def test_a_deadline_ends_who_waits() -> None:
    scheduler, clock = Sleepy(), [0]
    async with running(
        a_runner(runs_ahead=False), scheduler=scheduler, now_ns=lambda: clock[0]
    ) as engine:
        reader = Reader()
        spec = a_spec(held_tokens=1, max_new_tokens=9, deadline_ns=1_000_000)
        engine.submit(spec, reader)
        await scheduler.is_waiting()
        clock[0] = 2_000_000
        assert isinstance((await reader.end()).error, DeadlineExceeded)


@pytest.mark.usefixtures("no_looking_up")
async def test_a_drain_lets_who_waits_be_paid_for_and_end() -> None:
    scheduler = Sleepy()
    async with running(a_runner(runs_ahead=False), scheduler=scheduler) as engine:
        reader = Reader()
        seq_id = engine.submit(a_spec(held_tokens=1, max_new_tokens=4), reader)
        await scheduler.is_waiting()
        stopping = asyncio.create_task(engine.stop(drain_s=PATIENCE_S))
        await asyncio.sleep(0)
        engine.allow(seq_id, 4)
        await stopping

    assert reader.deltas[-1].finish_reason is FinishReason.LENGTH
    assert len(reader.tokens) == 4


@pytest.mark.usefixtures("no_looking_up")
async def test_a_stop_and_a_sleep_cut_who_waits_for_ever() -> None:
    scheduler = Sleepy()
    async with running(a_runner(runs_ahead=False), scheduler=scheduler) as engine:
        asleep, stopped = Reader(), Reader()
        engine.submit(a_spec(held_tokens=1, max_new_tokens=4), asleep)
        await scheduler.is_waiting()
        await engine.sleep()
        await engine.wake()
        engine.submit(a_spec(held_tokens=1, max_new_tokens=4), stopped)
        await scheduler.is_waiting()

    for last, how in ((asleep.deltas[-1], "put to sleep"), (stopped.deltas[-1], "stopped")):
        assert last.finish_reason is FinishReason.ERROR
        assert isinstance(last.error, EngineFailed) and how in last.error.message


async def test_waiting_for_payment_is_no_hang() -> None:
    scheduler, clock = Sleepy(), [0]
    async with running(
        a_runner(runs_ahead=True), scheduler=scheduler, now_ns=lambda: clock[0], step_timeout_s=1.0
    ) as engine:
        engine.submit(a_spec(held_tokens=1, max_new_tokens=9), Reader())
        await scheduler.is_waiting()
        clock[0] = 10**15

        assert engine.load().hung_s == 0.0
        assert engine.load().running == 1
        engine.submit(a_spec(max_new_tokens=1), reader := Reader())
        assert (await reader.end()).finish_reason is FinishReason.LENGTH


async def test_more_can_be_paid_from_within_a_delta() -> None:
    """As the pipeline does: it hears a token, and pays for the next ones."""
    scheduler = Sleepy()
    async with running(a_runner(runs_ahead=True), scheduler=scheduler) as engine:
        reader = Reader()

        def hear(delta: Delta) -> None:
            reader(delta)
            engine.allow(seq_id, len(reader.tokens) + 1)

        seq_id = engine.submit(a_spec(held_tokens=1, max_new_tokens=30), hear)
        await reader.end()

    assert reader.tokens == fake_answer((1, 2, 3), 30, VOCAB)
