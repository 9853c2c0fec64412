import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from llmhost.storage.doorbell import Doorbell


@pytest.fixture
async def bell() -> Doorbell:
    return Doorbell(asyncio.get_running_loop())


async def test_many_results_wake_the_loop_once(
    bell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings: list[Any] = []
    call = bell.loop.call_soon_threadsafe
    monkeypatch.setattr(
        bell.loop, "call_soon_threadsafe", lambda *args: (rings.append(args), call(*args))
    )
    futures: list[Future[int]] = [Future() for _ in range(100)]
    waiters = [bell.wait(future) for future in futures]
    for number, future in enumerate(futures):
        future.set_result(number)
    assert await asyncio.gather(*waiters) == list(range(100))
    assert len(rings) == 1


async def test_results_of_another_thread_arrive_one_after_the_other(bell: Doorbell) -> None:
    for number in range(200):
        future: Future[int] = Future()
        waiter = bell.wait(future)
        bell.loop.run_in_executor(None, future.set_result, number)
        assert await waiter == number


async def test_an_error_arrives_as_one(bell: Doorbell) -> None:
    future: Future[int] = Future()
    waiter = bell.wait(future)
    future.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await waiter


async def test_a_result_that_was_there_first_arrives_too(bell: Doorbell) -> None:
    future: Future[int] = Future()
    future.set_result(7)
    assert await bell.wait(future) == 7


async def test_who_left_holds_up_nobody(bell: Doorbell) -> None:
    futures: list[Future[int]] = [Future(), Future()]
    gone, stays = [bell.wait(future) for future in futures]
    gone.cancel()
    for future in futures:
        future.set_result(1)
    assert await stays == 1
    assert futures[0].result() == 1


def test_a_closed_loop_is_left_alone() -> None:
    loop = asyncio.new_event_loop()
    bell = Doorbell(loop)
    future: Future[int] = Future()
    bell.wait(future)
    loop.close()
    future.set_result(1)
    assert future.result() == 1
