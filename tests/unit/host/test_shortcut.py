"""Requests that come again byte for byte on real connections: answered before they are read, and no differently."""

import asyncio
import json
from dataclasses import replace
from errno import ENOSPC
from typing import Any

import msgspec
import pytest
import uvicorn
from tests.unit.api import test_repeated_runs as runs
from tests.unit.api.test_repeats import (
    SETTINGS,
    Answer,
    Asked,
    Plugin,
    audited,
    chat,
    mix,
    node,
    rows,
    short,
)
from tests.unit.pipeline.node import Held, until
from uvicorn.server import ServerState

from llmhost.api import repeated_run
from llmhost.api.limit_headers import limit_lines
from llmhost.config.schema.cache import CacheSettings
from llmhost.core.caller import Limits
from llmhost.core.errors import Overloaded
from llmhost.core.request import GenerationRequest
from llmhost.hooks.spec import hookimpl
from llmhost.host.connection import Connection, connection_with
from llmhost.observe.logs import request_id
from llmhost.pipeline import short_run
from llmhost.pipeline.context import RequestContext
from llmhost.storage.connect import StorageFailed
from llmhost.storage.journal import Slot
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.tenants.refusals import Allowances
from llmhost.testing import TestHost

KEEP_ALIVE_S = 75


class Pipe(asyncio.Transport):
    """A transport that remembers what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 80)})
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


class Client:
    """One connection to a host."""

    def __init__(self, host: TestHost) -> None:
        config = uvicorn.Config(
            host.host.app.asgi, lifespan="off", log_config=None, timeout_keep_alive=KEEP_ALIVE_S
        )
        config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"now")]
        self.pipe = Pipe()
        self.connection: Connection = connection_with(host.host.repeats)(
            config, self.state, {}, asyncio.get_running_loop()
        )
        self.connection.connection_made(self.pipe)

    async def ask(self, *pieces: bytes) -> Answer:
        self.pipe.written = b""
        for piece in pieces:
            self.connection.data_received(piece)
        await until(lambda: self.answer() is not None)
        answer = self.answer()
        assert answer is not None
        return answer

    def answer(self) -> Answer | None:
        """What was written; None while it is not whole."""
        head, end, body = self.pipe.written.partition(b"\r\n\r\n")
        if not end:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = dict(pair for pair in pairs if pair[0] != "transfer-encoding")
        assert len(headers) == len(set(headers)) and headers.pop("date") == "now"
        length = headers.get("content-length")
        if len(body) < int(length) if length else not body.endswith(b"\r\n0\r\n\r\n"):
            return None
        return Answer(int(first.split()[1]), headers, body)


def raw(asked: Asked) -> bytes:
    body = json.dumps(asked.body).encode()
    sent = {
        "host": "localhost",
        **({"x-llmhost-cache": "on"} if asked.headers is None else asked.headers),
    }
    if asked.key is not None:
        sent["authorization"] = f"Bearer {asked.key}"
    sent["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST {asked.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@pytest.mark.parametrize("factor", ["0", "0.5"])
async def test_a_connection_says_and_writes_down_the_same_as_all_stages(
    factor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(SETTINGS, cache=CacheSettings(price_factor=factor))
    seen = []
    for is_on in (True, False):
        async with node(Plugin(), settings=settings) as host:
            host.host.repeats.is_on = is_on
            client, read = Client(host), list[bytes]()

            async def of(asked: Asked, _: TestHost, client: Client = client) -> Answer:
                return await client.ask(raw(asked))

            def parse(data: bytes, client: Client = client, read: list[bytes] = read) -> None:
                read.append(data)
                Connection._parse(client.connection, data)

            monkeypatch.setattr(Asked, "of", of)
            monkeypatch.setattr(client.connection, "_parse", parse)
            answers = await mix(host)
            said = [each.said for each in answers]
            seen.append((said, rows(host), await audited(host), len(answers) - len(read)))
            assert short(host) == seen[-1][-1]
    (said, written, audit, unread), (said_long, written_long, audit_long, none) = seen

    assert unread > 15 and none == 0
    for one, other in zip(said, said_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long


async def test_a_request_in_pieces_is_another_one_and_takes_the_short_way_as_well() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        assert short(host) == 1
        for _ in range(3):
            await client.ask(data[:40], data[40:])
        assert short(host) == 3
        other = await client.ask(data)
        assert other.cache == "hit" and short(host) == 4


async def test_two_requests_at_once_are_both_answered_in_their_order() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        client.pipe.written = b""
        client.connection.data_received(data + data)
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 2)
        assert client.state.total_requests == 5


async def test_nothing_is_answered_past_a_request_that_is_under_way() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        client.pipe.written = b""
        running = raw(Asked(chat("something else", max_tokens=64), headers={}))
        client.connection.data_received(running)
        client.connection.data_received(data)
        assert client.pipe.written == b""
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 2)
        first, _, second = client.pipe.written[1:].partition(b"HTTP/1.1 200 OK")
        assert b"x-llmhost-cache" not in first and b"x-llmhost-cache: hit" in second


async def test_a_first_request_of_a_connection_is_answered_at_once_and_the_next_head_is_waited_for() -> (
    None
):
    async with node() as host:
        before, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await before.ask(data)
        client = Client(host)
        client.connection.data_received(data)
        answer = client.answer()
        assert answer is not None and answer.cache == "hit"
        assert client.connection._alarm is None
        assert client.connection.timeout_keep_alive_task is not None
        client.connection.data_received(data[:40])
        assert client.connection._alarm is not None
        assert client.connection.timeout_keep_alive_task is None
        assert (await client.ask(data[40:])).cache == "hit"


async def test_a_connection_ends_when_nothing_has_come_since_its_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        late_s = asyncio.get_running_loop().time() + KEEP_ALIVE_S
        monkeypatch.setattr(client.connection, "loop", Later(late_s - 5))
        client.connection.timeout_keep_alive_handler()
        assert not client.pipe.is_closed
        assert 0 < Later.waited_s <= 5
        monkeypatch.setattr(client.connection, "loop", Later(late_s + 5))
        client.connection.timeout_keep_alive_handler()
        assert client.pipe.is_closed


class Later:
    """A loop at a time of its own."""

    waited_s = 0.0

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def time(self) -> float:
        return self._now_s

    def call_later(self, after_s: float, _: object) -> None:
        Later.waited_s = after_s


async def test_a_client_that_does_not_read_is_written_nothing_at_once() -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)
        client.pipe.written = b""
        client.connection.pause_writing()
        client.connection.data_received(data)
        for _ in range(5):
            await asyncio.sleep(0)
        assert client.pipe.written == b""
        client.connection.resume_writing()
        assert (await client.ask()).cache == "hit"


async def test_a_request_that_ends_its_connection_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node() as host:
        closing = Asked(chat(), headers={"x-llmhost-cache": "on", "connection": "close"})
        for _ in range(4):
            client = Client(host)
            answer = await client.ask(raw(closing))
            assert answer.headers["connection"] == "close"
            assert client.pipe.is_closed


async def test_a_shortcut_that_fails_is_told_as_any_failure_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node() as host:
        client, data = Client(host), raw(Asked(chat()))
        for _ in range(3):
            await client.ask(data)

        def fail(*_: object) -> None:
            raise ValueError("broken")

        monkeypatch.setattr(host.host.repeats, "_said", fail)
        client.state.default_headers = [(b"date", b"then")]
        client.pipe.written = b""
        client.connection.data_received(data)
        assert client.pipe.written.startswith(b"HTTP/1.1 500 ")
        assert client.pipe.is_closed and "broken" in caplog.text


# ------------------------------------------------------------ requests that run


async def test_what_runs_past_the_parser_says_and_writes_down_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    for is_on in (True, False):
        async with node(runs.Judge(), settings=runs.CHECKED) as host:
            host.host.repeats.is_on = is_on
            client, read = Client(host), list[bytes]()

            async def of(asked: Asked, _: TestHost, client: Client = client) -> Answer:
                return await client.ask(raw(asked))

            def parse(data: bytes, client: Client = client, read: list[bytes] = read) -> None:
                read.append(data)
                Connection._parse(client.connection, data)

            monkeypatch.setattr(Asked, "of", of)
            monkeypatch.setattr(client.connection, "_parse", parse)
            answers = await runs.mix(host)
            said = [each.said for each in answers]
            seen.append((said, rows(host), await audited(host), len(answers) - len(read)))
            assert runs.short(host) + short(host) == seen[-1][-1]
    (said, written, audit, unread), (said_long, written_long, audit_long, none) = seen

    assert unread > 15 and none == 0
    for one, other in zip(said, said_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long


async def held_client(held: Held, host: TestHost) -> tuple[Client, bytes]:
    """A connection whose next request of these bytes runs past the parser, when steps are let go."""
    client, data = Client(host), raw(runs.run())
    held.go()
    for _ in range(2):
        await client.ask(data)
    await runs.settled(host)
    held.stop()
    client.pipe.written = b""
    return client, data


async def test_what_comes_while_one_runs_is_answered_behind_it() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        await asyncio.sleep(0)
        assert runs.short(host) == 1 and client.connection.timeout_keep_alive_task is not None
        client.connection.timeout_keep_alive_handler()
        assert not client.pipe.is_closed
        client.connection.data_received(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + data)
        assert client.pipe.written == b""
        held.go()
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 3)
        first, second, third = client.pipe.written.split(b"HTTP/1.1 200 OK")[1:]
        assert b"chatcmpl" in first and b"chatcmpl" not in second and b"chatcmpl" in third
        assert runs.short(host) == 1


async def test_a_client_that_sends_much_meanwhile_is_not_read() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        client.connection.data_received(b"\r\n" * 40_000)
        assert client.connection.flow.read_paused
        held.go()
        await until(lambda: b"HTTP/1.1 200 OK" in client.pipe.written)
        assert not client.connection.flow.read_paused


async def test_a_client_that_hangs_up_ends_what_runs_for_it() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        client.pipe.is_closed = True
        client.connection.connection_lost(None)
        await asyncio.sleep(0)
        held.go()
        await runs.settled(host)
        assert client.pipe.written == b""
        assert host.entries()[-1]["outcome"] == "cancelled"


async def test_a_server_that_stops_lets_it_end_and_closes_behind_it() -> None:
    held = Held()
    async with node(held, spec=runs.HELD) as host:
        client, data = await held_client(held, host)
        client.connection.data_received(data)
        client.connection.shutdown()
        assert not client.pipe.is_closed
        held.go()
        await until(lambda: client.pipe.is_closed)
        answer = client.answer()
        assert answer is not None and answer.status == 200
        assert answer.headers["connection"] == "close"


# ------------------------------------------------------------ several of one turn


async def all_at_once(asked: Asked, clients: list[Client]) -> list[Answer]:
    """As many of the same as there are clients, in one turn of the loop."""
    for client in clients:
        client.pipe.written = b""
        client.connection.data_received(raw(asked))
    await until(lambda: all(client.answer() is not None for client in clients))
    return [answer for client in clients if (answer := client.answer()) is not None]


class Fickle(Plugin):
    """Quotes another price for each second of some requests."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl
    def quote_price(self, request: GenerationRequest, price: Any) -> Any:
        self.asked += "fickle" in request.text
        return price.times(1, 2 + self.asked % 2)


