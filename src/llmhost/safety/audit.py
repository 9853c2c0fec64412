"""The audit log: who did what, and what was screened. It holds no answer, and no prompt but what policies have kept.

Nothing is lost in silence. While the disk refuses, what operators do is refused before it is done, and what was
screened waits in memory; when as much waits as may, texts that somebody objected to are refused as well. Text that
nobody objected to is counted by the minute. Prompts that are to be kept wait for room, for a time.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from llmhost.config.schema.safety import AuditSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError, Overloaded, SafetyUnavailable
from llmhost.core.ports import Clock
from llmhost.observe.logs import log_event
from llmhost.safety.defaults import LogJournal
from llmhost.safety.kept_prompts import KeptPrompts, most_bytes_of
from llmhost.safety.room import Room
from llmhost.safety.verdict import Action, Direction, Finding, Screening
from llmhost.storage.audit import AuditRow, AuditTrail, Recorded, Wanted
from llmhost.storage.audit_chain import Head, Verdict

log = logging.getLogger("llmhost.audit")

MOST_WAITING = 10_000
"""Screenings that may wait in memory for a disk that refuses."""
MOST_WAITING_BYTES = 64 * 2**20
"""Of prompts that are to be kept, from when they are taken until they are on disk."""
PATIENCE_S = 2.0
"""How long a request waits until there is room for its prompt."""
RETRY_S = 1.0
MINUTE_NS = 60 * 10**9
DAY_NS = 86_400 * 10**9
NODE = "node"
"""Who does what nobody asked for."""


class AuditLog:
    """One host's. Called on the event loop, where nothing else is said."""

    def __init__(
        self,
        trail: AuditTrail,
        settings: AuditSettings,
        clock: Clock,
        prompts: KeptPrompts | None = None,
    ) -> None:
        """Without `prompts` none is kept, whatever policies say."""
        self.trail = trail
        self.prompts = prompts
        self._settings = settings
        self._clock = clock
        self._waiting: deque[AuditRow] = deque()
        self._room = Room()
        """For the prompts of those that are on their way to the disk, or wait for it."""
        self._minute_ns = 0
        self._allowed: Counter[tuple[str, str, str]] = Counter()

    @property
    def waiting(self) -> int:
        """Screenings that the disk has refused so far."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return len(self._waiting) < MOST_WAITING

    def utc_ns(self) -> int:
        return self._clock.utc_ns()

    def check_writable(self) -> None:
        """Raises what keeps rows from being written: who can't be written down does nothing."""
        if self.trail.health is not None:
            raise self.trail.health

    async def record(
        self,
        *,
        actor: str,
        action: str,
        target: str,
        detail: Mapping[str, Any] | None = None,
        org: str | None = None,
        kind: str = "admin",
        request_id: str | None = None,
    ) -> Recorded:
        """Write down what somebody did; on disk when this returns. Raises StorageFailed or Overloaded."""
        row = AuditRow(
            at_ns=self._clock.utc_ns(),
            kind=kind,
            org=org,
            actor=actor,
            action=action,
            target=target,
            request_id=request_id,
            detail=detail or {},
        )
        return await self.trail.add_here(row)

    async def record_done(self, **facts: Any) -> None:
        """As `record`, for what can't be undone: where the disk refuses, it is remembered until it takes it."""
        try:
            await self.record(**facts)
        except LlmhostError as error:
            log_event(log, "audit.row_waits", level=logging.ERROR, why=error, **facts)
            self._waiting.append(AuditRow(at_ns=self._clock.utc_ns(), **{"kind": "admin", **facts}))

    async def make_room(self, size: int) -> None:
        """Wait until the disk has taken so much that a prompt of `size` bytes may wait for it. Raises SafetyUnavailable
        when that takes too long."""
        if not await self._room.wait(size, MOST_WAITING_BYTES, PATIENCE_S):
            raise SafetyUnavailable(
                f"The prompt is to be kept, and {MOST_WAITING_BYTES >> 20} MiB of others wait for the disk, which is"
                " the limit. Try again later.",
                retry_after_s=RETRY_S,
            )

    def record_soon(self, row: AuditRow) -> None:
        """Take a row for nobody who waits; without its prompt, and it says so, where there is no room for that.

        Raises SafetyUnavailable when no more can be held."""
        if not self.has_room:
            raise SafetyUnavailable(
                "The audit log can't be written, and no more can be remembered. Try again later.",
                retry_after_s=RETRY_S,
            )
        if row.text is not None:
            size = len(row.text.sealed)
            if self._room.has(size, MOST_WAITING_BYTES):
                self._room.take(size)
            else:
                lost = {**row.detail, "prompt": {"is_lost": True}}
                row = replace(row, text=None, detail=lost)
        if self._waiting or self.trail.health is not None:
            self._waiting.append(row)
        else:
            self._tell(row)

    def retry(self) -> None:
        """Give the disk what it has refused, once it takes rows again."""
        if self.trail.health is None:
            for _ in range(len(self._waiting)):
                self._tell(self._waiting.popleft())

    async def keep_trying(self) -> None:
        """As long as the node runs: `retry`, and the counters of each minute that is over."""
        while True:
            await asyncio.sleep(RETRY_S)
            self.retry()
            if self._clock.utc_ns() >= self._minute_ns + MINUTE_NS:
                self.write_counters()

    def count(self, org: str, direction: str, policy: str, at_ns: int, texts: int = 1) -> None:
        """Nobody objected to a text, or to several."""
        minute_ns = at_ns - at_ns % MINUTE_NS
        if minute_ns != self._minute_ns:
            self.write_counters()
        if not self._allowed:
            self._minute_ns = minute_ns
        self._allowed[org, direction, policy] += texts

    def write_counters(self, *, is_end: bool = False) -> None:
        """A row for each count of the minute that has passed; of all that time, where the disk has refused rows."""
        if not is_end and (self._waiting or self.trail.health is not None):
            return  # they go on counting: rows of each minute would be more and more
        allowed, self._allowed = self._allowed, Counter()
        for (org, direction, policy), count in allowed.items():
            detail = {"count": count, "policy": policy}
            row = AuditRow(
                at_ns=self._minute_ns,
                kind="allowed",
                org=org,
                actor=NODE,
                action="allow",
                target=str(direction),  # it may be more than text
                detail=detail,
            )
            self._waiting.append(row)  # few, whatever the traffic is: they go out with the next try
        self.retry()

    async def prune(self, days: Mapping[str, int]) -> int:
        """Delete what is older than the settings say, or than these organisations' days; how many rows."""
        now_ns = self._clock.utc_ns()
        before_ns = {org: now_ns - count * DAY_NS for org, count in days.items()}
        rest_ns = now_ns - self._settings.keep_days * DAY_NS
        await asyncio.to_thread(self.trail.erase_texts, now_ns)
        count = await asyncio.to_thread(self.trail.prune, before_ns, rest_ns)
        if count:
            await self.record(
                actor=NODE,
                action="audit.pruned",
                target="audit.db",
                detail={"rows": count},
                kind="audit",
            )
        return count

    def verify(self, kept: Head | None = None) -> Verdict:
        """Blocks."""
        return self.trail.verify(kept)

    def newest(self, wanted: Wanted, *, limit: int, before: int | None = None) -> list[Recorded]:
        """Blocks."""
        if before is None:
            return self.trail.newest(wanted, limit=limit)
        return self.trail.newest(wanted, limit=limit, before=before)

    def prompt(self, row: Recorded) -> tuple[str, int] | None:
        """What is kept of the prompt that a row tells of, and until when. Blocks."""
        kept = self.trail.text(row.seq)
        if kept is None or self.prompts is None or kept.ends_ns <= self._clock.utc_ns():
            return None
        text = self.prompts.opened(row.row.request_id or "", kept)
        return None if text is None else (text, kept.ends_ns)

    def oldest(self, wanted: Wanted) -> Iterator[Recorded]:
        """Blocks while iterated."""
        return self.trail.oldest(wanted)

    def close(self) -> None:
        """Write what waits, or say what is lost. Blocks."""
        self.write_counters(is_end=True)
        written: list[Future[Recorded]] = []
        with suppress(Overloaded):  # the disk is slower than that many rows would be queued
            while self._waiting:
                written.append(self.trail.add(self._waiting[0]))
                self._waiting.popleft()
        self.trail.close()
        lost = sum(future.exception() is not None for future in written) + len(self._waiting)
        if lost:
            log_event(log, "audit.lost", level=logging.ERROR, rows=lost, why=self.trail.health)

    def _tell(self, row: AuditRow) -> None:
        stored = None
        if row.text is not None:
            stored = partial(self._room.give_back, len(row.text.sealed))
        try:
            self.trail.tell(row, partial(self._waiting.append, row), stored)
        except Overloaded:
            self._waiting.append(row)


