"""Who says that an answer to an alike question will do may get one, and whether it was right is found out."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.node import HELD_MODEL, Held, HeldRunner, asks, until

from llmhost.config.schema import Settings
from llmhost.config.schema.cache import CacheSettings, ModelCacheSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import CostSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import (
    CacheMiss,
    EngineFailed,
    InvalidValue,
    LlmhostError,
    QuotaExhausted,
)
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.ports import Runner
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sampling import Sampling
from llmhost.hooks.spec import Refusal, hookimpl
from llmhost.pipeline.embed import Embedder, sequence_of
from llmhost.pipeline.exchange import Exchange
from llmhost.testing import TestHost, at, make_host

ACME, OTHER = Caller(None, "acme"), Caller(None, "other")
ONE, ALIKE = "how do I reset my secret password", "hello how do I reset my secret password please"
ANOTHER = "how do I reset my secret number"
SEMANTIC = {"x-llmhost-cache": "semantic"}


class Parrot(Held):
    """Says the same whatever it is asked, while `is_constant`."""

    is_constant = True

    def load(self, spec: ModelSpec, folder: object, predicted: Any) -> Runner:
        parrot = self

        class Constant(HeldRunner):
            def run(self, rows: Any) -> Any:
                drawn = super().run(rows)
                if parrot.is_constant:
                    drawn = [7 if isinstance(one, int) else one for one in drawn]
                return drawn

        return Constant(self, spec.block_tokens)


class Node:
    def __init__(self, host: TestHost, model: Parrot) -> None:
        self.host, self.model = host, model
        self.cache = host.host.cache

    async def open(
        self, text: str, caller: Caller = ACME, *, system: str = "", **facts: Any
    ) -> Exchange:
        messages = [{"role": "user", "content": text}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        headers = facts.pop("headers", SEMANTIC)
        known = {"kind": Kind.CHAT, "prompts": (), "messages": tuple(messages), "max_tokens": 90}
        request = asks(**{**known, "stop": ("a", "e", "i", "o", "u"), **facts})
        return await self.host.host.processor.open(request, None, headers, caller=caller)

    async def ask(self, text: str, caller: Caller = ACME, **facts: Any) -> tuple[str, str]:
        exchange = await self.open(text, caller, **facts)
        deltas = await exchange.read_whole()
        exchange.leave()
        use = exchange.context.cache
        return ("" if use is None else use.status.value), "".join(delta.text for delta in deltas)

    async def checked(self, count: int) -> None:
        await until(lambda: self.cache.stats.total().semantic_checks >= count)


@asynccontextmanager
async def node(*plugins: object, clock: Any = None, **cache: Any) -> AsyncIterator[Node]:
    model = Parrot()
    model.go()
    facts = {"embedder": "vectors", "min_similarity": 0.8, **cache}
    asked = msgspec.structs.replace(HELD_MODEL, cache=ModelCacheSettings(**facts))
    models = {"m": asked, "vectors": ModelSpec(engine="fake", options={"task": "embed"})}
    settings = Settings(
        cache=CacheSettings(use="asked"), costs=CostSettings(cpu_per_hour="3600000")
    )
    async with make_host(
        plugins=[model, *plugins], models=models, settings=settings, clock=clock
    ) as host:
        yield Node(host, model)


async def test_an_alike_question_has_the_answer_of_the_first():
    async with node() as here:
        first = await here.ask(ONE)
        exchange = await here.open(ALIKE)
        await exchange.read_whole()
        context = exchange.context
        assert first[0] == "miss"
        assert context.cache is not None and context.cache.meaning is not None
        assert context.cache.status.value == "semantic"
        assert 0.8 <= context.cache.meaning.similarity < 1
        assert context.amount_nano == 0
        assert context.usage.prompt_tokens == context.prompt_tokens
        assert context.usage.engine_ns > 0  # its vector
        await here.checked(1)
        assert await here.ask(ONE) == ("hit", first[1])
        assert (await here.ask(ALIKE))[0] == "semantic"  # it was not kept under its own key
        await until(lambda: counts_of(here) == (3, 2, 1, 1))


async def test_a_vector_is_made_once_budgets_hold_what_the_request_costs(
    monkeypatch: pytest.MonkeyPatch,
):
    texts: list[str] = []
    vector = Embedder.vector

    async def noted(self: Embedder, text: str, *facts: Any) -> Any:
        texts.append(text)
        return await vector(self, text, *facts)

    monkeypatch.setattr(Embedder, "vector", noted)
    async with node() as here:
        await here.ask(ONE)
        bill = here.host.host.stages.bill
        with monkeypatch.context() as empty:
            empty.setattr(bill, "hold", refused)
            with pytest.raises(QuotaExhausted):
                await here.ask(ALIKE)
        assert texts == [ONE]
        assert (await here.ask(ONE))[0] == "hit"
        assert texts == [ONE]
        assert (await here.ask(ALIKE))[0] == "semantic"
        assert texts[:2] == [ONE, ALIKE]


def refused(_: Any) -> None:
    raise QuotaExhausted("nothing is left", level="org", budget_id="b1")


def counts_of(here: Node) -> tuple[int, int, int, int]:
    counts = here.cache.stats.total()
    return counts.hits, counts.semantic, counts.misses, counts.stored


async def test_another_question_is_answered_by_the_model_however_alike_it_is():
    async with node() as here:
        await here.ask(ONE)
        for text in (ANOTHER, f"{ONE} 2", f"{ONE} not", ONE.replace("my", "his")):
            assert (await here.ask(text))[0] == "miss", text


async def test_only_those_have_it_who_ask_for_it_and_only_of_those_who_did():
    async with node() as here:
        on = {"x-llmhost-cache": "on"}
        await here.ask(ONE, headers=on)
        assert (await here.ask(ALIKE))[0] == "miss"
        assert (await here.ask(f"{ONE} hello", headers=on))[0] == "miss"
        assert (await here.ask(ALIKE, headers={}))[0] == ""


async def test_an_answer_that_somebody_else_had_made_anew_is_none_for_alike_questions():
    async with node() as here:
        await here.ask(ONE)
        await here.ask(ONE, headers={"x-llmhost-cache": "refresh"})
        assert (await here.ask(ALIKE))[0] == "miss"


async def test_an_answer_that_another_organisation_had_made_is_none_for_alike_questions():
    anew = {**SEMANTIC, "cache-control": "no-cache"}
    async with node(scope="public") as here:
        await here.ask(ONE)
        await here.ask(ONE, OTHER, headers=anew)
        assert (await here.ask(ONE))[0] == "hit"
        assert (await here.ask(ALIKE))[0] == "miss"
        await here.ask(ONE, headers=anew)
        assert (await here.ask(f"{ONE} hello"))[0] == "semantic"


async def test_while_hits_have_to_be_checked_and_cannot_be_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("llmhost.pipeline.semantic.MOST_CHECKS", 0)
    async with node() as here:
        await here.ask(ONE)
        assert (await here.ask(ALIKE))[0] == "miss"


class Gate:
    """Prompts of which `names` says so wait to be judged."""

    def __init__(self) -> None:
        self.opens, self.waiting, self.names = asyncio.Event(), 0, ""

    @hookimpl
    async def check_input(self, request: GenerationRequest) -> Refusal | None:
        if self.names and self.names in request.text:
            self.waiting += 1
            await self.opens.wait()
        return None


@asynccontextmanager
async def three_found(
    monkeypatch: pytest.MonkeyPatch, **facts: Any
) -> AsyncIterator[tuple[Node, list[asyncio.Task[Exchange]], Gate]]:
    """Three requests have found an answer to an alike question, with a place for one check."""
    monkeypatch.setattr("llmhost.pipeline.semantic.MOST_CHECKS", 1)
    gate = Gate()
    async with node(gate) as here:
        await here.ask(ONE)
        gate.names = ALIKE
        opened = [asyncio.create_task(here.open(ALIKE, **facts)) for _ in range(3)]
        await until(lambda: gate.waiting == 3)
        yield here, opened, gate
        here.model.go()
        for task in opened:
            if task.exception() is None:
                await task.result().read_whole()


async def test_hits_found_at_the_same_time_are_given_only_as_far_as_they_can_be_checked(
    monkeypatch: pytest.MonkeyPatch,
):
    async with three_found(monkeypatch) as (here, opened, gate):
        here.model.is_free = False
        gate.opens.set()
        uses = [exchange.context.cache for exchange in await asyncio.gather(*opened)]
        assert sorted(use.status.value for use in uses if use) == ["bypass", "bypass", "semantic"]


async def test_a_hit_that_was_found_before_the_threshold_rose_is_not_given(
    monkeypatch: pytest.MonkeyPatch,
):
    async with three_found(monkeypatch) as (here, opened, gate):
        trust = here.cache.trusts.known("acme", "m@1")
        assert trust is not None
        trust.threshold = 1.0
        gate.opens.set()
        uses = [exchange.context.cache for exchange in await asyncio.gather(*opened)]
        assert [use.status.value for use in uses if use] == ["bypass"] * 3


async def test_who_takes_only_a_kept_answer_is_refused_where_what_was_found_is_not_given(
    monkeypatch: pytest.MonkeyPatch,
):
    only = {**SEMANTIC, "cache-control": "only-if-cached"}
    async with three_found(monkeypatch, headers=only) as (here, opened, gate):
        here.model.is_free = False
        gate.opens.set()
        ended = await asyncio.gather(*opened, return_exceptions=True)
        assert sum(isinstance(each, CacheMiss) for each in ended) == 2


def failing(error: LlmhostError) -> Any:
    """In place of an embedder's `vector`: of answers there is none."""
    vector = Embedder.vector

    async def fails(
        self: Embedder, text: str, model: str, caller: Caller, request_id: str | None
    ) -> Any:
        if request_id is None:
            raise error
        return await vector(self, text, model, caller, request_id)

    return fails


