"""The queue of what humans are to decide: texts come in from the screen, reviewers act, time passes.

Whoever refers a text hears its id once it is on disk. What was decided of a text is in memory as well, under a keyed
hash, so that the same text of the same organisation is not asked about again.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from llmhost.config.schema.safety import ReviewSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import Conflict, LlmhostError, NotFound, SafetyUnavailable
from llmhost.core.ids import new_id
from llmhost.core.ports import Clock
from llmhost.observe.logs import log_event
from llmhost.safety.labels import Agreement, Label, agreement_of
from llmhost.safety.review import (
    Review,
    Reviewer,
    ReviewState,
    as_of,
    claim,
    decide,
    escalate,
    expire,
    may_take,
    release,
)
from llmhost.safety.review_rows import act_of, decode, standing_of
from llmhost.safety.sealed import Seal
from llmhost.safety.verdict import Direction, ReviewMode, Screening
from llmhost.storage.review_rows import Event, NewReview, no_review
from llmhost.storage.reviews import ReviewStore

log = logging.getLogger("llmhost.reviews")

ID_PREFIX = "review_"
MINUTE_S = 60.0
MINUTE_NS, HOUR_NS, DAY_NS = 60 * 10**9, 3_600 * 10**9, 86_400 * 10**9
ORIGINAL = "original"
ANSWERED = "answered"
"""The answer of a call that was held is there."""
TIME = "time"
"""Who acts where nobody did."""

_Key = tuple[str | None, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One act on a review, for those who write down, count or follow what is done."""

    review: Review
    event: str
    """`referred`, `claimed`, `released`, `voted`, `approved`, `rejected`, `escalated`, `expired`,
    `answered` or `original_read`."""
    who: str
    at_ns: int
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Ruled:
    """What was decided of a text."""

    approves: bool
    until_ns: int