Decided = Callable[[str, str, str, int], None]
"""Told direction, action and category, `none` for texts in which nothing was found; and how many they are."""


def _nobody(direction: str, action: str, category: str, texts: int) -> None:
    """Where nobody counts."""


class AuditJournal:
    """Writes screenings down, in the audit log and as lines of the log. Implements the seam's Journal."""

    def __init__(self, audit: AuditLog, *, each: bool, decided: Decided = _nobody) -> None:
        """`each`: write down each text that passes, and not only how many did. `decided` is told of all."""
        self._audit = audit
        self._each = each
        self._decided = decided
        self._lines = LogJournal()

    def count(
        self, caller: Caller, direction: Direction, policy: str, at_ns: int, texts: int = 1
    ) -> bool:
        if self._each and self._audit.has_room:
            return False
        self._audit.count(caller.org, direction, policy, at_ns, texts)
        self._decided(direction, "allow", "none", texts)
        return True

    async def make_room(self, screening: Screening) -> None:
        if screening.prompt is not None and self._audit.prompts is not None:
            await self._audit.make_room(most_bytes_of(screening.prompt))

    def record(self, screening: Screening) -> None:
        """Raises SafetyUnavailable when it can't be written down, nor remembered until it can."""
        decision = screening.decision
        found = decision.finding or next(iter(screening.findings), None)
        category = "none" if found is None else found.category
        self._decided(screening.direction.value, decision.action.name.lower(), category, 1)
        is_plain = decision.action is Action.ALLOW and not screening.findings
        wants_row = self._each or screening.prompt is not None
        if is_plain and not (wants_row and self._audit.has_room):
            policy, direction = decision.policy, screening.direction.value
            self._audit.count(screening.caller.org, direction, policy, screening.at_ns)
        else:
            self._audit.record_soon(row_of(screening, self._audit.prompts))
        self._lines.record(screening)


def row_of(screening: Screening, prompts: KeptPrompts | None = None) -> AuditRow:
    caller, decision = screening.caller, screening.decision
    detail: dict[str, Any] = {
        "direction": screening.direction.value,
        "policy": decision.policy,
        "team": caller.team,
        "rule": decision.finding and decision.finding.rule,
        "findings": [_finding(found) for found in screening.findings],
        "review": screening.review_id,
    }
    kept = None if prompts is None else prompts.sealed(screening)
    if kept is not None:
        detail["prompt"] = kept[1]
    return AuditRow(
        at_ns=screening.at_ns,
        kind="screening",
        org=caller.org,
        actor=caller.key_id or caller.org,
        action=decision.action.name.lower(),
        target=screening.model,
        request_id=screening.request_id,
        detail={name: value for name, value in detail.items() if value is not None},
        text=None if kept is None else kept[0],
    )


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "category": found.category,
        "rule": found.rule,
        "tier": found.tier.value,
        "score": round(found.score, 4),
    }
