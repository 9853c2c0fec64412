"""What a node does without policies, an audit log and reviewers: one policy made of [safety], and lines in the log."""

import logging
from collections.abc import Sequence

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Caller
from llmhost.core.errors import ConfigError
from llmhost.safety.pack.pack import CATEGORIES, NAMES, nearest
from llmhost.safety.verdict import (
    Action,
    Decision,
    Direction,
    Finding,
    GuardUse,
    KeepPrompts,
    Policy,
    ReviewMode,
    Screening,
)

log = logging.getLogger("llmhost.safety")

POLICY = "default@1"
LISTED = ("words", "patterns")
"""Categories of what `blocked_words` and `blocked_patterns` find, which blocks unless another list has them."""


class NodePolicy:
    """What [safety] says, for everyone. Implements Policy. Raises ConfigError for a rule that there is not.

    A rule's own name counts before its category. What is found by others than the pack blocks.
    """

    name = POLICY
    words: tuple[str, ...] = ()
    review_mode = ReviewMode.BLOCK
    window_chars: int | None = None

    def __init__(self, settings: SafetySettings | None = None) -> None:
        settings = settings or SafetySettings()
        self.keep_prompts = KeepPrompts(
            settings.keep_prompts, settings.prompt_days, settings.keep_fails_open
        )
        self._guards = _guards(settings)
        self._actions: dict[str, Action] = {}
        for action in (Action.WARN, Action.REDACT, Action.REVIEW, Action.BLOCK):
            key = action.name.lower()
            for name in getattr(settings, key):
                _check_name(key, name, has_guard=settings.guard is not None)
                self._actions[name] = action
        self._names = tuple(self._actions)
        self._names_out = self._names if settings.check_output else ()
        self._allowed = Decision(Action.ALLOW, self.name)

    def decide(self, findings: Sequence[Finding], direction: Direction) -> Decision:
        decided = self._allowed
        for finding in findings:
            action = self._action(finding)
            if action > decided.action:
                decided = Decision(action, self.name, finding)
        return decided

    def _action(self, finding: Finding) -> Action:
        if finding.rule in self._actions:
            return self._actions[finding.rule]
        return self._actions.get(finding.category, Action.BLOCK)

    def looks_for(self, direction: Direction) -> tuple[str, ...]:
        return self._names if direction is Direction.INPUT else self._names_out

    def guard(self, direction: Direction) -> GuardUse | None:
        return self._guards.get(direction)


def _guards(settings: SafetySettings) -> dict[Direction, GuardUse]:
    if settings.guard is None:
        return {}
    use = GuardUse(
        settings.guard,
        settings.guard_timeout_ms,
        settings.guard_fails_open,
        settings.guard_threshold,
    )
    return {Direction(way): use for way in settings.guard_directions}


def _check_name(key: str, name: str, *, has_guard: bool) -> None:
    """A guard has categories of its own, which are not known here."""
    if name not in NAMES and name not in LISTED:
        near = nearest(name)
        if has_guard and not near:
            return
        hint = f" Did you mean {near!r}?" if near else ""
        raise ConfigError(
            f"[safety] {key} has {name!r}, which is no rule and no category of rules.{hint}"
            f" There are the categories {', '.join(CATEGORIES)}; docs/safety.md lists their rules."
        )


class SamePolicy:
    """One policy for all callers. Implements Policies."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def of(self, caller: Caller) -> Policy:
        return self._policy


class LogJournal:
    """One log line for each decision that is more than to let a text pass. Implements Journal."""

    def count(
        self, caller: Caller, direction: Direction, policy: str, at_ns: int, texts: int = 1
    ) -> bool:
        return True

    async def make_room(self, screening: Screening) -> None:
        """No line has a prompt."""

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