async def crowd(host: TestHost) -> list[list[Answer]]:
    """Of each kind of request seven at once, after it has become known."""
    books, clients = host.host.books, [Client(host) for _ in range(7)]
    key = await host.make_key(team="t", limits=Limits(requests_per_minute=99, max_concurrency=9))
    few = await host.make_key(limits=Limits(requests_per_minute=7))
    wordy = await host.make_key(limits=Limits(output_tokens_per_minute=40))
    poor = await host.make_key(org="poor")
    budget = Budget(id="bud_1", org="poor", period=Period.MONTH, limit_nano=150_000)
    await books.budgets.create(budget, who="test")
    answers = []
    for asked in (
        runs.run(key=key),
        runs.run(runs.plain(max_tokens=300), key),
        runs.run(runs.plain("a fickle price", max_tokens=5), key),
        runs.run(runs.plain("limits"), few),
        runs.run(runs.plain("tokens"), wordy),
        runs.run(runs.plain("money", max_tokens=16), poor),
        Asked({"model": "other", "prompt": "a", "max_tokens": 5}, key, {}, "/v1/completions"),
    ):
        for _ in range(2):
            await clients[0].ask(raw(asked))
            await runs.settled(host)
        answers.append(await all_at_once(asked, clients))
        await runs.settled(host)
    return answers


