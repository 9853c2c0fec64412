"""One stream, many readers: all of them see the whole, and none of them waits for another."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.errors import EngineFailed, Overloaded
from llmhost.core.output import Delta
from llmhost.pipeline.stream import Outbox, ReplayStream, StreamReader


def delta(number: int) -> Delta:
    return Delta(index=0, text=f"{number} ")


def text(batch: Sequence[Delta] | None) -> str:
    assert batch is not None
    return "".join(one.text for one in batch)


async def settle() -> None:
    """Let every task that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def read_all(reader: StreamReader) -> str:
    async with reader:
        return "".join([text(batch) async for batch in reader])


async def test_two_readers_at_different_speeds_see_the_same_whole_text() -> None:
    stream = ReplayStream()
    quick = asyncio.create_task(read_all(stream.reader()))
    slow, slow_batches = stream.reader(), []
    for number in range(6):
        stream.push(delta(number))
        await settle()
        if number % 3 == 2:
            slow_batches.append(text(await slow.next()))
    stream.close()

    assert await quick == "0 1 2 3 4 5 "
    assert slow_batches == ["0 1 2 ", "3 4 5 "]
    assert await slow.next() == []


async def test_a_reader_gets_each_delta_as_it_comes_when_it_is_quick() -> None:
    stream, seen = ReplayStream(), []

    async def read() -> None:
        async for batch in stream.reader():
            seen.append(text(batch))

    task = asyncio.create_task(read())
    for number in range(3):
        stream.push(delta(number))
        await settle()
    stream.close()
    await task

    assert seen == ["0 ", "1 ", "2 "]


async def test_a_late_reader_replays_everything() -> None:
    stream = ReplayStream()
    for number in range(3):
        stream.push(delta(number))
    stream.close()

    assert await read_all(stream.reader()) == "0 1 2 "
    assert await read_all(stream.reader()) == "0 1 2 "


async def test_a_reader_may_go_on_where_another_was() -> None:
    stream = ReplayStream()
    stream.push(delta(0))
    first = stream.reader()
    await first.next()
    stream.push(delta(1))
    stream.close()

    assert first.cursor == 1
    assert await read_all(stream.reader(first.cursor)) == "1 "
    assert await read_all(stream.reader(len(stream))) == ""


async def test_a_reader_may_start_before_its_place_is_reached() -> None:
    stream = ReplayStream()
    reader = stream.reader(2)
    for number in range(4):
        stream.push(delta(number))
    stream.close()

    assert await read_all(reader) == "2 3 "


async def test_a_reader_that_never_reads_blocks_nobody() -> None:
    stream = ReplayStream()
    stream.reader()
    other = asyncio.create_task(read_all(stream.reader()))
    for number in range(1000):
        stream.push(delta(number))
    stream.close()

    assert await other == "".join(f"{number} " for number in range(1000))


async def test_an_error_comes_after_the_deltas_before_it_to_every_reader() -> None:
    stream = ReplayStream()
    waiting = stream.reader()
    task = asyncio.create_task(read_all(waiting))
    await settle()
    stream.push(delta(0))
    stream.fail(EngineFailed("the pass raised"))
    late = stream.reader()

    with pytest.raises(EngineFailed, match="the pass raised"):
        await task
    assert text(await late.next()) == "0 "
    for _ in range(2):
        with pytest.raises(EngineFailed):
            await late.next()


async def test_an_error_does_not_collect_the_frames_of_its_readers() -> None:
    stream = ReplayStream()
    stream.fail(EngineFailed("once"))
    depths = []
    for _ in range(3):
        with pytest.raises(EngineFailed) as caught:
            await stream.reader().next()
        depths.append(len(caught.traceback))

    assert depths[0] == depths[1] == depths[2]


async def test_a_stream_ends_once() -> None:
    stream = ReplayStream()
    stream.push(delta(0))
    stream.close()
    stream.close()
    stream.push(delta(1))
    stream.fail(EngineFailed("too late"))

    assert stream.is_ended
    assert await read_all(stream.reader()) == "0 "


async def test_the_first_of_two_errors_counts() -> None:
    stream = ReplayStream()
    stream.fail(EngineFailed("first"))
    stream.fail(Overloaded("second"))

    with pytest.raises(EngineFailed, match="first"):
        await stream.reader().next()


# --- time-outs ------------------------------------------------------------------------------------


async def test_a_read_that_times_out_gives_none_and_loses_nothing() -> None:
    stream = ReplayStream()
    async with stream.reader() as reader:
        assert await reader.next(timeout_s=0) is None
        stream.push(delta(0))
        assert text(await reader.next(timeout_s=0)) == "0 "
        assert await reader.next(timeout_s=0) is None
        stream.close()
        assert await reader.next(timeout_s=0) == []


