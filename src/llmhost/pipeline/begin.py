"""A coroutine that hardly ever has to wait, run at once: a task costs several times what most of them do."""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any


def begin(running: Coroutine[Any, Any, None]) -> "asyncio.Task[None] | None":
    """Run it until it waits; a task for the rest of it, or None where it has ended.

    What it raises is the task's, too. Until it waits it is within no task, so it must not ask for its own
    (`asyncio.timeout` does).
    """
    try:
        waits_for = running.send(None)
    except StopIteration:
        return None
    except asyncio.CancelledError as error:  # it has no task that anybody could have cancelled
        failure = RuntimeError("it was cancelled from within")
        failure.__cause__ = error
        return asyncio.create_task(_raise(failure))
    except Exception as error:  # noqa: BLE001 - raised by the task
        return asyncio.create_task(_raise(error))
    return asyncio.create_task(_go_on(running, waits_for))


async def _raise(error: Exception) -> None:
    raise error


async def _go_on(running: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _rest(running, waits_for)


@types.coroutine
def _rest(running: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """What it waits for is handed on to whoever runs this, and what comes of that to it."""
    while True:
        failure: BaseException | None = None
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 - a cancellation is for whoever waits
            failure = error
        try:
            waits_for = running.send(None) if failure is None else running.throw(failure)
        except StopIteration:
            return