async def test_those_of_one_turn_are_let_in_as_one_after_the_other_would_be() -> None:
    seen = []
    for is_on in (True, False):
        async with node(Fickle(), settings=runs.CHECKED) as host:
            host.host.repeats.is_on = is_on
            answers = await crowd(host)
            said = [sorted((each.said for each in kind), key=str) for kind in answers]
            statuses = [sorted(each.status for each in kind) for kind in answers]
            ran, accounts = runs.short(host), host.host.processor._stages.bill._accounts
            seen.append((said, statuses, rows(host), sorted(map(str, await audited(host))), ran))
            assert accounts.audit() == 0 and not accounts.live_holds()
    (said, statuses, written, audit, ran), (said_long, statuses_long, *long_ones, none) = seen

    assert ran > 30 and none == 0
    assert statuses == statuses_long
    for kind, kind_long in zip(said, said_long, strict=True):
        assert kind == kind_long
    for name, found in written.items():
        assert found == long_ones[0][name], name
    assert audit == long_ones[1]


async def test_those_who_ask_for_different_things_in_one_turn_take_turns() -> None:
    """Of one organisation, whose money is enough for 16: who asked first does not get all of it."""
    async with node() as host:
        keys = [await host.make_key(org="poor") for _ in range(2)]
        clients = [Client(host) for _ in range(32)]
        asked = [raw(runs.run(runs.plain(max_tokens=16), key)) for key in keys]
        for data in asked * 2:
            await clients[0].ask(data)
            await runs.settled(host)
        books, clock = host.host.books, host.host.clock
        accounts = host.host.processor._stages.bill._accounts
        budget = Budget(id="bud_1", org="poor", period=Period.MONTH, limit_nano=10**9)
        await books.budgets.create(budget, who="test")
        clients[0].connection.data_received(asked[0])
        await asyncio.sleep(0)
        (hold,) = accounts.live_holds()
        account, nano = hold.pots[0].account, hold.held_nano
        await runs.settled(host)
        spent = account.standing(clock.utc_ns()).spent
        account.change(replace(account.budget, limit_nano=spent + 16 * nano))
        for i, client in enumerate(clients):
            client.pipe.written = b""
            client.connection.data_received(asked[i >= 16])
        await until(lambda: all(client.answer() is not None for client in clients))
        statuses = [answer.status for client in clients if (answer := client.answer())]
        assert [statuses[:16].count(200), statuses[16:].count(200)] == [8, 8]


