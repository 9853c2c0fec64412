"""Streams on a server with a shortcut to the socket: the same bytes, in the same order, and the same ends."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from tests.unit.api.test_visits import LONG, Connection, app_of, visit
from tests.unit.pipeline.node import HELD_MODEL, Held, settled, slow_ledger, until
from tests.unit.pipeline.scripted import scripted_node

from llmhost.api.door import WIRE, Outflow
from llmhost.core.errors import EngineFailed
from llmhost.core.output import FinishReason
from llmhost.pipeline.stream import Piece
from llmhost.testing import FAKE_MODEL, TestHost, fake_words, make_host


class Gone(asyncio.Event):
    """Tells whoever watches at once, as a connection does."""

    leave: Callable[[], None] | None = None

    def set(self) -> None:
        super().set()
        if self.leave is not None:
            self.leave()


class WiredConnection(Connection):
    """A client's side of one ASGI call, with a wire that is free once the answer has begun."""

    def __init__(self, *parts: bytes) -> None:
        super().__init__(*parts)
        self.gone: Gone = Gone()
        self.is_blocked = False
        self.answers = self.penned = 0
        self.written: list[bytes] = []
        self.scope["extensions"] = {WIRE: self}

    def is_free(self) -> bool:
        return bool(self.sent) and not self.is_blocked

    def write(self, body: bytes) -> None:
        self.written.append(body)
        self.sent.append({"type": "http.response.body", "body": body, "more_body": True})

    def offer(self, body: bytes) -> bool:
        if is_free := self.is_free():
            self.write(body)
        return is_free

    def pen(
        self,
        before: bytes,
        behind: bytes,
        encode: Callable[[str], bytes],
        tally: Outflow | None = None,
    ) -> Piece:
        def piece(text: str) -> bytes | None:
            return before + encode(text) + behind if self.is_free() else None

        return piece

    def write_raw(self, piece: bytes) -> None:
        self.penned += 1
        self.write(piece)

    def peek_body(self) -> bytes | None:
        return None

    def take_body(self) -> bytes | None:
        [message] = self._messages
        return message["body"]

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        if self.is_blocked:
            return False
        self.answers += 1
        self.sent += [
            {"type": "http.response.start", "status": status, "headers": headers},
            {"type": "http.response.body", "body": body},
        ]
        return True

    def on_gone(self, leave: Callable[[], None] | None) -> bool:
        self.gone.leave = leave
        return not self.gone.is_set()

    @property
    def events(self) -> list[Any]:
        pieces = self.body.decode().split("\n\n")
        data = [piece.removeprefix("data: ") for piece in pieces if piece.startswith("data: ")]
        return [json.loads(each) for each in data if each != "[DONE]"]

    @property
    def text(self) -> str:
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return "".join(choice["text"] for choice in choices)


def asked(**more: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "hello world", "stream": True, **more}).encode()


def held_node(held: Held) -> AbstractAsyncContextManager[TestHost]:
    return make_host(plugins=[held], models={"m": HELD_MODEL})


async def stepped(held: Held, connection: WiredConnection, steps: int) -> None:
    """Let the model run step by step, each heard of before the next."""
    for _ in range(steps):
        before = len(connection.sent)
        held.go(1)
        await until(lambda before=before: len(connection.sent) > before)


async def test_all_between_the_first_piece_and_the_end_goes_over_the_wire() -> None:
    held = Held()
    async with held_node(held) as host:
        connection = WiredConnection(asked(max_tokens=5))
        call = visit(app_of(host), connection)
        await until(lambda: connection.sent)
        await stepped(held, connection, 5)
        await call

    assert connection.text == fake_words("hello world", 5)
    assert len(connection.written) == 3
    assert connection.body.endswith(b"data: [DONE]\n\n")
    assert connection.sent[-1]["more_body"] is False


async def test_a_client_that_reads_slowly_gets_what_waited_in_one_piece_and_all_of_it() -> None:
    held = Held()
    async with held_node(held) as host:
        connection = WiredConnection(asked(max_tokens=6))
        call = visit(app_of(host), connection)
        await until(lambda: connection.sent)
        await stepped(held, connection, 2)
        connection.is_blocked = True
        await stepped(held, connection, 1)
        waited = list(connection.written)
        connection.is_blocked = False
        held.go()
        await call

    assert len(waited) == 1  # the other piece went where one waits
    assert connection.text == fake_words("hello world", 6)


async def test_a_client_who_leaves_is_computed_for_no_more_than_two_steps() -> None:
    held = Held()
    async with held_node(held) as host:
        connection = WiredConnection(LONG)
        call = visit(app_of(host), connection)
        await until(lambda: connection.sent)
        await stepped(held, connection, 3)
        connection.gone.set()
        await call
        held.go()
        [entry] = await settled(host)

    assert entry["outcome"] == "cancelled"
    assert 3 <= entry["tokens"]["output"] <= 5


