"""Readers that take what comes from one callback: no task wakes for a delta, and nothing is lost or doubled."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.pipeline.test_stream import STEPS, Person, delta, play, settle, text

from llmhost.core.errors import EngineFailed
from llmhost.core.output import Delta
from llmhost.pipeline import stream as stream_module
from llmhost.pipeline.stream import Outbox, ReplayStream, Writing


class Taker:
    """One reader whose reads bring a take, and all that it was given, batch by batch."""

    def __init__(self, stream: ReplayStream, outbox: Outbox) -> None:
        self.stream = stream
        self.reader = stream.reader(outbox=outbox)
        self.taken: list[str] = []
        self.is_free = True

    def take(self, deltas: list[Delta]) -> bool:
        if self.is_free:
            self.taken.append(text(deltas))
        return self.is_free

    def read(self, timeout_s: float | None = None) -> "asyncio.Task[list[Delta] | None]":
        return asyncio.create_task(self.reader.next(timeout_s, self.take))

    async def begun(self) -> "asyncio.Task[list[Delta] | None]":
        """A read that waits, after the first delta."""
        self.stream.push(delta(0))
        assert text(await self.read()) == "0 "
        waiting = self.read()
        await settle()
        return waiting


async def test_what_comes_is_taken_and_the_task_sleeps_on() -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    waiting = await taker.begun()
    for number in (1, 2):
        stream.push(delta(number))
        await settle()

    assert taker.taken == ["1 ", "2 "]
    assert not waiting.done()
    assert taker.reader.cursor == 3
    taker.reader.close()
    assert await waiting == []


async def test_the_first_delta_waits_for_no_round() -> None:
    stream, outbox = ReplayStream(), Outbox()
    taker = Taker(stream, outbox)
    waiting = taker.read()
    await settle()
    stream.push(delta(0))

    assert not outbox._due
    assert text(await waiting) == "0 "
    assert taker.taken == []


async def test_what_comes_before_its_turn_is_joined() -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    waiting = await taker.begun()
    stream.push(delta(1))
    stream.push(delta(2))
    await settle()

    assert taker.taken == ["1 2 "]
    taker.reader.close()
    await waiting


async def test_what_is_not_taken_is_read_and_taken_again_later() -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    waiting = await taker.begun()
    taker.is_free = False
    stream.push(delta(1))
    assert text(await waiting) == "1 "

    taker.is_free = True
    waiting = taker.read()
    await settle()
    stream.push(delta(2))
    await settle()
    assert taker.taken == ["2 "]
    taker.reader.close()
    await waiting


async def test_the_end_is_read_and_not_taken() -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    waiting = await taker.begun()
    stream.push(delta(1))
    stream.close()

    assert text(await waiting) == "1 "
    assert await taker.read() == []
    assert taker.taken == []


async def test_an_error_comes_after_what_was_taken() -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    waiting = await taker.begun()
    stream.push(delta(1))
    await settle()
    stream.fail(EngineFailed("the pass raised"))

    with pytest.raises(EngineFailed, match="the pass raised"):
        await waiting
    assert taker.taken == ["1 "]


async def test_what_a_take_raises_is_raised_by_its_read_and_costs_no_other_reader() -> None:
    stream, outbox = ReplayStream(), Outbox()
    broken, whole = Taker(stream, outbox), Taker(stream, outbox)

    def fail(_: object) -> bool:
        raise ZeroDivisionError

    broken.take = fail  # type: ignore[method-assign]
    stream.push(delta(0))
    for taker in (broken, whole):
        await taker.read()
    waiting = [taker.read() for taker in (broken, whole)]
    await settle()
    stream.push(delta(1))
    await settle()

    with pytest.raises(ZeroDivisionError):
        await waiting[0]
    assert whole.taken == ["1 "]
    whole.reader.close()
    await waiting[1]


async def test_what_making_a_piece_raises_is_raised_by_its_read_and_costs_no_other_reader() -> None:
    stream, outbox = ReplayStream(), Outbox()
    readers = [stream.reader(outbox=outbox) for _ in range(3)]
    written: list[bytes] = []

    def refuse(_: list[Delta]) -> bool:
        return False

    takes = [Writing({0: str.encode}, written.append, refuse) for _ in readers]
    stream.push(delta(0))
    for reader in readers:
        await reader.next()
    takes[1].pieces = {0: lambda text: bytes(1 // 0)}
    waiting = [
        asyncio.create_task(reader.next(None, take))
        for reader, take in zip(readers, takes, strict=True)
    ]
    await settle()
    for number in (1, 2):
        stream.push(delta(number))
        await settle()

    failed = [each for each in waiting if each.done()]
    with pytest.raises(ZeroDivisionError):
        await failed[0]
    assert len(failed) == 1
    assert sorted(written) == [b"1 ", b"1 ", b"2 ", b"2 "]
    for reader in readers:
        reader.close()
    await asyncio.wait(waiting)


async def test_a_reader_that_leaves_with_something_due_is_given_nothing() -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    waiting = await taker.begun()
    stream.push(delta(1))
    taker.reader.close()
    await settle()

    assert await waiting == []
    assert taker.taken == []


async def test_a_cancelled_read_with_something_due_loses_nothing() -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    waiting = await taker.begun()
    stream.push(delta(1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await settle()

    assert text(await taker.read()) == "1 "


class Watch:
    """Stands for the module `time`: both clocks stand still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def thread_time(self) -> float:
        return self.cpu_s


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(stream_module, "time", watch)
    return watch


