"""Requests that repeat word for word: the short way says and writes down what the long one does, and no old news."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from errno import ENOSPC
from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.node import until

from llmhost.api.door import WIRE
from llmhost.cache.store import Meant
from llmhost.config.schema import Settings
from llmhost.config.schema.cache import CacheSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import CostSettings
from llmhost.config.schema.safety import AuditSettings, SafetySettings
from llmhost.core.caller import Limits
from llmhost.cost.ledger import Ledger
from llmhost.cost.pricing import Rates
from llmhost.hooks.spec import Price, Refusal, hookimpl
from llmhost.pipeline.bill import MOST_BEHIND
from llmhost.pipeline.context import RequestContext
from llmhost.safety.policy import PolicyBody
from llmhost.storage.connect import StorageFailed
from llmhost.storage.journal import Slot
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import FAKE_MODEL, TestHost, at, make_host

NOON = "2026-01-10T12:00"
ON = {"x-llmhost-cache": "on"}
CHATS = "/v1/chat/completions"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def cache(self) -> str | None:
        return self.headers.get("x-llmhost-cache")

    @property
    def said(self) -> dict[str, Any]:
        """All that does not differ between two requests."""
        known = {name: value for name, value in self.headers.items() if name not in OWN}
        text = re.sub(r"(req_|chatcmpl-|cmpl-)[0-9a-f]{24}", r"\1", self.body.decode())
        return {"status": self.status, "headers": known, "body": text}


OWN = {"x-request-id", "openai-processing-ms", "content-length"}


class Line:
    """A connection with a shortcut past ASGI's messages, for one call."""

    def __init__(self, body: bytes, *, is_read: bool = True) -> None:
        self._body = body
        self._is_read = is_read
        self.answered: Answer | None = None

    def is_free(self) -> bool:
        return False

    def offer(self, body: bytes) -> bool:
        return False

    def peek_body(self) -> bytes:
        return self._body

    take_body = peek_body

    def on_gone(self, leave: Callable[[], None] | None) -> bool:
        return True

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        if not self._is_read:
            return False
        known = {name.decode(): value.decode("latin-1") for name, value in headers}
        self.answered = Answer(status, known, body)
        return True


@dataclass
class Asked:
    """A call, as often as it is made."""

    body: dict[str, Any]
    key: str | None = None
    headers: Mapping[str, str] | None = None
    path: str = CHATS

    async def of(
        self, host: TestHost, meanwhile: Callable[[], Awaitable[object]] | None = None
    ) -> Answer:
        """`meanwhile` is awaited while its client reads the answer."""
        raw = json.dumps(self.body).encode()
        line = Line(raw, is_read=meanwhile is None)
        sent = {"host": "localhost", **(ON if self.headers is None else self.headers)}
        if self.key is not None:
            sent["authorization"] = f"Bearer {self.key}"
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)
            if meanwhile is not None and message["type"] == "http.response.start":
                await meanwhile()

        async def receive() -> Any:
            return {"type": "http.request", "body": raw, "more_body": False}

        scope: Any = {
            **{"type": "http", "method": "POST", "path": self.path, "raw_path": b"x"},
            **{"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"},
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 80),
            "extensions": {WIRE: line},
            "state": {},
        }
        await host.host.app.asgi(scope, receive, send)
        if line.answered is not None:
            return line.answered
        start, *pieces = messages
        known = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], known, b"".join(piece["body"] for piece in pieces))


def chat(text: str = "hello world", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "fake", "messages": messages, "max_tokens": 6, "temperature": 0, **body}


SETTINGS = Settings(
    safety=SafetySettings(blocked_words=("forbidden",), redact=("pii.email",), warn=("pii.iban",)),
    costs=CostSettings(host_per_hour="1", cpu_per_hour="2"),
    audit=AuditSettings(each_allowed=True),
)


@asynccontextmanager
async def node(
    *plugins: object, settings: Settings = SETTINGS, spec: ModelSpec = FAKE_MODEL
) -> AsyncIterator[TestHost]:
    spec = msgspec.structs.replace(spec, aliases=("other",))
    async with make_host(
        plugins=plugins, settings=settings, models={"fake": spec}, clock=at(NOON)
    ) as host:
        yield host