async def test_a_check_that_cannot_be_made_ends_hits_that_have_to_be_checked_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Embedder, "vector", failing(EngineFailed("no")))
    monkeypatch.setattr("llmhost.pipeline.semantic.say_the_same", lambda one, other: True)
    async with node(clock=at("2026-01-01")) as here:
        clock: Any = here.host.host.clock
        here.model.is_constant = False
        await here.ask(ONE)
        assert (await here.ask(ALIKE))[0] == "semantic"
        trust = here.cache.trusts.known("acme", "m@1")
        assert trust is not None
        await until(lambda: not trust.can_check(clock.monotonic_ns()))
        assert (await here.ask(f"{ONE} hello"))[0] == "miss"
        clock.advance(61)
        assert (await here.ask(f"{ONE} thanks"))[0] == "semantic"


async def test_answers_that_are_too_long_to_be_compared_do_not_agree(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Embedder, "vector", failing(InvalidValue("too long", param="messages")))
    monkeypatch.setattr("llmhost.pipeline.semantic.say_the_same", lambda one, other: True)
    async with node() as here:
        here.model.is_constant = False
        await here.ask(ONE)
        assert (await here.ask(ALIKE))[0] == "semantic"
        await here.checked(1)
        assert here.cache.stats.total().semantic_false == 1


