"""Judges find, the policy decides, the journal is told, and reviewers and guards are asked where it says so."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import LOCAL_CALLER, Caller
from llmhost.core.errors import ContentRefused, HeldForReview, SafetyUnavailable
from llmhost.core.request import GenerationRequest, Kind
from llmhost.hooks.registry import Plugins
from llmhost.safety.defaults import NodePolicy, SamePolicy
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import (
    Action,
    Case,
    Decision,
    Direction,
    Finding,
    GuardUse,
    Opinion,
    ReviewMode,
    Screening,
    Tier,
)

ASKED = GenerationRequest(
    request_id="req_1",
    kind=Kind.CHAT,
    model="m",
    messages=({"role": "user", "content": "so bad"},),
)


class Policy(NodePolicy):
    """Does the same to whatever is found."""

    def __init__(
        self,
        action: Action,
        *,
        words: tuple[str, ...] = (),
        review_mode: ReviewMode = ReviewMode.BLOCK,
        use: GuardUse | None = None,
    ) -> None:
        super().__init__()
        self.name = "mine@3"
        self.words = words
        self.review_mode = review_mode
        self._action = action
        self._use = use

    def decide(self, findings, direction):
        if not findings:
            return Decision(Action.ALLOW, self.name)
        return Decision(self._action, self.name, findings[-1])

    def guard(self, direction):
        return self._use


class Journal:
    def __init__(self):
        self.screenings: list[Screening] = []

    def count(self, caller, direction, policy, at_ns, texts=1):
        return False

    async def make_room(self, screening):
        pass

    def record(self, screening):
        self.screenings.append(screening)

    @property
    def said(self):
        return [(s.direction.value, s.decision.action.name, s.review_id) for s in self.screenings]


class Reviews:
    def __init__(self):
        self.referred: list[str] = []
        self.let_pass: set[tuple[str, str]] = set()

    async def refer(self, screening, text, redacted, mode):
        self.referred.append(text)
        return f"review_{len(self.referred)}"

    def approved(self, caller, text):
        return (caller.org, text) in self.let_pass


class Guard:
    """Finds violence in what has the word `bad`; fails and dawdles when it is told to."""

    def __init__(self, error: Exception | None = None, *, is_slow: bool = False) -> None:
        self.cases: list[Case] = []
        self._error = error
        self._is_slow = is_slow

    async def judge(self, case, use):
        self.cases.append(case)
        if self._is_slow:
            await asyncio.Event().wait()
        if self._error is not None:
            raise self._error
        text = case.request.text if case.direction is Direction.INPUT else case.answer
        found = Finding("violence", f"guard:{use.model}", Tier.GUARD, 0.9)
        return Opinion((found,) if "bad" in text else ())


def screen(policy: Policy, **parts: object) -> tuple[Screen, Journal]:
    journal = Journal()
    settings = SafetySettings(window_chars=16)
    policies = SamePolicy(policy)
    return (
        Screen(settings, Plugins.of(), policies=policies, journal=journal, **parts),
        journal,
    )


async def check(screen: Screen, caller: Caller = LOCAL_CALLER, **facts: object):
    """All that judges a prompt, the guard included."""
    passed = await screen.check_input(ASKED, caller, **facts)
    return passed if passed.guarded is None else await passed.guarded


async def test_an_organisations_own_words_are_looked_for_and_the_journal_names_policy_and_rule():
    strict, journal = screen(Policy(Action.BLOCK, words=("worse", "bad")))

    with pytest.raises(ContentRefused, match=r"words\[1\]"):
        await strict.check_input(ASKED, LOCAL_CALLER, model="m@2")

    [screening] = journal.screenings
    assert screening.decision.policy == "mine@3"
    assert screening.model == "m@2"
    assert [(f.rule, f.start, f.end) for f in screening.findings] == [("words[1]", 3, 6)]


async def test_a_warning_passes_and_is_written_down():
    mild, journal = screen(Policy(Action.WARN, words=("bad",)))

    passed = await mild.check_input(ASKED, LOCAL_CALLER)

    assert passed.screening.decision.finding.rule == "words[0]"
    assert journal.said == [("input", "WARN", None)]


async def test_a_text_in_which_nothing_is_found_is_told_to_the_journal_too():
    strict, journal = screen(Policy(Action.BLOCK, words=("worse",)))

    await strict.check_input(ASKED, LOCAL_CALLER)
    output = strict.watch_output(ASKED, LOCAL_CALLER)
    await output.push("all of this is fine, and long")
    await output.finish()

    assert journal.said == [("input", "ALLOW", None), ("output", "ALLOW", None)]


async def test_what_is_to_be_reviewed_is_refused_with_the_reviews_id_until_it_is_approved():
    reviews = Reviews()
    strict, journal = screen(Policy(Action.REVIEW, words=("bad",)), reviews=reviews)

    with pytest.raises(ContentRefused, match="review_1") as refused:
        await strict.check_input(ASKED, LOCAL_CALLER)
    reviews.let_pass.add(("local", "so bad"))
    await strict.check_input(ASKED, LOCAL_CALLER)
    with pytest.raises(ContentRefused):
        await strict.check_input(ASKED, Caller(None, "another"))

    assert refused.value.review_id == "review_1"
    assert [action for _, action, _ in journal.said] == ["REVIEW", "ALLOW", "REVIEW"]


async def test_what_is_held_is_neither_refused_nor_answered():
    policy = Policy(Action.REVIEW, words=("bad",), review_mode=ReviewMode.HOLD)
    strict, journal = screen(policy, reviews=Reviews())

    with pytest.raises(HeldForReview) as held:
        await strict.check_input(ASKED, LOCAL_CALLER)

    assert held.value.review_id == "review_1"
    assert journal.said == [("input", "REVIEW", "review_1")]


async def test_where_nobody_reviews_it_is_blocked():
    strict, journal = screen(Policy(Action.REVIEW, words=("bad",)))

    with pytest.raises(ContentRefused) as refused:
        await strict.check_input(ASKED, LOCAL_CALLER)
    output = strict.watch_output(ASKED, LOCAL_CALLER)

    assert await output.push("this is so bad that") + await output.finish() == ""
    assert refused.value.review_id is None
    assert journal.said == [("input", "BLOCK", None), ("output", "BLOCK", None)]


async def test_a_release_passes_and_is_looked_at_afterwards():
    reviews = Reviews()
    policy = Policy(Action.REVIEW, words=("bad",), review_mode=ReviewMode.RELEASE)
    mild, journal = screen(policy, reviews=reviews)

    await mild.check_input(ASKED, LOCAL_CALLER)
    output = mild.watch_output(ASKED, LOCAL_CALLER)
    said = await output.push("it is so bad, bad, ") + await output.push("bad as can be")

    assert said + await output.finish() == "it is so bad, bad, bad as can be"
    assert len(reviews.referred) == 2, "an answer is one item, however often something is found"
    assert [review_id for *_, review_id in journal.said] == ["review_1", "review_2"]


async def test_an_answer_that_is_to_be_reviewed_ends_and_names_the_review():
    reviews = Reviews()
    strict, journal = screen(Policy(Action.REVIEW, words=("bad",)), reviews=reviews)
    output = strict.watch_output(ASKED, LOCAL_CALLER)

    assert "bad" not in await output.push("all of it, in the end, is so bad that")

    assert (output.refused_by, output.review_id) == ("words[0]", "review_1")
    assert journal.said == [("output", "REVIEW", "review_1")]


async def test_that_an_answer_passes_which_was_approved_as_a_whole_is_written_down():
    reviews, notes = Reviews(), []
    policy = Policy(Action.REVIEW, words=("bad",), review_mode=ReviewMode.HOLD)
    strict, journal = screen(policy, reviews=reviews)
    reviews.let_pass.add(("local", "it is so bad"))
    asked = replace(ASKED, can_be_held=True)
    output = strict.watch_output(
        asked, LOCAL_CALLER, SimpleNamespace(model="m", note_screening=notes.append)
    )

    assert await output.push("it is so bad") + await output.finish() == "it is so bad"

    assert (output.held_by, journal.said) == (None, [("output", "ALLOW", None)])
    assert [found.rule for found in notes[0].findings] == ["words[0]"]


async def test_a_guard_judges_what_rules_let_pass():
    guard = Guard()
    strict, _ = screen(Policy(Action.BLOCK, use=GuardUse("wary")), guard=guard)

    with pytest.raises(ContentRefused, match="guard:wary"):
        await check(strict)
    output = strict.watch_output(ASKED, LOCAL_CALLER)
    await output.push("The first of many ")
    await output.push("windows is not bad at all")

    first, *_, last = [case for case in guard.cases if case.direction is Direction.OUTPUT]
    assert (first.answer, first.judged_chars) == ("The first of many ", 0)
    assert last.answer.startswith("The first") and last.judged_chars > 0
    assert output.refused_by == "guard:wary"


async def test_a_policy_that_wants_a_guard_where_there_is_none_fails_closed():
    strict, _ = screen(Policy(Action.BLOCK, use=GuardUse("wary")))

    with pytest.raises(SafetyUnavailable, match="wary"):
        await check(strict)


async def test_a_guard_is_not_asked_about_what_a_rule_blocks():
    guard = Guard()
    policy = Policy(Action.BLOCK, words=("bad",), use=GuardUse("wary"))
    strict, _ = screen(policy, guard=guard)

    with pytest.raises(ContentRefused):
        await check(strict)

    assert guard.cases == []


@pytest.mark.parametrize("guard", [Guard(ValueError("x")), Guard(is_slow=True)])
async def test_a_guard_without_an_answer_fails_closed_or_open_as_the_policy_says(guard):
    policy = Policy(Action.BLOCK, use=GuardUse("wary", timeout_ms=1))
    closed, refused = screen(policy, guard=guard)
    use = GuardUse("wary", timeout_ms=1, fails_open=True)
    opened, passed = screen(Policy(Action.BLOCK, use=use), guard=guard)

    with pytest.raises(SafetyUnavailable, match="wary"):
        await check(closed)
    await check(opened)

    assert [s.decision.action.name for s in refused.screenings] == ["BLOCK"]
    [written] = passed.screenings
    assert written.decision.action is Action.ALLOW
    assert [finding.category for finding in written.findings] == ["unavailable"]
