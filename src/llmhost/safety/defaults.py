"""What a node does without policies, an audit log and reviewers: one policy made of [safety], and lines in the log."""

import logging
from collections.abc import Sequence

from llmhost.core.request import Caller
from llmhost.safety.verdict import (
    Action,
    Decision,
    Direction,
    Finding,
    GuardUse,
    Policy,
    ReviewMode,
    Screening,
)

log = logging.getLogger("llmhost.safety")

POLICY = "default@1"


class NodePolicy:
    """What [safety] says, for everyone: whatever is found blocks. Implements Policy."""

    name = POLICY
    words: tuple[str, ...] = ()
    review_mode = ReviewMode.BLOCK

    def decide(self, findings: Sequence[Finding], direction: Direction) -> Decision:
        if not findings:
            return Decision(Action.ALLOW, self.name)
        return Decision(Action.BLOCK, self.name, findings[0])

    def looks_for(self, direction: Direction) -> tuple[str, ...]:
        return ()

    def guard(self, direction: Direction) -> GuardUse | None:
        return None


class SamePolicy:
    """One policy for all callers. Implements Policies."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def of(self, caller: Caller) -> Policy:
        return self._policy


class LogJournal:
    """One log line for each decision that is more than to let a text pass. Implements Journal."""

    def record(self, screening: Screening) -> None:
        decision = screening.decision
        if decision.action is Action.ALLOW:
            return
        log.info(
            "safety.%s where=%s request=%s why=%s policy=%s",
            DONE[decision.action],
            screening.direction,
            screening.request_id,
            "" if decision.finding is None else decision.finding.rule,
            decision.policy,
        )


DONE = {
    Action.WARN: "warned",
    Action.REDACT: "redacted",
    Action.REVIEW: "referred",
    Action.BLOCK: "refused",
}
