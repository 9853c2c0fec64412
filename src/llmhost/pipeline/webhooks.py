"""Events of reviews, told to a URL in their order, each until it is taken or a day old.

What is told is read from the history of reviews, and how far it was told is kept beside that: so an act that is on
disk is told, whatever is killed in between, and now and then one is told twice, with the same id.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Clock
from llmhost.observe.logs import log_event
from llmhost.pipeline.posting import NotPosted, Target, post, signed_headers
from llmhost.safety.queue import ANSWERED, Deed, ReviewQueue
from llmhost.safety.review import Review
from llmhost.safety.review_rows import decode
from llmhost.storage.told_events import Telling, ToldEvents

log = logging.getLogger("llmhost.reviews")

EVENTS = ("referred", "escalated", "approved", "rejected", "expired", ANSWERED)
"""What is told; who claims or looks at a text is the reviewers' own business."""
MOST_AGE_NS = 86_400 * 10**9
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

_encode = msgspec.json.encode


class Webhook:
    """One URL's. `start` has what is new told from then on, and what was not told before."""

    def __init__(
        self,
        target: Target,
        queue: ReviewQueue,
        told: ToldEvents,
        clock: Clock,
        *,
        secret: bytes,
        node_id: str,
        shown: Callable[[Review], dict[str, Any]],
        count: Callable[[str], None],
    ) -> None:
        """`shown` is a review as its caller sees it; `count` is told `told`, `failed` or `dropped`."""
        self._target = target
        self._queue = queue
        self._told = told
        self._clock = clock
        self._secret = secret
        self._node_id = node_id
        self._shown = shown
        self._count = count
        self._news = asyncio.Event()
        queue.listen(self._hear)

    async def run(self) -> None:
        """Runs for ever."""
        place: int | None = None
        while True:
            try:
                if place is None:
                    place = await self._told.place(self._clock.utc_ns())
                self._news.clear()
                telling = await self._told.next(place, EVENTS)
                if telling is None:
                    await self._news.wait()
                    continue
                await self._tell(telling)
                await self._told.move(telling.seq, self._clock.utc_ns())
                place = telling.seq
            except LlmhostError as error:
                log.warning("webhook.waits error=%s", error)
                await asyncio.sleep(LONGEST_PAUSE_S)

    def _hear(self, deed: Deed) -> None:
        if deed.event in EVENTS:
            self._news.set()

    async def _tell(self, telling: Telling) -> None:
        """Comes back when it was taken, or is too old."""
        event_id = f"evt_{self._node_id}_{telling.seq}"
        review = decode(telling.record)
        pause_s = FIRST_PAUSE_S
        while True:
            if self._clock.utc_ns() - telling.at_ns > MOST_AGE_NS:
                self._count("dropped")
                log_event(
                    log,
                    "webhook.dropped",
                    level=logging.ERROR,
                    review=review.id,
                    event=telling.event,
                )
                return
            try:
                await self._post(event_id, telling, review)
            except NotPosted as failure:
                self._count("failed")
                why = str(failure)
                log_event(
                    log,
                    "webhook.failed",
                    level=logging.WARNING,
                    review=review.id,
                    event=telling.event,
                    again_s=pause_s,
                    why=why,
                )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._count("told")
                return

    async def _post(self, event_id: str, telling: Telling, review: Review) -> None:
        body = _encode(
            {
                "id": event_id,
                "object": "event",
                "type": f"review.{telling.event}",
                "created_at": telling.at_ns // 10**9,
                "data": {**self._shown(review), "org": review.org, "team": review.team},
            }
        )
        now_s = self._clock.utc_ns() // 10**9
        await post(self._target, body, signed_headers(self._secret, event_id, now_s, body))