async def test_what_ended_in_the_turn_in_which_its_caller_left_is_borne():
    class Engine:
        def submit(self, spec: Any, take: Any) -> int:
            self.end = partial(take, Delta(0, finish_reason=FinishReason.STOP, usage=Usage(3)))
            return 1

        def cancel(self, seq_id: int) -> None: ...

    engine, borne = Engine(), list[tuple[str, Usage]]()
    spec: Any = None
    waits = asyncio.create_task(
        sequence_of(engine, spec, lambda *each: borne.append(each), "cpu")  # type: ignore[arg-type]
    )
    await asyncio.sleep(0)
    engine.end()
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert borne == [("cpu", Usage(3))]


OTHERS: list[dict[str, Any]] = [
    {"caller": OTHER},
    {"system": "Answer in rhymes"},
    {"sampling": Sampling(temperature=1.0, seed=2)},
    {"max_tokens": 80},
    {"stop": ("a", "e", "i", "o")},
    {"cache_salt": "mine"},
    {"template_kwargs": {"mood": "bad"}},
    {"suffix": "so"},
]
FILLERS = ["hello", "please", "thanks", "hey", "just", "kindly", "so", "then"]


@pytest.mark.parametrize("scope", ["key", "org", "public"])
async def test_nothing_is_compared_with_what_differs_in_anything_else(scope: str):
    async with node(scope=scope) as here:
        await here.ask(ONE)
        for filler, facts in zip(FILLERS, OTHERS, strict=True):
            assert (await here.ask(f"{ONE} {filler}", **facts))[0] == "miss", facts
        assert (await here.ask(ALIKE))[0] == "semantic"


async def test_answers_that_are_more_than_a_text_or_not_whole_take_no_part():
    tools = ({"type": "function", "function": {"name": "f", "parameters": {}}},)
    refused: list[dict[str, Any]] = [{"n": 2}, {"tools": tools}, {"stop": (), "max_tokens": 5}]
    async with node() as here:
        for facts in refused:
            assert (await here.ask(ONE, **facts))[0] == "miss"
            assert (await here.ask(ALIKE, **facts))[0] == "miss", facts
        assert len(here.cache.alike) == 0


async def test_checks_that_agree_are_counted_and_cost_their_callers_nothing():
    async with node() as here:
        await here.ask(ONE)
        await here.ask(ALIKE)
        await here.checked(1)
        counts = here.cache.stats.of("acme", "m@1")
        assert (counts.semantic_checks, counts.semantic_false, counts.false_hit_rate) == (1, 0, 0.0)
        await until(lambda: len(here.host.entries()) == 2)
        assert [entry["amount_nano"] > 0 for entry in here.host.entries()] == [True, False]