async def test_the_end_of_an_answer_is_not_written_before_its_entry() -> None:
    held = Held()
    async with held_node(held) as host:
        with slow_ledger(host) as ledger:
            connection = WiredConnection(asked(max_tokens=4))
            call = visit(app_of(host), connection)
            await until(lambda: connection.sent)
            await stepped(held, connection, 3)
            held.go(1)
            await until(lambda: ledger.waiting)
            before = connection.text
            ledger.let_go()
            await call

    assert before == fake_words("hello world", 3)
    assert connection.text == fake_words("hello world", 4)


async def test_each_piece_is_whole_events_of_whole_characters() -> None:
    said = ["ein ", "Bär", " 🐻", ' "sagt"\n', "好"]
    async with scripted_node() as (host, engine):
        connection = WiredConnection(asked())
        call = visit(app_of(host), connection)
        await until(lambda: engine.specs)
        for text in said:
            before = len(connection.sent)
            engine.say(0, text)
            await until(lambda before=before: len(connection.sent) > before)
        engine.end(0)
        await call

    assert connection.text == "".join(said)
    for piece in connection.written:
        assert piece.endswith(b"\n\n")
        for event in piece.decode().split("\n\n")[:-1]:
            json.loads(event.removeprefix("data: "))


async def test_two_choices_keep_their_order_over_the_wire() -> None:
    async with scripted_node() as (host, engine):
        connection = WiredConnection(asked(n=2))
        call = visit(app_of(host), connection)
        await until(lambda: len(engine.specs) == 2)
        for number in range(4):
            before = len(connection.sent)
            for index in (0, 1):
                engine.say(index, f"{index}:{number} ")
            await until(lambda before=before: len(connection.sent) > before)
        engine.end(1)
        engine.end(0, FinishReason.LENGTH)
        await call

    texts = {0: "", 1: ""}
    for event in connection.events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "0:0 0:1 0:2 0:3 ", 1: "1:0 1:1 1:2 1:3 "}
    assert connection.written


async def test_an_error_amid_the_stream_comes_after_what_the_wire_took() -> None:
    async with scripted_node() as (host, engine):
        connection = WiredConnection(asked())
        call = visit(app_of(host), connection)
        await until(lambda: engine.specs)
        for text in ("one ", "two "):
            before = len(connection.sent)
            engine.say(0, text)
            await until(lambda before=before: len(connection.sent) > before)
        engine.end(0, FinishReason.ERROR, EngineFailed("the pass raised"))
        await call

    *told, last = connection.events
    assert "".join(choice["text"] for event in told for choice in event["choices"]) == "one two "
    assert last["error"]["message"] == "the pass raised"
    assert b"[DONE]" not in connection.body
    assert connection.written


async def test_usage_so_far_is_in_every_piece_over_the_wire() -> None:
    async with scripted_node() as (host, engine):
        options = {"include_usage": True, "continuous_usage_stats": True}
        connection = WiredConnection(asked(stream_options=options))
        call = visit(app_of(host), connection)
        await until(lambda: engine.specs)
        for _ in range(3):
            before = len(connection.sent)
            engine.say(0, "word ")
            await until(lambda before=before: len(connection.sent) > before)
        engine.end(0)
        await call

    counts = [event["usage"]["completion_tokens"] for event in connection.events]
    assert counts[:3] == [1, 2, 3]
    assert len(connection.written) == 2


@pytest.mark.parametrize("is_blocked", [False, True])
async def test_a_whole_answer_goes_over_the_wire_unless_that_is_blocked(is_blocked: bool) -> None:
    async with make_host(models={"m": FAKE_MODEL}) as host:
        connection = WiredConnection(asked(stream=False, max_tokens=3))
        connection.is_blocked = is_blocked
        await visit(app_of(host), connection)

    assert connection.answers == (not is_blocked)
    assert connection.status == 200
    assert json.loads(connection.body)["choices"][0]["text"] == fake_words("hello world", 3)


async def test_a_page_of_another_origin_gets_its_headers_with_a_whole_answer() -> None:
    async with make_host(models={"m": FAKE_MODEL}) as host:
        connection = WiredConnection(asked(stream=False, max_tokens=3))
        connection.scope["headers"].append((b"origin", b"http://localhost:3000"))
        await visit(app_of(host), connection)

    assert connection.answers == 0
    headers = dict(connection.sent[0]["headers"])
    assert headers[b"access-control-allow-origin"] == b"http://localhost:3000"


async def test_a_client_who_had_left_before_it_was_looked_at_is_booked_as_cancelled() -> None:
    async with make_host(models={"m": FAKE_MODEL}) as host:
        connection = WiredConnection(asked(stream=False, max_tokens=3))
        connection.gone.set()
        await visit(app_of(host), connection)
        [entry] = await settled(host)

    assert connection.sent == []
    assert entry["outcome"] == "cancelled"
