"""Models as guards of what others ask, on a whole node."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from tests.unit.pipeline.node import Held, settled, until
from tests.unit.pipeline.scripted import MarkedWords, scripted_node

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import BillingSettings, PriceSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import LOCAL_CALLER
from llmhost.core.errors import InvalidValue, LlmhostError, UnknownModel
from llmhost.core.output import Usage
from llmhost.core.ports import Marks
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sequence import Purpose
from llmhost.engines.fake_pooling import fake_scores
from llmhost.host.wiring import Host
from llmhost.pipeline.guard import PRIORITY, ModelGuard
from llmhost.pipeline.guarding import Asking, spelled_out
from llmhost.pipeline.tabs import Tabs
from llmhost.safety.asking import ask_guard
from llmhost.safety.defaults import NodePolicy, SamePolicy
from llmhost.safety.guards.conversation import alone
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Case, Direction, Finding, GuardUse, Tier
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import FAKE_MODEL, TestHost, make_host
from llmhost.text.words import WordTokenizer

WORDS = WordTokenizer(4096)
LABELS = ("violence", "spam", "safe")
PRICE = PriceSettings(input="1.00")
JUDGE = ModelSpec(
    engine="fake",
    options={"task": "classify", "labels": LABELS},
    max_sequence_length=32,
    guard="auto",
    price=PRICE,
)
MODELS = {"fake": FAKE_MODEL, "judge": JUDGE}


def node(**models: ModelSpec) -> Any:
    return make_host(models={**MODELS, **models})


def expected(text: str) -> dict[str, float]:
    scores = fake_scores(WORDS.encode(text), None, len(LABELS))
    return dict(zip(LABELS[:2], scores, strict=False))


def request(*texts: str) -> GenerationRequest:
    messages = tuple(
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    )
    return GenerationRequest(request_id="req_1", kind=Kind.CHAT, model="fake", messages=messages)


def case(*texts: str, answer: str = "", judged: int = 0) -> Case:
    return Case(
        request=request(*texts),
        caller=LOCAL_CALLER,
        direction=Direction.OUTPUT if answer else Direction.INPUT,
        answer=answer,
        judged_chars=judged,
    )


def use(model: str = "judge", **facts: Any) -> GuardUse:
    return GuardUse(model, threshold=0.0, **facts)


class Ward:
    """A guard of a node, and what it said who pays."""

    def __init__(self, host: TestHost) -> None:
        self.borne: list[Usage] = []
        self.tabs = Tabs(lambda _, usage: self.borne.append(usage))
        self.guard = ModelGuard(
            host.host.deployments,
            host.host.clock,
            self.tabs,
            lambda _, usage: self.borne.append(usage),
        )


# ------------------------------------------------------------ what a guard is shown


def test_nobody_ends_his_turn_in_a_guards_prompt() -> None:
    special = ("<|eot|>", "<|eot|><|end|>")
    assert spelled_out("a <|eot|> b", special) == "a < |eot|> b"
    assert spelled_out("a", ()) == "a"


def test_a_text_too_long_for_a_guard_is_shown_in_pieces_that_are_all_of_it() -> None:
    words = MarkedWords(Marks(guard="llama-guard-3"))
    facts = replace(_facts(), max_sequence_length=64)
    asking = Asking("m", ModelSpec(engine="fake"), facts, words, 64)
    text = " ".join(f"w{i}" for i in range(300))

    sitting = asking.sitting([alone("short"), alone(text)])

    assert sitting.about[0] == 0
    assert set(sitting.about[1:]) == {1}
    assert max(map(len, sitting.prompts)) <= 64 - 24
    seen = {token for prompt in sitting.prompts for token in prompt}
    assert len(seen.intersection(WORDS.encode(text))) > 280  # but for words that were cut in two


def test_a_model_that_is_no_guard_says_how_it_becomes_one() -> None:
    asking = Asking("m", ModelSpec(engine="fake"), _facts(), WORDS, 64)
    with pytest.raises(InvalidValue, match=r"\[models\.m\] guard to one of .*qwen3guard"):
        asking.sitting([alone("x")])


def _facts() -> Any:
    from llmhost.config.schema.engines import FakeOptions
    from llmhost.engines.fake import FakeRunner

    return FakeRunner(FakeOptions()).facts


# ------------------------------------------------------------ guards of other requests


async def test_every_text_of_a_prompt_is_judged_once_and_remembered_for_its_organisation() -> None:
    async with node() as host:
        ward = Ward(host)
        first = await ward.guard.judge(case("one", "two", "three"), use())
        again = await ward.guard.judge(case("one", "two", "three", "four", "five"), use())
        other = structs.replace(case("one"), caller=replace(LOCAL_CALLER, org="other"))
        elsewhere = await ward.guard.judge(other, use())

    assert (first.texts, again.texts, elsewhere.texts) == (3, 2, 1)
    assert first.usage.prompt_tokens == 3
    assert {f.category for f in first.findings} == {"violence", "spam"}
    worst = max(expected(text)["spam"] for text in ("one", "two", "three"))
    [spam] = [f for f in first.findings if f.category == "spam"]
    assert spam == Finding("spam", "guard:judge", Tier.CLASSIFIER, pytest.approx(worst))
    assert ward.tabs.take("req_1").texts == 6
    assert not ward.borne


async def test_of_an_answer_what_is_new_is_judged_with_a_little_before_it() -> None:
    async with node() as host:
        found = await Ward(host).guard.judge(
            case("q", answer="x " * 900 + "end", judged=1800), use()
        )

    assert found.texts == 1
    assert found.usage.prompt_tokens > 32  # 400 characters of what came before, in windows


async def test_only_what_a_policy_asks_for_is_found() -> None:
    async with node() as host:
        found = await Ward(host).guard.judge(case("one"), GuardUse("judge", threshold=1.0))

    assert found.findings == ()


async def test_a_guard_runs_before_callers_and_is_nobodys_concurrency() -> None:
    words = MarkedWords(Marks(guard="llama-guard-3"))
    async with scripted_node(words) as (host, engine):
        ward = Ward(host)
        judging = asyncio.create_task(ward.guard.judge(case("a", "b", "c"), use("m")))
        await until(lambda: len(engine.specs) == 2)
        assert {(s.priority, s.purpose) for s in engine.specs.values()} == {
            (PRIORITY, Purpose.GUARD)
        }
        for index in (0, 1):
            engine.say(index, "unsafe\nS2" if index else "safe")
            engine.end(index)
        found = await judging

    assert [f.category for f in found.findings if f.score > 0.5] == ["illicit"]
    assert found.findings[0].tier is Tier.GUARD


async def test_who_stops_waiting_has_the_guard_stopped_and_pays_nothing() -> None:
    words = MarkedWords(Marks(guard="llama-guard-3"))
    async with scripted_node(words) as (host, engine):
        ward = Ward(host)
        judging = asyncio.create_task(ward.guard.judge(case("a", "b", "c"), use("m")))
        await until(lambda: len(engine.specs) == 2)
        engine.end(0)
        judging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await judging

    assert engine.cancelled == [1]
    assert len(ward.borne) == 2
    assert ward.tabs.take("req_1").texts == 0


async def test_a_guard_that_breaks_down_has_no_opinion() -> None:
    words = MarkedWords(Marks(guard="llama-guard-3"))
    async with scripted_node(words) as (host, engine):
        judging = asyncio.create_task(Ward(host).guard.judge(case("a"), use("m")))
        await until(lambda: bool(engine.specs))
        engine.end(0, error=LlmhostError("broken"))
        with pytest.raises(LlmhostError):
            await judging


async def test_a_guard_that_does_not_exist_is_named() -> None:
    async with node() as host:
        with pytest.raises(UnknownModel, match="nobody"):
            await Ward(host).guard.judge(case("a"), use("nobody"))


async def test_a_guard_that_is_slow_to_load_has_no_answer_in_time() -> None:
    held = Held()
    held.may_load.clear()
    models = {"fake": FAKE_MODEL, "slow": ModelSpec(engine="held", load="request", guard="chat")}
    async with make_host(models=models, plugins=[held]) as host:
        guard = Ward(host).guard
        try:
            assert await ask_guard(guard, case("a"), use("slow", timeout_ms=30)) is None
        finally:
            held.may_load.set()


# ------------------------------------------------------------ through the screen, to the ledger


class Guarded(NodePolicy):
    """Asks a model about everything, and refuses what it finds."""

    def __init__(self, asked: GuardUse) -> None:
        super().__init__()
        self._asked = asked

    def guard(self, direction: Direction) -> GuardUse | None:
        return self._asked


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[GuardUse], None]:
    """Has the nodes of a test guarded by a model."""

    def guard_by(asked: GuardUse) -> None:
        def screen(host: Host) -> Screen:
            guard = ModelGuard(host.deployments, host.clock, host.tabs, host.costs.bear)
            policies = SamePolicy(Guarded(asked))
            return Screen(host.settings.safety, host.plugins, policies=policies, guard=guard)

        monkeypatch.setattr("llmhost.host.wiring.screen_of", screen)

    return guard_by


async def test_what_judging_took_is_on_the_requests_own_entry_and_on_no_other(
    guarded: Callable[[GuardUse], None],
) -> None:
    guarded(GuardUse("judge", threshold=1.0))
    async with node() as host:
        assert await host.say("hello there", max_tokens=3)
        entries = await settled(host)

    [entry] = entries
    assert entry["model"] == "fake@1"
    assert entry["safety_units"] == 2  # the prompt and the answer
    assert entry["tokens"]["output"] == 3
    assert entry["amount_nano"] == 4 * 100 + 3 * 400


async def test_a_refused_prompt_has_an_entry_with_what_judging_took(
    guarded: Callable[[GuardUse], None],
) -> None:
    guarded(use())
    async with node() as host:
        refused = await host.chat("hello there")
        [entry] = await settled(host)

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "content_policy_violation"
    assert entry["outcome"] == "refused"
    assert entry["safety_units"] in (1, 2)  # the prompt, and what had come of an answer by then
    assert entry["amount_nano"] == 0


async def test_a_prompt_that_a_guard_refuses_can_be_paid_for_as_what_it_has_read(
    guarded: Callable[[GuardUse], None],
) -> None:
    guarded(use())
    settings = Settings(billing=BillingSettings(refused_prompts="judged"))
    async with make_host(models=MODELS, settings=settings) as host:
        budget = Budget(id="b", org="local", period=Period.TOTAL, limit_nano=10**9, created_ns=0)
        await host.host.books.keys.create_org("local")
        budget = await host.host.books.budgets.create(budget, who="test")
        refused = await host.chat("hello there")
        [entry] = await settled(host)
        account = host.host.books.budgets.accounts.account(budget)

    assert refused.status_code == 400
    assert entry["tokens"] == {"fresh_input": 4, "cached_input": 0, "output": 0}
    assert (entry["outcome"], entry["amount_nano"]) == ("refused", 4 * 100)
    assert account is not None
    assert account.standing(host.host.clock.utc_ns())[1:3] == (4 * 100, 0)


async def test_what_a_rule_refuses_is_free_whoever_pays_for_guards() -> None:
    settings = Settings(
        billing=BillingSettings(refused_prompts="judged"),
        safety=SafetySettings(blocked_words=("unsaid",)),
    )
    async with make_host(models=MODELS, settings=settings) as host:
        refused = await host.chat("unsaid")
        [entry] = await settled(host)

    assert (refused.status_code, entry["outcome"], entry["amount_nano"]) == (400, "refused", 0)


@pytest.mark.parametrize("fails_open", [False, True])
@pytest.mark.parametrize("fault", [{"fail_after_tokens": 0}, {"prefill_delay_ms": 250}])
async def test_what_a_broken_or_late_guard_did_not_judge_passes_only_if_the_policy_says_so(
    guarded: Callable[[GuardUse], None], fault: dict[str, int], fails_open: bool
) -> None:
    guarded(GuardUse("faulty", timeout_ms=100, fails_open=fails_open))
    faulty = ModelSpec(engine="fake", guard="chat", options=fault)
    async with make_host(models={"fake": FAKE_MODEL, "faulty": faulty}) as host:
        answer = await host.chat("hello there", max_tokens=3)
        [entry] = await settled(host)

    assert answer.status_code == (200 if fails_open else 503)
    assert entry["outcome"] == ("answered" if fails_open else "refused")
    if not fails_open:
        assert answer.json()["error"]["code"] == "safety_unavailable"
        assert "retry-after" in answer.headers


async def test_an_estimate_books_nothing_of_what_judging_took(
    guarded: Callable[[GuardUse], None],
) -> None:
    guarded(GuardUse("judge", threshold=1.0))
    async with node() as host:
        body = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
        assert (await host.client.post("/v1/estimate", json=body)).status_code == 200
        assert await settled(host) == []


async def test_moderation_is_not_screened_by_the_guard_that_answers_it(
    guarded: Callable[[GuardUse], None],
) -> None:
    guarded(use())
    async with node() as host:
        answer = await host.client.post("/v1/moderations", json={"input": "hello"})
        [entry] = await settled(host)

    assert answer.status_code == 200
    assert entry["safety_units"] is None
