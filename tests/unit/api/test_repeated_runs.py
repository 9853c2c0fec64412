"""Requests that repeat word for word and run: the short way says and writes down what the long one does."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from errno import ENOSPC
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.api.test_repeats import (
    SETTINGS,
    Answer,
    Asked,
    Plugin,
    audited,
    chat,
    key_id,
    node,
    rows,
)
from tests.unit.pipeline.node import Held, until

from llmhost.api.door import Lines
from llmhost.api.frames import plain_facts, whole_answer
from llmhost.api.limit_headers import limit_headers, limit_lines
from llmhost.api.repeated_run import body_of
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import AuditSettings, SafetySettings
from llmhost.core.caller import Limits
from llmhost.core.errors import EngineFailed
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sequence import SequenceSpec
from llmhost.cost.pricing import Rates
from llmhost.hooks.spec import Price as Quote
from llmhost.hooks.spec import Refusal, hookimpl
from llmhost.pipeline.short_run import KnownRun, ShortRuns
from llmhost.safety.policy import PolicyBody
from llmhost.storage.connect import StorageFailed
from llmhost.storage.journal import Slot
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.tenants.refusals import Allowance, Allowances
from llmhost.testing import FAKE_MODEL, TestHost, fake_chat_words

CHECKED = msgspec.structs.replace(
    SETTINGS,
    safety=SafetySettings(
        blocked_words=("forbidden",), redact=("pii.email",), warn=("pii.iban",), check_output=True
    ),
)


def plain(text: str = "hello world", **body: Any) -> dict[str, Any]:
    return {**chat(text), "temperature": 1, "seed": 7, **body}


def run(body: dict[str, Any] | None = None, key: str | None = None, **headers: str) -> Asked:
    """A call that has nothing to do with the cache."""
    return Asked(body or plain(), key, {name.replace("_", "-"): v for name, v in headers.items()})


def short(host: TestHost) -> int:
    return host.host.repeats.ran


async def settled(host: TestHost) -> None:
    await until(lambda: not host.host.processor.in_flight)
    await until(lambda: not host.host.books.settlements.under_way)
    for _ in range(5):  # the last of them is logged some turns after its entry is on disk
        await asyncio.sleep(0)


async def warmed(host: TestHost, asked: Asked) -> Answer:
    """Have the request known."""
    await asked.of(host)
    known = await asked.of(host)
    assert short(host) == 0
    await settled(host)
    return known


async def mix(host: TestHost) -> list[Answer]:
    """Of each kind of request several, in one order."""
    books = host.host.books
    key = await host.make_key(team="t", limits=Limits(requests_per_minute=64, max_concurrency=9))
    poor, gone = await host.make_key(org="poor"), await host.make_key(org="gone")
    few = await host.make_key(limits=Limits(requests_per_minute=5, output_tokens_per_minute=60))
    budget = Budget(id="bud_1", org="poor", period=Period.MONTH, limit_nano=14_000)
    await books.budgets.create(budget, who="test")
    answers = []
    for asked in (
        run(key=key),
        run(plain(max_tokens=300), key),
        run(plain(n=2), key),
        run(plain(stop=["zzz"], user="u", metadata={"a": "b"}), key),
        run(plain("a@b.example writes"), key),
        run(plain("DE89370400440532013000 is it"), key),
        run(plain("a forbidden word"), key),
        run(plain("an unwanted word"), key),
        run(plain(stream=True), key),
        run(plain(logprobs=True, top_logprobs=2), key),
        run(plain(include_cost=True), key),
        run(plain(timeout_ms=60_000), key),
        run(plain(tools=[{"type": "function", "function": {"name": "f"}}]), key),
        run(plain(), key, x_request_id="mine", x_llmhost_run="r1", x_vllm_priority="3"),
        run(plain(), key, x_llmhost_cache="on"),
        run(plain(temperature=0), key, x_llmhost_cache="off"),
        run(plain(temperature=0), key, x_llmhost_cache="refresh"),
        run(plain("refused in the answer"), key),
        Asked({"model": "other", "prompt": "a", "max_tokens": 5}, key, {}, "/v1/completions"),
        Asked({"model": "fake", "prompt": ["a", "b"]}, key, {}, "/v1/completions"),
        run(plain("limits"), few),
        run(plain("money", max_tokens=16), poor),
    ):
        for _ in range(5 if asked.key in (few, poor) else 4):
            answers.append(await asked.of(host))
            await settled(host)
    leaving = run(plain("leaving"), gone)
    answers += [await leaving.of(host) for _ in range(3)]
    await books.keys.revoke(gone.split("-")[2])
    answers += [await leaving.of(host) for _ in range(2)]
    await settled(host)
    return answers


class Judge(Plugin):
    """Lets nobody hear one answer."""

    said = fake_chat_words([{"role": "user", "content": "refused in the answer"}], 6)

    @hookimpl
    def check_output(self, request, text):
        return Refusal("no") if "refused in the answer" in request.text else None


async def test_both_ways_say_and_write_down_the_same() -> None:
    seen = []
    for is_on in (True, False):
        async with node(Judge(), settings=CHECKED) as host:
            host.host.repeats.is_on = is_on
            answers = await mix(host)
            said = [each.said for each in answers]
            seen.append((said, rows(host), await audited(host), short(host)))
    (said, written, audit, count), (said_long, written_long, audit_long, none) = seen

    assert count > 15 and none == 0
    for one, other in zip(said, said_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long


@pytest.mark.parametrize("each_allowed", [True, False])
async def test_of_texts_that_pass_at_once_each_is_counted(each_allowed: bool) -> None:
    settings = msgspec.structs.replace(CHECKED, audit=AuditSettings(each_allowed=each_allowed))
    seen = []
    for is_on in (True, False):
        async with node(settings=settings) as host:
            host.host.repeats.is_on = is_on
            for asked in (run(), run(plain("a second one"))):
                for _ in range(2):
                    await asked.of(host)
            both = (run(), run(plain("a second one")), run())
            await asyncio.gather(*(asked.of(host) for asked in both))
            await settled(host)
            host.host.audit.write_counters(is_end=True)
            metrics = [line for line in rows(host)["metrics"] if "safety" in line]
            allowed = await audited(host, "screening", "allowed")
            seen.append((sorted(allowed), metrics))
            assert short(host) == (3 if is_on else 0)
    passed = 'llmhost_safety_decisions_total{action="allow",category="none",direction="input"} 7.0'

    assert seen[0] == seen[1]
    assert passed in seen[0][1]
    assert len(seen[0][0]) == (14 if each_allowed else 2)


async def test_the_third_of_the_same_requests_takes_the_short_way() -> None:
    async with node() as host:
        second = await warmed(host, run())
        third = await run().of(host)
        assert short(host) == 1
        assert third.said == second.said
        digits = third.headers["x-request-id"].removeprefix("req_").encode()
        assert digits in third.body and third.body != second.body


async def test_without_a_seed_each_draws_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node() as host:
        (replica,) = host.host.deployments.find("fake").replicas
        engine: Any = replica.engine
        submit, seeds = engine.submit, list[int]()

        def seen(spec: SequenceSpec, sink: Any) -> int:
            seeds.append(spec.seed)
            return int(submit(spec, sink))

        monkeypatch.setattr(engine, "submit", seen)
        for asked in (run(), run({**chat(), "temperature": 1})):
            for _ in range(4):
                await asked.of(host)
        assert short(host) == 4
        assert len(set(seeds[:4])) == 1 and len(set(seeds[4:])) == 4


# ------------------------------------------------------------ what holds it up, and what ends it


HELD = ModelSpec(engine="held", price=FAKE_MODEL.price)


class Running:
    """A call that runs in a task, on a node whose steps are held."""

    def __init__(self, host: TestHost, asked: Asked) -> None:
        self.task = asyncio.create_task(asked.of(host))
        self._host = host

    async def begun(self) -> "Running":
        await until(lambda: self._host.host.processor.in_flight == 1)
        return self


async def held_node(held: Held, test: Callable[[TestHost], Awaitable[None]], **facts: Any) -> None:
    async with node(held, spec=HELD, **facts) as host:
        held.go()
        await warmed(host, run())
        held.stop()
        await test(host)
        held.go()


async def test_a_drain_waits_for_it_and_a_stop_cuts_it() -> None:
    held = Held()

    async def test(host: TestHost) -> None:
        running = await Running(host, run()).begun()
        (live,) = host.host.processor._live
        cut = asyncio.create_task(host.host.drain(0.0))
        await until(lambda: live.context.error is not None)
        held.go()
        answer = await running.task
        assert (answer.status, short(host)) == (503, 1)
        assert b"shutting down" in answer.body
        assert await cut == 1
        await settled(host)
        assert [entry["outcome"] for entry in host.entries()] == ["answered", "answered", "failed"]

    await held_node(held, test)


async def test_whoever_is_cancelled_leaves_and_pays_for_what_was_made() -> None:
    held = Held()

    async def test(host: TestHost) -> None:
        running = await Running(host, run()).begun()
        (live,) = host.host.processor._live
        held.steps.release(2)
        await until(lambda: len(live.stream) > 0)
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)
        await asyncio.sleep(0)  # the engine hears of it
        held.go()
        await settled(host)
        last = host.entries()[-1]
        assert last["outcome"] == "cancelled" and last["amount_nano"] > 0
        assert host.host.processor.in_flight == 0

    await held_node(held, test)


async def test_an_engine_that_fails_is_told_as_on_the_long_way() -> None:
    held = Held()

    async def test(host: TestHost) -> None:
        held.fails = lambda *_: EngineFailed("broken")
        held.go()
        short_one = await run().of(host)
        host.host.repeats.is_on = False
        long_one = await run().of(host)
        assert short(host) == 1 and short_one.status == 500
        assert short_one.said == long_one.said

    await held_node(held, test)


async def test_an_engine_that_is_full_refuses_and_nothing_stays_held() -> None:
    held = Held()
    spec = msgspec.structs.replace(HELD, max_queue=1, max_batch_size=1)
    async with node(held, spec=spec) as host:
        held.go()
        await warmed(host, run())
        held.stop()
        running = [Running(host, run()) for _ in range(2)]
        await until(lambda: host.host.processor.in_flight == 2)
        refused = await run().of(host)
        assert (refused.status, short(host)) == (503, 3)
        assert "retry-after" in refused.headers
        held.go()
        assert [(await each.task).status for each in running] == [200, 200]
        await settled(host)
        outcomes = [entry["outcome"] for entry in host.entries()]
        assert outcomes.count("refused") == 1 and outcomes.count("answered") == 4


async def test_whoever_has_to_wait_for_a_place_takes_the_long_way() -> None:
    held = Held()
    async with node(held, spec=HELD) as host:
        asked = run(key=await host.make_key(limits=Limits(max_concurrency=1)))
        held.go()
        await warmed(host, asked)
        held.stop()
        first = await Running(host, asked).begun()
        second = asyncio.create_task(asked.of(host))
        await until(lambda: host.host.processor.in_flight == 2)
        assert short(host) == 1
        held.go()
        assert [(await first.task).status, (await second).status] == [200, 200]
        assert (await asked.of(host)).status == 200
        assert short(host) == 2


async def test_a_model_that_sleeps_or_is_gone_is_loaded_on_the_long_way() -> None:
    async with node() as host:
        await warmed(host, run())
        await host.host.deployments.find("fake").unload(drain_s=0.0, reason="test")
        for _ in range(2):  # while it was loaded the world changed, so the first taught nothing
            assert (await run().of(host)).status == 200
        assert short(host) == 0
        await run().of(host)
        assert short(host) == 1


async def test_a_full_journal_refuses_and_limits_get_their_tokens_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(note: bytes) -> Slot:
        raise StorageFailed(journal.path, OSError(ENOSPC, "full"))

    async with node() as host:
        limits = Limits(output_tokens_per_minute=600, max_concurrency=1)
        asked = run(key=await host.make_key(limits=limits))
        await warmed(host, asked)
        journal = host.host.books.settlements._journal
        monkeypatch.setattr(journal, "open", full)
        assert (await asked.of(host)).status == 503
        monkeypatch.undo()
        after = await asked.of(host)
        assert (after.status, short(host)) == (200, 2)
        assert after.headers["x-ratelimit-remaining-tokens"] == "582"


async def test_a_plugin_that_has_to_be_awaited_for_the_answer_is() -> None:
    class Slow:
        asked = 0

        @hookimpl
        async def check_output(self, text):
            await asyncio.sleep(0)
            self.asked += 1
            return Refusal("no") if self.asked == 3 else None

    async with node(Slow()) as host:
        second = await warmed(host, run())
        third, fourth = await run().of(host), await run().of(host)
        assert short(host) == 2 and fourth.said == second.said
        assert b"content_filter" in third.body


class Stranger(BaseException):
    """What a library raises where a time is over."""


class Once:
    """Of each thing that it is asked, it has something to say the fourth time alone."""

    def __init__(self, hook: str, said: Any) -> None:
        self.asked: Counter[str] = Counter()
        self._hook, self._said = hook, said

    def _say(self, hook: str) -> Any:
        self.asked[hook] += 1
        is_now = hook == self._hook and self.asked[hook] == 4
        if is_now and isinstance(self._said, BaseException):
            raise self._said
        return self._said if is_now else None

    @hookimpl
    def route_request(self):
        return self._say("route_request")

    @hookimpl
    def quote_price(self):
        return self._say("quote_price")

    @hookimpl
    def check_input(self):
        return self._say("check_input")


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("route_request", ValueError("broken")),
        ("quote_price", Quote.of(input="9", output="9")),
        ("quote_price", ValueError("broken")),
        ("check_input", Refusal("no")),
        ("check_input", ValueError("broken")),
        ("check_input", Stranger("no Exception")),
    ],
)
async def test_one_of_a_group_that_a_plugin_speaks_of_takes_the_long_way(
    hook: str, said: Any
) -> None:
    plugin = Once(hook, said)
    async with node(plugin) as host:
        await warmed(host, run())
        answers = await asyncio.gather(*(run().of(host) for _ in range(3)))
        await settled(host)

        assert [answer.status for answer in answers] == [200, 200, 200]
        assert short(host) == 2
        assert plugin.asked[hook] == 6
        prices = [entry["price_version"] for entry in host.entries()]
        assert len(prices) == 5 and len(set(prices)) == 1


async def test_a_clock_that_is_set_back_finds_the_price_of_its_time() -> None:
    async with node() as host:
        clock: Any = host.host.clock
        asked, prices = run(), host.host.books.prices
        rates = Rates(input_nano=10**9, cached_input_nano=10**9, output_nano=10**9)
        await prices.set("fake", rates, effective_from_ns=clock.utc_ns() + 60 * 10**9)
        clock.advance(61)
        await warmed(host, asked)
        await asked.of(host)
        assert short(host) == 1
        await settled(host)
        clock._utc_ns -= 60 * 10**9
        await asked.of(host)
        await settled(host)
        dear, cheap = host.entries()[-2:]

    assert short(host) == 1
    assert dear["price_version"] != cheap["price_version"]
    assert cheap["amount_nano"] < dear["amount_nano"]


async def test_a_price_that_begins_while_it_is_let_in_is_that_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holds = ShortRuns.holds
    async with node() as host:
        clock: Any = host.host.clock
        asked, prices = run(), host.host.books.prices
        rates = Rates(input_nano=10**9, cached_input_nano=10**9, output_nano=10**9)
        dear = await prices.set("fake", rates, effective_from_ns=clock.utc_ns() + 60 * 10**9)
        await warmed(host, asked)

        def slowly(self: ShortRuns, known: KnownRun) -> bool:
            is_so = holds(self, known)
            clock.advance(61)
            return is_so

        monkeypatch.setattr(ShortRuns, "holds", slowly)
        await asked.of(host)
        assert short(host) == 1
        monkeypatch.undo()
        await asked.of(host)
        await settled(host)
        before, behind = host.entries()[-2:]

    assert before["utc_ns"] < dear.effective_from_ns <= behind["utc_ns"]
    assert before["price_version"] != dear.version
    assert behind["price_version"] == dear.version


async def test_a_body_that_came_once_is_not_kept() -> None:
    async with node() as host:
        for text in ("one", "two", "three"):
            await run(plain(text)).of(host)
        assert len(host.host.repeats) == 0


async def test_a_plugin_that_is_against_an_answer_is_asked_once() -> None:
    class Against:
        asked: list[str] = []  # noqa: RUF012 - of one test

        @hookimpl
        def check_output(self, text):
            self.asked.append(text)
            return Refusal("no") if len(self.asked) > 2 else None

    async with node(Against()) as host:
        await warmed(host, run())
        assert b"content_filter" in (await run().of(host)).body
        assert len(Against.asked) == 3 and short(host) == 1


@given(
    texts=st.lists(st.text(max_size=9), min_size=1, max_size=4),
    numbers=st.tuples(*[st.integers(0, 9)] * 4),
    kind=st.sampled_from((Kind.CHAT, Kind.COMPLETION)),
    reason=st.sampled_from((FinishReason.STOP, FinishReason.LENGTH, FinishReason.CONTENT_FILTER)),
)
def test_a_plain_answer_is_written_as_any_whole_answer(
    texts: list[str], numbers: tuple[int, int, int, int], kind: Kind, reason: FinishReason
) -> None:
    deltas = [Delta(0, text) for text in texts]
    deltas[-1].finish_reason = reason
    usage = Usage(numbers[0], numbers[1], numbers[2], reasoning_tokens=numbers[3])
    request = GenerationRequest(request_id="req_1", kind=kind, model='100% "choices":')
    whole = whole_answer(request, 5, deltas, usage)
    envelope = whole.partition(b'"choices":')[0]
    body = body_of(kind is Kind.CHAT, b"%d 1", b"%%", envelope)
    assert body % (b"id", 5, *plain_facts(deltas, usage)) == b"%d 1id%%5" + whole


allowance = st.none() | st.builds(Allowance, *[st.integers(0, 10**12)] * 3)


@given(allowance, allowance)
def test_lines_say_of_limits_what_headers_say(
    requests: Allowance | None, tokens: Allowance | None
) -> None:
    known = Allowances(requests, tokens)
    lines = Lines(limit_lines(known))

    assert lines.items() == list(limit_headers(known).items())
    assert Lines.of(limit_headers(known)).text == lines.text


# ------------------------------------------------------------ no old news


RATES = Rates(input_nano=10**15, cached_input_nano=10**15, output_nano=10**15)
CHANGES: dict[str, tuple[Callable[[TestHost, str], Awaitable[Any]], int]] = {
    "revoked": (lambda host, key: host.host.books.keys.revoke(key_id(key)), 401),
    "disabled": (
        lambda host, _: host.host.books.keys.directory.update_org(
            "acme", lambda org: replace(org, disabled_ns=1)
        ),
        401,
    ),
    "archived": (lambda host, _: host.host.books.keys.directory.archive_team("acme", "t"), 401),
    "barred": (
        lambda host, key: host.host.books.keys.update(
            key_id(key), lambda record: replace(record, models=("another",))
        ),
        403,
    ),
    "limited": (
        lambda host, key: host.host.books.keys.update(
            key_id(key), lambda record: replace(record, limits=Limits(requests_per_minute=1))
        ),
        429,
    ),
    "forbidden": (
        lambda host, _: host.host.policies.create(
            "acme", PolicyBody(words=("hello",)), who="test", activate=True
        ),
        400,
    ),
    "dear": (lambda host, _: host.host.books.prices.set("fake", RATES), 429),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_changed_holds_for_the_next_of_those_that_run(change: str) -> None:
    async with node() as host:
        act, status = CHANGES[change]
        asked = run(key=await host.make_key(team="t"))
        budget = Budget(id="bud_1", org="acme", period=Period.MONTH, limit_nano=10**9)
        await host.host.books.budgets.create(budget, who="test")
        await warmed(host, asked)
        assert (await asked.of(host)).status == 200
        assert short(host) == 1
        assert asked.key is not None
        await act(host, asked.key)
        statuses = [(await asked.of(host)).status for _ in range(2)]
        await settled(host)
        assert statuses[-1] == status
        assert not host.host.books.budgets.accounts.live_holds()
