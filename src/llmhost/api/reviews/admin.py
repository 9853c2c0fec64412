"""/admin/v1/reviews: for the operator, for admins, and for keys of the role `reviewer`, who may do nothing else."""

import asyncio
from typing import Annotated

from litestar import get, post
from litestar.types import ControllerRouterHandler, Guard

from llmhost.api.admin_access import Visitor
from llmhost.api.admin_tenants import PAGE_ROWS
from llmhost.api.params import FromPath, FromQuery, JSONBody, QueryParameter
from llmhost.api.reviews.desk import ReviewDesk
from llmhost.api.reviews.wire import (
    OriginalRow,
    Raising,
    ReviewDetail,
    ReviewPage,
    ReviewRow,
    ReviewStats,
    Ruling,
    StateFilter,
    WebhookFacts,
)
from llmhost.api.router import Router
from llmhost.tenants.roles import Right


def review_admin_router(desk: ReviewDesk, guard: Guard) -> Router:
    handlers = [*_reading(desk), *_deciding(desk)]
    return Router("/admin/v1", guards=[guard], tags=["admin"], route_handlers=handlers)


def _reading(desk: ReviewDesk) -> list[ControllerRouterHandler]:
    @get("/reviews", needs=Right.REVIEW)
    async def list_reviews(
        request: Visitor,
        org: FromQuery[str | None] = None,
        in_state: Annotated[StateFilter, QueryParameter(name="state")] = "pending",
        category: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> ReviewPage:
        """Texts that wait for a human, or, by `state`, that did; the oldest first."""
        return await desk.page(
            request.user, org=org, state=in_state, category=category, limit=limit, after=after
        )

    @get("/reviews/stats", needs=Right.REVIEW)
    async def review_stats(
        request: Visitor,
        org: FromQuery[str | None] = None,
        since: FromQuery[str | None] = None,
    ) -> ReviewStats:
        """How often what each rule finds is found rightly, and which thresholds that speaks for."""
        return await desk.stats(request.user, org=org, since=since)

    @get("/reviews/webhook", leaves_row=True)
    async def show_webhook() -> WebhookFacts:
        """Where events of reviews are posted to, and the secret to check their signatures with."""
        return await asyncio.to_thread(desk.webhook)

    @get("/reviews/{review_id:str}", needs=Right.REVIEW)
    async def show_review(request: Visitor, review_id: FromPath[str]) -> ReviewDetail:
        """One review, with its redacted text and its history."""
        return await desk.show(review_id, request.user)

    @get("/reviews/{review_id:str}/original", needs=Right.REVIEW, leaves_row=True)
    async def read_original(request: Visitor, review_id: FromPath[str]) -> OriginalRow:
        """The text as it came. Who reads it is written down first."""
        return await desk.original(review_id, request.user)

    return [list_reviews, review_stats, show_webhook, show_review, read_original]


def _deciding(desk: ReviewDesk) -> list[ControllerRouterHandler]:
    @post("/reviews/claim", status_code=200, needs=Right.REVIEW)
    async def claim_next_review(request: Visitor, org: FromQuery[str | None] = None) -> ReviewRow:
        """Claim the one that is due first of those that you may decide on; 404 where none waits."""
        return await desk.claim_next(request.user, org=org)

    @post("/reviews/{review_id:str}/claim", status_code=200, needs=Right.REVIEW)
    async def claim_review(request: Visitor, review_id: FromPath[str]) -> ReviewRow:
        """Keep others away for a while; again, to keep them away for longer."""
        return await desk.claim(review_id, request.user)

    @post("/reviews/{review_id:str}/release", status_code=200, needs=Right.REVIEW)
    async def release_review(request: Visitor, review_id: FromPath[str]) -> ReviewRow:
        """Give a claim back. An admin or the operator may give back somebody else's."""
        return await desk.release(review_id, request.user)

    @post("/reviews/{review_id:str}/decide", status_code=200, needs=Right.REVIEW)
    async def decide_review(
        request: Visitor, review_id: FromPath[str], data: JSONBody[Ruling]
    ) -> ReviewRow:
        """Approve or reject. Of several who do so at once, one decides and the others get a 409."""
        approves = data.decision == "approve"
        return await desk.decide(review_id, request.user, approves=approves, note=data.note)

    @post("/reviews/{review_id:str}/escalate", status_code=200, needs=Right.REVIEW)
    async def escalate_review(
        request: Visitor, review_id: FromPath[str], data: JSONBody[Raising | None] = None
    ) -> ReviewRow:
        """Leave it to the operator or an admin of the organisation."""
        return await desk.escalate(review_id, request.user, note=data.note if data else None)

    return [claim_next_review, claim_review, release_review, decide_review, escalate_review]
