"""Blocking work off the loop: its outcome comes back, and nobody has to wait for it."""

import asyncio
import threading

import pytest

from llmhost.core.errors import Overloaded
from llmhost.deploy.off_loop import OffLoop
from llmhost.observe.logs import request_id


async def test_what_an_act_returns_or_raises_comes_back_and_it_knows_its_request() -> None:
    off_loop = OffLoop()
    request_id.set("req_1")

    assert await off_loop.run(request_id.get) == "req_1"
    with pytest.raises(ZeroDivisionError):
        await off_loop.run(lambda: 1 // 0)


async def test_who_waits_at_the_close_is_refused_while_the_act_goes_on() -> None:
    off_loop, may_end = OffLoop(), threading.Event()
    waiting = asyncio.create_task(off_loop.run(lambda: may_end.wait(30)))
    await asyncio.sleep(0)
    off_loop.close()

    with pytest.raises(Overloaded, match="shutting down"):
        await waiting
    with pytest.raises(Overloaded, match="shutting down"):
        await off_loop.run(lambda: None)
    assert off_loop.is_busy
    may_end.set()


def test_an_act_that_outlives_its_loop_ends_in_silence(
    recwarn: pytest.WarningsRecorder,
) -> None:
    off_loop, may_end = OffLoop(), threading.Event()

    async def leave() -> None:
        act = asyncio.create_task(off_loop.run(lambda: may_end.wait(30)))
        await asyncio.sleep(0)
        act.cancel()

    asyncio.run(leave())
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(30)

    assert not off_loop.is_busy
    assert [str(warning.message) for warning in recwarn] == []
