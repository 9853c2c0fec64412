"""Several things are found in one text, or one after the other: none makes up for another, and each is written down."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.unit.safety.test_judges import ASKED, Guard, Journal, Reviews, check

from llmhost import Refusal, hookimpl
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import LOCAL_CALLER
from llmhost.core.errors import ContentRefused
from llmhost.core.request import GenerationRequest
from llmhost.hooks.registry import Plugins
from llmhost.safety.defaults import NodePolicy, SamePolicy
from llmhost.safety.output import OutputScreen
from llmhost.safety.policy import GuardBody, OrgPolicy, PolicyBody
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Action, Finding, Opinion, ReviewMode, Tier

WARY = GuardBody(model="wary")


class Says:
    """A guard that is as sure of violence as it is told to be, one window after the other."""

    def __init__(self, *scores: float | None) -> None:
        self._scores = list(scores)

    async def judge(self, case, use):
        score = self._scores.pop(0)
        if score is None:
            raise ValueError("no answer")
        return Opinion((Finding("violence", f"guard:{use.model}", Tier.GUARD, score),))


def asked(text: str) -> GenerationRequest:
    return GenerationRequest(
        request_id="req_1",
        kind=ASKED.kind,
        model="m",
        messages=({"role": "user", "content": text},),
    )


def screen(body: PolicyBody, *plugins: object, **parts: object) -> tuple[Screen, Journal]:
    journal = Journal()
    policies = SamePolicy(OrgPolicy("acme", 1, body, NodePolicy()))
    settings = SafetySettings(window_chars=16)
    made = Screen(settings, Plugins.of(*plugins), policies=policies, journal=journal, **parts)
    return made, journal


def watched(screen: Screen) -> OutputScreen:
    output = screen.watch_output(ASKED, LOCAL_CALLER)
    assert output is not None
    return output


async def judged(screen: Screen, text: str):
    passed = await screen.check_input(asked(text), LOCAL_CALLER)
    return passed.screening if passed.guarded is None else await passed.guarded


async def test_what_a_guard_would_have_cut_out_is_refused_though_a_rule_cut_something_else_out():
    body = PolicyBody(input={"words": "redact", "violence": "redact"}, words=("bad",), guard=WARY)
    strict, journal = screen(body, guard=Says(0.9))

    with pytest.raises(ContentRefused, match="guard:wary"):
        await judged(strict, "so bad")

    assert journal.said == [("input", "BLOCK", None)]


async def test_what_a_plugin_would_have_cut_out_is_refused_though_a_rule_cut_something_else_out():
    def check_input(request):
        return Refusal("no")

    plugin = SimpleNamespace(__name__="guard", check_input=hookimpl(check_input))
    body = PolicyBody(input={"words": "redact", "plugin": "redact"}, words=("bad",))
    strict, _ = screen(body, plugin)

    with pytest.raises(ContentRefused):
        await judged(strict, "so bad")


async def test_what_is_released_to_be_looked_at_later_is_judged_by_the_guard_all_the_same():
    body = PolicyBody(
        input={"words": "review", "violence": "block"},
        words=("so",),
        guard=WARY,
        review_mode=ReviewMode.RELEASE,
    )
    strict, journal = screen(body, guard=Guard(), reviews=Reviews())

    with pytest.raises(ContentRefused, match="guard:wary"):
        await check(strict)

    assert journal.said == [("input", "BLOCK", None)]


async def test_what_is_released_still_goes_without_what_is_redacted():
    body = PolicyBody(
        input={"words": "review", "pii": "redact"},
        output={"words": "review", "pii": "redact"},
        words=("odd",),
        review_mode=ReviewMode.RELEASE,
    )
    mild, journal = screen(body, reviews=Reviews())

    passed = await mild.check_input(asked("odd: ann@example.org"), LOCAL_CALLER)
    output = watched(mild)
    said = await output.push("odd: ann@example.org ") + await output.finish()

    assert passed.request.text == "odd: [email]"
    assert said == "odd: [email] "
    assert [action for _, action, _ in journal.said] == ["REDACT", "REDACT"]


async def test_an_answer_that_ends_by_the_rule_that_warned_before_is_written_down_as_ended():
    body = PolicyBody(output={"violence": {"warn": 0.4, "block": 0.8}}, guard=WARY)
    strict, journal = screen(body, guard=Says(0.5, 0.5, 0.9))
    output = watched(strict)

    for _ in range(4):
        await output.push("the next of many words ")

    assert output.is_refused
    assert [action for _, action, _ in journal.said] == ["WARN", "BLOCK"]


async def test_an_answer_that_passed_because_a_guard_had_none_says_so_in_the_journal():
    body = PolicyBody(output={}, guard=GuardBody(model="wary", fails_open=True))
    mild, journal = screen(body, guard=Says(None, None, None))
    output = watched(mild)

    said = await output.push("the next of many words ") + await output.finish()

    assert said == "the next of many words "
    [screening] = journal.screenings
    assert screening.decision.action is Action.ALLOW
    assert [found.category for found in screening.findings] == ["unavailable"]


async def test_what_a_policy_allows_of_an_answer_is_written_down_with_what_was_found():
    body = PolicyBody(output={"violence": "allow"}, guard=WARY)
    mild, journal = screen(body, guard=Says(0.9, 0.6, 0.7))
    output = watched(mild)

    await output.push("the next of many words ")
    await output.finish()

    [screening] = journal.screenings
    assert [(f.category, f.score) for f in screening.findings] == [("violence", 0.9)]


async def test_an_answer_that_is_ended_says_what_passed_of_it_before():
    body = PolicyBody(
        output={"violence": "allow"}, words=("bad",), guard=GuardBody(model="wary", fails_open=True)
    )
    strict, journal = screen(body, guard=Says(None, 0.9))
    output = watched(strict)

    await output.push("the next of many words ")
    await output.push("is so bad, all of it")

    [screening] = journal.screenings
    assert screening.decision.action is Action.BLOCK
    assert {found.category for found in screening.findings} == {"words", "unavailable"}


async def test_what_waits_for_a_reviewer_waits_though_the_answer_is_ended_before_its_own_end():
    body = PolicyBody(
        output={"words": "review", "violence": {"block": 0.8}},
        words=("odd",),
        guard=WARY,
        review_mode=ReviewMode.HOLD,
    )
    reviews = Reviews()
    strict, journal = screen(body, guard=Says(0.5, 0.5, 0.9), reviews=reviews)
    output = strict.watch_output(replace(ASKED, can_be_held=True), LOCAL_CALLER)
    assert output is not None

    said = "".join([await output.push("this is odd, and so are we: ") for _ in range(3)])

    assert "odd" in said, "it is let out, for the one who keeps it"
    assert output.is_refused
    assert (output.held_by, reviews.referred) == ("review_1", [said])
    assert [action for _, action, _ in journal.said] == ["BLOCK", "REVIEW"]


async def test_rules_that_are_used_stay_compiled_however_many_policies_are_made(monkeypatch):
    monkeypatch.setattr("llmhost.safety.screen.MOST_RULES", 4)
    mine, _ = screen(PolicyBody(words=("bad",)))
    await judged(mine, "so good")
    [first] = mine._rules.values()

    for number in range(5):
        body = PolicyBody(words=(f"word{number}",))
        mine.prepare(OrgPolicy("other", number, body, NodePolicy()))
        await judged(mine, "so good")

    assert len(mine._rules) == 4
    assert any(rules is first for rules in mine._rules.values())
