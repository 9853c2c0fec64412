"""A policy that is tried out on what it decided itself changes nothing."""

import pytest

from llmhost.core.caller import LOCAL_CALLER
from llmhost.safety.audit import row_of
from llmhost.safety.defaults import NodePolicy
from llmhost.safety.dry_run import dry_run
from llmhost.safety.policy import OrgPolicy, PolicyBody
from llmhost.safety.verdict import Action, Decision, Direction, Finding, ReviewMode, Screening, Tier
from llmhost.storage.audit import Recorded

CARD = Finding("pii", "pii.card", Tier.RULES, 1.0, 0, 4)
WORD = Finding("words", "words[0]", Tier.RULES, 1.0, 5, 8)
VIOLENCE = Finding("violence", "guard:wary", Tier.GUARD, 0.9)


def recorded(action: Action, *findings: Finding) -> Recorded:
    screening = Screening(
        at_ns=1,
        request_id="req_1",
        caller=LOCAL_CALLER,
        model="m",
        direction=Direction.INPUT,
        decision=Decision(action, "acme@1", findings[0]),
        findings=findings,
    )
    return Recorded(seq=1, mark=b"", row=row_of(screening))


@pytest.mark.parametrize(
    ("action", "findings"),
    [
        (Action.WARN, [WORD]),
        (Action.REDACT, [CARD]),
        (Action.REDACT, [WORD, CARD]),
        (Action.BLOCK, [CARD, VIOLENCE]),
        (Action.BLOCK, [WORD, VIOLENCE]),
    ],
)
def test_what_is_released_or_has_no_place_ends_as_it_did(action: Action, findings: list[Finding]):
    body = PolicyBody(
        input={"words": "review", "pii": "redact", "violence": "redact"},
        review_mode=ReviewMode.RELEASE,
    )
    policy = OrgPolicy("acme", 1, body, NodePolicy())

    run = dry_run([recorded(action, *findings)], policy)

    assert (run.screenings, run.changed, run.moves) == (1, 0, {})


def test_what_would_wait_for_a_reviewer_is_said_to():
    policy = OrgPolicy("acme", 2, PolicyBody(input={"words": "review"}), NodePolicy())

    run = dry_run([recorded(Action.WARN, WORD)], policy)

    assert run.moves == {("warn", "review"): 1}
