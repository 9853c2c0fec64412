"""A call that makes something, sent again while the first is not on disk yet."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from llmhost.api.creating import Creation
from llmhost.core.errors import IdempotencyKeyReused
from llmhost.storage.connect import StorageFailed
from llmhost.storage.keyed_calls import Call, KeyedCalls, Made, Note

CALL = Call(b"name", b"body", "req_2")


class Kept:
    """What a first call made, on a disk that takes it or doesn't."""

    def __init__(self, *, is_forced: bool) -> None:
        self.is_forced = is_forced
        self.forces = 0

    async def find(self, name: bytes) -> Made:
        return Made(b"body", "req_1", "file-1")

    async def force(self) -> None:
        self.forces += 1
        if not self.is_forced:
            raise StorageFailed(Path("state.db"), OSError("full"))


async def never(note: Note | None) -> str:
    raise AssertionError("it was made before")


async def found(object_id: str) -> str:
    return object_id


def once(kept: Kept, call: Call, told: list[str]) -> Awaitable[tuple[str, Made | None]]:
    count: Callable[[str], None] = told.append
    return Creation(cast(KeyedCalls, kept), count).once(call, never, found)


async def test_what_a_first_call_made_is_told_when_it_is_on_disk() -> None:
    kept, told = Kept(is_forced=True), list[str]()

    made, _ = await once(kept, CALL, told)

    assert (made, kept.forces, told) == ("file-1", 1, ["replayed"])


async def test_what_a_first_call_made_is_not_told_when_the_disk_refuses_it() -> None:
    kept, told = Kept(is_forced=False), list[str]()

    with pytest.raises(StorageFailed):
        await once(kept, CALL, told)

    assert told == []


async def test_another_body_is_an_error_before_anything_is_forced() -> None:
    kept = Kept(is_forced=True)

    with pytest.raises(IdempotencyKeyReused):
        await once(kept, Call(b"name", b"other", "req_2"), [])

    assert kept.forces == 0
