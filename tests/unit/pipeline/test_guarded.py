"""A guard judges the prompt while it runs already: the first byte waits for the verdict, and a refusal stops all."""

import asyncio
from functools import partial
from typing import Any

import pytest
from tests.unit.pipeline.batch_node import begin, ended, line, lines_of
from tests.unit.pipeline.node import WAIT_S, bill_of, settled, until
from tests.unit.safety.test_judges import Policy

from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.errors import InvalidValue
from llmhost.host.wiring import Host
from llmhost.pipeline.resolve import Resolve
from llmhost.pipeline.screen import ScreenStage
from llmhost.safety.defaults import SamePolicy
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Action, Case, Finding, GuardUse, Opinion, Tier
from llmhost.testing import FAKE_MODEL, at, fake_words, make_host

BODY = {"model": "fake", "prompt": "hello", "max_tokens": 20}
SAID = fake_words("hello", 20)


class Guard:
    """Says what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.verdict: asyncio.Future[Opinion] = asyncio.get_running_loop().create_future()
        self.was_cancelled = False

    async def judge(self, case: Case, use: GuardUse) -> Opinion:
        self.asked.set()
        try:
            return await self.verdict
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise

    def allow(self) -> None:
        self.verdict.set_result(Opinion())

    def refuse(self) -> None:
        found = Finding("violence", "guard:wary", Tier.GUARD, 0.9)
        self.verdict.set_result(Opinion((found,)))


@pytest.fixture
async def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    judge = Guard()

    def guarded(self: Host) -> Screen:
        policy = Policy(Action.BLOCK, use=GuardUse("wary", timeout_ms=60_000))
        policies = SamePolicy(policy)
        return Screen(
            SafetySettings(check_output=False), self.plugins, policies=policies, guard=_In(judge)
        )

    monkeypatch.setattr("llmhost.host.wiring.screen_of", guarded)
    return judge


class _In:
    """Of prompts alone."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def judge(self, case: Case, use: GuardUse) -> Opinion:
        return Opinion() if case.answer else await self._guard.judge(case, use)


async def made_tokens(host: Any) -> None:
    """Until the whole answer was made, though nobody has been given any of it."""
    async with asyncio.timeout(WAIT_S):
        while not any(live._held_end for live in host.host.processor._live):  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_made_meanwhile_and_comes_when_it_is_allowed(
    guard: Guard, stream: bool
) -> None:
    async with make_host() as host:
        asking = asyncio.create_task(
            host.client.post("/v1/completions", json={**BODY, "stream": stream})
        )
        await guard.asked.wait()
        await made_tokens(host)
        assert not asking.done() and not host.entries(), "nothing is told, and nothing is paid for"
        guard.allow()
        answer = await asking
        [entry] = await settled(host)

    assert answer.status_code == 200
    assert stream or answer.json()["choices"][0]["text"] == SAID
    assert (entry["outcome"], entry["tokens"]["output"]) == ("answered", 20)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_a_400_whatever_was_made_until_then_and_nobody_pays(
    guard: Guard, stream: bool
) -> None:
    async with make_host() as host:
        asking = asyncio.create_task(
            host.client.post("/v1/completions", json={**BODY, "stream": stream})
        )
        await made_tokens(host)
        guard.refuse()
        answer = await asking
        [entry] = await settled(host)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_policy_violation"
    assert SAID.split()[0] not in answer.text
    assert (entry["outcome"], entry["amount_nano"]) == ("refused", 0)


async def test_a_refusal_stops_what_still_runs(guard: Guard) -> None:
    slow = ModelSpec(engine="fake", options={"token_delay_ms": 5.0}, price=FAKE_MODEL.price)
    async with make_host(models={"fake": slow}) as host:
        body = {**BODY, "max_tokens": 2_000}
        asking = asyncio.create_task(host.client.post("/v1/completions", json=body))
        await guard.asked.wait()
        guard.refuse()
        answer = await asking
        [entry] = await settled(host)

    assert answer.status_code == 400
    assert entry["tokens"]["output"] < 2_000


async def test_a_caller_who_leaves_takes_the_guard_along(guard: Guard) -> None:
    async with make_host() as host:
        asking = asyncio.create_task(host.client.post("/v1/completions", json=BODY))
        await made_tokens(host)
        asking.cancel()
        [entry] = await settled(host)

    assert guard.was_cancelled
    assert entry["outcome"] == "failed", "to bills"
    assert (entry["amount_nano"], entry["tokens"]["fresh_input"] > 0) == (0, True)