async def test_a_delta_beats_a_time_out_that_is_far_away() -> None:
    stream = ReplayStream()
    async with stream.reader() as reader:
        task = asyncio.create_task(reader.next(timeout_s=3600))
        await settle()
        stream.push(delta(0))

        assert text(await task) == "0 "


async def test_a_time_out_that_was_not_needed_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = ReplayStream()
    loop, alarms = asyncio.get_running_loop(), []
    real = loop.call_later

    def noted(delay_s: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        alarms.append(real(delay_s, callback, *args))
        return alarms[-1]

    monkeypatch.setattr(loop, "call_later", noted)
    task = asyncio.create_task(stream.reader().next(timeout_s=3600))
    await settle()
    stream.push(delta(0))
    await task

    assert [alarm.cancelled() for alarm in alarms] == [True]


# --- leaving --------------------------------------------------------------------------------------


class Calls:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def test_a_stream_is_abandoned_exactly_once_when_its_last_reader_leaves() -> None:
    abandoned = Calls()
    stream = ReplayStream(on_abandoned=abandoned)
    first, second = stream.reader(), stream.reader()

    first.close()
    first.close()
    assert (abandoned.count, stream.is_abandoned) == (0, False)
    second.close()
    assert (abandoned.count, stream.is_abandoned) == (1, True)
    async with stream.reader():
        pass
    assert abandoned.count == 1


async def test_a_reader_that_fails_leaves_too() -> None:
    abandoned = Calls()
    stream = ReplayStream(on_abandoned=abandoned)

    with pytest.raises(ZeroDivisionError):
        async with stream.reader():
            raise ZeroDivisionError

    assert abandoned.count == 1


async def test_a_stream_that_ended_is_not_abandoned() -> None:
    abandoned = Calls()
    stream = ReplayStream(on_abandoned=abandoned)
    reader = stream.reader()
    stream.close()
    reader.close()

    assert abandoned.count == 0
    assert not stream.is_abandoned


async def test_a_stream_that_is_kept_goes_on_without_readers() -> None:
    abandoned = Calls()
    stream = ReplayStream(keep=True, on_abandoned=abandoned)
    stream.reader().close()
    stream.push(delta(0))
    stream.close()

    assert abandoned.count == 0
    assert await read_all(stream.reader()) == "0 "


async def test_a_stream_that_nobody_read_yet_is_not_abandoned() -> None:
    abandoned = Calls()
    stream = ReplayStream(on_abandoned=abandoned)
    stream.push(delta(0))

    assert abandoned.count == 0


async def test_closing_a_reader_ends_its_read_and_no_other() -> None:
    stream = ReplayStream()
    left, stayed = stream.reader(), stream.reader()
    leaving, staying = asyncio.create_task(left.next()), asyncio.create_task(stayed.next())
    await settle()

    left.close()
    assert await leaving == []
    assert await left.next() == []
    stream.push(delta(0))
    assert text(await staying) == "0 "


# --- cancellation ---------------------------------------------------------------------------------


async def test_a_cancelled_read_leaves_nothing_behind_and_loses_nothing() -> None:
    stream = ReplayStream()
    reader = stream.reader()
    task = asyncio.create_task(reader.next(timeout_s=3600))
    await settle()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not stream._waiting
    assert reader._waiter is None
    stream.push(delta(0))
    assert text(await reader.next()) == "0 "


async def test_a_read_cancelled_just_after_its_wake_up_loses_nothing() -> None:
    stream = ReplayStream()
    reader = stream.reader()
    task = asyncio.create_task(reader.next())
    await settle()

    stream.push(delta(0))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert text(await reader.next()) == "0 "


async def test_a_push_makes_no_task_and_one_wake_up_per_waiting_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = ReplayStream()
    readers = [stream.reader() for _ in range(3)]
    tasks = [asyncio.create_task(reader.next()) for reader in readers]
    await settle()
    scheduled: list[Callable[..., Any]] = []
    loop = asyncio.get_running_loop()
    real = loop.call_soon

    def counted(callback: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Handle:
        scheduled.append(callback)
        return real(callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_soon", counted)
    before = asyncio.all_tasks()
    for number in range(100):
        stream.push(delta(number))
    monkeypatch.undo()

    assert asyncio.all_tasks() == before
    assert len(scheduled) <= 3
    assert [len(batch or []) for batch in await asyncio.gather(*tasks)] == [100, 100, 100]


async def test_a_dropped_stream_is_freed_at_once() -> None:
    async def use() -> weakref.ref[ReplayStream]:
        stream = ReplayStream()
        async with stream.reader() as reader:
            task = asyncio.create_task(reader.next())
            await settle()
            task.cancel()
            await asyncio.wait([task])
        return weakref.ref(stream)

    gc.disable()
    try:
        gone = await use()
        assert gone() is None
    finally:
        gc.enable()


async def test_two_tasks_may_not_share_a_reader() -> None:
    reader = ReplayStream().reader()
    task = asyncio.create_task(reader.next())
    await settle()

    with pytest.raises(RuntimeError, match="give each its own"):
        await reader.next()
    reader.close()
    assert await task == []


def test_a_cursor_counts_from_nought() -> None:
    with pytest.raises(ValueError, match="counts from 0"):
        ReplayStream().reader(-1)


# --- random interleavings -------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.just(0)),
        st.tuples(st.just("join"), st.integers(0, 6)),
        st.tuples(st.sampled_from(["read", "cancel", "leave"]), st.integers(0, 3)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=40,
)


class Person:
    """One reader, what it has read, and the read it waits for."""

    def __init__(self, stream: ReplayStream, cursor: int, outbox: Outbox) -> None:
        self.start = cursor
        self.reader = stream.reader(cursor, outbox=outbox)
        self.seen = ""
        self.task: asyncio.Task[bool] | None = None
        self.has_left = False

    async def read(self) -> None:
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._read())

    async def _read(self) -> bool:
        batch = await self.reader.next()
        self.seen += text(batch)
        return bool(batch)

    async def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    async def leave(self) -> None:
        self.has_left = True
        self.reader.close()

    async def finish(self) -> str | None:
        """Read to the end; how it ended."""
        try:
            if self.task is not None and not self.task.cancelled():
                await self.task
            while await self._read():
                pass
        except EngineFailed as error:
            return error.message
        return None


async def play(
    steps: list[tuple[str, int]], error: str | None, make: type[Person] = Person
) -> None:
    abandoned = Calls()
    stream, outbox = ReplayStream(on_abandoned=abandoned), Outbox()
    people: list[Person] = []
    for name, number in steps:
        if name == "push":
            stream.push(delta(len(stream)))
        elif name == "join":
            people.append(make(stream, number, outbox))
        elif name == "settle":
            await settle()
        elif number < len(people):
            await getattr(people[number], name)()
    expected_calls = int(stream.is_abandoned)
    if error:
        stream.fail(EngineFailed(error))
    else:
        stream.close()
    for person in people:
        told = await person.finish()
        whole = "".join(f"{number} " for number in range(person.start, len(stream)))
        if person.has_left:
            assert whole.startswith(person.seen)
        else:
            assert (person.seen, told) == (whole, error)
        person.reader.close()
    assert not stream._waiting
    assert not stream._readers
    assert abandoned.count == expected_calls


@settings(deadline=None)
@given(steps=STEPS, error=st.sampled_from([None, "the end"]))
def test_no_interleaving_loses_or_doubles_a_delta(
    steps: list[tuple[str, int]], error: str | None
) -> None:
    asyncio.run(play(steps, error))


async def test_a_push_costs_little_however_much_was_pushed_before() -> None:
    stream = ReplayStream()
    reader = stream.reader()

    def seconds_for_a_thousand() -> float:
        began = time.process_time()
        for number in range(1000):
            stream.push(delta(number))
        return time.process_time() - began

    first = min(seconds_for_a_thousand() for _ in range(3))
    for _ in range(50):
        seconds_for_a_thousand()
    later = min(seconds_for_a_thousand() for _ in range(3))

    assert later < first * 10 + 0.01
    assert len(await reader.next() or []) == len(stream)


# --- the whole at once ----------------------------------------------------------------------------


async def test_who_wants_the_whole_is_woken_once_at_the_end() -> None:
    stream = ReplayStream()
    reader = stream.reader()
    task = asyncio.create_task(reader.rest())
    await settle()
    for number in range(3):
        stream.push(delta(number))
        await settle()
        assert reader._waiter is not None
        assert not reader._waiter.done()
    stream.close()

    assert text(await task) == "0 1 2 "
    assert await reader.rest() == []


async def test_an_error_ends_a_wait_for_the_whole() -> None:
    stream = ReplayStream()
    task = asyncio.create_task(stream.reader().rest())
    await settle()
    stream.push(delta(0))
    stream.fail(EngineFailed("the pass raised"))

    with pytest.raises(EngineFailed, match="the pass raised"):
        await task


async def test_leaving_ends_a_wait_for_the_whole() -> None:
    abandoned = Calls()
    stream = ReplayStream(on_abandoned=abandoned)
    reader = stream.reader()
    task = asyncio.create_task(reader.rest())
    await settle()
    stream.push(delta(0))
    reader.close()

    assert text(await task) == "0 "
    assert abandoned.count == 1


async def test_the_whole_of_a_stream_that_has_ended_is_there_at_once() -> None:
    stream = ReplayStream()
    stream.push(delta(0))
    stream.close()

    assert text(await stream.reader().rest()) == "0 "
