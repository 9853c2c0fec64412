"""One call of a hot route from the connection's side: whatever the client does, and whenever it leaves."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.pipeline.node import HELD_MODEL, Held, settled, until

from llmhost.api import door
from llmhost.api.idempotency import Idempotency
from llmhost.api.openai import generation_route, parse_completion
from llmhost.core.caller import LOCAL_CALLER, Caller
from llmhost.core.request import Kind
from llmhost.hooks.spec import hookimpl
from llmhost.pipeline.processor import Processor
from llmhost.testing import TestHost, make_host

BODY = json.dumps({"model": "m", "prompt": "hello world", "max_tokens": 4}).encode()
LONG = json.dumps({"model": "m", "prompt": "hello world", "stream": True}).encode()


class Connection:
    """A client's side of one ASGI call."""

    def __init__(self, *parts: bytes, is_complete: bool = True, method: str = "POST") -> None:
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.scope: dict[str, Any] = {
            "type": "http",
            "client": ("127.0.0.1", 5000),
            "method": method,
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        last = len(parts) - 1
        self._messages = [
            {"type": "http.request", "body": part, "more_body": not (is_complete and i == last)}
            for i, part in enumerate(parts)
        ]

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None


App = Callable[..., Awaitable[None]]


class Knowing:
    """A processor that knows whoever comes."""

    async def identify(self, *_: object) -> Caller:
        return LOCAL_CALLER


def route(processor: object) -> App:
    return cast(
        App,
        generation_route(
            cast(Processor, processor),
            Kind.COMPLETION,
            parse_completion,
            max_body_bytes=1000,
            heartbeat_s=10,
            idempotency=cast(Idempotency, None),
        ),
    )


def visit(app: App, connection: Connection) -> "asyncio.Task[None]":
    return asyncio.ensure_future(app(connection.scope, connection.receive, connection.send))


def app_of(host: TestHost) -> App:
    return cast(App, host.host.app.asgi)


@pytest.mark.parametrize("parts", [(), (BODY[:10],)])
async def test_a_client_who_leaves_before_its_body_is_complete_is_answered_nothing(
    parts: tuple[bytes, ...],
) -> None:
    async with make_host() as host:
        connection = Connection(*parts, is_complete=False)
        connection.gone.set()
        await visit(app_of(host), connection)

        [entry] = await settled(host)

    assert connection.sent == []
    assert (entry["outcome"], entry["org"], entry["amount_nano"]) == ("cancelled", "local", 0)


async def test_a_client_who_leaves_while_its_model_loads_is_booked_as_cancelled() -> None:
    held = Held()
    held.may_load.clear()
    model = {"m": HELD_MODEL.__class__(engine="held", load="request")}
    async with make_host(plugins=[held], models=model) as host:
        connection = Connection(BODY)
        call = visit(app_of(host), connection)
        await until(lambda: held.loads)
        connection.gone.set()
        await call
        [entry] = await settled(host)
        held.may_load.set()

    assert connection.sent == []
    assert (entry["outcome"], entry["amount_nano"]) == ("cancelled", 0)


async def test_a_client_who_leaves_in_the_middle_stops_its_sequence() -> None:
    held = Held()
    async with make_host(plugins=[held], models={"m": HELD_MODEL}) as host:
        connection = Connection(LONG)
        call = visit(app_of(host), connection)
        held.go(1)
        await until(lambda: len(connection.sent) > 1)
        connection.gone.set()
        await call
        held.go()
        [entry] = await settled(host)

    assert entry["outcome"] == "cancelled"
    assert entry["tokens"]["output"] < 16
    assert b"[DONE]" not in connection.body


class ExchangeThatIsLeft:
    """An accepted request of which nothing comes any more."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.context = SimpleNamespace(request=SimpleNamespace(stream=False))

    async def read(self, timeout_s: float | None = None, take: object = None) -> list[Any]:
        await asyncio.wait_for(self.left.wait(), 60)
        return []

    async def read_whole(self) -> list[Any]:
        return await self.read()

    async def read_left(self) -> None:
        """No reviewer waits for it."""

    def leave(self) -> None:
        self.left.set()


async def test_a_client_who_leaves_at_the_very_moment_of_acceptance_stops_its_request() -> None:
    connection, exchange = Connection(BODY), ExchangeThatIsLeft()

    class Accepting(Knowing):
        async def open(self, *_: object, **__: object) -> ExchangeThatIsLeft:
            await asyncio.sleep(0)  # the watch is listening by now
            connection.gone.set()
            return exchange

    await visit(route(Accepting()), connection)

    assert exchange.left.is_set()
    assert connection.sent == []


async def test_a_server_that_cancels_a_call_leaves_the_request_and_lets_the_cancellation_through() -> (
    None
):
    held = Held()
    async with make_host(plugins=[held], models={"m": HELD_MODEL}) as host:
        connection = Connection(LONG)
        call = visit(app_of(host), connection)
        await until(lambda: connection.sent)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        held.go()
        [entry] = await settled(host)

    assert entry["outcome"] == "cancelled"


async def test_a_call_that_has_ended_leaves_no_task_behind() -> None:
    async with make_host() as host:
        body = json.dumps({"model": "fake", "prompt": "hello world", "stream": True}).encode()
        before = asyncio.all_tasks()
        await visit(app_of(host), Connection(body))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert asyncio.all_tasks() - before == set()


async def test_a_failure_of_ours_is_a_plain_500_whose_reason_is_only_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Knowing):
        async def open(self, *_: object, **__: object) -> None:
            raise ZeroDivisionError("secret detail")

    connection = Connection(BODY)
    await visit(route(Broken()), connection)

    assert connection.status == 500
    error = json.loads(connection.body)["error"]
    assert (error["type"], error["code"]) == ("server_error", None)
    assert "secret" not in error["message"]
    assert "secret detail" in caplog.text


async def test_a_failure_after_the_headers_is_the_last_event_of_the_stream() -> None:
    class Breaking(ExchangeThatIsLeft):
        async def read(self, timeout_s: float | None = None, take: object = None) -> list[Any]:
            raise ZeroDivisionError

    held = Held()
    async with make_host(plugins=[held], models={"m": HELD_MODEL}) as host:
        breaking = Breaking()

        class Accepting(Knowing):
            async def open(self, *args: Any, **kwargs: Any) -> Breaking:
                exchange = await host.host.processor.open(*args, **kwargs)
                breaking.context = cast(Any, exchange.context)
                exchange.leave()
                held.go()
                return breaking

        connection = Connection(LONG)
        await visit(route(Accepting()), connection)
        await settled(host)

    starts = [m for m in connection.sent if m["type"] == "http.response.start"]
    assert [m["status"] for m in starts] == [200]
    assert json.loads(connection.body.removeprefix(b"data: "))["error"]["code"] is None
    assert connection.sent[-1]["more_body"] is False
    assert breaking.left.is_set()


async def test_two_calls_do_not_share_an_id_or_a_context() -> None:
    from llmhost.observe.logs import request_id

    async with make_host() as host:
        ids = []
        for _ in range(2):  # one task, as on a connection that is kept alive
            connection = Connection(BODY.replace(b'"m"', b'"fake"'))
            await app_of(host)(connection.scope, connection.receive, connection.send)
            ids.append(dict(connection.sent[0]["headers"])[b"x-request-id"])
            assert request_id.get() is None

    assert len(set(ids)) == 2


async def test_a_clients_own_id_is_echoed_when_it_is_one() -> None:
    ids: dict[bytes, bytes | None] = {b"abc-1": b"abc-1", b"a" * 128: b"a" * 128}
    ids |= {b"a" * 129: None, b"a b": None, b"": None, b"caf\xe9": None, b"a\r\nb": None}
    async with make_host() as host:
        for sent, echoed in ids.items():
            connection = Connection(BODY.replace(b'"m"', b'"fake"'))
            connection.scope["headers"].append((b"x-request-id", sent))
            await visit(app_of(host), connection)
            headers = dict(connection.sent[0]["headers"])
            assert headers.get(b"x-client-request-id") == echoed
            assert headers[b"x-request-id"] != sent


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_only_post_makes_answers(method: str) -> None:
    async with make_host() as host:
        connection = Connection(method=method)
        await visit(app_of(host), connection)
        counted = (await host.client.get("/metrics")).text

    labels = 'code="method_not_allowed",model_name="unknown",outcome="refused"'
    assert f"llmhost_requests_total{{{labels}}} 1.0" in counted
    assert connection.status == 405
    if method == "HEAD":
        assert connection.body == b""
    else:
        assert json.loads(connection.body)["error"]["code"] == "method_not_allowed"


async def test_a_body_that_is_too_large_is_refused_before_it_has_ended() -> None:
    async with make_host() as host:
        connection = Connection(b"x" * 600, b"x" * 600, is_complete=False)
        await visit(route(host.host.processor), connection)
        [entry] = await settled(host)

    assert connection.status == 413
    assert json.loads(connection.body)["error"]["code"] == "request_too_large"
    assert entry["code"] == "request_too_large"


@pytest.mark.parametrize("length", [None, b"12", b"9000000", b"nonsense"])
async def test_a_stranger_is_refused_before_its_body_is_read(
    length: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LINGER_S", 0.05)
    async with make_host() as host:
        await host.make_key()
        connection = Connection(*[b"x" * 600] * 5, is_complete=False)
        announced = (b"transfer-encoding", b"chunked")
        connection.scope["headers"].append((b"content-length", length) if length else announced)
        read = connection.receive
        answered: list[bool] = []

        async def receive() -> dict[str, Any]:
            answered.append(b"invalid_api_key" in connection.body)
            return await read()

        connection.receive = receive  # type: ignore[method-assign]
        await visit(app_of(host), connection)
        counted = (await host.client.get("/metrics")).text
        entries = await settled(host)

    headers = dict(connection.sent[0]["headers"])
    is_small = length == b"12"
    assert connection.status == 401
    assert connection.sent[-1].get("more_body") is False
    assert headers[b"x-request-id"].startswith(b"req_")
    assert headers.get(b"connection") == (None if is_small else b"close")
    assert all(answered) and bool(answered) != is_small
    assert 'code="invalid_api_key",model_name="unknown",outcome="refused"} 1.0' in counted
    assert entries == []


async def test_a_key_is_looked_up_once_for_each_request() -> None:
    class Doorman:
        asked = 0

        @hookimpl
        def identify_caller(self, api_key: str | None) -> Caller:
            self.asked += 1
            return LOCAL_CALLER

    doorman = Doorman()
    async with make_host(plugins=[doorman]) as host:
        await host.say("hello", max_tokens=1)

    assert doorman.asked == 1


async def test_a_body_that_does_not_come_to_its_end_is_refused_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "BODY_TIMEOUT_S", 0.05)
    async with make_host() as host:
        connection = Connection(BODY[:10], is_complete=False)
        await visit(app_of(host), connection)
        [entry] = await settled(host)

    assert connection.status == 408
    assert dict(connection.sent[0]["headers"])[b"connection"] == b"close"
    assert json.loads(connection.body)["error"]["code"] == entry["code"] == "request_timeout"


@pytest.mark.parametrize(("spaces", "is_in_thread"), [(0, False), (300_000, True)])
async def test_a_large_body_is_read_in_a_thread(
    spaces: int, is_in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []

    def parse(*given: Any) -> Any:
        threads.append(threading.current_thread() is not threading.main_thread())
        return parse_completion(*given)

    async with make_host() as host:
        app = cast(
            App,
            generation_route(
                host.host.processor,
                Kind.COMPLETION,
                parse,
                max_body_bytes=10**6,
                heartbeat_s=10,
                idempotency=host.host.idempotency,
            ),
        )
        connection = Connection(BODY.replace(b'"m"', b'"fake"') + b" " * spaces)
        await visit(app, connection)

    assert connection.status == 200
    assert threads == [is_in_thread]
