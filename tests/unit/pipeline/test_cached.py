"""A request that was answered before is not run again, and nobody gets what is not theirs."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.node import HELD_MODEL, Held, asks, settled, until
from tests.unit.safety.test_judges import Policy

from llmhost.cache.store import Meant
from llmhost.config.schema import Settings
from llmhost.config.schema.cache import CacheSettings, ModelCacheSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Caller
from llmhost.core.errors import CacheMiss, LlmhostError, QuotaExhausted
from llmhost.core.output import Delta, FinishReason
from llmhost.core.request import GenerationRequest
from llmhost.core.sampling import Sampling
from llmhost.cost.under_way import Settlements, UnderWay
from llmhost.hooks.spec import Refusal, hookimpl
from llmhost.host.wiring import Host
from llmhost.pipeline.exchange import Exchange
from llmhost.safety.defaults import SamePolicy
from llmhost.safety.policy import PolicyBody
from llmhost.safety.review import OPERATOR
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Action, Case, Direction, GuardUse, Opinion
from llmhost.storage.journal import Slot
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import TestHost, at, fake_words, make_host

SEEDED = Sampling(temperature=1.0, seed=3)
ACME, OTHER = Caller(None, "acme"), Caller(None, "other")


class Node:
    def __init__(self, host: TestHost, held: Held) -> None:
        self.host, self.held = host, held

    async def open(
        self,
        text: str = "hello world",
        caller: Caller = ACME,
        headers: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> Exchange:
        processor = self.host.host.processor
        return await processor.open(asks(text, **facts), None, headers or {}, caller=caller)

    async def ask(self, *args: Any, **facts: Any) -> tuple[str, str]:
        """How the cache was met, and the text."""
        exchange = await self.open(*args, **facts)
        deltas = await read_all(exchange)
        exchange.leave()
        return status(exchange), said(deltas)

    @property
    def runs(self) -> int:
        """Sequences that the model has run, but for its probe."""
        return self.host.host.cache.stats.total().misses

    async def entries(self, count: int) -> list[dict[str, Any]]:
        await until(lambda: len(self.host.entries()) >= count)
        return self.host.entries()


async def read_all(exchange: Exchange) -> list[Delta]:
    deltas: list[Delta] = []
    while fresh := await exchange.read():
        deltas += fresh
    return deltas


def status(exchange: Exchange) -> str:
    use = exchange.context.cache
    return "" if use is None else use.status.value


def said(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


@asynccontextmanager
async def node(
    *plugins: object,
    held: Held | None = None,
    cache: ModelCacheSettings | None = None,
    settings: Settings | None = None,
    clock: Any = None,
    models: Any = None,
    data_dir: Any = None,
    **facts: Any,
) -> AsyncIterator[Node]:
    """A node whose cache takes all deterministic requests, and whose steps run unless they are held."""
    if held is None:
        held = Held()
        held.go()
    settings = settings or Settings(cache=CacheSettings(use="deterministic", **facts))
    model = msgspec.structs.replace(HELD_MODEL, cache=cache or ModelCacheSettings())
    async with make_host(
        plugins=[held, *plugins],
        models=models or {"m": model},
        settings=settings,
        clock=clock,
        data_dir=data_dir,
    ) as host:
        try:
            yield Node(host, held)
        finally:
            held.go()


@pytest.mark.parametrize("use", ["deterministic", "all"])
async def test_a_prompt_that_is_computed_ahead_is_computed_each_time(use: Any) -> None:
    async with node(settings=Settings(cache=CacheSettings(use=use))) as n:
        met = [(await n.ask(max_tokens=0, warms=True))[0] for _ in range(2)]
        entries = await n.entries(2)

    assert met == ["", ""]
    assert [entry["from_cache"] for entry in entries] == [None, None]


async def test_the_second_of_two_requests_has_the_first_ones_answer():
    async with node() as here:
        assert await here.ask() == ("miss", fake_words("hello world", 4))
        assert await here.ask() == ("hit", fake_words("hello world", 4))
        first, second = await here.entries(2)

    assert first["amount_nano"] > 0
    assert (second["amount_nano"], second["price_version"]) == (0, "m+cache/1")
    assert second["tokens"] == {"fresh_input": 0, "cached_input": 2, "output": 4}
    assert second["engine_ns"] == 0


async def test_a_hit_has_the_usage_of_the_first_answer_and_none_of_its_costs():
    async with node() as here:
        first, second = await here.open(), await here.open()
        [*_, end], again = await read_all(first), await read_all(second)

    usage = second.context.usage
    assert end.finish_reason is again[-1].finish_reason is FinishReason.LENGTH
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 4)
    assert (usage.cached_tokens, usage.engine_ns, usage.cost_nano) == (2, 0, 0)


REPLAYED: list[dict[str, Any]] = [
    {"sampling": SEEDED},
    {"n": 3, "sampling": SEEDED},
    {"best_of": 3, "sampling": SEEDED},
    {"sampling": Sampling(temperature=0.0, logprobs=2)},
    {"prompts": ("one", "two")},
    {"stop": ("risa",), "tells_stop": True},
]


async def test_a_replay_says_what_was_said():
    async with node() as here:
        for facts in REPLAYED:
            first = await here.open(**facts)
            told = await read_all(first)
            second = await here.open(**facts)
            again = await read_all(second)

            assert (status(first), status(second)) == ("miss", "hit"), facts
            for index in {delta.index for delta in told}:
                mine = [delta for delta in told if delta.index == index]
                [replayed] = [delta for delta in again if delta.index == index]
                end = mine[-1]
                assert replayed.text == said(told, index)
                assert replayed.tokens == tuple(token for delta in mine for token in delta.tokens)
                assert replayed.logprobs == tuple(one for delta in mine for one in delta.logprobs)
                assert (replayed.finish_reason, replayed.stop) == (end.finish_reason, end.stop)


async def test_what_is_drawn_is_not_kept_unless_it_is_to_be():
    drawn = {"sampling": Sampling(temperature=1.0)}
    async with node() as here:
        await here.ask(**drawn)
        assert await here.ask(**drawn) == ("", fake_words("hello world", 4))
    async with node(cache=ModelCacheSettings(use="all")) as here:
        await here.ask(**drawn)
        assert (await here.ask(**drawn))[0] == "hit"


async def test_unless_configured_only_those_take_part_who_ask_for_it():
    async with node(settings=Settings()) as here:
        await here.ask()
        assert (await here.ask())[0] == ""
        assert (await here.ask(headers={"x-llmhost-cache": "on"}))[0] == "miss"
        assert (await here.ask(headers={"x-llmhost-cache": "on"}))[0] == "hit"
        assert (await here.ask(headers={"x-llmhost-cache": "on"}, sampling=Sampling()))[
            0
        ] == "bypass"


async def test_each_request_can_say_what_it_wants_of_the_cache():
    async with node(clock=at("2026-01-01")) as here:
        clock: Any = here.host.host.clock

        async def ask(**headers: str) -> str:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await here.ask(headers=headers))[0]

        with pytest.raises(CacheMiss):
            await ask(x_llmhost_cache="only")
        assert await ask(x_llmhost_cache="off") == "bypass"
        assert await ask(cache_control="no-cache") == "miss"
        assert await ask(x_llmhost_cache="only") == "hit"
        clock.advance(10)
        assert await ask(cache_control="max-age=9") == "miss"
        clock.advance(10)
        assert await ask(cache_control="max-age=10") == "hit"
        assert await ask(x_llmhost_cache="refresh") == "miss"
        assert await ask(cache_control="no-store") == "bypass"


async def test_an_answer_is_given_for_its_time():
    async with node(clock=at("2026-01-01"), ttl_s=60.0) as here:
        clock: Any = here.host.host.clock
        assert (await here.ask())[0] == "miss"
        clock.advance(59)
        assert (await here.ask())[0] == "hit"
        clock.advance(1)
        assert (await here.ask())[0] == "miss"


TEAM, MATE = Caller("k1", "acme", "red"), Caller("k2", "acme", "red")
COLLEAGUE = Caller("k3", "acme", "blue")


SCOPES = {
    "key": set(),
    "team": {"mate"},
    "org": {"mate", "colleague"},
    "public": {"mate", "colleague", "stranger"},
}


async def test_answers_are_shared_as_widely_as_the_scope_says():
    others = {"mate": MATE, "colleague": COLLEAGUE, "stranger": Caller("k4", "other", "red")}
    models = {
        name: msgspec.structs.replace(HELD_MODEL, cache=ModelCacheSettings(scope=name))
        for name in SCOPES
    }
    async with node(models=models) as here:
        for scope, hits in SCOPES.items():
            await here.ask(caller=TEAM, model=scope)
            wish = {"x-llmhost-cache": "only"}  # so that nobody's answer is kept for the next
            for name, who in others.items():
                asked = here.ask(caller=who, model=scope, headers=wish)
                if name in hits:
                    assert (await asked)[0] == "hit"
                else:
                    with pytest.raises(CacheMiss):
                        await asked


CALLERS = [
    Caller(key, org, team)
    for key, org, team in [
        ("k1", "a", None),
        ("k2", "a", "b"),
        ("k3", "a", "b"),
        ("k4", "a:b", None),
        ("k5", "b", "b"),
        (None, "b", None),
    ]
]


async def test_among_many_tenants_only_those_who_share_ever_have_a_hit():
    chance = random.Random(7)
    models = {
        name: msgspec.structs.replace(HELD_MODEL, cache=ModelCacheSettings(scope=name))
        for name in SCOPES
    }
    seen: set[tuple[str, str, str]] = set()
    async with node(models=models) as here:
        for _ in range(150):
            caller, width = chance.choice(CALLERS), chance.choice(list(SCOPES))
            text = chance.choice(["one", "two", "one two"])
            mine = (width, caller.scope(width), text)

            met, _ = await here.ask(text, caller=caller, model=width)
            assert met == ("hit" if mine in seen else "miss"), mine
            seen.add(mine)


async def test_a_stale_answer_is_given_while_a_fresh_one_is_made():
    async with node(clock=at("2026-01-01"), ttl_s=60.0, stale_s=30.0) as here:
        clock: Any = here.host.host.clock
        await here.ask()
        clock.advance(70)
        assert (await here.ask())[0] == "stale"
        assert len(await settled(here.host)) == 3  # the fresh one is a request of its own
        assert (await here.ask())[0] == "hit"
        clock.advance(100)
        assert (await here.ask())[0] == "miss"


async def test_a_fresh_answer_has_the_tag_of_the_old_one():
    async with node(clock=at("2026-01-01"), ttl_s=60.0, stale_s=30.0) as here:
        clock: Any = here.host.host.clock
        await here.ask(headers={"x-llmhost-cache-tag": "nightly"})
        clock.advance(70)
        assert (await here.ask())[0] == "stale"
        await settled(here.host)

        assert await here.host.host.cache.purge(Meant(tag="nightly")) == 1
        assert (await here.ask())[0] == "miss"


async def test_what_is_learnt_sets_how_long_answers_live():
    async with node(clock=at("2026-01-01"), ttl_s=5.0) as here:
        clock: Any = here.host.host.clock
        for _ in range(12):
            await here.ask()
            clock.advance(10)
        await settled(here.host)
        await here.host.host.cache.learn()
        [(kind, policy)] = here.host.host.cache.learner.policies()
        await here.ask()
        clock.advance(20)

        assert (kind.org, kind.model, policy.ttl_s > 20) == ("acme", "m@1", True)
        assert (await here.ask())[0] == "hit"


async def test_a_salt_keeps_answers_apart():
    async with node() as here:
        await here.ask(cache_salt="a")

        assert (await here.ask(cache_salt="b"))[0] == "miss"
        assert (await here.ask(cache_salt="a"))[0] == "hit"


async def test_of_twenty_identical_requests_one_runs():
    async with node() as here:
        answers = await asyncio.gather(*(here.ask() for _ in range(20)))
        entries = await here.entries(20)
        counts = here.host.host.cache.stats.total
        await until(lambda: counts().joined + counts().hits == 19)

    assert {text for _, text in answers} == {fake_words("hello world", 4)}
    assert [status for status, _ in answers].count("miss") == 1
    assert [entry["amount_nano"] > 0 for entry in entries].count(True) == 1
    assert here.runs == 1


async def test_other_tenants_do_not_join():
    async with node() as here:
        answers = await asyncio.gather(*(here.ask(caller=who) for who in (ACME, OTHER)))

    assert [status for status, _ in answers] == ["miss", "miss"]


async def test_when_the_first_one_leaves_the_others_have_their_answer():
    held = Held()
    async with node(held=held) as here:
        first = await here.open()
        second = await here.open()
        held.go(2)
        assert await second.read()
        first.leave()
        held.go()

        assert said(second.told() + await read_all(second)) == fake_words("hello world", 4)
        assert status(second) == "joined"


async def test_when_all_leave_the_sequence_stops_and_a_newcomer_runs():
    held = Held()
    async with node(held=held) as here:
        first, second = await here.open(), await here.open()
        second.leave()
        first.leave()
        third = asyncio.create_task(here.ask())
        held.go()

        assert await third == ("miss", fake_words("hello world", 4))


async def test_when_the_first_one_is_refused_the_next_one_runs():
    class Slow:
        """Refuses the first prompt, but only when somebody else waits for its answer."""

        def __init__(self) -> None:
            self.asked = 0
            self.may = asyncio.Event()

        @hookimpl
        async def check_input(self, request: GenerationRequest) -> Refusal | None:
            self.asked += 1
            if self.asked > 1:
                return None
            await self.may.wait()
            return Refusal("no")

    slow = Slow()
    async with node(slow) as here:
        first = asyncio.create_task(here.ask())
        await until(lambda: slow.asked == 1)
        second = asyncio.create_task(here.ask())
        await asyncio.sleep(0)
        slow.may.set()

        with pytest.raises(LlmhostError):
            await first
        assert await second == ("miss", fake_words("hello world", 4))


async def test_an_answer_with_a_deadline_of_its_own_is_waited_for_and_not_read_along():
    held = Held()
    async with node(held=held) as here:
        first = await here.open(timeout_ms=60_000)
        second = asyncio.create_task(here.ask())
        held.go()
        await read_all(first)

        assert (await second)[0] == "hit"


async def test_a_failed_answer_is_not_kept():
    held = Held(fails=lambda seq_id, position: LlmhostError("broken") if position > 3 else None)
    held.go()
    async with node(held=held) as here:
        with pytest.raises(LlmhostError):
            await here.ask()
        held.fails = lambda seq_id, position: None

        assert (await here.ask())[0] == "miss"


class Judge:
    """Lets answers pass, until it does not."""

    def __init__(self) -> None:
        self.refuses = False

    @hookimpl
    def check_output(self, text: str) -> Refusal | None:
        return Refusal("no") if self.refuses else None


async def test_a_plugin_judges_kept_answers_too():
    judge = Judge()
    async with node(judge) as here:
        assert (await here.ask())[0] == "miss"
        assert (await here.ask())[0] == "hit"
        judge.refuses = True
        exchange = await here.open()
        deltas = await read_all(exchange)

    assert (status(exchange), deltas[-1].finish_reason) == ("bypass", FinishReason.CONTENT_FILTER)


async def test_an_answer_that_safety_ended_is_not_kept():
    word = fake_words("hello world", 4).split()[2]
    settings = Settings(
        cache=CacheSettings(use="deterministic"), safety=SafetySettings(blocked_words=(word,))
    )
    async with node(settings=settings) as here:
        await here.ask()

        assert (await here.ask())[0] == "miss"


async def test_an_answer_that_passes_because_a_reviewer_approved_it_is_not_kept():
    word = fake_words("hello world", 4).split()[2]
    body = PolicyBody(output={"words": "review"}, words=(word,))
    async with node() as here:
        host = here.host.host
        await host.policies.create("acme", body, who="test", activate=True)
        refused = await here.open()
        await read_all(refused)
        assert refused.context.screening is not None
        review_id = refused.context.screening.review_id
        assert review_id is not None
        await host.reviews.decide(review_id, OPERATOR, approves=True)

        # it passes as long as the approval holds, and no longer
        for _ in range(2):
            assert await here.ask() == ("miss", fake_words("hello world", 4))


@pytest.mark.parametrize("direction", list(Direction))
async def test_an_answer_that_passed_because_a_guard_had_none_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, direction: Direction
):
    class Fails:
        async def judge(self, case: Case, use: GuardUse) -> Opinion:
            if case.direction is direction:
                raise LlmhostError("It does not run.")
            return Opinion()

    use = GuardUse("wary", fails_open=True)
    policies = SamePolicy(Policy(Action.BLOCK, use=use))

    def guarded(self: Host) -> Screen:
        return Screen(SafetySettings(), self.plugins, policies=policies, guard=Fails())

    monkeypatch.setattr("llmhost.host.wiring.screen_of", guarded)
    async with node() as here:
        assert (await here.ask())[0] == "miss"
        assert (await here.ask())[0] == "miss", "nobody has judged the first one's answer"


async def test_plugins_keep_requests_out_of_the_cache_and_let_them_in():
    class May:
        @hookimpl
        def may_cache(self, request: GenerationRequest) -> bool | None:
            return {"never": False, "always": True}.get(str(request.prompts[0]))

    async with node(May()) as here:
        for text, sampling, met in [
            ("never", Sampling(temperature=0.0), ""),
            ("always", Sampling(), "hit"),
            ("hello", Sampling(temperature=0.0), "hit"),
        ]:
            await here.ask(text, sampling=sampling)
            assert (await here.ask(text, sampling=sampling))[0] == met


async def test_a_hit_costs_its_part_of_the_price_and_holds_no_more():
    async with node(price_factor="0.5") as here:
        await here.ask()
        exchange = await here.open()
        await read_all(exchange)
        full, half = (entry["amount_nano"] for entry in await here.entries(2))

    # at half the price of cached input, and half that of output
    assert half == round((2 * 10_000_000 + 4 * 400_000_000) / 2 / 10**6)
    assert full > 2 * half
    assert exchange.context.discount_nano == round(4 * 400_000_000 / 2 / 10**6) + 10


@pytest.mark.parametrize(("factor", "part_nano"), [("0", 0), ("0.5", 810)])
async def test_a_hit_can_cost_a_fee_instead_of_its_tokens_or_beside_them(
    factor: str, part_nano: int
):
    async with node(price_factor=factor, price_per_hit="0.0001") as here:
        await here.ask()
        exchange = await here.open()
        await read_all(exchange)
        full, hit = await here.entries(2)

    assert hit["amount_nano"] == 100_000 + part_nano
    assert (
        exchange.context.discount_nano
        == full["amount_nano"] - 20 * 10 + 2 * 10 - 100_000 - part_nano
    )


async def test_who_can_not_pay_the_fee_of_a_hit_has_none():
    async with node(price_per_hit="0.0001") as here:
        await here.ask()
        await here.host.host.books.keys.create_org("acme")
        wanted = Budget(id="", org="acme", period=Period.TOTAL, limit_nano=99_999)
        await here.host.host.books.budgets.create(wanted, who="test")

        with pytest.raises(QuotaExhausted):
            await here.ask()


async def test_the_journal_knows_a_hit_from_what_runs(monkeypatch: pytest.MonkeyPatch):
    noted: list[bool] = []
    begin = Settlements.begin

    def spied(self: Settlements, request: UnderWay) -> Slot:
        noted.append(request.is_hit)
        return begin(self, request)

    monkeypatch.setattr(Settlements, "begin", spied)
    async with node(price_factor="0.5") as here:
        await here.ask()
        await here.ask()

    assert noted == [False, True]


async def test_who_has_nothing_left_still_has_free_hits():
    async with node() as here:
        await here.ask()
        await here.host.host.books.keys.create_org("acme")
        wanted = Budget(id="", org="acme", period=Period.TOTAL, limit_nano=1)
        await here.host.host.books.budgets.create(wanted, who="test")

        with pytest.raises(QuotaExhausted):
            await here.ask("something else")
        assert (await here.ask())[0] == "hit"
        assert len(await settled(here.host)) == 3


async def test_what_is_thought_of_a_prompt_counts_for_the_largest_answer_that_is_kept():
    async with node(max_answer_bytes=2_000) as here:
        for of_prompt, met in ((None, "hit"), (5, "miss")):
            sampling = Sampling(temperature=0.0, prompt_logprobs=of_prompt)
            await here.ask("word " * 100, sampling=sampling)
            assert (await here.ask("word " * 100, sampling=sampling))[0] == met


async def test_what_is_purged_is_gone():
    async with node() as here:
        await here.ask()
        assert await here.host.host.cache.purge(Meant(org="acme")) == 1
        assert (await here.ask())[0] == "miss"


async def test_kept_answers_survive_a_restart_unless_other_rules_of_safety_hold(tmp_path: Any):
    for words, met in (((), "miss"), ((), "hit"), (("badword",), "miss")):
        settings = Settings(
            cache=CacheSettings(use="deterministic"), safety=SafetySettings(blocked_words=words)
        )
        async with node(settings=settings, data_dir=tmp_path) as here:
            assert (await here.ask())[0] == met


async def test_what_was_read_from_files_is_kept_under_them_whatever_lies_there_now(tmp_path: Any):
    weights = tmp_path / "weights"
    weights.write_text("first")
    model = msgspec.structs.replace(HELD_MODEL, source=str(tmp_path))
    async with node(models={"m": model}) as here:
        deployment = here.host.host.deployments.find("m")

        async def reload() -> None:
            await deployment.unload(drain_s=1, reason="operator")
            await deployment.ensure_ready("operator")

        await reload()
        weights.write_text("second")
        assert [(await here.ask())[0] for _ in range(2)] == ["miss", "hit"]  # still the first
        await reload()
        assert (await here.ask())[0] == "miss"
        weights.write_text("first")
        assert (await here.ask())[0] == "hit"  # still the second
        await reload()
        assert (await here.ask())[0] == "hit"


async def test_an_answer_is_not_kept_where_the_model_was_loaded_from_other_files_meanwhile(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    held = Held()
    held.go()
    load = held.load

    def swap(*facts: Any) -> Any:
        (tmp_path / "weights").write_text("other")
        return load(*facts)

    model = msgspec.structs.replace(HELD_MODEL, source=str(tmp_path), load="request")
    async with node(held=held, models={"m": model}) as here:
        monkeypatch.setattr(held, "load", swap)
        await here.host.host.deployments.find("m").unload(drain_s=1, reason="operator")
        assert [(await here.ask())[0] for _ in range(3)] == ["miss", "miss", "hit"]
