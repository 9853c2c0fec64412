"""Reviews as the admin API shows them, and what reviewers send. Times are Unix seconds."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from llmhost.safety.labels import Proposal, RuleQuality
from llmhost.safety.review import Review, Vote
from llmhost.storage.review_rows import Event

StateFilter = Literal[
    "pending", "open", "claimed", "escalated", "approved", "rejected", "expired", "all"
]
"""`pending` is what nobody has decided: open, claimed and escalated."""
Note = Annotated[str, msgspec.Meta(max_length=2000)]


class VoteRow(msgspec.Struct, frozen=True, kw_only=True):
    by: str
    """Id of a key, or `operator`."""
    decision: Literal["approve", "reject"]
    note: str | None
    at: int


class ReviewRow(msgspec.Struct, frozen=True, kw_only=True):
    """One text that a human decides on, without the text."""

    id: str
    state: str
    org: str
    team: str | None
    key: str | None
    """The key that sent the text or asked for it."""
    request_id: str
    model: str
    direction: str
    mode: str
    """What its caller got meanwhile: `block`, `hold` or `release`."""
    category: str
    rule: str
    tier: str
    score: float
    policy: str
    needs: int
    """Reviewers who have to agree."""
    votes: list[VoteRow]
    holder: str | None
    """Who has claimed it."""
    held_until_at: int | None
    created_at: int
    due_at: int
    expires_at: int
    decided_at: int | None


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    at: int
    event: str
    who: str
    note: str | None


class ReviewDetail(ReviewRow, frozen=True, kw_only=True):
    """The same with its redacted text and its history."""

    text: str | None
    """Redacted; null when it has been erased."""
    has_original: bool
    history: list[EventRow]


class OriginalRow(msgspec.Struct, frozen=True, kw_only=True):
    """The text as it came. That it was read is in the review's history."""

    id: str
    text: str


class ReviewPage(msgspec.Struct, frozen=True, kw_only=True):
    """Reviews, the oldest first. The next page comes `after` `last_id`."""

    data: list[ReviewRow]
    has_more: bool
    last_id: str | None


class Ruling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reviewer's decision."""

    decision: Literal["approve", "reject"]
    note: Note | None = None


class Raising(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why somebody else should decide."""

    note: Note | None = None


class RuleRow(msgspec.Struct, frozen=True, kw_only=True):
    """How often what a rule found was rejected by reviewers."""

    rule: str
    tier: str
    category: str
    rejected: int
    approved: int
    precision: float
    precision_low: float
    """Lower end of the 95% interval."""


class ThresholdRow(msgspec.Struct, frozen=True, kw_only=True):
    """The lowest score from which on reviewers rejected at least nine of ten. Null where there is none."""

    category: str
    decisions: int
    threshold: float | None
    precision: float | None
    kept: int
    """Of the rejected texts, those that it still finds."""
    rejected: int


class AgreementRow(msgspec.Struct, frozen=True, kw_only=True):
    """Of texts on which two reviewers voted: how many, how often they agreed, and how far beyond chance."""

    texts: int
    agreed: int
    share: float | None
    kappa: float | None


class WebhookFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where events of reviews are posted to, and the secret by which their signatures are checked."""

    url: str | None
    secret: str


class ReviewStats(msgspec.Struct, frozen=True, kw_only=True):
    """What decisions say of rules and thresholds."""

    since_at: int
    approved: int
    rejected: int
    agreement: AgreementRow
    rules: list[RuleRow]
    thresholds: list[ThresholdRow]


def review_row(review: Review) -> ReviewRow:
    return ReviewRow(**_facts(review))


def review_detail(
    review: Review, text: str | None, has_original: bool, events: Sequence[Event]
) -> ReviewDetail:
    history = [
        EventRow(at=_s(one.at_ns), event=one.event, who=one.who, note=one.note) for one in events
    ]
    return ReviewDetail(**_facts(review), text=text, has_original=has_original, history=history)


def rule_row(quality: RuleQuality) -> RuleRow:
    return RuleRow(
        rule=quality.rule,
        tier=quality.tier,
        category=quality.category,
        rejected=quality.right,
        approved=quality.wrong,
        precision=round(quality.precision, 4),
        precision_low=round(quality.low, 4),
    )


def threshold_row(proposal: Proposal) -> ThresholdRow:
    precision = proposal.precision
    return ThresholdRow(
        category=proposal.category,
        decisions=proposal.labels,
        threshold=proposal.threshold,
        precision=None if precision is None else round(precision, 4),
        kept=proposal.kept,
        rejected=proposal.right,
    )


def _facts(review: Review) -> dict[str, Any]:
    return {
        "id": review.id,
        "state": review.state.value,
        "org": review.org,
        "team": review.team,
        "key": review.key_id,
        "request_id": review.request_id,
        "model": review.model,
        "direction": review.direction.value,
        "mode": review.mode.value,
        "category": review.category,
        "rule": review.rule,
        "tier": review.tier,
        "score": review.score,
        "policy": review.policy,
        "needs": review.needs,
        "votes": [_vote(vote) for vote in review.votes],
        "holder": review.holder,
        "held_until_at": None if review.holder is None else _s(review.held_until_ns),
        "created_at": _s(review.at_ns),
        "due_at": _s(review.due_ns),
        "expires_at": _s(review.ends_ns),
        "decided_at": None if review.decided_ns is None else _s(review.decided_ns),
    }


def _vote(vote: Vote) -> VoteRow:
    decision: Literal["approve", "reject"] = "approve" if vote.approves else "reject"
    return VoteRow(by=vote.by, decision=decision, note=vote.note, at=_s(vote.at_ns))


def _s(at_ns: int) -> int:
    return at_ns // 10**9