async def known_to(host: TestHost, count: int) -> tuple[list[Client], bytes]:
    """Connections, and bytes that are known."""
    clients, data = [Client(host) for _ in range(count)], raw(runs.run())
    for _ in range(2):
        await clients[0].ask(data)
    await runs.settled(host)
    clients[0].pipe.written = b""
    return clients, data


async def test_who_hangs_up_before_he_is_let_in_pays_for_what_was_made() -> None:
    async with node() as host:
        (one, other), data = await known_to(host, 2)
        one.connection.data_received(data)
        other.connection.data_received(data)
        assert host.host.processor.in_flight == 2
        one.pipe.is_closed = True
        one.connection.connection_lost(None)
        await until(lambda: other.answer() is not None)
        await runs.settled(host)
        assert one.pipe.written == b"" and runs.short(host) == 2
        outcomes = sorted(entry["outcome"] for entry in host.entries()[-2:])
        assert outcomes == ["answered", "cancelled"]


async def test_what_can_not_be_let_in_is_read_with_what_came_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as host:
        (client, stopped), data = await known_to(host, 2)
        monkeypatch.setattr(host.host.repeats._short_runs, "holds", lambda known: False)
        client.connection.data_received(data)
        client.connection.data_received(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + data)
        stopped.connection.data_received(data)
        stopped.connection.shutdown()
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 3)
        assert client.pipe.written.count(b"chatcmpl") == 2
        await until(lambda: stopped.pipe.is_closed)
        answer = stopped.answer()
        assert answer is not None and answer.headers["connection"] == "close"
        assert runs.short(host) == 0


async def test_what_came_behind_one_that_ran_is_not_logged_under_its_id() -> None:
    named: list[str | None] = []
    async with node() as host:
        (client,), data = await known_to(host, 1)
        app = client.connection.app

        async def noting(*args: Any) -> None:
            named.append(request_id.get())
            await app(*args)

        client.connection.app = noting
        client.connection.data_received(data)
        client.connection.data_received(raw(runs.run(runs.plain("another", max_tokens=5))))
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 2)
        assert named == [None]


