"""Limits on a whole node: what was held comes back however a request ends, and so does its place."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from tests.unit.pipeline.node import HELD_MODEL, Held, asks, read_all, settled, until

from llmhost.config.schema import Settings
from llmhost.config.schema.limits import LimitSettings, ModelLimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.core.caller import Caller, Limits
from llmhost.core.errors import EngineFailed, ExceedsLimit, LlmhostError, Overloaded
from llmhost.core.request import GenerationRequest
from llmhost.hooks.spec import Refusal, hookimpl
from llmhost.pipeline.exchange import Exchange
from llmhost.tenants.refusals import LimitReached
from llmhost.testing import FAKE_MODEL, TestHost, at, make_host

TOKENS = LimitSettings(input_tokens_per_minute=1000, output_tokens_per_minute=1000)
EMBEDDER = ModelSpec(engine="fake", options={"task": "embed"})
NOW = "2026-01-10T03:00Z"


def owed(host: TestHost) -> dict[str, int]:
    """Units of each kind that are counted now, while the clock stands still."""
    clock, rates = host.host.clock, host.host.processor._stages.limit._limiter._rates
    now_ns = clock.monotonic_ns()
    return {
        kind: bucket.burst - bucket.remaining(now_ns)
        for (kind, _), bucket in rates._buckets.items()  # type: ignore[misc]
    }


def in_use(host: TestHost) -> int:
    return host.host.processor._stages.limit._limiter.places.running


def waiting(host: TestHost) -> int:
    return host.host.processor._stages.limit._limiter.places.waiting_by_dimension.total()


@asynccontextmanager
async def held_host(
    limits: LimitSettings, *plugins: object
) -> AsyncIterator[tuple[TestHost, Held]]:
    held = Held()
    async with make_host(
        plugins=[held, *plugins],
        models={"m": HELD_MODEL},
        settings=Settings(limits=limits),
        clock=at(NOW),
    ) as host:
        try:
            yield host, held
        finally:
            held.go()


async def start(host: TestHost, **facts: Any) -> Exchange:
    return await host.host.processor.open(asks(**facts), None, {})


# -- tokens ---------------------------------------------------------------------------------------------------------


async def test_while_it_runs_all_that_it_may_use_is_held_and_then_what_it_used() -> None:
    async with held_host(TOKENS) as (host, held):
        exchange = await start(host, max_tokens=200, stop=(" ",))
        assert owed(host) == {"input_tokens": 2, "output_tokens": 200}
        held.go()
        await read_all(exchange)
        [entry] = await settled(host)

        assert owed(host) == {"input_tokens": 2, "output_tokens": entry["tokens"]["output"]}
        assert entry["tokens"]["output"] < 10


async def test_a_reader_who_leaves_gets_back_what_was_not_made() -> None:
    async with held_host(TOKENS) as (host, held):
        exchange = await start(host, max_tokens=200)
        held.go(3)
        await exchange.read()
        exchange.leave()
        held.go()
        [entry] = await settled(host)

        assert entry["outcome"] == "cancelled"
        assert owed(host)["output_tokens"] == entry["tokens"]["output"] < 200


async def test_a_request_that_fails_is_charged_for_no_more_than_it_used() -> None:
    async with held_host(TOKENS) as (host, held):
        held.fails = lambda seq_id, position: RuntimeError("broken") if position > 3 else None
        held.go()
        exchange = await start(host, max_tokens=200)
        with pytest.raises(EngineFailed):
            await read_all(exchange)
        await settled(host)

        assert owed(host)["output_tokens"] <= 3


class Refuser:
    @hookimpl
    def check_input(self, request: GenerationRequest, caller: Caller) -> Refusal:
        return Refusal("no")


async def test_a_request_that_is_refused_later_uses_no_tokens_and_keeps_no_place() -> None:
    limits = LimitSettings(
        input_tokens_per_minute=50, output_tokens_per_minute=50, max_concurrency=1
    )
    async with held_host(limits, Refuser()) as (host, _):
        for _ in range(20):
            with pytest.raises(Exception, match="no"):
                await start(host, max_tokens=50)

        assert owed(host) == {"input_tokens": 0, "output_tokens": 0}
        assert in_use(host) == 0


@pytest.mark.parametrize(
    ("facts", "choices", "runs"),
    [
        ({"n": 3}, 3, 3),
        ({"best_of": 4}, 4, 4),
        ({"prompts": ("hello world", "bye now"), "n": 2}, 4, 4),
    ],
)
async def test_every_choice_is_held_for_and_the_prompt_once(
    facts: dict[str, Any], choices: int, runs: int
) -> None:
    async with held_host(TOKENS) as (host, held):
        exchange = await start(host, max_tokens=20, **facts)
        prompts = len(facts.get("prompts", ("one",)))
        assert owed(host) == {"input_tokens": 2 * prompts, "output_tokens": 20 * choices}
        held.go()
        await read_all(exchange)
        await settled(host)

        assert owed(host) == {"input_tokens": 2 * prompts, "output_tokens": 20 * runs}


async def test_vectors_use_input_only() -> None:
    settings = Settings(limits=TOKENS)
    async with make_host(models={"e": EMBEDDER}, settings=settings, clock=at(NOW)) as host:
        answer = await host.client.post(
            "/v1/embeddings", json={"model": "e", "input": ["one two", "three"]}
        )

        assert answer.json()["usage"]["prompt_tokens"] == owed(host)["input_tokens"]
        assert owed(host)["output_tokens"] == 0
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000"


async def test_streams_that_run_at_the_same_time_share_what_there_is() -> None:
    async with held_host(TOKENS) as (host, held):
        opened = await asyncio.gather(
            *(start(host, max_tokens=300, stream=True) for _ in range(10)), return_exceptions=True
        )
        running = [each for each in opened if isinstance(each, Exchange)]
        refused = [each for each in opened if isinstance(each, LimitReached)]
        assert (len(running), len(refused)) == (3, 7)
        assert {each.limit for each in refused} == {"output_tokens"}
        held.go()
        for each in running:
            await read_all(each)
        await settled(host)

        assert owed(host)["output_tokens"] == 900


async def test_without_max_tokens_past_answers_say_how_much_is_held() -> None:
    async with held_host(TOKENS) as (host, held):
        held.go()
        for _ in range(9):
            await read_all(await start(host, max_tokens=7))
        await settled(host)
        before = owed(host)["output_tokens"]
        few = await start(host, max_tokens=None)
        held_by_few = owed(host)["output_tokens"] - before
        few.leave()
        await settled(host)
        await read_all(await start(host, max_tokens=7))
        await settled(host)
        before = owed(host)["output_tokens"]
        many = await start(host, max_tokens=None)
        held_by_many = owed(host)["output_tokens"] - before
        many.leave()

        assert (held_by_few, held_by_many) == (256, 7)


async def test_an_answer_longer_than_was_held_is_charged_whole() -> None:
    async with held_host(TOKENS) as (host, held):
        held.go()
        for _ in range(10):
            await read_all(await start(host, max_tokens=2))
        await read_all(await start(host, max_tokens=300))
        await settled(host)

        assert owed(host)["output_tokens"] == 320


async def test_what_no_wait_would_help_is_a_bad_request() -> None:
    async with held_host(LimitSettings(output_tokens_per_minute=99)) as (host, _):
        with pytest.raises(ExceedsLimit):
            await start(host, max_tokens=50, n=2)
        assert not owed(host)


# -- places ---------------------------------------------------------------------------------------------------------

ONE_AT_A_TIME = LimitSettings(max_concurrency=1, queue_size=2)


async def test_beyond_its_places_a_key_waits_and_then_is_refused() -> None:
    async with held_host(ONE_AT_A_TIME) as (host, held):
        first = await start(host)
        queued = [asyncio.create_task(start(host)) for _ in range(2)]
        await until(lambda: waiting(host) == 2)
        with pytest.raises(LimitReached) as refused:
            await start(host)
        assert (refused.value.dimension, refused.value.limit) == ("key", "concurrency")
        text = (await host.client.get("/metrics")).text
        assert 'llmhost_limit_waiting{dimension="key"} 2.0' in text
        assert 'llmhost_limit_refusals_total{dimension="key",limit="concurrency"} 1.0' in text

        held.go()
        await read_all(first)
        for each in queued:
            assert await read_all(await each)
        await settled(host)
        assert in_use(host) == waiting(host) == 0


async def test_a_client_that_leaves_the_queue_was_never_there() -> None:
    limits = LimitSettings(max_concurrency=1, queue_size=1, requests_per_minute=10)
    async with held_host(limits) as (host, held):
        first = await start(host)
        for _ in range(5):
            impatient = asyncio.create_task(start(host))
            await until(lambda: waiting(host) == 1)
            impatient.cancel()
            await asyncio.gather(impatient, return_exceptions=True)
        assert (waiting(host), in_use(host)) == (0, 1)
        assert owed(host) == {"requests": 1}
        held.go()
        await read_all(first)


async def test_a_deadline_ends_a_wait_too() -> None:
    async with held_host(ONE_AT_A_TIME) as (host, _):
        await start(host)
        with pytest.raises(Exception, match="timeout_ms"):
            await start(host, timeout_ms=1)
        assert waiting(host) == 0


async def test_one_who_waits_when_the_server_stops_hears_so() -> None:
    async with held_host(ONE_AT_A_TIME) as (host, _):
        await start(host)
        queued = asyncio.create_task(start(host))
        await until(lambda: waiting(host) == 1)
        host.host.processor.cancel_all()
        with pytest.raises(Overloaded, match="shutting down"):
            await queued


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_clients_do_nothing_stays_held(seed: int) -> None:
    """They read to the end, leave in the middle, leave the queue, send what is refused, or fail."""
    chance = random.Random(seed)
    limits = LimitSettings(
        max_concurrency=3,
        queue_size=8,
        input_tokens_per_minute=10_000,
        output_tokens_per_minute=9_000,
        requests_per_minute=1000,
    )
    async with held_host(limits) as (host, held):
        held.fails = lambda seq_id, position: RuntimeError("x") if position == 37 else None
        held.go()

        async def one() -> None:
            with suppress(LlmhostError):
                exchange = await start(
                    host, max_tokens=chance.choice([1, 5, 30, 60]), n=chance.choice([1, 1, 3])
                )
                for _ in range(chance.choice([0, 1, 1000])):
                    if not await exchange.read():
                        break
                exchange.leave()

        tasks = [asyncio.create_task(one()) for _ in range(60)]
        for task in chance.sample(tasks, 15):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        entries = await settled(host)

        used = sum(entry["tokens"]["output"] for entry in entries if entry["outcome"] != "failed")
        made = sum(entry["tokens"]["output"] for entry in entries)
        assert (in_use(host), waiting(host)) == (0, 0)
        buckets = host.host.processor._stages.limit._limiter._rates._buckets
        assert not any(bucket.has_open_holds() for bucket in buckets.values())
        assert used <= owed(host)["output_tokens"] <= made


# -- levels ---------------------------------------------------------------------------------------------------------


class Badges:
    """Callers by bearer: KEY/TEAM, all of one organisation, with limits on every level."""

    @hookimpl
    def identify_caller(self, api_key: str | None, headers: Mapping[str, str]) -> Caller:
        key, _, team = (api_key or "").partition("/")
        return Caller(
            key_id=key,
            org="acme",
            team=team,
            limits=Limits(requests_per_minute=2),
            team_limits=Limits(requests_per_minute=3),
            org_limits=Limits(requests_per_minute=4),
        )


async def test_the_message_names_whose_limit_it_is() -> None:
    async with make_host(plugins=[Badges()], clock=at(NOW)) as host:

        async def ask(badge: str) -> httpx.Response:
            host.client.headers["authorization"] = f"Bearer {badge}"
            return await host.chat("hello", max_tokens=1)

        answers = [await ask(badge) for badge in ("a/x", "a/x", "a/x", "b/x", "c/x", "d/y", "e/z")]

    assert [answer.status_code for answer in answers] == [200, 200, 429, 200, 429, 200, 429]
    texts = [answer.json()["error"]["message"] for answer in answers if answer.status_code == 429]
    assert texts[0].startswith("This key may make 2 requests per minute")
    assert texts[1].startswith("The team 'x' may make 3 requests per minute")
    assert texts[2].startswith("The organisation 'acme' may make 4 requests per minute")
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers[:4]] == [
        "1",
        "0",
        "0",
        "0",
    ]
    assert answers[2].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[3].headers["x-ratelimit-limit-requests"] == "3"


async def test_a_models_own_limit_holds_for_everybody_together_and_for_no_other_model() -> None:
    narrow = ModelSpec(engine="fake", limits=ModelLimitSettings(requests_per_minute=1))
    models = {"narrow": narrow, "fake": FAKE_MODEL}
    async with make_host(models=models, clock=at(NOW)) as host:
        statuses = []
        for org in ("one", "two"):
            host.client.headers["authorization"] = f"Bearer {await host.make_key(org)}"
            for model in ("narrow", "fake"):
                answer = await host.chat("hello", model=model, max_tokens=1)
                statuses.append(answer.status_code)

    assert statuses == [200, 200, 429, 200]


async def test_each_run_has_limits_of_its_own() -> None:
    settings = Settings(limits=LimitSettings(run_requests_per_minute=1))
    async with make_host(settings=settings, clock=at(NOW)) as host:

        async def ask(run: str | None) -> httpx.Response:
            headers = {} if run is None else {"x-llmhost-run": run}
            body = {"model": "fake", "prompt": "hello", "max_tokens": 1}
            return await host.client.post("/v1/completions", json=body, headers=headers)

        answers = [await ask(run) for run in ("one", "one", "two", None, None, "a b")]

    assert [answer.status_code for answer in answers] == [200, 429, 200, 200, 200, 400]
    assert answers[1].json()["error"]["message"].startswith("The run 'one' may make 1 requests")
    assert "x-llmhost-run" in answers[5].json()["error"]["message"]


# -- what is counted and not run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["estimate", "count_tokens"])
async def test_a_prompt_is_not_read_for_whom_has_asked_too_often(what: str) -> None:
    """Reading a long one costs much, and is all that these do."""
    async with held_host(LimitSettings(requests_per_minute=1)) as (host, _):
        processor = host.host.processor
        resolve, read = processor._stages.resolve, list[str]()
        by_itself = resolve.read

        async def noted(context: Any, tokenizer: Any) -> None:
            read.append(context.request.request_id)
            await by_itself(context, tokenizer)

        resolve.read = noted  # type: ignore[method-assign]
        caller = await processor.identify(asks, None, {})
        await getattr(processor.inquiries, what)(asks(request_id="first"), {}, caller)
        with pytest.raises(LimitReached):
            await getattr(processor.inquiries, what)(asks(request_id="second"), {}, caller)

        assert read == ["first"]


async def test_an_estimate_says_what_no_wait_would_help() -> None:
    async with held_host(LimitSettings(output_tokens_per_minute=100)) as (host, _):
        processor = host.host.processor
        caller = await processor.identify(asks, None, {})

        with pytest.raises(ExceedsLimit):
            await processor.inquiries.estimate(asks(max_tokens=200), {}, caller)


async def test_anthropics_clients_find_limits_under_the_names_they_know() -> None:
    limits = LimitSettings(
        requests_per_minute=60, input_tokens_per_minute=1_000, output_tokens_per_minute=500
    )
    body = {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
    async with make_host(settings=Settings(limits=limits), clock=at(NOW)) as host:
        answer = await host.client.post("/v1/messages", json=body)
        counted = await host.client.post("/v1/messages/count_tokens", json=body)
        refused = await host.client.post("/v1/messages", json={**body, "max_tokens": 450})
        other = await host.chat("hello", max_tokens=1)

    told = {
        name.removeprefix("anthropic-ratelimit-"): value
        for name, value in answer.headers.items()
        if name.startswith("anthropic-ratelimit-")
    }
    assert {name: value for name, value in told.items() if not name.endswith("-reset")} == {
        "requests-limit": "60",
        "requests-remaining": "59",
        "tokens-limit": "500",
        "tokens-remaining": "400",
        "input-tokens-limit": "1000",
        "input-tokens-remaining": "997",
        "output-tokens-limit": "500",
        "output-tokens-remaining": "400",
    }
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        datetime.strptime(told[f"{name}-reset"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert counted.headers["anthropic-ratelimit-requests-limit"] == "60"
    assert refused.status_code == 429
    assert refused.headers["anthropic-ratelimit-output-tokens-remaining"] == "400"
    assert answer.headers["anthropic-organization-id"] == "local"
    assert refused.headers["anthropic-organization-id"] == "local"
    assert not [name for name in other.headers if name.startswith("anthropic-")]