class ReviewQueue:
    """One node's. Implements Reviews. Its store is opened and closed by whoever made that."""

    def __init__(
        self,
        store: ReviewStore,
        settings: ReviewSettings,
        secret: bytes,
        clock: Clock,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Blocks: it reads what waits. `secret` is 32 bytes. `draw` gives numbers below 1, for the sample."""
        self.store = store
        self.settings = settings
        self.seal = Seal(secret)
        self._digest_key = blake2b(secret, person=b"review-digests", digest_size=32).digest()
        self._clock = clock
        self._draw = draw
        self._listeners: list[Callable[[Deed], None]] = []
        self._pending: dict[str, tuple[Review, bytes | None]] = {}
        """What nobody has decided, as it stands, and the digests of its texts."""
        self._waiting: dict[_Key, str] = {}
        """Texts that were refused and wait, by key and digest."""
        self._rulings: dict[bytes, _Ruled] = {}
        for record, digest in store.pending():
            review = decode(record)
            self._pending[review.id] = review, digest
            self._note_waiting(review, digest)
        ruling_ns = settings.ruling_hours * HOUR_NS
        for row in store.rulings(clock.utc_ns() - ruling_ns):
            approves = row.state == ReviewState.APPROVED
            self._rulings[row.digest] = _Ruled(approves, row.decided_ns + ruling_ns)

    def listen(self, tell: Callable[[Deed], None]) -> None:
        """Have every act told once it is on disk, on the event loop; that an original is read, before it is shown."""
        self._listeners.append(tell)

    # ------------------------------------------------------------ from the screen

    async def refer(
        self, screening: Screening, text: str, redacted: str, mode: ReviewMode
    ) -> str | None:
        """See Reviews. A text that was refused and waits already is not queued again for the same key."""
        caller, digest = screening.caller, None
        if mode is not ReviewMode.RELEASE:
            digest = self._digest(caller.org, text)
            is_held_answer = mode is ReviewMode.HOLD and screening.direction is Direction.OUTPUT
            if self._ruled(digest) is False and not is_held_answer:
                return None
            if mode is ReviewMode.BLOCK and (waits := self._waiting.get((caller.key_id, digest))):
                return waits
        elif self._draw() >= self.settings.sample_share:
            return None
        self._check_room()
        review = self._new(screening, mode)
        self._pending[review.id] = review, digest
        try:
            await self._keep(review, caller, digest, text, redacted)
        except LlmhostError as error:
            self._forget_pending(review.id)
            raise SafetyUnavailable(
                "The text is for a reviewer, and could not be kept for one. Try again later.",
                retry_after_s=5.0,
            ) from error
        self._note_waiting(review, digest)
        self._tell(Deed(review=review, event="referred", who=_sender(caller), at_ns=review.at_ns))
        return review.id

    def approved(self, caller: Caller, text: str) -> bool:
        return self._ruled(self._digest(caller.org, text)) is True

    def _ruled(self, digest: bytes) -> bool | None:
        ruled = self._rulings.get(digest)
        is_known = ruled is not None and self._clock.utc_ns() < ruled.until_ns
        return ruled.approves if is_known and ruled is not None else None

    def _check_room(self) -> None:
        if len(self._pending) >= self.settings.max_pending:
            raise SafetyUnavailable(
                f"{len(self._pending)} texts wait for reviewers, which is as many as may. Try again later.",
                retry_after_s=MINUTE_S,
            )

    def _new(self, screening: Screening, mode: ReviewMode) -> Review:
        settings, now_ns, caller = self.settings, self._clock.utc_ns(), screening.caller
        finding = screening.decision.finding
        return Review(
            id=new_id(ID_PREFIX),
            at_ns=now_ns,
            due_ns=now_ns + settings.due_minutes * MINUTE_NS,
            ends_ns=now_ns + settings.expire_hours * HOUR_NS,
            org=caller.org,
            team=caller.team,
            key_id=caller.key_id,
            request_id=screening.request_id,
            model=screening.model,
            direction=screening.direction,
            mode=mode,
            category="-" if finding is None else finding.category,
            rule="-" if finding is None else finding.rule,
            tier="-" if finding is None else finding.tier.value,
            score=1.0 if finding is None else finding.score,
            policy=screening.decision.policy,
            needs=2 if settings.four_eyes else 1,
        )

    async def _keep(
        self, review: Review, caller: Caller, digest: bytes | None, text: str, redacted: str
    ) -> None:
        new = NewReview(
            id=review.id,
            at_ns=review.at_ns,
            org=review.org,
            owner=owner_of(caller),
            mode=review.mode,
            due_ns=review.due_ns,
            ends_ns=review.ends_ns,
            category=review.category,
            rule=review.rule,
            tier=review.tier,
            score=review.score,
            digest=digest,
            standing=standing_of(review),
            redacted=redacted.encode("utf-8", "replace").decode(),
            original=self.seal.close(review.id, ORIGINAL, text.encode("utf-8", "surrogatepass")),
        )
        event = Event(at_ns=review.at_ns, event="referred", who=_sender(caller))
        await self.store.add(new, event)

    def _digest(self, org: str, text: str) -> bytes:
        said = f"{org}\0{text}".encode("utf-8", "surrogatepass")
        return blake2b(said, key=self._digest_key, digest_size=32).digest()

    # ------------------------------------------------------------ for reviewers

    async def find(self, review_id: str, who: Reviewer) -> Review:
        """As it stands now. Raises NotFound, also for another organisation's."""
        return self._now(await self._record(review_id, org=who.org), review_id)

    async def find_any(self, review_id: str) -> Review:
        """Whoever's it is: for those who have just referred it."""
        return self._now(await self._record(review_id), review_id)

    async def of_caller(self, review_id: str, caller: Caller) -> Review:
        """One whose text came from this caller's key. Raises NotFound for others."""
        return self._now(await self._record(review_id, owner=owner_of(caller)), review_id)

    async def page(
        self,
        who: Reviewer,
        *,
        org: str | None = None,
        states: Sequence[ReviewState] = (),
        category: str | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[Review]:
        """Those in sight, the oldest first. Raises InvalidValue, and NotFound for an organisation out of sight."""
        if who.org is not None and org not in (None, who.org):
            raise NotFound(f"There is no organisation {org!r}.")
        now_ns = self._clock.utc_ns()
        records = await self.store.page(
            org=who.org or org,
            states=states,
            category=category,
            now_ns=now_ns,
            after=after,
            limit=limit,
        )
        return [as_of(decode(record), now_ns) for record in records]

    async def read_original(self, review_id: str, who: Reviewer) -> str:
        """The text as it came. That it was read, and by whom, is on disk first. Raises NotFound."""
        review = await self.find(review_id, who)
        sealed = (await self.store.texts(review_id)).original
        text = None if sealed is None else self.seal.open(review_id, ORIGINAL, sealed)
        if text is None:
            raise NotFound(
                f"The original of {review_id} is gone: it was erased, or this data directory is a restored backup,"
                " where originals can't be read."
            )
        event = Event(at_ns=self._clock.utc_ns(), event="original_read", who=who.name)
        await self.store.note(review_id, event)
        self._tell(Deed(review=review, event=event.event, who=who.name, at_ns=event.at_ns))
        return text.decode("utf-8", "replace")

    async def tell_answered(self, review_id: str, event: Event) -> None:
        """The call that was held has its answer, and its history says so."""
        review = await self.find_any(review_id)
        self._tell(Deed(review=review, event=event.event, who=event.who, at_ns=event.at_ns))

    async def claim(self, review_id: str, who: Reviewer) -> Review:
        """Raises NotFound, Conflict, Forbidden; so below."""
        return await self._act(review_id, who, lambda review, now: self._claimed(review, who, now))

    async def claim_next(self, who: Reviewer, org: str | None = None) -> Review | None:
        """The one that is due first of those that this reviewer may decide; None where there is none."""
        now_ns = self._clock.utc_ns()
        record = await self.store.act_on_first(
            who.org or org,
            lambda record: may_take(decode(record), who, now_ns),
            act_of(lambda review: self._claimed(review, who, now_ns), who, now_ns, None),
        )
        return None if record is None else self._done(decode(record), "claimed", who, now_ns, None)

    async def release(self, review_id: str, who: Reviewer) -> Review:
        return await self._act(
            review_id, who, lambda review, now: (release(review, who, now), "released")
        )

    async def decide(
        self, review_id: str, who: Reviewer, *, approves: bool, note: str | None = None
    ) -> Review:
        def act(review: Review, now_ns: int) -> tuple[Review, str]:
            decided = decide(review, who, now_ns, approves=approves, note=note)
            is_open = decided.state is ReviewState.OPEN
            return decided, "voted" if is_open else decided.state.value

        return await self._act(review_id, who, act, note)

    async def escalate(self, review_id: str, who: Reviewer, note: str | None = None) -> Review:
        return await self._act(
            review_id, who, lambda review, now: (escalate(review, who, now), "escalated"), note
        )

    async def labels(self, who: Reviewer, *, org: str | None = None, since_ns: int) -> list[Label]:
        """What was decided since, as judgements on findings."""
        rows = await self.store.labels(who.org or org, since_ns)
        return [Label(*row) for row in rows]

    async def agreement(self, who: Reviewer, *, org: str | None = None, since_ns: int) -> Agreement:
        """How often two who voted on one text agreed, of what was decided since."""
        records = await self.store.decided(who.org or org, since_ns)
        votes = [decode(record).votes for record in records]
        return agreement_of([tuple(vote.approves for vote in cast) for cast in votes])

    # ------------------------------------------------------------ time

    async def sweep(self) -> int:
        """Expire what nobody decided in time, and forget rulings that hold no longer; how many expired."""
        now_ns, count = self._clock.utc_ns(), 0
        self._rulings = {d: r for d, r in self._rulings.items() if now_ns < r.until_ns}
        for review_id in await self.store.late(now_ns):
            try:
                await self._act(
                    review_id, _TIME, lambda review, now: (expire(review, now), "expired")
                )
            except Conflict:
                continue
            count += 1
        return count

    async def erase(self) -> int:
        """Erase texts whose time is over; of how many rows."""
        now_ns = self._clock.utc_ns()
        return await self.store.erase(
            originals_before_ns=now_ns - self.settings.original_days * DAY_NS,
            redacted_before_ns=now_ns - self.settings.redacted_days * DAY_NS,
        )

    async def keep_time(self) -> None:
        """Sweep and erase once a minute. Runs for ever."""
        while True:
            try:
                await self.sweep()
                await self.erase()
            except LlmhostError as error:
                log.warning("reviews.not_swept error=%s", error)
            await asyncio.sleep(MINUTE_S)

    def pending(self) -> Iterable[Review]:
        """What nobody has decided, as it stands."""
        now_ns = self._clock.utc_ns()
        return [as_of(review, now_ns) for review, _ in self._pending.values()]

    # ------------------------------------------------------------ acts

    async def _act(
        self,
        review_id: str,
        who: Reviewer,
        change: Callable[[Review, int], tuple[Review, str]],
        note: str | None = None,
    ) -> Review:
        now_ns = self._clock.utc_ns()
        events: list[str] = []

        def act(review: Review) -> tuple[Review, str]:
            changed = change(review, now_ns)
            events.append(changed[1])
            return changed

        record = await self.store.act(review_id, act_of(act, who, now_ns, note), who.org)
        return self._done(decode(record), events[-1], who, now_ns, note)

    def _claimed(self, review: Review, who: Reviewer, now_ns: int) -> tuple[Review, str]:
        lease_ns = self.settings.claim_minutes * MINUTE_NS
        return claim(review, who, now_ns, lease_ns), "claimed"

    def _done(
        self, review: Review, event: str, who: Reviewer, now_ns: int, note: str | None
    ) -> Review:
        """It is on disk: keep it in mind, and tell."""
        known = self._pending.get(review.id)
        digest = None if known is None else known[1]
        if not review.state.is_end:
            if known is not None and review.version > known[0].version:
                self._pending[review.id] = review, digest
        else:
            self._forget_pending(review.id)
            if digest is not None and review.state is not ReviewState.EXPIRED:
                until_ns = now_ns + self.settings.ruling_hours * HOUR_NS
                approves = review.state is ReviewState.APPROVED
                self._rulings[digest] = _Ruled(approves, until_ns)
        self._tell(Deed(review=review, event=event, who=who.name, at_ns=now_ns, note=note))
        return review

    def _tell(self, deed: Deed) -> None:
        review = deed.review
        log_event(
            log,
            f"review.{deed.event}",
            review=review.id,
            org=review.org,
            state=review.state.value,
            by=deed.who,
        )
        for tell in self._listeners:
            tell(deed)

    def _note_waiting(self, review: Review, digest: bytes | None) -> None:
        if digest is not None and review.mode is ReviewMode.BLOCK:
            self._waiting[review.key_id, digest] = review.id

    def _forget_pending(self, review_id: str) -> None:
        known = self._pending.pop(review_id, None)
        if known is not None and known[1] is not None:
            self._waiting.pop((known[0].key_id, known[1]), None)

    async def _record(self, review_id: str, **of: str | None) -> bytes | None:
        return await self.store.find(review_id, **of)

    def _now(self, record: bytes | None, review_id: str) -> Review:
        if record is None:
            raise no_review(review_id)
        return as_of(decode(record), self._clock.utc_ns())


_TIME = Reviewer(TIME)


def owner_of(caller: Caller) -> str:
    """Who may ask what became of a text: its key, or all of an organisation that asks without one."""
    return caller.scope("key")


def _sender(caller: Caller) -> str:
    return caller.key_id or caller.org
