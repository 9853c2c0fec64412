"""What a policy would have done with what was recorded. It knows findings and scores, and no text: what a new rule or
word would have found can't be told. Pure but for the rows it is given."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llmhost.safety.verdict import Action, Direction, Finding, Policy, ReviewMode, Tier
from llmhost.storage.audit import Recorded

MOST_EXAMPLES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A text of which something else would have become."""

    row: int
    request_id: str | None
    direction: str
    before: str
    after: str
    rule: str | None
    """What would have decided."""
    score: float | None


@dataclass(slots=True)
class DryRun:
    screenings: int = 0
    changed: int = 0
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Change] = field(default_factory=list)
    """The first of them."""


def dry_run(rows: Iterable[Recorded], policy: Policy) -> DryRun:
    """Decide again on each screening."""
    run = DryRun()
    for found in rows:
        detail, before = found.row.detail, found.row.action
        direction = Direction(detail["direction"])
        findings = tuple(map(_finding, detail["findings"]))
        decision = policy.decide(findings, direction)
        after = _end(decision.action, findings, policy, direction).name.lower()
        run.screenings += 1
        run.before[before] += 1
        run.after[after] += 1
        if after == before:
            continue
        run.changed += 1
        run.moves[before, after] += 1
        if len(run.examples) < MOST_EXAMPLES:
            run.examples.append(
                Change(
                    row=found.seq,
                    request_id=found.row.request_id,
                    direction=direction.value,
                    before=before,
                    after=after,
                    rule=None if decision.finding is None else decision.finding.rule,
                    score=None if decision.finding is None else decision.finding.score,
                )
            )
    return run


def _end(
    action: Action, findings: Iterable[Finding], policy: Policy, direction: Direction
) -> Action:
    """What becomes of a text for which a policy says `action`: as in `screen.py`, but for what only its text tells."""
    is_released = action is Action.REVIEW and policy.review_mode is ReviewMode.RELEASE
    if not (is_released or action is Action.REDACT):
        return action
    cuts = [f for f in findings if policy.decide((f,), direction).action is Action.REDACT]
    if any(found.tier is not Tier.RULES for found in cuts):  # rules alone say where
        return Action.BLOCK
    return Action.REDACT if cuts else Action.WARN


def _finding(said: dict[str, Any]) -> Finding:
    return Finding(said["category"], said["rule"], Tier(said["tier"]), said["score"])