async def test_something_that_breaks_for_all_is_told_to_each_and_nothing_stays_held(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    async with node() as host:
        clients, data = await known_to(host, 3)
        for where, name in (
            (host.host.processor._stages.limit, "enter_all"),
            (host.host.processor._stages.bill, "hold_alike"),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(where, name, broken)
                answers = await all_at_once(runs.run(), clients)
            assert [answer.status for answer in answers] == [500] * 3
            await runs.settled(host)
        assert "broken" in caplog.text and host.host.processor.in_flight == 0
        await until(lambda: len(host.entries()) >= 8)  # nobody waits for those of failures
        outcomes = [entry["outcome"] for entry in host.entries()]
        assert outcomes == ["answered"] * 2 + ["failed"] * 6
        assert (await clients[0].ask(data)).status == 200


@pytest.mark.parametrize(
    ("where", "status", "metered"), [("limit", 503, ["refused"] * 2), ("bill", 500, ["refused"])]
)
async def test_one_that_can_not_be_metered_costs_the_others_no_answer(
    where: str, status: int, metered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four are refused, and what gives back what the first of these held breaks, or what books it."""
    async with node() as host:
        clients, _ = await known_to(host, 4)
        stages, hurt = host.host.processor._stages, list[str]()
        owner, name = (
            (stages.limit, "settle") if where == "limit" else (stages.bill.settle, "closed")
        )
        opened, ended = stages.bill._open_slot, getattr(owner, name)

        def refusing(context: RequestContext) -> None:
            if len(hurt) < 2:
                hurt.append(context.request.request_id)
                raise Overloaded("full", retry_after_s=1)
            opened(context)

        def broken(context: RequestContext, **facts: Any) -> Any:
            found = ended(context, **facts)
            if hurt[0] == context.request.request_id:
                raise ValueError("broken")
            return found

        monkeypatch.setattr(stages.bill, "_open_slot", refusing)
        monkeypatch.setattr(owner, name, broken)
        answers = await all_at_once(runs.run(), clients)
        assert sorted(answer.status for answer in answers) == [200, 200, *sorted((status, 503))]
        await runs.settled(host)
        await until(lambda: len(host.entries()) >= 4 + len(metered))  # of refusals nobody waits
        outcomes = [entry["outcome"] for entry in host.entries()]
        assert sorted(outcomes) == ["answered"] * 4 + metered


async def test_an_answer_that_can_not_be_told_costs_the_others_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What breaks in its headers breaks again when that is told with the same ones."""
    tried: list[Allowances] = []

    def broken(allowances: Allowances) -> str:
        tried.append(allowances)
        if len(tried) <= 2:
            raise ValueError("broken")
        return limit_lines(allowances)

    async with node() as host:
        clients, _ = await known_to(host, 3)
        monkeypatch.setattr(repeated_run, "limit_lines", broken)
        answers = await all_at_once(runs.run(), clients)
        assert sorted(answer.status for answer in answers) == [200, 200, 500]


async def test_a_journal_that_is_full_refuses_those_alone_who_find_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as host:
        clients, _ = await known_to(host, 4)
        journal = host.host.books.settlements._journal
        opened = journal.open

        def small(note: bytes) -> Slot:
            if journal.open_slots >= 2:
                raise StorageFailed(journal.path, OSError(ENOSPC, "full"))
            return opened(note)

        monkeypatch.setattr(journal, "open", small)
        answers = await all_at_once(runs.run(), clients)
        assert sorted(answer.status for answer in answers) == [200, 200, 503, 503]
        await runs.settled(host)
        outcomes = [entry["outcome"] for entry in host.entries()]
        assert outcomes.count("answered") == 4 and outcomes.count("refused") == 2


async def test_a_crowd_is_let_in_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node() as host:
        clients, _ = await known_to(host, 5)
        monkeypatch.setattr(short_run, "AT_ONCE", 2)
        short_runs, sizes = host.host.repeats._short_runs, list[int]()
        let_in = short_runs._let_in_alike

        def counted(known: short_run.KnownRun, group: list[Any]) -> None:
            sizes.append(len(group))
            let_in(known, group)

        monkeypatch.setattr(short_runs, "_let_in_alike", counted)
        answers = await all_at_once(runs.run(), clients)
        assert [answer.status for answer in answers] == [200] * 5
        assert sizes == [2, 2, 1] and host.host.processor.coming == 0
        assert (await clients[0].ask(raw(runs.run()))).status == 200
