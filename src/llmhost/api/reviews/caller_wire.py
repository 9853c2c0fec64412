"""A review as the caller sees it whose text it is. Times are Unix seconds."""

from typing import Any, Literal

import msgspec

from llmhost.safety.review import Review, ReviewState


class HeldResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What the call was answered, as the line of a batch has it."""

    status_code: int
    request_id: str
    body: Any
    """As its route says it."""


class ReviewObject(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a text that a reviewer decides on.

    `pending`: nobody has decided. `running`: it is approved, and its answer is on its way. `approved`: with `response`
    where the call was held; else the same text may be sent again.
    """

    id: str
    object: Literal["review"] = "review"
    status: Literal["pending", "running", "approved", "rejected", "expired"]
    direction: str
    mode: str
    model: str
    request_id: str
    """Of the call that the text was in."""
    created_at: int
    due_at: int
    expires_at: int
    decided_at: int | None
    response: HeldResponse | None = None


_TOLD: dict[ReviewState, Literal["pending", "approved", "rejected", "expired"]] = {
    ReviewState.OPEN: "pending",
    ReviewState.CLAIMED: "pending",
    ReviewState.ESCALATED: "pending",
    ReviewState.APPROVED: "approved",
    ReviewState.REJECTED: "rejected",
    ReviewState.EXPIRED: "expired",
}


def review_object(
    review: Review, *, is_running: bool = False, response: HeldResponse | None = None
) -> ReviewObject:
    return ReviewObject(
        id=review.id,
        status="running" if is_running else _TOLD[review.state],
        direction=review.direction.value,
        mode=review.mode.value,
        model=review.model,
        request_id=review.request_id,
        created_at=review.at_ns // 10**9,
        due_at=review.due_ns // 10**9,
        expires_at=review.ends_ns // 10**9,
        decided_at=None if review.decided_ns is None else review.decided_ns // 10**9,
        response=response,
    )
