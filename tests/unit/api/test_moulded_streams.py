"""Streams that differ in what they say alone: let in by the short way, and answered as all others are."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from tests.unit.api.test_moulds import FEW, HELD, MIX, Listening
from tests.unit.api.test_repeated_runs import CHANGES, CHECKED, plain, run, settled
from tests.unit.api.test_repeats import Answer, Asked, audited, node, rows
from tests.unit.host.test_shortcut import Client, raw
from tests.unit.pipeline.node import Held, until

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Limits
from llmhost.core.errors import EngineFailed
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import TestHost


def streamed(host: TestHost) -> int:
    return host.host.repeats.streams.ran


def stream(text: str, key: str | None = None, **body: Any) -> Asked:
    return run(plain(text, stream=True, **body), key)


def said(answer: Answer) -> tuple[Any, ...]:
    """All of it, without what is each answer's own; how its text was cut into events depends on the time."""
    if "content-length" in answer.headers:
        return (answer.said,)
    events = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: ")]
    texts, ends, headers = [], [], dict(answer.headers)
    for name in ("x-request-id", "openai-processing-ms", "date"):
        headers.pop(name, None)
    for event in events[:-1] if events[-1] == "[DONE]" else events:
        told = json.loads(event)
        told.pop("id", None)
        for choice in told.get("choices", []):
            texts.append(
                choice.get("delta", {}).pop("content", None) or choice.pop("text", "") or ""
            )
        ends.append(json.dumps(told, sort_keys=True))
    return answer.status, headers, "".join(texts), list(dict.fromkeys(ends)), events[-1]


async def ask(host: TestHost, asked: Asked) -> Answer:
    """On a connection of its own."""
    return await Client(host).ask(raw(asked))


async def say(host: TestHost, key: str | None, *texts: str, **body: Any) -> list[Answer]:
    answers = []
    for text in texts:
        answers.append(await ask(host, stream(text, key, **body)))
        await settled(host)
    return answers


async def taught(host: TestHost, key: str | None = None, **body: Any) -> None:
    """Have the mould known."""
    await say(host, key, "the first", "the second one", **body)
    assert streamed(host) == 0


async def mix(host: TestHost) -> list[Answer]:
    books = host.host.books
    key = await host.make_key(team="t", limits=Limits(requests_per_minute=200, max_concurrency=9))
    few = await host.make_key(limits=Limits(requests_per_minute=5, input_tokens_per_minute=60))
    poor = await host.make_key(org="poor")
    budget = Budget(id="bud_1", org="poor", period=Period.MONTH, limit_nano=14_000)
    await books.budgets.create(budget, who="test")
    answers = await say(host, key, *MIX)
    answers += await say(host, key, *MIX[:6], stream_options={"include_usage": True})
    answers += await say(host, key, "a", "b", "c", stream_options={"continuous_usage_stats": True})
    answers += await say(host, key, "a", "b", "c", store=True)
    answers += await say(host, key, "a", "b", "c", logprobs=True)
    answers += await say(host, few, "one", "two", "three", "four", "five", "six words are too many")
    answers += await say(host, poor, "one", "two", "three", "four", "five", max_tokens=16)
    for at in range(4):
        body = {"model": "other", "prompt": f"{at} is said", "max_tokens": 5, "stream": True}
        answers.append(await ask(host, Asked(body, key, {}, "/v1/completions")))
        await settled(host)
    return answers


