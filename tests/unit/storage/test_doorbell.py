import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from llmhost.observe.logs import request_id
from llmhost.storage.doorbell import AT_ONCE, Doorbell


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


async def test_many_results_leave_the_loop_its_turns_and_arrive_in_order(bell: Doorbell) -> None:
    promises = [bell.promise() for _ in range(3 * AT_ONCE)]
    turns: list[int] = []
    arrived: list[int] = []
    for number, promise in enumerate(promises):
        promise.waiter.add_done_callback(lambda done: arrived.append(done.result()))
        promise.set_result(number)

    def count() -> None:
        turns.append(len(arrived))
        if len(arrived) < len(promises):
            bell.loop.call_soon(count)

    count()
    await asyncio.gather(*(promise.waiter for promise in promises))
    assert arrived == list(range(len(promises)))
    assert len(set(turns)) >= 3


async def test_a_promise_that_is_broken_says_why(bell: Doorbell) -> None:
    promise = bell.promise()
    await asyncio.to_thread(promise.set_exception, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await promise.waiter


async def test_the_end_of_several_things_is_told_once_and_the_first_failure_with_it(
    bell: Doorbell,
) -> None:
    good, bad = bell.tally(3), bell.tally(3)
    for number in range(3):
        good.set_result(number)
    bad.set_exception(ValueError("first"))
    bad.set_exception(ValueError("second"))
    assert not bad.waiter.done()
    bad.set_result(None)
    await good.waiter
    with pytest.raises(ValueError, match="first"):
        await bad.waiter


async def test_an_errand_is_told_on_the_loop_in_the_context_of_whoever_sent_for_it(
    bell: Doorbell,
) -> None:
    told: list[Any] = []
    done = asyncio.Event()

    def hear(value: object, error: BaseException | None) -> None:
        told.append((value, error, threading.current_thread(), request_id.get()))
        if len(told) == 2:
            done.set()

    token = request_id.set("req_1")
    good, bad = bell.errand(hear), bell.errand(hear)
    request_id.reset(token)
    why = ValueError("no")
    await asyncio.to_thread(lambda: (good.set_result(7), bad.set_exception(why)))
    await done.wait()
    here = threading.current_thread()
    assert told == [(7, None, here, "req_1"), (None, why, here, "req_1")]


async def test_who_fails_when_told_holds_up_nobody(bell: Doorbell) -> None:
    failures: list[Any] = []
    bell.loop.set_exception_handler(lambda _, said: failures.append(said["exception"]))
    waiter = bell.promise()

    def fail(value: object, error: BaseException | None) -> None:
        raise KeyError("mine")

    await asyncio.to_thread(lambda: (bell.errand(fail).set_result(1), waiter.set_result(2)))
    assert await waiter.waiter == 2
    assert [type(failure) for failure in failures] == [KeyError]


async def test_a_parcel_is_told_of_once_with_all_results(bell: Doorbell) -> None:
    told: list[Any] = []
    done = asyncio.Event()

    def hear(results: Sequence[Any], _: BaseException | None) -> None:
        told.append((list(results), threading.current_thread()))
        done.set()

    parcel, why = bell.parcel(hear), ValueError("no")
    await asyncio.to_thread(parcel.set_results, [(7, None), (None, why)])
    await done.wait()
    assert told == [([(7, None), (None, why)], threading.current_thread())]


async def test_parcels_count_by_what_is_in_them_and_let_others_in_between(bell: Doorbell) -> None:
    told: list[str] = []
    done = asyncio.Event()

    def first(results: Sequence[Any], _: BaseException | None) -> None:
        told.append("a")
        bell.loop.call_soon(told.append, "another")

    def last(value: object, error: BaseException | None) -> None:
        told.append("c")
        done.set()

    for parcel in (bell.parcel(first), bell.parcel(lambda *_: told.append("b"))):
        parcel.set_results([(None, None)] * AT_ONCE)
    bell.errand(last).set_result(None)
    await done.wait()
    assert told == ["a", "another", "b", "c"]
