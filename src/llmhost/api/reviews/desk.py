"""What reviewers do, on a running node or a stopped one. Another organisation's review is not there for them."""

from collections.abc import Callable
from dataclasses import dataclass

from llmhost.api.admin_tenants import MOST_ROWS, PAGE_ROWS
from llmhost.api.report_wire import time_ns
from llmhost.api.reviews.wire import (
    AgreementRow,
    OriginalRow,
    ReviewDetail,
    ReviewPage,
    ReviewRow,
    ReviewStats,
    StateFilter,
    WebhookFacts,
    review_detail,
    review_row,
    rule_row,
    threshold_row,
)
from llmhost.core.caller import Role
from llmhost.core.errors import InvalidValue, NotFound
from llmhost.core.ports import Clock
from llmhost.pipeline.posting import shown_secret
from llmhost.safety.labels import Agreement, proposals, rule_qualities
from llmhost.safety.queue import DAY_NS, ReviewQueue
from llmhost.safety.review import PENDING, Reviewer, ReviewState
from llmhost.tenants.roles import OPERATOR, Access

STATS_DAYS = 90


@dataclass(frozen=True, slots=True)
class ReviewDesk:
    queue: ReviewQueue
    clock: Clock
    webhook_secret: Callable[[], bytes]
    """Made when it is first asked for."""

    def webhook(self) -> WebhookFacts:
        """Blocks a little."""
        secret = shown_secret(self.webhook_secret())
        return WebhookFacts(url=self.queue.settings.webhook, secret=secret)

    async def page(
        self,
        access: Access = OPERATOR,
        *,
        org: str | None = None,
        state: StateFilter = "pending",
        category: str | None = None,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> ReviewPage:
        """Raises InvalidValue, NotFound."""
        if not 1 <= limit <= MOST_ROWS:
            raise InvalidValue(f"'limit' may be 1 to {MOST_ROWS}.", param="limit")
        found = await self.queue.page(
            reviewer_of(access),
            org=org,
            states=_states(state),
            category=category,
            after=after,
            limit=limit + 1,
        )
        data = [review_row(review) for review in found[:limit]]
        last = data[-1].id if data else None
        return ReviewPage(data=data, has_more=len(found) > limit, last_id=last)

    async def show(self, review_id: str, access: Access = OPERATOR) -> ReviewDetail:
        """Raises NotFound; so below."""
        review = await self.queue.find(review_id, reviewer_of(access))
        texts = await self.queue.store.texts(review_id)
        events = await self.queue.store.events(review_id)
        return review_detail(review, texts.redacted, texts.original is not None, events)

    async def original(self, review_id: str, access: Access = OPERATOR) -> OriginalRow:
        text = await self.queue.read_original(review_id, reviewer_of(access))
        return OriginalRow(id=review_id, text=text)

    async def claim(self, review_id: str, access: Access = OPERATOR) -> ReviewRow:
        """Raises Conflict and Forbidden as well; so below."""
        return review_row(await self.queue.claim(review_id, reviewer_of(access)))

    async def claim_next(self, access: Access = OPERATOR, *, org: str | None = None) -> ReviewRow:
        review = await self.queue.claim_next(reviewer_of(access), org)
        if review is None:
            raise NotFound("Nothing waits that you may decide on.")
        return review_row(review)

    async def release(self, review_id: str, access: Access = OPERATOR) -> ReviewRow:
        return review_row(await self.queue.release(review_id, reviewer_of(access)))

    async def decide(
        self, review_id: str, access: Access = OPERATOR, *, approves: bool, note: str | None = None
    ) -> ReviewRow:
        who = reviewer_of(access)
        return review_row(await self.queue.decide(review_id, who, approves=approves, note=note))

    async def escalate(
        self, review_id: str, access: Access = OPERATOR, *, note: str | None = None
    ) -> ReviewRow:
        return review_row(await self.queue.escalate(review_id, reviewer_of(access), note))

    async def stats(
        self, access: Access = OPERATOR, *, org: str | None = None, since: str | None = None
    ) -> ReviewStats:
        """Of the last days, unless `since` says a date. Raises InvalidValue."""
        since_ns = time_ns(since, "since")
        if since_ns is None:
            since_ns = self.clock.utc_ns() - STATS_DAYS * DAY_NS
        labels = await self.queue.labels(reviewer_of(access), org=org, since_ns=since_ns)
        found = await self.queue.agreement(reviewer_of(access), org=org, since_ns=since_ns)
        rejected = sum(label.is_right for label in labels)
        return ReviewStats(
            since_at=since_ns // 10**9,
            approved=len(labels) - rejected,
            rejected=rejected,
            agreement=_agreement(found),
            rules=[rule_row(quality) for quality in rule_qualities(labels)],
            thresholds=[threshold_row(proposal) for proposal in proposals(labels)],
        )


def _agreement(found: Agreement) -> AgreementRow:
    return AgreementRow(
        texts=found.texts,
        agreed=found.agreed,
        share=round(found.agreed / found.texts, 4) if found.texts else None,
        kappa=None if found.kappa is None else round(found.kappa, 4),
    )


def reviewer_of(access: Access) -> Reviewer:
    is_senior = access.is_operator or access.role is Role.ADMIN
    return Reviewer(access.who, org=access.org, is_senior=is_senior)


def _states(wanted: StateFilter) -> tuple[ReviewState, ...]:
    if wanted == "all":
        return ()
    return PENDING if wanted == "pending" else (ReviewState(wanted),)
