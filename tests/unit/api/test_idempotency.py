"""The same call made again: what it gets, what it costs, and who else could get it."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tests.unit.api.test_visits import Connection, app_of, visit
from tests.unit.api.test_wires import WiredConnection
from tests.unit.pipeline.node import HELD_MODEL, Held, settled, slow_ledger, until

from llmhost.api.idempotency import HEADER, lasting
from llmhost.api.recording import Head
from llmhost.config.schema import Settings
from llmhost.config.schema.limits import LimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.server import ServerSettings
from llmhost.config.schema.state import IdempotencySettings
from llmhost.core.errors import Overloaded
from llmhost.storage.answers import Answers
from llmhost.storage.connect import StorageFailed
from llmhost.testing import FAKE_MODEL, TestHost, at, fake_words, make_host

BODY: dict[str, Any] = {"model": "fake", "prompt": "hello world", "max_tokens": 6}
FOR_ONE_CALL = {
    "x-request-id",
    "openai-processing-ms",
    "idempotent-replayed",
    "x-llmhost-original-request-id",
}


async def ask(
    host: TestHost,
    key: str = "k1",
    *,
    path: str = "/v1/completions",
    bearer: str | None = None,
    raw: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    **changes: Any,
) -> httpx.Response:
    sent = {HEADER: key, **(headers or {})}
    if bearer is not None:
        sent["authorization"] = f"Bearer {bearer}"
    content = json.dumps(BODY | changes).encode() if raw is None else raw
    return await host.client.post(path, content=content, headers=sent)


def settings(**facts: Any) -> Settings:
    return Settings(server=ServerSettings(), idempotency=IdempotencySettings(**facts))


def billed(host: TestHost) -> list[dict[str, Any]]:
    return [entry for entry in host.entries() if entry["amount_nano"]]


def is_replay_of(again: httpx.Response, first: httpx.Response) -> bool:
    return (
        again.content == first.content
        and again.status_code == first.status_code
        and again.headers["idempotent-replayed"] == "true"
        and again.headers["x-llmhost-original-request-id"] == first.headers["x-request-id"]
        and again.headers["x-request-id"] != first.headers["x-request-id"]
    )


# ------------------------------------------------------------ finished answers


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("/v1/completions", {}),
        ("/v1/completions", {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"logprobs": 2, "echo": True, "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/embeddings", {"model": "embed", "input": ["a b", "c"]}),
        ("/v1/rerank", {"model": "judge", "query": "a", "documents": ["b", "c d"]}),
        ("/score", {"model": "judge", "text_1": "a", "text_2": ["b", "c d"]}),
        ("/v1/classify", {"model": "judge", "input": ["a b"]}),
    ],
)
async def test_a_finished_answer_is_repeated_to_the_byte_and_billed_once(
    path: str, changes: dict[str, Any]
) -> None:
    models = {
        "fake": FAKE_MODEL,
        "embed": ModelSpec(engine="fake", options={"task": "embed"}, price=FAKE_MODEL.price),
        "judge": ModelSpec(engine="fake", options={"task": "classify"}, price=FAKE_MODEL.price),
    }
    async with make_host(models=models) as host:
        first = await ask(host, path=path, **changes)
        again = [await ask(host, path=path, **changes) for _ in range(2)]

        assert first.status_code == 200, first.text
        assert "idempotent-replayed" not in first.headers
        assert all(is_replay_of(each, first) for each in again)
        for each in again:
            lasting = {k: v for k, v in each.headers.items() if k not in FOR_ONE_CALL}
            assert lasting == {k: v for k, v in first.headers.items() if k not in FOR_ONE_CALL}
        assert [e["request_id"] for e in host.entries()] == [first.headers["x-request-id"]]


async def test_a_replay_says_nothing_of_the_limits_and_ids_of_the_call_before() -> None:
    limited = Settings(limits=LimitSettings(requests_per_minute=10))
    async with make_host(settings=limited) as host:
        first = await ask(host, headers={"x-request-id": "mine-1"})
        again = await ask(host, headers={"x-request-id": "mine-2"})
        other = await ask(host, "k2")

    assert first.headers["x-client-request-id"] == "mine-1"
    assert again.headers["x-client-request-id"] == "mine-2"
    assert not [name for name in again.headers if name.startswith("x-ratelimit")]
    assert first.headers["x-ratelimit-remaining-requests"] == "9"
    assert other.headers["x-ratelimit-remaining-requests"] == "8"


def test_what_is_left_to_spend_is_said_once_and_what_was_charged_again() -> None:
    charged = (b"x-llmhost-cost-usd", b"0.1")
    head = Head(200, (charged, (b"x-llmhost-budget-remaining-usd", b"9.9")))

    assert lasting(head) == (charged,)


async def test_a_duplicate_takes_nothing_of_the_limits_and_passes_where_they_are_reached() -> None:
    limited = Settings(limits=LimitSettings(requests_per_minute=1, input_tokens_per_minute=5))
    async with make_host(settings=limited) as host:
        first = await ask(host)
        again = await ask(host)
        other = await ask(host, "k2")

    assert is_replay_of(again, first)
    assert other.status_code == 429


async def test_answers_are_remembered_for_a_day() -> None:
    clock = at("2026-03-01T12:00")
    async with make_host(clock=clock) as host:
        first = await ask(host)
        clock.advance(86_399)
        again = await ask(host)
        clock.advance(1)
        anew = await ask(host)

    assert is_replay_of(again, first)
    assert "idempotent-replayed" not in anew.headers
    assert len({first.json()["id"], anew.json()["id"]}) == 2


async def test_duplicates_are_counted_by_how_they_came_to_their_answer() -> None:
    async with make_host() as host:
        await asyncio.gather(ask(host), ask(host), ask(host))
        await ask(host)
        metrics = (await host.client.get("/metrics")).text

    assert 'llmhost_idempotent_replays_total{how="attached"} 2.0' in metrics
    assert 'llmhost_idempotent_replays_total{how="replayed"} 1.0' in metrics
    requests = [x for x in metrics.splitlines() if x.startswith("llmhost_requests_total{")]
    assert [line.rpartition(" ")[2] for line in requests] == ["1.0"]


# ------------------------------------------------------------ what makes two calls the same


async def test_the_same_key_with_another_body_is_refused_and_the_answer_stays() -> None:
    raw = json.dumps(BODY).encode()
    async with make_host() as host:
        first = await ask(host, raw=raw)
        spaced = await ask(host, raw=raw.replace(b", ", b",  "))
        other = await ask(host, max_tokens=7)
        again = await ask(host, raw=raw)

        assert is_replay_of(again, first)
        assert len(billed(host)) == 1
    for refused in (spaced, other):
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "idempotency_key_reused"
        assert refused.json()["error"]["param"] == "Idempotency-Key"
        assert "x-should-retry" not in refused.headers


async def test_another_body_is_refused_while_the_first_runs_too() -> None:
    held = Held()
    async with make_host(plugins=[held], models={"fake": HELD_MODEL}) as host:
        first = asyncio.ensure_future(ask(host))
        await until(lambda: host.host.processor.in_flight)
        other = await ask(host, max_tokens=7)
        held.go()

        assert other.status_code == 422
        assert (await first).status_code == 200


async def test_a_key_belongs_to_its_route() -> None:
    async with make_host() as host:
        raw = json.dumps(BODY | {"messages": [{"role": "user", "content": "hi"}]}).encode()
        one = await ask(host, raw=raw)
        other = await ask(host, raw=raw, path="/v1/chat/completions")

        assert (one.json()["object"], other.json()["object"]) == (
            "text_completion",
            "chat.completion",
        )
        assert len(billed(host)) == 2


async def test_nobody_gets_the_answer_of_another_key_of_any_tenant() -> None:
    async with make_host() as host:
        keys = [
            await host.make_key("acme", team="a"),
            await host.make_key("acme", team="a"),
            await host.make_key("beta"),
        ]
        answers = [await ask(host, bearer=key) for key in keys]
        again = [await ask(host, bearer=key) for key in keys]

        assert len({answer.json()["id"] for answer in answers}) == 3
        assert [each.json()["id"] for each in again] == [each.json()["id"] for each in answers]
        assert len(billed(host)) == 3


async def test_a_key_that_was_revoked_gets_no_replay_and_a_rotated_one_does() -> None:
    async with make_host() as host:
        store = host.host.books.keys
        await host.make_key("acme")
        record, old = await store.create(org="acme")
        first = await ask(host, bearer=old)
        _, new = await store.rotate(record.id, overlap_ns=0)
        by_new, by_old = await ask(host, bearer=new), await ask(host, bearer=old)
        await store.revoke(record.id)
        revoked = await ask(host, bearer=new)

    assert is_replay_of(by_new, first)
    assert (by_old.status_code, revoked.status_code) == (401, 401)


async def test_a_key_that_may_no_longer_use_a_model_gets_no_replay_of_it() -> None:
    async with make_host() as host:
        store = host.host.books.keys
        record, secret = await store.create(org=(await store.create_org("acme")).name)
        first = await ask(host, bearer=secret)
        await store.update(record.id, lambda now: replace(now, models=("other",)))
        refused = await ask(host, bearer=secret)
        await store.update(record.id, lambda now: replace(now, models=("fake",)))
        again = await ask(host, bearer=secret)

    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "model_not_allowed"
    assert is_replay_of(again, first)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"model": 3}', b"\xff", b"[" * 5000])
async def test_a_body_that_is_none_is_refused_as_without_a_key(raw: bytes) -> None:
    async with make_host() as host:
        refused = await ask(host, raw=raw)
        unkeyed = await host.client.post("/v1/completions", content=raw)

    assert refused.status_code == 400
    assert refused.json() == unkeyed.json()


async def test_a_key_that_was_revoked_while_a_body_came_gets_no_replay() -> None:
    async with make_host() as host:
        store = host.host.books.keys
        record, secret = await store.create(org=(await store.create_org("acme")).name)
        raw = json.dumps(BODY).encode()
        first = await ask(host, bearer=secret, raw=raw)
        slow = Connection(raw[:9], raw[9:])
        slow.scope["headers"] += [
            (HEADER.encode(), b"k1"),
            (b"authorization", f"Bearer {secret}".encode()),
        ]
        receive, gate = slow.receive, asyncio.Event()

        async def reluctant() -> dict[str, Any]:
            message = await receive()
            if not message["more_body"]:
                await gate.wait()
            return message

        slow.receive = reluctant  # type: ignore[method-assign]
        call = visit(app_of(host), slow)
        await until(lambda: len(slow._messages) == 0)
        await store.revoke(record.id)
        gate.set()
        await call

    assert first.status_code == 200
    assert slow.status == 401


@pytest.mark.parametrize(
    "key", ["", " ", "a b", "x" * 256, "tab\tbed", b"\xc3\xa9".decode("latin-1")]
)
async def test_a_key_that_can_not_be_one_is_refused(key: str) -> None:
    async with make_host() as host:
        refused = await host.client.post(
            "/v1/completions", json=BODY, headers=[(b"idempotency-key", key.encode("latin-1"))]
        )

        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "Idempotency-Key"
        assert [e["outcome"] for e in await settled(host)] == ["refused"]


async def test_a_key_may_be_long_and_odd_and_comes_once() -> None:
    odd = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\" + "x" * 223
    async with make_host() as host:
        first = await ask(host, odd)
        again = await ask(host, odd)
        twice = await host.client.post(
            "/v1/completions", json=BODY, headers=[(HEADER, "a"), (HEADER, "a")]
        )

    assert is_replay_of(again, first)
    assert twice.status_code == 400


# ------------------------------------------------------------ what is not kept


async def test_a_refusal_is_not_kept_and_its_key_is_free() -> None:
    async with make_host() as host:
        refused = await ask(host, temperature=-3)
        unknown = await ask(host, model="nope")
        answered = await ask(host)

    assert (refused.status_code, unknown.status_code) == (400, 404)
    assert answered.status_code == 200
    assert "idempotent-replayed" not in answered.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_not_kept_and_the_call_runs_anew(stream: bool) -> None:
    held = Held()
    held.go()
    async with make_host(plugins=[held], models={"fake": HELD_MODEL}) as host:
        held.fails = lambda _, position: RuntimeError("no") if position > 4 else None
        failed = await ask(host, stream=stream)
        held.fails = lambda *_: None
        answered = await ask(host, stream=stream)
        again = await ask(host, stream=stream)

        assert b"engine_failed" in failed.content
        assert is_replay_of(again, answered)
        assert "idempotent-replayed" not in answered.headers
        assert len(billed(host)) == 1


async def test_a_429_is_not_kept() -> None:
    limited = Settings(limits=LimitSettings(requests_per_minute=1))
    clock = at("2026-03-01T12:00")
    async with make_host(settings=limited, clock=clock) as host:
        await ask(host, "k1")
        refused = await ask(host, "k2")
        clock.advance(60)
        answered = await ask(host, "k2")

    assert (refused.status_code, answered.status_code) == (429, 200)


async def test_an_answer_that_is_too_large_is_whole_and_not_kept() -> None:
    async with make_host(settings=settings(max_answer_bytes=200)) as host:
        first = await ask(host)
        again = await ask(host)

        assert len(first.content) > 200
        assert first.json()["choices"][0]["text"] == fake_words("hello world", 6)
        assert "idempotent-replayed" not in again.headers
        assert len(billed(host)) == 2


async def test_an_answer_that_can_not_be_kept_is_given_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: object) -> None:
        raise Overloaded("The disk is full.")

    async with make_host() as host:
        monkeypatch.setattr(Answers, "keep", full)
        answered = await ask(host)

    assert answered.status_code == 200
    assert "answer.not_kept" in caplog.text


async def test_while_nobody_can_tell_whether_it_ran_a_call_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with make_host() as host:

        async def broken(*_: object) -> None:
            raise StorageFailed(host.host.data_dir.answers_db, OSError("gone"))

        with monkeypatch.context() as patch:
            patch.setattr(Answers, "find", broken)
            refused = await asyncio.gather(ask(host), ask(host))
        answered = await ask(host)

        assert [each.status_code for each in refused] == [503, 503]
        assert answered.status_code == 200
        entries = await settled(host)
        assert [e["outcome"] for e in entries] == ["failed", "failed", "answered"]


# ------------------------------------------------------------ while it runs


class Client(WiredConnection):
    """One call of a stream with a key."""

    def __init__(self, key: str = "k1", **changes: Any) -> None:
        body = BODY | {"model": "m", "stream": True, "max_tokens": 9} | changes
        super().__init__(json.dumps(body).encode())
        self.scope["headers"].append((HEADER.encode(), key.encode()))

    def header(self, name: str) -> str | None:
        found = dict(self.sent[0]["headers"]).get(name.encode())
        return None if found is None else found.decode()

    @property
    def is_done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n") and not self.sent[-1]["more_body"]


async def test_of_fifty_at_once_one_runs_and_all_get_the_same_bytes() -> None:
    async with make_host() as host:
        clients = [Client(model="fake") for _ in range(50)]
        await asyncio.gather(*(visit(app_of(host), client) for client in clients))

        assert {client.body for client in clients} == {clients[0].body}
        assert clients[0].is_done
        assert clients[0].text == fake_words("hello world", 9)
        assert [client.header("idempotent-replayed") for client in clients].count("true") == 49
        assert len(host.entries()) == 1


async def test_a_duplicate_gets_what_there_was_and_follows() -> None:
    held = Held()
    async with make_host(plugins=[held], models={"m": HELD_MODEL}) as host:
        first, second = Client(), Client()
        one = visit(app_of(host), first)
        for _ in range(3):
            before = len(first.body)
            held.go(1)
            await until(lambda before=before: len(first.body) > before)
        two = visit(app_of(host), second)
        await until(lambda: second.body == first.body)
        held.go()
        await asyncio.gather(one, two)

        assert second.body == first.body
        assert second.is_done
        assert second.header("x-llmhost-original-request-id") == first.header("x-request-id")
        assert len(billed(host)) == 1


async def test_a_duplicate_attaches_while_the_model_loads() -> None:
    held = Held()
    held.may_load.clear()
    model = {"m": ModelSpec(engine="held", load="request", price=FAKE_MODEL.price)}
    async with make_host(plugins=[held], models=model) as host:
        clients = [Client(), Client()]
        calls = [visit(app_of(host), client) for client in clients]
        await until(lambda: held.loads)
        held.may_load.set()
        held.go()
        await asyncio.gather(*calls)

        assert clients[0].body == clients[1].body
        assert clients[0].is_done
        assert len(host.entries()) == 1


async def test_a_slow_duplicate_stops_nobody_and_misses_nothing() -> None:
    async with make_host() as host:
        slow, quick = Client(model="fake"), Client(model="fake")
        gate = asyncio.Event()
        send = slow.send

        async def reluctant(message: dict[str, Any]) -> None:
            await gate.wait()
            await send(message)

        slow.send = reluctant  # type: ignore[method-assign]
        late = visit(app_of(host), slow)
        await visit(app_of(host), quick)
        assert quick.is_done
        assert not late.done()
        gate.set()
        await late

    assert slow.body == quick.body


async def test_when_the_first_client_leaves_the_answer_goes_on_for_the_second() -> None:
    held = Held()
    async with make_host(plugins=[held], models={"m": HELD_MODEL}) as host:
        first, second = Client(), Client()
        one, two = visit(app_of(host), first), visit(app_of(host), second)
        held.go(1)
        await until(lambda: first.body and second.body)
        first.gone.set()
        await one
        held.go()
        await two
        [entry] = await settled(host)

    assert second.is_done
    assert entry["outcome"] == "answered"


async def test_who_comes_back_within_the_grace_finds_the_answer_going_on() -> None:
    held = Held()
    async with make_host(
        plugins=[held], models={"m": HELD_MODEL}, settings=settings(grace_s=1000)
    ) as host:
        first, second = Client(), Client()
        one = visit(app_of(host), first)
        held.go(1)
        await until(lambda: first.body)
        first.gone.set()
        await one
        two = visit(app_of(host), second)
        held.go()
        await two
        [entry] = await settled(host)

    assert second.is_done
    assert second.body.startswith(first.body)
    assert (entry["outcome"], entry["tokens"]["output"]) == ("answered", 9)


async def test_what_ends_while_nobody_reads_is_kept() -> None:
    held = Held()
    async with make_host(
        plugins=[held], models={"m": HELD_MODEL}, settings=settings(grace_s=1000)
    ) as host:
        first = Client()
        one = visit(app_of(host), first)
        held.go(1)
        await until(lambda: first.body)
        first.gone.set()
        await one
        held.go()
        await settled(host)
        await until(lambda: not host.host.idempotency._live)
        second = Client()
        await visit(app_of(host), second)

        assert second.is_done
        assert second.header("idempotent-replayed") == "true"
        assert len(host.entries()) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_when_nobody_comes_back_it_is_cancelled_and_billed_so_far_and_then_runs_anew(
    stream: bool,
) -> None:
    held = Held()
    async with make_host(
        plugins=[held], models={"m": HELD_MODEL}, settings=settings(grace_s=0)
    ) as host:
        first = Client(stream=stream)
        one = visit(app_of(host), first)
        held.go(2)
        await until(lambda: first.body or (not stream and host.host.processor.in_flight))
        first.gone.set()
        await one
        await until(lambda: not host.host.idempotency._live)
        held.go()
        [cut] = await settled(host)
        second = Client(stream=stream)
        await visit(app_of(host), second)
        entries = await settled(host)

    assert cut["outcome"] == "cancelled"
    assert cut["tokens"]["output"] < 9
    assert [e["outcome"] for e in entries] == ["cancelled", "answered"]
    assert second.header("idempotent-replayed") is None


async def test_the_end_is_shown_when_the_answer_is_in_the_ledger_and_kept() -> None:
    async with make_host() as host:
        clients = [Client(model="fake"), Client(model="fake")]
        with slow_ledger(host) as ledger:
            calls = [visit(app_of(host), client) for client in clients]
            await until(lambda: ledger.waiting)
            assert not any(client.is_done for client in clients)
            ledger.let_go()
            await asyncio.gather(*calls)

    assert all(client.is_done for client in clients)


async def test_an_answer_too_large_to_share_is_refused_to_who_comes_late_and_goes_on_for_others() -> (
    None
):
    held = Held()
    async with make_host(
        plugins=[held], models={"m": HELD_MODEL}, settings=settings(max_answer_bytes=300)
    ) as host:
        first, second = Client(), Client()
        one, two = visit(app_of(host), first), visit(app_of(host), second)
        for _ in range(4):
            before = len(second.body)
            held.go(1)
            await until(lambda before=before: len(second.body) > before)
        assert len(second.body) > 300
        late, other = Client(), Client(max_tokens=2)
        await asyncio.gather(visit(app_of(host), late), visit(app_of(host), other))
        held.go()
        await asyncio.gather(one, two)

        assert first.is_done
        assert first.body == second.body
        assert (late.status, other.status) == (409, 422)
        assert json.loads(late.body)["error"]["code"] == "idempotency_key_in_use"
        assert late.header("retry-after") == "5"
        assert late.header("x-should-retry") == "true"
        assert len(billed(host)) == 1


async def test_silence_is_filled_for_each_reader_and_not_recorded() -> None:
    held = Held()
    quiet = Settings(server=ServerSettings(heartbeat_s=0.01))
    async with make_host(plugins=[held], models={"m": HELD_MODEL}, settings=quiet) as host:
        first, second = Client(), Client()
        calls = [visit(app_of(host), first), visit(app_of(host), second)]
        await until(lambda: b": keep-alive" in first.body and b": keep-alive" in second.body)
        held.go()
        await asyncio.gather(*calls)
        later = Client()
        await visit(app_of(host), later)

    assert b": keep-alive" not in later.body
    assert first.text == second.text == later.text == fake_words("hello world", 9)


async def test_a_drain_lets_an_answer_end_that_nobody_reads_and_it_is_found_after_the_restart(
    tmp_path: Any,
) -> None:
    held = Held()
    facts: Any = {"plugins": [held], "models": {"m": HELD_MODEL}, "data_dir": tmp_path}
    async with make_host(**facts) as host:
        first = Client()
        one = visit(app_of(host), first)
        held.go(1)
        await until(lambda: first.body)
        first.gone.set()
        await one
        draining = asyncio.ensure_future(host.host.drain(20.0))
        held.go()
        assert await draining == 0
    async with make_host(**facts) as host:
        second = Client()
        await visit(app_of(host), second)
        entries = host.entries()

    assert second.header("idempotent-replayed") == "true"
    assert second.is_done
    assert [e["outcome"] for e in entries] == ["answered"]


async def test_a_call_with_a_key_leaves_no_task_behind() -> None:
    async with make_host() as host:
        before = asyncio.all_tasks()
        await visit(app_of(host), Client(model="fake"))
        await until(lambda: asyncio.all_tasks() == before)

        assert not host.host.idempotency._live