async def test_requests_bear_their_vectors_and_the_operator_the_checks_and_nothing_is_lost():
    async with node() as here:
        await here.ask(ONE)
        await here.ask(ALIKE)
        await here.checked(1)
        with pytest.raises(CacheMiss):
            await here.ask(ANOTHER, headers={**SEMANTIC, "cache-control": "only-if-cached"})
        for deployment in here.host.host.deployments.all():
            await deployment.replicas[0].engine.call(lambda: None)
        await until(lambda: len(here.host.entries()) == 3)
        readings = await here.host.host.costs.check()
        headers = {"authorization": f"Bearer {here.host.host.admin_token}"}
        answer = await here.host.client.get("/admin/v1/costs?by=org", headers=headers)

    assert all(reading.error_nano == 0 for reading in readings)
    borne = sum(row["gpu_compute_nano"] for row in answer.json()["data"])
    assert sum(reading.callers_nano for reading in readings) == borne > 0
    assert sum(reading.operator_nano for reading in readings) > 0


async def test_a_false_answer_raises_the_threshold_of_its_organisation_alone():
    async with node() as here:
        here.model.is_constant = False
        for caller in (ACME, OTHER):
            await here.ask(ONE, caller)
        assert (await here.ask(ALIKE))[0] == "semantic"
        await here.checked(1)
        assert here.cache.stats.of("acme", "m@1").semantic_false == 1
        assert (await here.ask(ALIKE))[0] == "miss"
        assert (await here.ask(ALIKE, OTHER))[0] == "semantic"
        trusts = [here.cache.trusts.known(org, "m@1") for org in ("acme", "other")]
        assert trusts[0] is not None and trusts[0].threshold > 0.8
        assert here.host.host.costs is not None


async def test_where_no_threshold_helps_nothing_is_given_and_nothing_embedded_any_more():
    async with node() as here:
        here.model.is_constant = False
        await here.ask("how do I reset my secret password?")
        shuffled = "how do I reset my secret password ?"
        await here.ask(shuffled)
        trust = here.cache.trusts.known("acme", "m@1")
        assert trust is not None
        trust.threshold = 1.0
        kept = len(here.cache.alike)
        assert (await here.ask(ALIKE))[0] == "miss"
        assert len(here.cache.alike) == kept


async def test_after_the_first_only_a_share_is_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmhost.cache.trust.FIRST_CHECKS", 1)
    monkeypatch.setattr(random.Random, "random", lambda self: 0.5)
    async with node() as here:
        await here.ask(ONE)
        await here.ask(ALIKE)
        await here.checked(1)
        for _ in range(3):
            assert (await here.ask(ALIKE))[0] == "semantic"
        assert here.cache.stats.total().semantic_checks == 1


async def test_it_ends_with_the_answer_it_is_of():
    async with node(clock=at("2026-01-01"), ttl_s=60.0) as here:
        clock: Any = here.host.host.clock
        await here.ask(ONE)
        clock.advance(59)
        assert (await here.ask(ALIKE))[0] == "semantic"
        clock.advance(2)
        await here.cache.learn()
        assert len(here.cache.alike) == 0
        assert (await here.ask(ALIKE))[0] == "miss"


async def test_what_is_forgotten_is_given_to_alike_questions_no_more():
    from llmhost.cache.store import Meant

    for meant in (Meant(org="acme"), Meant(model="m"), Meant(tag="nightly"), Meant()):
        async with node() as here:
            await here.ask(ONE, headers={**SEMANTIC, "x-llmhost-cache-tag": "nightly"})
            await here.cache.purge(Meant(org="other"))
            assert len(here.cache.alike) == 1
            await here.cache.purge(meant)
            assert len(here.cache.alike) == 0  # nor are its words
            assert (await here.ask(ALIKE))[0] == "miss"


async def test_a_kept_answer_alone_may_be_one_of_an_alike_question():
    only = {**SEMANTIC, "cache-control": "only-if-cached"}
    async with node() as here:
        await here.ask(ONE)
        assert (await here.ask(ALIKE, headers=only))[0] == "semantic"
        with pytest.raises(CacheMiss):
            await here.ask(ANOTHER, headers=only)


async def test_a_model_without_an_embedder_says_so():
    async with node(embedder=None) as here:
        with pytest.raises(InvalidValue) as refused:
            await here.ask(ONE)
    assert refused.value.param == "x-llmhost-cache"


async def test_without_a_vector_a_request_runs():
    async with node(embedder="m") as here:
        await here.ask(ONE)
        assert (await here.ask(ALIKE))[0] == "miss"


async def test_identical_requests_at_the_same_time_still_run_once():
    async with node() as here:
        first, second = await here.open(ONE), await here.open(ONE)
        await first.read_whole()
        await second.read_whole()
        assert here.cache.stats.total().misses == 1