async def test_both_ways_say_and_write_down_the_same() -> None:
    safety = SafetySettings(
        blocked_words=("forbidden",),
        redact=("pii.email",),
        warn=("pii.iban",),
        check_output=True,
        max_prompt_chars=4_500,
    )
    settings = msgspec.structs.replace(CHECKED, safety=safety)
    seen = []
    for is_on in (True, False):
        async with node(Listening(), settings=settings) as host:
            host.host.repeats.is_on = is_on
            answers = [said(each) for each in await mix(host)]
            seen.append((answers, rows(host), await audited(host), streamed(host)))
    (answers, written, audit, count), (answers_long, written_long, audit_long, none) = seen

    assert count > 20 and none == 0
    for one, other in zip(answers, answers_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long


@pytest.mark.parametrize("limits", FEW)
@pytest.mark.parametrize("budget_nano", [12_000, 10**9])
async def test_of_those_that_come_at_once_as_many_are_let_in_as_one_after_the_other(
    limits: Limits, budget_nano: int
) -> None:
    seen = []
    for is_on in (True, False):
        async with node() as host:
            host.host.repeats.is_on = is_on
            key = await host.make_key(limits=limits)
            budget = Budget(id="bud_1", org="acme", period=Period.MONTH, limit_nano=budget_nano)
            await host.host.books.budgets.create(budget, who="test")
            await taught(host, key)
            texts = [f"{at} " + "more " * (at % 3) for at in range(6)]
            answers = await asyncio.gather(*(ask(host, stream(text, key)) for text in texts))
            await settled(host)
            assert not host.host.books.budgets.accounts.live_holds()
            entries = sorted(map(repr, rows(host)["entries"]))
            seen.append(([said(answer) for answer in answers], entries))
            assert streamed(host) > 0 or not is_on

    assert seen[0] == seen[1]


async def test_over_a_connection_its_answer_is_the_same() -> None:
    seen = []
    for is_on in (True, False):
        async with node() as host:
            host.host.repeats.is_on = is_on
            client, texts = Client(host), ("a", "b" * 9, "c " * 50, "d", "d")
            answers = [await client.ask(raw(stream(text))) for text in texts]
            whole = raw(stream("in pieces"))
            answers.append(await client.ask(whole[:40], whole[40:]))
            await settled(host)
            seen.append(([said(answer) for answer in answers], rows(host)["entries"]))
            assert streamed(host) == (3 if is_on else 0)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_whoever_leaves_ends_it(has_begun: bool) -> None:
    held = Held()
    async with node(held, spec=HELD) as host:
        held.go()
        await taught(host)
        held.stop()
        client = Client(host)
        client.connection.data_received(raw(stream("the third")))
        if has_begun:
            await until(lambda: b"200 OK" in client.pipe.written)
            (live,) = host.host.processor._live
            held.steps.release(2)
            await until(lambda: len(live.stream) > 0)
        client.connection.connection_lost(None)
        await asyncio.sleep(0)
        held.go()
        await settled(host)
        assert host.host.processor.in_flight == 0
        outcomes = [entry["outcome"] for entry in host.entries()]
        assert outcomes[:2] == ["answered", "answered"] and outcomes[2:] in ([], ["cancelled"])
        assert len(outcomes) == 3 or not has_begun
        assert not host.host.books.budgets.accounts.live_holds()


async def test_an_engine_that_fails_is_told_as_on_the_long_way() -> None:
    held = Held()
    async with node(held, spec=HELD) as host:
        held.go()
        await taught(host)
        held.fails = lambda *_: EngineFailed("broken")
        (short_one,) = await say(host, None, "the third")
        host.host.repeats.is_on = False
        (long_one,) = await say(host, None, "the third")
        assert streamed(host) == 1 and b"broken" in short_one.body
        assert said(short_one) == said(long_one)


async def test_a_drain_waits_for_it() -> None:
    held = Held()
    async with node(held, spec=HELD) as host:
        held.go()
        await taught(host)
        held.stop()
        running = asyncio.create_task(ask(host, stream("the third")))
        await until(lambda: host.host.processor.in_flight == 1)
        draining = asyncio.create_task(host.host.drain(10.0))
        await asyncio.sleep(0)
        assert not draining.done()
        held.go()
        answer = await running
        assert b"data: [DONE]\n\n" in answer.body
        assert await draining == 0
        assert (await ask(host, stream("the fourth"))).status == 503


@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_changed_holds_for_the_next_of_a_mould(change: str) -> None:
    async with node() as host:
        act, status = CHANGES[change]
        key = await host.make_key(team="t")
        budget = Budget(id="bud_1", org="acme", period=Period.MONTH, limit_nano=10**9)
        await host.host.books.budgets.create(budget, who="test")
        await taught(host, key)
        (third,) = await say(host, key, "hello is the third")
        assert (third.status, streamed(host)) == (200, 1)
        await act(host, key)
        statuses = [a.status for a in await say(host, key, "hello four", "hello five")]
        assert statuses[-1] == status
        assert not host.host.books.budgets.accounts.live_holds()


async def test_what_was_learnt_before_a_change_is_let_go() -> None:
    async with node() as host:
        key = await host.make_key()
        await taught(host, key)
        assert len(host.host.repeats.streams) == 1
        await host.host.deployments.find("fake").unload(drain_s=0.0, reason="test")
        await say(host, key, "another", temperature=0.5)
        assert len(host.host.repeats.streams) == 0


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("text", ["a@b.example writes", "the third"])
async def test_whoever_leaves_while_it_is_tried_is_metered_once(turns: int, text: str) -> None:
    async with node(settings=CHECKED) as host:
        await taught(host)
        client = Client(host)
        client.connection.data_received(raw(stream(text)))
        for _ in range(turns):
            await asyncio.sleep(0)
        client.connection.connection_lost(None)
        await settled(host)
        await say(host, None, "the last")
        outcomes = [entry["outcome"] for entry in host.entries()]
        assert len(outcomes) == 4
        assert outcomes[2] in ("cancelled", "answered")
        assert host.host.processor.in_flight == 0
