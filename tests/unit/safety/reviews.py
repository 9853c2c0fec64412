"""Reviews, reviewers and screenings, as tests of the queue need them."""

from typing import Any

from llmhost.core.caller import Caller
from llmhost.safety.review import Review, Reviewer
from llmhost.safety.verdict import (
    Action,
    Decision,
    Direction,
    Finding,
    ReviewMode,
    Screening,
    Tier,
)

SECOND = 10**9
ANN, BOB, EVE = (Reviewer(name, org="acme") for name in ("ann", "bob", "eve"))
BOSS = Reviewer("boss", org="acme", is_senior=True)
SENDER = Caller(key_id="sender", org="acme")


def review(**facts: Any) -> Review:
    usual: dict[str, Any] = {
        "id": "review_1",
        "at_ns": 0,
        "due_ns": 100 * SECOND,
        "ends_ns": 1000 * SECOND,
        "org": "acme",
        "team": None,
        "key_id": "sender",
        "request_id": "req_1",
        "model": "m@1",
        "direction": Direction.INPUT,
        "mode": ReviewMode.BLOCK,
        "category": "pii",
        "rule": "pii.card",
        "tier": "rules",
        "score": 1.0,
        "policy": "default@1",
    }
    return Review(**{**usual, **facts})


def screening(caller: Caller = SENDER, score: float = 1.0, **facts: Any) -> Screening:
    finding = Finding(category="pii", rule="pii.card", tier=Tier.GUARD, score=score)
    usual: dict[str, Any] = {
        "at_ns": 1,
        "request_id": "req_1",
        "caller": caller,
        "model": "m@1",
        "direction": Direction.INPUT,
        "decision": Decision(Action.REVIEW, "default@1", finding),
        "findings": (finding,),
    }
    return Screening(**{**usual, **facts})
