"""However calls with one key come, leave and end: no two of them run at a time, and nobody gets a stranger's answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.api.idempotency import Idempotency
from llmhost.api.recording import Playback
from llmhost.config.schema.state import IdempotencySettings
from llmhost.core.errors import IdempotencyKeyReused
from llmhost.storage.answers import Answer, Answers
from llmhost.storage.keyed_calls import Call

OPTIONS = IdempotencySettings(grace_s=0.0)

ACTS = st.sampled_from(
    [
        *(("call", b"a"), ("call", b"a"), ("call", b"b")),
        *(("leave", True), ("leave", False)),
        *(("end", True), ("end", False)),
    ]
)
TURNS = st.sampled_from([0, 1, 3, 15])
"""Of the event loop, after an act."""


async def a_while() -> None:
    """Long enough for others to come in between."""
    for _ in range(10):
        await asyncio.sleep(0)


class Shelf:
    """Answers in memory, which take their time."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Answer] = {}

    async def find(self, name: bytes) -> Answer | None:
        found = self.answers.get(name)
        await a_while()
        return found

    async def keep(self, name: bytes, answer: Answer) -> None:
        await a_while()
        self.answers[name] = answer
        await a_while()


@dataclass
class World:
    """One key's calls, and what runs for them."""

    shelf: Shelf = field(default_factory=Shelf)
    running: dict["asyncio.Future[bool]", "asyncio.Future[Any]"] = field(default_factory=dict)
    """The wish that one ends, and the word that nobody wants it any more."""
    ran: list[tuple[bytes, bool]] = field(default_factory=list)
    """(body, whether it was answered) of those that ended before everybody had left for good."""
    most_at_once: int = 0
    readers: list["asyncio.Task[Any]"] = field(default_factory=list)
    playbacks: list[Playback] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.calls = Idempotency(cast(Answers, self.shelf), OPTIONS, lambda how: None)

    def call(self, body: bytes) -> None:
        self.count += 1
        call = Call(b"name", body, f"req_{self.count}")
        self.readers.append(asyncio.ensure_future(self._read(call)))

    async def _read(self, call: Call) -> tuple[Call, bytes | None]:
        try:
            playback = await self.calls.join(call, call.body_hash, self._perform(call), None)
        except IdempotencyKeyReused:
            return call, None
        self.playbacks.append(playback)
        try:
            got = b""
            if await playback.begun() is not None:
                while piece := await playback.next():
                    got += piece
            return call, None if playback.is_closed else got
        finally:
            playback.close()

    def _perform(self, call: Call) -> Callable[..., Any]:
        async def perform(receive: Any, send: Any, wire: Any) -> bool:
            assert (await receive())["body"] == call.body_hash
            stage = self.calls._live[call.name]
            end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            gone = asyncio.ensure_future(receive())
            self.running[end] = gone
            wanted = [left for left in self.running.values() if not left.done()]
            self.most_at_once = max(self.most_at_once, len(wanted))
            await asyncio.wait((end, gone), return_when=asyncio.FIRST_COMPLETED)
            del self.running[end]
            if gone.done():
                await a_while()
                return True  # nothing was sent, which is no answer
            gone.cancel()
            status = 200 if end.result() else 500
            await send({"type": "http.response.start", "status": status, "headers": []})
            text = call.body_hash + b" by " + call.request_id.encode()
            await send({"type": "http.response.body", "body": text, "more_body": False})
            if self.calls._live.get(call.name) is stage:
                self.ran.append((call.body_hash, end.result()))
            return end.result()

        return perform

    def leave(self, is_for_all: bool) -> None:
        still_here = [playback for playback in self.playbacks if not playback.is_closed]
        for playback in still_here if is_for_all else still_here[:1]:
            playback.close()

    def end(self, is_answered: bool) -> None:
        for end in self.running:
            if not end.done():
                end.set_result(is_answered)


@settings(max_examples=300)
@given(st.lists(st.tuples(ACTS, TURNS), min_size=3, max_size=15))
def test_of_calls_with_one_key_at_most_one_runs_and_one_is_answered(
    acts: list[tuple[tuple[str, Any], int]],
) -> None:
    async def scene() -> None:
        world = World()
        for (act, fact), turns in acts:
            getattr(world, act)(fact)
            for _ in range(turns):
                await asyncio.sleep(0)
        while not all(reader.done() for reader in world.readers):
            await asyncio.sleep(0)
            world.end(True)
        await world.calls.close()

        assert world.most_at_once <= 1
        assert [is_answered for _, is_answered in world.ran].count(True) <= 1
        for reader in world.readers:
            call, got = reader.result()
            assert got is None or got.startswith(call.body_hash + b" by ")
        assert world.calls._live == {}

    asyncio.run(scene())