def short(host: TestHost) -> int:
    """How many requests took the short way."""
    return host.host.repeats.answered


async def warmed(host: TestHost, asked: Asked) -> Answer:
    """Have the answer kept, and the request known."""
    await asked.of(host)
    known = await asked.of(host)
    assert known.cache == "hit" and short(host) == 0
    return known


async def test_the_third_of_the_same_requests_takes_the_short_way() -> None:
    async with node() as host:
        asked = Asked(chat())
        second = await warmed(host, asked)
        third = await asked.of(host)

        assert short(host) == 1
        assert third.said == second.said
        assert third.headers["x-request-id"] != second.headers["x-request-id"]
        assert third.headers["x-request-id"].removeprefix("req_").encode() in third.body


# ------------------------------------------------------------ both ways


class Plugin:
    """Has an opinion on everything that the short way asks."""

    @hookimpl
    def route_request(self, request, candidates):
        return "fake" if request.model == "fake" else None

    @hookimpl
    def quote_price(self, price):
        return price.times(1, 2)

    @hookimpl
    def check_input(self, request):
        return Refusal("no", code="unwanted") if "unwanted" in request.text else None

    @hookimpl
    def check_output(self, text):
        return None


async def mix(host: TestHost) -> list[Answer]:
    """Of each kind of request several, in one order."""
    books = host.host.books
    key = await host.make_key(team="t", limits=Limits(requests_per_minute=64, max_concurrency=9))
    poor = await host.make_key(org="poor")
    few = await host.make_key(limits=Limits(requests_per_minute=4))
    gone = await host.make_key(org="gone")
    budget = Budget(id="bud_1", org="poor", period=Period.MONTH, limit_nano=4_000)
    await books.budgets.create(budget, who="test")
    answers = []
    for asked in (
        Asked(chat(), key),
        Asked(chat(n=2, seed=1), key),
        Asked(chat("a@b.example writes"), key),
        Asked(chat("DE89370400440532013000 is it"), key),
        Asked(chat("a forbidden word"), key),
        Asked(chat("an unwanted word"), key),
        Asked(chat(stream=True), key),
        Asked(chat(logprobs=True, top_logprobs=2), key),
        Asked(chat(include_cost=True), key),
        Asked(chat(), key, {**ON, "x-request-id": "mine", "x-llmhost-run": "r1"}),
        Asked(
            {"model": "fake", "prompt": ["a", "b"], "temperature": 0}, key, path="/v1/completions"
        ),
        Asked(chat("long " * 200, max_tokens=120), key),
        Asked(chat(), few),
        Asked(chat("money"), poor),
    ):
        answers += [await asked.of(host) for _ in range(6)]
        await until(lambda: not host.host.books.settlements.under_way)
    leaving = Asked(chat("leaving"), gone)
    answers += [await leaving.of(host) for _ in range(3)]
    await books.keys.revoke(gone.split("-")[2])
    answers += [await leaving.of(host) for _ in range(2)]
    await until(lambda: not host.host.books.settlements.under_way)
    for _ in range(5):  # the last of them is logged some turns after its entry is on disk
        await asyncio.sleep(0)
    return answers


