"""What hardly ever has to wait is run at once, and is a task from where it does."""

import asyncio

import pytest

from llmhost.pipeline.begin import begin


async def test_what_does_not_wait_has_ended_without_a_task() -> None:
    done = []

    async def work() -> None:
        done.append(1)

    assert begin(work()) is None
    assert done == [1]


async def test_what_waits_goes_on_as_a_task() -> None:
    gate, done = asyncio.get_running_loop().create_future(), []

    async def work() -> None:
        for _ in range(2):
            await asyncio.sleep(0)
        done.append(await gate)

    task = begin(work())
    assert task is not None and not done
    gate.set_result("x")
    await task
    assert done == ["x"]


async def test_what_it_raises_is_the_task_s_wherever_it_is_raised() -> None:
    async def work(waits: int) -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        raise ValueError("broken")

    for waits in (0, 1, 3):
        task = begin(work(waits))
        assert task is not None
        with pytest.raises(ValueError, match="broken"):
            await task


async def test_a_cancellation_of_what_has_no_task_yet_is_a_failure() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    task = begin(work())
    assert task is not None
    with pytest.raises(RuntimeError, match="cancelled from within"):
        await task


async def test_what_it_waits_for_may_fail_and_it_may_be_cancelled() -> None:
    heard = []

    async def work(gate: "asyncio.Future[None]") -> None:
        try:
            await gate
        except BaseException as error:
            heard.append(type(error))
            raise

    loop = asyncio.get_running_loop()
    failing, lasting = loop.create_future(), loop.create_future()
    task = begin(work(failing))
    failing.set_exception(KeyError("x"))
    assert task is not None
    with pytest.raises(KeyError):
        await task
    task = begin(work(lasting))
    assert task is not None
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == [KeyError, asyncio.CancelledError]
