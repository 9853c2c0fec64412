"""What is not to be said is not said, whatever way the answer comes in, and what was made is paid for all the same."""

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs
from tests.unit.pipeline.node import HELD_MODEL, WAIT_S, Held, asks, settled, until

from llmhost.config.schema import Settings
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Caller
from llmhost.core.request import GenerationRequest
from llmhost.hooks.spec import Refusal, hookimpl
from llmhost.safety.rules import Rules
from llmhost.safety.screen import OutputScreen
from llmhost.safety.verdict import Finding
from llmhost.safety.window import Piece
from llmhost.testing import FAKE_MODEL, fake_words, make_host

WORDS = fake_words("hello", 40).split()
SAFE = SafetySettings(window_chars=16, blocked_words=(WORDS[20],))
BODY = {"model": "fake", "prompt": "hello", "max_tokens": 40}


def told(text: str) -> tuple[str, list[str]]:
    """The text and the finish reasons of a stream's events."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return "".join(choice["text"] for choice in choices), reasons


@pytest.mark.parametrize("stream", [True, False])
async def test_a_blocked_word_ends_the_answer_before_it_and_what_was_made_is_billed(
    stream: bool,
) -> None:
    async with make_host(settings=Settings(safety=SAFE)) as host:
        answer = await host.client.post("/v1/completions", json={**BODY, "stream": stream})
        [entry] = await settled(host)
    if stream:
        text, reasons = told(answer.text)
    else:
        [choice] = answer.json()["choices"]
        text, reasons = choice["text"], [choice["finish_reason"]]

    assert reasons == ["content_filter"]
    assert WORDS[20] not in text
    assert " ".join(WORDS).startswith(text)
    assert entry["outcome"] == "answered"
    assert entry["tokens"]["output"] >= 20
    assert entry["amount_nano"] > 0


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_breaks_no_rule_comes_whole(stream: bool) -> None:
    rules = SafetySettings(window_chars=16, blocked_words=("unsaid",))
    async with make_host(settings=Settings(safety=rules)) as host:
        answer = await host.client.post("/v1/completions", json={**BODY, "stream": stream})
    text = told(answer.text)[0] if stream else answer.json()["choices"][0]["text"]

    assert text == " ".join(WORDS)


async def test_one_choice_that_is_stopped_leaves_the_others_alone() -> None:
    body: dict[str, Any] = {**BODY, "prompt": ["hello", "other thing"]}
    async with make_host(settings=Settings(safety=SAFE)) as host:
        answer = await host.client.post("/v1/completions", json=body)
    stopped, whole = answer.json()["choices"]

    assert stopped["finish_reason"] == "content_filter"
    assert (whole["finish_reason"], whole["text"]) == ("length", fake_words("other thing", 40))


async def test_a_plugin_sees_windows_of_the_answer_and_may_stop_it() -> None:
    class Censor:
        def __init__(self) -> None:
            self.seen: list[str] = []

        @hookimpl
        def check_output(
            self, text: str, request: GenerationRequest, caller: Caller
        ) -> Refusal | None:
            self.seen.append(text)
            return Refusal("no") if WORDS[10] in text else None

    censor = Censor()
    rules = SafetySettings(window_chars=32)
    async with make_host(plugins=[censor], settings=Settings(safety=rules)) as host:
        answer = await host.client.post("/v1/completions", json=BODY)

    [choice] = answer.json()["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert len(censor.seen) > 1
    assert WORDS[10] not in choice["text"]


async def test_answers_that_end_in_one_step_are_each_judged_once() -> None:
    class Censor:
        def __init__(self) -> None:
            self.seen: list[str] = []

        @hookimpl
        def check_output(self, text: str) -> Refusal | None:
            self.seen.append(text)
            return Refusal("no") if text == fake_words("other thing", 1) else None

    censor = Censor()
    prompts = ["hello", "other thing", "a third one"]
    async with make_host(plugins=[censor]) as host:
        answer = await host.client.post(
            "/v1/completions", json={"model": "fake", "prompt": prompts, "max_tokens": 1}
        )

    assert sorted(censor.seen) == sorted(fake_words(prompt, 1) for prompt in prompts)
    reasons = [choice["finish_reason"] for choice in answer.json()["choices"]]
    assert reasons == ["length", "content_filter", "length"]


async def test_an_answer_that_a_plugin_could_not_check_is_not_given_out() -> None:
    class Broken:
        @hookimpl
        def check_output(self, text: str) -> None:
            raise RuntimeError("down")

    async with make_host(plugins=[Broken()]) as host:
        answer = await host.client.post("/v1/completions", json=BODY)

    [choice] = answer.json()["choices"]
    assert (choice["finish_reason"], choice["text"]) == ("content_filter", "")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_screen_that_fails_ends_the_answer_in_an_error_that_nobody_pays_for(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: OutputScreen, text: str) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(OutputScreen, "push", fail)
    async with make_host(settings=Settings(safety=SAFE)) as host:
        async with asyncio.timeout(WAIT_S):
            answer = await host.client.post("/v1/completions", json={**BODY, "stream": stream})
        [entry] = await settled(host)

    assert answer.status_code == (200 if stream else 503)
    assert '"code":"safety_unavailable"' in answer.text
    assert "[DONE]" not in answer.text
    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)


class Never:
    """Lets nothing be said."""

    @hookimpl
    def check_output(self) -> Refusal:
        return Refusal("no")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_fails_is_not_paid_for_whatever_stands_in_what_there_is_of_it(
    stream: bool,
) -> None:
    """What was held back was judged when the engine had failed, and its refusal made an answer of the failure."""
    models = {"fake": structs.replace(FAKE_MODEL, options={"fail_after_tokens": 5})}
    async with make_host(plugins=[Never()], models=models) as host:
        answer = await host.client.post("/v1/completions", json={**BODY, "stream": stream})
        [entry] = await settled(host)

    assert '"code":"engine_failed"' in answer.text
    assert WORDS[0] not in answer.text
    assert (entry["outcome"], entry["code"], entry["amount_nano"]) == ("failed", "engine_failed", 0)


async def test_whoever_leaves_an_answer_that_is_not_to_be_given_has_left_it() -> None:
    held = Held()
    async with make_host(plugins=[held, Never()], models={"m": HELD_MODEL}) as host:
        exchange = await host.host.processor.open(asks(max_tokens=100_000), None, {})
        held.go(3)
        await until(lambda: exchange.context.first_token_ns is not None)
        exchange.leave()
        held.go(2)
        [entry] = await settled(host)

    assert entry["outcome"] == "cancelled"
    assert entry["amount_nano"] == 2 * 100 + entry["tokens"]["output"] * 400


async def test_a_plugin_that_says_it_was_cancelled_ends_its_own_answer_alone() -> None:
    class Judge:
        @hookimpl
        def check_output(self, request: GenerationRequest, text: str) -> None:
            if "first" in request.text:
                raise asyncio.CancelledError

    async with make_host(plugins=[Judge()]) as host:
        asked = [{**BODY, "prompt": prompt} for prompt in ("first", "second", "third")]
        async with asyncio.timeout(WAIT_S):
            answers = await asyncio.gather(
                *(host.client.post("/v1/completions", json=body) for body in asked)
            )
        await settled(host)

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    reasons = [answer.json()["choices"][0]["finish_reason"] for answer in answers]
    assert reasons == ["content_filter", "length", "length"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_plugin_that_fails_once_has_refused_and_nobody_is_asked_again(stream: bool) -> None:
    class Judge:
        asked = 0

        @hookimpl
        def check_output(self) -> None:
            self.asked += 1
            if self.asked == 1:
                raise ValueError

    judge = Judge()
    async with make_host(plugins=[judge]) as host:
        body = {**BODY, "max_tokens": 3, "stream": stream}
        answer = await host.client.post("/v1/completions", json=body)
        [report] = [hook for plugin in host.host.plugins.report() for hook in plugin.hooks]
    if stream:
        text, reasons = told(answer.text)
    else:
        [choice] = answer.json()["choices"]
        text, reasons = choice["text"], [choice["finish_reason"]]

    assert (text, reasons) == ("", ["content_filter"])
    assert (judge.asked, report.calls, report.errors) == (1, 1, 1)


async def test_plugins_are_asked_once_where_one_of_them_is_awaited() -> None:
    class Plain:
        asked = 0

        @hookimpl(tryfirst=True)
        def check_output(self) -> None:
            self.asked += 1

    class Awaited:
        @hookimpl
        async def check_output(self) -> None:
            await asyncio.sleep(0)

    plain = Plain()
    async with make_host(plugins=[plain, Awaited()]) as host:
        for count in (1, 2):
            await host.client.post("/v1/completions", json={**BODY, "max_tokens": 3})
            assert plain.asked == count


@pytest.mark.parametrize("max_tokens", [3, 40])
async def test_a_rule_that_breaks_ends_the_answer_whatever_its_length(
    max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Rules.judge_piece

    def judged(rules: Rules, piece: Piece) -> list[Finding]:
        if WORDS[0] in piece.text:
            raise RuntimeError("broken")
        return judge(rules, piece)

    monkeypatch.setattr(Rules, "judge_piece", judged)
    monkeypatch.setattr(Rules, "is_clean", lambda rules, text: not judged(rules, Piece(text)))
    async with make_host(settings=Settings(safety=SAFE)) as host:
        async with asyncio.timeout(WAIT_S):
            body = {**BODY, "max_tokens": max_tokens}
            answer = await host.client.post("/v1/completions", json=body)
        [entry] = await settled(host)

    assert (answer.status_code, entry["amount_nano"]) == (503, 0)