Alarm = tuple[float, Callable[..., Any], tuple[Any, ...]]


@pytest.fixture
async def alarms(monkeypatch: pytest.MonkeyPatch) -> list[Alarm]:
    """What was to be called later, and never is."""
    noted: list[Alarm] = []
    loop = asyncio.get_running_loop()

    def note(delay_s: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        noted.append((delay_s, callback, args))
        return asyncio.TimerHandle(0, callback, args, loop)

    monkeypatch.setattr(loop, "call_later", note)
    return noted


async def test_silence_is_counted_from_what_was_taken_last(
    watch: Watch, alarms: list[Alarm]
) -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox())
    stream.push(delta(0))
    await taker.read()
    waiting = taker.read(timeout_s=10)
    await settle()
    watch.now_s += 7
    stream.push(delta(1))
    await settle()
    watch.now_s += 3
    _, look, given = alarms[-1]
    look(*given)
    await settle()

    assert not waiting.done()
    delay_s, look, given = alarms[-1]
    assert delay_s == pytest.approx(7)
    watch.now_s += 7
    look(*given)
    assert await waiting is None


async def test_rounds_take_no_more_than_their_share_of_a_core(
    watch: Watch, alarms: list[Alarm]
) -> None:
    stream = ReplayStream()
    taker = Taker(stream, Outbox(share=0.25))
    take = taker.take

    def slow_take(deltas: list[Delta]) -> bool:
        watch.cpu_s += 0.005
        watch.now_s += 0.005
        return take(deltas)

    taker.take = slow_take  # type: ignore[method-assign]
    waiting = await taker.begun()
    stream.push(delta(1))
    await settle()
    stream.push(delta(2))
    stream.push(delta(3))
    await settle()

    assert taker.taken == ["1 "]
    delay_s, serve, given = alarms[-1]
    assert delay_s == pytest.approx(0.015)
    watch.now_s += delay_s
    serve(*given)
    assert taker.taken == ["1 ", "2 3 "]
    taker.reader.close()
    await waiting


async def test_a_long_round_lets_others_have_the_loop_in_between(watch: Watch) -> None:
    stream, outbox = ReplayStream(), Outbox()
    takers = [Taker(stream, outbox) for _ in range(3)]
    order: list[str] = []
    stream.push(delta(0))
    waiting = []
    for taker in takers:
        await taker.read()

        def take(_: list[Delta]) -> bool:
            watch.now_s += 1
            order.append("reader")
            return True

        taker.take = take  # type: ignore[method-assign]
        waiting.append(taker.read())
    await settle()
    stream.push(delta(1))
    loop = asyncio.get_running_loop()
    loop.call_soon(order.append, "other")
    await settle()

    assert order == ["reader", "other", "reader", "reader"]
    for taker in takers:
        taker.reader.close()
    await asyncio.gather(*waiting)


class TakingPerson(Person):
    """Reads with a take that can't take every second time."""

    calls = 0

    def take(self, deltas: list[Delta]) -> bool:
        self.calls += 1
        is_taken = self.calls % 2 == 0
        if is_taken:
            self.seen += text(deltas)
        return is_taken

    async def _read(self) -> bool:
        batch = await self.reader.next(None, self.take)
        self.seen += text(batch)
        return bool(batch)


@settings(deadline=None)
@given(steps=STEPS, error=st.sampled_from([None, "the end"]))
def test_no_interleaving_of_takes_loses_or_doubles_a_delta(
    steps: list[tuple[str, int]], error: str | None
) -> None:
    asyncio.run(play(steps, error, TakingPerson))