@pytest.mark.parametrize("is_made", [True, False])
async def test_a_line_of_a_batch_that_is_refused_while_it_runs_is_answered_so(
    guard: Guard, is_made: bool
) -> None:
    slow = ModelSpec(engine="fake", options={"token_delay_ms": 5.0}, price=FAKE_MODEL.price)
    async with make_host(models={"fake": FAKE_MODEL if is_made else slow}) as host:
        batch = await begin(host, [line(1, max_tokens=20 if is_made else 2_000)])
        await guard.asked.wait()
        if is_made:
            await made_tokens(host)
        guard.refuse()
        done = await ended(host, batch)
        [told] = await lines_of(host, done["error_file_id"])
        [entry] = await settled(host)

    assert (done["status"], done["request_counts"]["failed"]) == ("completed", 1)
    assert told["response"]["body"]["error"]["code"] == "content_policy_violation"
    assert (entry["outcome"], entry["amount_nano"]) == ("refused", 0)
    assert entry["request_id"].endswith("_1"), "it is the line's own"


async def test_what_a_caller_left_unjudged_is_on_no_bill_and_is_not_charged_by_a_rerating(
    guard: Guard,
) -> None:
    async with make_host(clock=at("2026-03-01T12:00")) as host:
        asking = asyncio.create_task(host.client.post("/v1/completions", json=BODY))
        await made_tokens(host)
        asking.cancel()
        await settled(host)
        problems, rerated = await bill_of(host)

    assert (problems, rerated) == ([], 0)


async def test_a_verdict_that_comes_too_late_for_a_requests_deadline_is_not_waited_for_nor_paid(
    guard: Guard,
) -> None:
    async with make_host() as host, asyncio.timeout(WAIT_S):
        answer = await host.client.post("/v1/completions", json={**BODY, "timeout_ms": 300})
        [entry] = await settled(host)

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert guard.was_cancelled
    assert (entry["outcome"], entry["amount_nano"]) == ("refused", 0)


@pytest.mark.parametrize("is_made", [True, False])
async def test_a_stop_cuts_what_still_waits_for_its_verdict(guard: Guard, is_made: bool) -> None:
    slow = ModelSpec(engine="fake", options={"token_delay_ms": 5.0}, price=FAKE_MODEL.price)
    models = {"fake": FAKE_MODEL if is_made else slow}
    async with make_host(models=models) as host, asyncio.timeout(WAIT_S):
        body = {**BODY, "max_tokens": 20 if is_made else 2_000}
        asking = asyncio.create_task(host.client.post("/v1/completions", json=body))
        await guard.asked.wait()
        if is_made:
            await made_tokens(host)
        else:
            await until(lambda: bool(host.host.processor._live))
        host.host.processor.cancel_all()
        answer = await asking
        [entry] = await settled(host)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert guard.was_cancelled
    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)


async def test_an_estimate_that_is_refused_leaves_no_guard_at_work(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    screened = ScreenStage.__call__

    async def redacts(self: ScreenStage, context: Any) -> bool:
        await screened(self, context)
        return True

    async def refuses(self: Resolve, context: Any) -> None:
        await guard.asked.wait()
        raise InvalidValue("It is too long now.", param="prompt")

    monkeypatch.setattr(ScreenStage, "__call__", redacts)
    monkeypatch.setattr(Resolve, "__call__", refuses)
    async with make_host() as host, asyncio.timeout(WAIT_S):
        answer = await host.client.post("/v1/estimate", json=BODY)
        await until(lambda: guard.was_cancelled)

    assert answer.status_code == 400


async def test_what_nobody_paid_for_is_no_kept_answer(guard: Guard) -> None:
    async with make_host() as host:
        body, headers = {**BODY, "temperature": 0}, {"x-llmhost-cache": "on"}
        ask = partial(host.client.post, "/v1/completions", json=body, headers=headers)
        asking = asyncio.create_task(ask())
        await made_tokens(host)
        asking.cancel()
        await settled(host)
        guard.verdict = asyncio.get_running_loop().create_future()
        guard.allow()
        again = await ask()
        entries = await settled(host)

    assert again.headers["x-llmhost-cache"] == "miss", "what was not judged and not paid is gone"
    assert [entry["amount_nano"] > 0 for entry in entries] == [False, True]