def rows(host: TestHost) -> dict[str, Any]:
    """All that was written down, without what two nodes never share."""
    own = {"node_id", "hash", "prev_hash", "request_id", "key_id", "seq", "cost_digest", "actor"}

    def bare(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name not in own}

    # What nobody waits for is booked with others a moment later, so the order says nothing.
    entries = sorted((bare(row) for row in host.entries()), key=str)

    def table(connection: Any) -> list[dict[str, Any]]:
        cursor = connection.execute("SELECT * FROM requests ORDER BY seq")
        names = [column[0] for column in cursor.description]
        return [bare(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]

    host.host.analytics._writer.submit(lambda _: None).result()
    # A row is written when its entry is, and on the short way at once: which of two comes first says nothing.
    traffic = sorted(host.host.analytics._reader.read_now(table), key=str)
    metrics = [
        line
        for line in host.host.metrics.render().decode().splitlines()
        if line.startswith(("llmhost_", "vllm:")) and not _is_own(line)
    ]
    return {"entries": entries, "traffic": traffic, "metrics": metrics}


def _is_own(line: str) -> bool:
    """What a machine does in its time."""
    return any(
        part in line
        for part in ("step", "thread", "loop", "device", "cost_nano", "_created", "engine_cpu")
    )


async def audited(host: TestHost, *kinds: str) -> list[tuple[Any, ...]]:
    """What was screened, as it was written down: with `each_allowed` all of it. Or rows of other kinds."""
    query = "SELECT kind, org, action, target, detail FROM rows ORDER BY seq"
    await host.host.audit.record(actor="x", action="end", target="x")  # behind all others
    rows: list[tuple[Any, ...]] = host.host.audit.trail.reader.read_now(
        lambda c: c.execute(query).fetchall()
    )
    return [row for row in rows if row[0] in (kinds or ("screening",))]


@pytest.mark.parametrize("factor", ["0", "0.5"])
async def test_both_ways_say_and_write_down_the_same(factor: str) -> None:
    settings = msgspec.structs.replace(SETTINGS, cache=CacheSettings(price_factor=factor))
    seen = []
    for is_on in (True, False):
        async with node(Plugin(), settings=settings) as host:
            host.host.repeats.is_on = is_on
            answers = await mix(host)
            seen.append(
                ([each.said for each in answers], rows(host), await audited(host), short(host))
            )
    (said, written, audit, count), (said_long, written_long, audit_long, none) = seen

    assert count > 15 and none == 0
    for one, other in zip(said, said_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long


# ------------------------------------------------------------ no old news


Change = Callable[[TestHost, str], Awaitable[Any]]


async def changed(change: Change, *plugins: object) -> tuple[Answer, Answer]:
    """The same request before and after a change of the world; the one before took the short way."""
    async with node(*plugins) as host:
        key = await host.make_key(team="t")
        asked = Asked(chat(), key)
        await warmed(host, asked)
        before = await asked.of(host)
        assert short(host) == 1
        await change(host, key)
        return before, await asked.of(host)


def key_id(key: str) -> str:
    return key.split("-")[2]


async def test_a_revoked_key_is_refused() -> None:
    _, after = await changed(lambda host, key: host.host.books.keys.revoke(key_id(key)))
    assert after.status == 401


async def test_nothing_is_learnt_of_a_request_amid_which_the_world_changed() -> None:
    async with node() as host:
        key = await host.make_key()
        asked = Asked(chat(), key)
        await asked.of(host)
        hit = await asked.of(host, lambda: host.host.books.keys.revoke(key_id(key)))
        assert hit.cache == "hit"
        assert (await asked.of(host)).status == 401


async def test_a_disabled_organisation_is_refused() -> None:
    _, after = await changed(
        lambda host, _: host.host.books.keys.directory.update_org(
            "acme", lambda org: replace(org, disabled_ns=1)
        )
    )
    assert after.status == 401


async def test_an_archived_team_is_refused() -> None:
    _, after = await changed(
        lambda host, _: host.host.books.keys.directory.archive_team("acme", "t")
    )
    assert after.status == 401


async def test_a_key_that_may_not_use_the_model_any_more_is_refused() -> None:
    _, after = await changed(
        lambda host, key: host.host.books.keys.update(
            key_id(key), lambda record: replace(record, models=("another",))
        )
    )
    assert after.status == 403


async def test_a_lowered_limit_holds_at_once() -> None:
    _, after = await changed(
        lambda host, key: host.host.books.keys.update(
            key_id(key), lambda record: replace(record, limits=Limits(input_tokens_per_minute=1))
        )
    )
    assert after.status in (400, 429)


async def test_a_new_price_makes_another_answer() -> None:
    rates = Rates(input_nano=1, cached_input_nano=1, output_nano=1)
    before, after = await changed(lambda host, _: host.host.books.prices.set("fake", rates))
    assert before.cache == "hit"
    assert after.cache == "miss"
    assert after.headers["x-llmhost-price-version"] != before.headers["x-llmhost-price-version"]


async def test_a_new_policy_makes_another_answer() -> None:
    _, after = await changed(
        lambda host, _: host.host.policies.create(
            "acme", PolicyBody(words=("hello",)), who="test", activate=True
        )
    )
    assert after.status == 400


async def test_a_purge_forgets_what_the_short_way_knows() -> None:
    _, after = await changed(lambda host, _: host.host.cache.purge(Meant()))
    assert after.cache == "miss"


async def test_a_model_that_is_loaded_again_is_looked_at_again() -> None:
    async with node() as host:
        asked = Asked(chat())
        await warmed(host, asked)
        generation = host.host.books.world.generation
        await host.host.deployments.find("fake").unload(drain_s=0.0, reason="test")
        assert host.host.books.world.generation > generation
        assert (await asked.of(host)).cache == "hit"
        assert short(host) == 0


async def test_the_first_key_ends_that_everybody_is_answered() -> None:
    async with node() as host:
        asked = Asked(chat())
        await warmed(host, asked)
        await host.make_key()
        assert (await asked.of(host)).status == 401


async def test_a_key_that_expires_and_an_answer_that_ages_end_by_the_clock() -> None:
    async with node() as host:
        clock: Any = host.host.clock
        await host.make_key()
        key = await host.make_key(expires_ns=clock.utc_ns() + 60 * 10**9)
        keeps = await host.make_key()
        asked, other = Asked(chat(), key), Asked(chat("other"), keeps)
        await warmed(host, asked)
        await other.of(host)
        await other.of(host)
        clock.advance(61)
        assert (await asked.of(host)).status == 401
        aged = await other.of(host)
        assert (aged.cache, aged.headers["age"]) == ("hit", "61")
        clock.advance(3600)
        assert (await other.of(host)).cache == "miss"


async def test_a_price_that_is_set_for_later_holds_from_then_on() -> None:
    async with node() as host:
        clock: Any = host.host.clock
        asked, prices = Asked(chat()), host.host.books.prices
        rates = Rates(input_nano=1, cached_input_nano=1, output_nano=1)
        await prices.set("fake", rates, effective_from_ns=clock.utc_ns() + 60 * 10**9)
        await warmed(host, asked)
        assert (await asked.of(host)).cache == "hit"
        clock.advance(61)
        assert (await asked.of(host)).cache == "miss"


async def test_a_budget_that_is_used_up_refuses_what_is_paid_for() -> None:
    settings = msgspec.structs.replace(SETTINGS, cache=CacheSettings(price_factor="1"))
    async with node(settings=settings) as host:
        await host.make_key()
        asked = Asked(chat(), await host.make_key())
        await warmed(host, asked)
        assert (await asked.of(host)).status == 200
        budget = Budget(id="bud_1", org="acme", period=Period.MONTH, limit_nano=1)
        await host.host.books.budgets.create(budget, who="test")
        assert (await asked.of(host)).status == 429
        assert short(host) == 1


async def test_a_full_disk_refuses_on_the_long_way_and_nothing_was_counted_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(note: bytes) -> Slot:
        raise StorageFailed(journal.path, OSError(ENOSPC, "full"))

    async with node() as host:
        asked = Asked(chat(), await host.make_key(limits=Limits(requests_per_minute=60)))
        await warmed(host, asked)
        journal = host.host.books.settlements._journal
        monkeypatch.setattr(journal, "open", full)
        assert (await asked.of(host)).status == 503
        monkeypatch.undo()
        after = await asked.of(host)
        assert (after.status, after.headers["x-ratelimit-remaining-requests"]) == (200, "56")


async def test_a_ledger_that_is_far_behind_refuses_free_hits_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as host:
        asked = Asked(chat())
        await warmed(host, asked)
        monkeypatch.setattr(Ledger, "waiting", MOST_BEHIND)
        behind = await asked.of(host)
        monkeypatch.setattr(Ledger, "waiting", MOST_BEHIND - 1)
        after = [await asked.of(host) for _ in range(2)]
        assert (behind.status, behind.headers["retry-after"]) == (503, "1")
        assert [one.status for one in after] == [200, 200]
        assert short(host) == 1


# ------------------------------------------------------------ who has no short way


async def test_another_key_and_another_header_are_other_requests() -> None:
    async with node() as host:
        first, second = await host.make_key(), await host.make_key(org="other")
        await warmed(host, Asked(chat(), first))
        assert (await Asked(chat(), second).of(host)).cache == "miss"
        assert (await Asked(chat(), first, {}).of(host)).cache is None
        assert (await Asked(chat(), first, {"x-llmhost-cache": "refresh"}).of(host)).cache == "miss"
        assert short(host) == 0


class Admits:
    @hookimpl
    def admit_request(self, request):
        return None


class Slow:
    @hookimpl
    async def check_input(self, request):
        return None


class Failing:
    has_failed = False

    @hookimpl
    def check_input(self, request):
        if self.has_failed:
            raise ValueError("broken")
        return


@pytest.mark.parametrize("plugin", [Admits, Slow])
async def test_plugins_that_count_or_are_awaited_are_asked_on_the_long_way(plugin: type) -> None:
    async with node(plugin()) as host:
        asked = Asked(chat())
        await warmed(host, asked)
        assert (await asked.of(host)).cache == "hit"
        assert short(host) == 0


async def test_a_plugin_that_fails_refuses_as_it_does_on_the_long_way() -> None:
    plugin = Failing()
    async with node(plugin) as host:
        asked = Asked(chat())
        await warmed(host, asked)
        plugin.has_failed = True
        assert (await asked.of(host)).status == 503
        assert short(host) == 0


async def test_plugins_are_asked_each_time() -> None:
    class Changing:
        wants: Price | None = None

        @hookimpl
        def quote_price(self, price):
            return self.wants

    plugin = Changing()
    settings = msgspec.structs.replace(SETTINGS, cache=CacheSettings(price_factor="1"))
    async with node(plugin, settings=settings) as host:
        asked = Asked(chat())
        await warmed(host, asked)
        before = await asked.of(host)
        plugin.wants = Price.of(input="7", output="7")
        assert (await asked.of(host)).headers["x-llmhost-cost-usd"] == "0.00007"
        after = await asked.of(host)
        assert after.headers["x-llmhost-cost-usd"] == "0.00007"
        assert before.headers["x-llmhost-cost-usd"] != after.headers["x-llmhost-cost-usd"]
        assert short(host) == 2


async def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmhost.api.repeats.MOST_BYTES", 20_000)
    async with node() as host:
        for text in ("one", "two", "three", "four", "five"):
            for _ in range(2):
                await Asked(chat(text)).of(host)
        assert 1 <= len(host.host.repeats) <= 3
        assert host.host.repeats.bytes <= 20_000


async def test_nobody_is_answered_while_the_node_drains() -> None:
    async with node() as host:
        asked = Asked(chat())
        await warmed(host, asked)
        host.host.processor.drain()
        assert (await asked.of(host)).status == 503


async def test_one_that_can_not_be_counted_is_no_others_loss(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[str] = []
    caplog.set_level(logging.INFO, "llmhost")
    async with node() as host:
        asked, store = Asked(chat()), host.host.processor._stages.store
        await warmed(host, asked)
        await until(lambda: caplog.text.count("request.answered") == 2)
        count = store.count

        def broken(context: RequestContext, *rest: Any) -> None:
            counted.append(context.request.request_id)
            if len(counted) == 1:
                raise ValueError("broken")
            count(context, *rest)

        monkeypatch.setattr(store, "count", broken)
        caplog.clear()
        answers = await asyncio.gather(*(asked.of(host) for _ in range(3)))
        await asyncio.sleep(0)

    assert [answer.cache for answer in answers] == ["hit"] * 3 and short(host) == 3
    assert counted == [answer.headers["x-request-id"] for answer in answers]
    assert caplog.text.count("request.answered") == 2
    assert "request.not_told" in caplog.text


async def test_one_that_can_not_be_booked_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    settings = msgspec.structs.replace(SETTINGS, cache=CacheSettings(price_factor="0.5"))
    async with node(settings=settings) as host:
        books, bill = host.host.books, host.host.processor._stages.bill
        asked = Asked(chat(), await host.make_key(org="poor"))
        budget = Budget(id="bud_1", org="poor", period=Period.MONTH, limit_nano=10**9)
        await books.budgets.create(budget, who="test")
        await warmed(host, asked)
        await until(lambda: not books.settlements.under_way)
        monkeypatch.setattr(books.settlements, "secure", broken)
        with pytest.raises(ValueError, match="broken"):
            await asked.of(host)
        assert books.settlements.under_way == 0
        assert not bill._accounts.live_holds()
        assert bill._costs.infrastructure.host.heads == 0
