"""What may become of one text that a human is to decide on. Pure: acts take a review and give the next one.

    open ─> claimed ─> approved | rejected
      │        │
      ├────────┴─> escalated ─> approved | rejected       by the operator or an admin, alone
      └─ nobody decides in time ─> expired

A claim is a lock with an end, so whoever goes home holds nothing up. With four eyes two reviewers have to agree; where
they don't, it is escalated. Nobody decides on what their own key has sent. The text itself is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from llmhost.core.errors import Conflict, Forbidden
from llmhost.safety.verdict import Direction, ReviewMode


class ReviewState(StrEnum):
    OPEN = "open"
    CLAIMED = "claimed"
    ESCALATED = "escalated"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"

    @property
    def is_end(self) -> bool:
        return self in ENDS


ENDS = (ReviewState.APPROVED, ReviewState.REJECTED, ReviewState.EXPIRED)
PENDING = (ReviewState.OPEN, ReviewState.CLAIMED, ReviewState.ESCALATED)


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Who acts."""

    name: str
    """The id of a key, or `operator`."""
    org: str | None = None
    """The only organisation whose texts are in sight; None for the operator, who sees all."""
    is_senior: bool = False
    """The operator or an admin: decides what was escalated, and takes claims from others."""


OPERATOR = Reviewer("operator", is_senior=True)


@dataclass(frozen=True, slots=True)
class Vote:
    by: str
    approves: bool
    at_ns: int
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One text, as it stands. Times are UTC nanoseconds."""

    id: str
    at_ns: int
    due_ns: int
    """When somebody should have decided."""
    ends_ns: int
    """When it expires undecided."""
    org: str
    team: str | None
    key_id: str | None
    """The key that sent the text or asked for it."""
    request_id: str
    model: str
    direction: Direction
    mode: ReviewMode
    category: str
    rule: str
    tier: str
    score: float
    policy: str
    needs: int = 1
    """So many reviewers have to agree."""
    state: ReviewState = ReviewState.OPEN
    holder: str | None = None
    held_until_ns: int = 0
    votes: tuple[Vote, ...] = ()
    decided_ns: int | None = None
    version: int = 0
    """Goes up with each act: of two who act on the same version one comes too late."""

    @property
    def is_overdue(self) -> bool:
        """It was decided too late. Of one that is pending, `due_ns` and the clock say it."""
        return self.decided_ns is not None and self.decided_ns > self.due_ns


def as_of(review: Review, now_ns: int) -> Review:
    """The review as time has made it: claims lapse, and what nobody decides expires."""
    if review.state.is_end:
        return review
    if now_ns >= review.ends_ns:
        return replace(
            review, state=ReviewState.EXPIRED, holder=None, held_until_ns=0, decided_ns=now_ns
        )
    if review.holder is not None and now_ns >= review.held_until_ns:
        return _let_go(review)
    return review


def may_take(review: Review, who: Reviewer, now_ns: int) -> bool:
    """Whether it can be claimed, for those who look for work."""
    try:
        _check_open_to(as_of(review, now_ns), who)
    except (Conflict, Forbidden):
        return False
    return as_of(review, now_ns).holder in (None, who.name)


def claim(review: Review, who: Reviewer, now_ns: int, lease_ns: int) -> Review:
    """Lock it for `lease_ns`; who holds it claims it for longer. Raises Conflict, Forbidden."""
    review = as_of(review, now_ns)
    _check_open_to(review, who)
    _check_free(review, who)
    is_escalated = review.state is ReviewState.ESCALATED
    state = ReviewState.ESCALATED if is_escalated else ReviewState.CLAIMED
    return _next(review, state=state, holder=who.name, held_until_ns=now_ns + lease_ns)


def release(review: Review, who: Reviewer, now_ns: int) -> Review:
    """Give a claim back, or as a senior take somebody's away. Raises Conflict."""
    review = as_of(review, now_ns)
    _check_pending(review)
    if review.holder is None:
        raise Conflict(f"Nobody has claimed the review {review.id}.")
    if review.holder != who.name and not who.is_senior:
        raise Conflict(f"The review {review.id} is claimed by {review.holder}, and not by you.")
    return _next(_let_go(review))


def decide(
    review: Review, who: Reviewer, now_ns: int, *, approves: bool, note: str | None = None
) -> Review:
    """Vote. It need not be claimed, if nobody else has claimed it. Raises Conflict, Forbidden."""
    review = as_of(review, now_ns)
    _check_open_to(review, who)
    _check_free(review, who)
    votes = (*review.votes, Vote(who.name, approves, now_ns, note))
    state = _outcome(review, votes)
    return _next(
        _let_go(review),
        votes=votes,
        state=state,
        decided_ns=now_ns if state.is_end else None,
    )


def escalate(review: Review, who: Reviewer, now_ns: int) -> Review:
    """Leave it to the operator or an admin. Raises Conflict, Forbidden."""
    review = as_of(review, now_ns)
    _check_pending(review)
    if review.state is ReviewState.ESCALATED:
        raise Conflict(f"The review {review.id} is escalated already.")
    _check_open_to(review, who)
    _check_free(review, who)
    return _next(_let_go(review), state=ReviewState.ESCALATED)


def expire(review: Review, now_ns: int) -> Review:
    """Write down that its time is over. Raises Conflict where it is not, or was decided meanwhile."""
    now = as_of(review, now_ns)
    if review.state.is_end or now.state is not ReviewState.EXPIRED:
        raise Conflict(f"The review {review.id} has not expired.")
    return _next(now)


def _outcome(review: Review, votes: Sequence[Vote]) -> ReviewState:
    last = votes[-1].approves
    ruled = ReviewState.APPROVED if last else ReviewState.REJECTED
    if review.state is ReviewState.ESCALATED:
        return ruled
    if any(vote.approves is not last for vote in votes):
        return ReviewState.ESCALATED
    return ruled if len(votes) >= review.needs else ReviewState.OPEN


def _check_pending(review: Review) -> None:
    if review.state.is_end:
        raise Conflict(f"The review {review.id} is {review.state}: nothing is left to decide.")


def _check_open_to(review: Review, who: Reviewer) -> None:
    _check_pending(review)
    if review.key_id is not None and review.key_id == who.name:
        raise Forbidden(
            f"The text of the review {review.id} came from your own key. Somebody else decides."
        )
    if review.state is ReviewState.ESCALATED and not who.is_senior:
        raise Forbidden(
            f"The review {review.id} is escalated: the operator or an admin of the organisation decides."
        )
    if any(vote.by == who.name for vote in review.votes):
        raise Conflict(f"You have voted on the review {review.id}. Somebody else has to.")


def _check_free(review: Review, who: Reviewer) -> None:
    if review.holder not in (None, who.name):
        raise Conflict(f"The review {review.id} is claimed by {review.holder}.")


def _let_go(review: Review) -> Review:
    is_claimed = review.state is ReviewState.CLAIMED
    state = ReviewState.OPEN if is_claimed else review.state
    return replace(review, state=state, holder=None, held_until_ns=0)


def _next(review: Review, **changes: object) -> Review:
    return replace(review, version=review.version + 1, **changes)  # type: ignore[arg-type]
