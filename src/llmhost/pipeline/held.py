"""Calls that wait for a reviewer: kept encrypted before their callers hear of it, run once when they are approved.

As with the lines of batches the answer is on disk before the ledger is given its entry, which lies beside it until
then. So whoever is killed in between leaves nothing that is answered twice, or charged twice.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from llmhost.core.caller import Caller
from llmhost.core.errors import BadRequest, ContentRefused, HeldForReview, LlmhostError
from llmhost.core.ports import Clock
from llmhost.cost.entries import Entry
from llmhost.observe.logs import log_event
from llmhost.pipeline.authenticate import RUN_HEADER
from llmhost.pipeline.batches.attempt import (
    INLINE_BYTES,
    INTERNAL,
    LineRoute,
    decode_entry,
    encode_entry,
    pause_s,
)
from llmhost.pipeline.deferral import Deferral
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.processor import Processor
from llmhost.safety.queue import ANSWERED, ID_PREFIX, TIME, Deed, ReviewQueue
from llmhost.safety.review import ReviewState
from llmhost.safety.verdict import ReviewMode
from llmhost.storage.held_calls import HeldCalls
from llmhost.storage.review_rows import Event

log = logging.getLogger("llmhost.reviews")

CALL, ANSWER = "call", "answer"
LOST = LlmhostError(
    "This call was held by a server whose secret is gone, as it is in a restored backup. Send it again."
)
CLOSING_S = 5.0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, as it was asked."""

    path: str
    body: bytes
    caller: Caller
    run_id: str | None = None
    wish: dict[str, str] = {}
    """Headers that say what it wants of the cache."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a held call was answered, once it was."""

    status: int
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Call).decode


class Holds:
    """One node's. Owns the tasks that run what was approved."""

    def __init__(
        self,
        queue: ReviewQueue,
        calls: HeldCalls,
        processor: Processor,
        routes: Mapping[str, LineRoute],
        clock: Clock,
        *,
        error_body: Callable[[str, LlmhostError], bytes],
        caller_of: Callable[[Caller], Caller],
        book_late: Callable[[Entry], Awaitable[None]],
        known: Callable[[Sequence[str]], set[str]],
    ) -> None:
        """`error_body` is told the path that was asked. `caller_of` says who asked, as that is now, and raises
        Unauthenticated when the key has ended. `known` says which requests the ledger has."""
        self.queue = queue
        self._calls = calls
        self._processor = processor
        self._routes = routes
        self._clock = clock
        self._error_body = error_body
        self._caller_of = caller_of
        self._book_late = book_late
        self._known = known
        self._live: dict[str, asyncio.Task[None]] = {}
        queue.listen(self._hear)

    async def start(self) -> None:
        """Book what is not, and run what was approved while nobody ran it."""
        rows = await self._calls.unbooked()
        entries = [decode_entry(row.entry) for row in rows]
        known = await asyncio.to_thread(self._known, [entry.request_id for entry in entries])
        for row, entry in zip(rows, entries, strict=True):
            if entry.request_id not in known:
                await self._book_late(entry)
            await self._calls.booked(row.review)
        for review_id in await self._calls.runnable():
            self._ensure(review_id)

    async def close(self) -> None:
        """What runs is run anew by the next process, unless it is kept in time."""
        if self._live:
            await asyncio.wait(self._live.values(), timeout=CLOSING_S)
        tasks = list(self._live.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ held

    async def keep(self, review_id: str, call: Call) -> None:
        """Have a call wait for its review; done when it is on disk.

        Raises ContentRefused for a call that can't wait, because its answer would be one that nobody can fetch.
        """
        route = self._routes.get(call.path)
        why = f"calls of {call.path}" if route is None else _why_not(route, call)
        if why is not None:
            raise ContentRefused(
                f"A reviewer decides on this first, as {review_id}. {why} can't be held: send it again once it is"
                " approved.",
                review_id=review_id,
            )
        await self._hold(review_id, call)

    async def keep_answer(self, review_id: str, body: bytes) -> None:
        """Have an answer wait that was made, and is paid for."""
        sealed = self.queue.seal.close(review_id, ANSWER, body)
        await self._calls.hold(review_id, self._clock.utc_ns(), None, (200, sealed))

    async def answer(self, review_id: str) -> Answer | None:
        """Of an approved review: None where nothing was held, or its answer is not there yet."""
        held = await self._calls.held(review_id)
        if held is None or held.answer is None:
            return None
        body = self.queue.seal.open(review_id, ANSWER, held.answer)
        return None if body is None else Answer(held.status or 200, body)

    async def is_coming(self, review_id: str) -> bool:
        """Whether an approved review's call has been held and not been answered; it runs, if it did not."""
        held = await self._calls.held(review_id)
        if held is None or held.call is None:
            return False
        self._ensure(review_id)
        return True

    async def _hold(self, review_id: str, call: Call) -> None:
        sealed = self.queue.seal.close(review_id, CALL, _encode(call))
        await self._calls.hold(review_id, self._clock.utc_ns(), sealed, None)
        review = await self.queue.of_caller(review_id, call.caller)
        if review.state is ReviewState.APPROVED:  # before it was held
            self._ensure(review_id)

    def _hear(self, deed: Deed) -> None:
        if deed.event == ReviewState.APPROVED and deed.review.mode is ReviewMode.HOLD:
            self._ensure(deed.review.id)

    # ------------------------------------------------------------ running

    def _ensure(self, review_id: str) -> None:
        if review_id not in self._live:
            task = asyncio.create_task(self._run(review_id))
            self._live[review_id] = task
            task.add_done_callback(lambda done: self._ended(review_id, done))

    def _ended(self, review_id: str, task: "asyncio.Task[None]") -> None:
        del self._live[review_id]
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("review.not_run review=%s", review_id, exc_info=failure)

    async def _run(self, review_id: str) -> None:
        """Ask what is held, until it has an answer."""
        held = await self._calls.held(review_id)
        if held is None or held.call is None:
            return
        raw = self.queue.seal.open(review_id, CALL, held.call)
        if raw is None:
            await self._keep(review_id, Answer(500, self._error_body("", LOST)), Deferral())
            return
        call, tries = _decode(raw), 0
        while True:
            tries += 1
            deferral = Deferral()
            try:
                answer, error = await self._ask(review_id, call, deferral)
                pause = None if error is None else pause_s(error, tries)
                if pause is None:
                    await self._keep(review_id, answer, deferral)
                    return
            finally:
                deferral.drop()
            await asyncio.sleep(pause)

    async def _ask(
        self, review_id: str, call: Call, deferral: Deferral
    ) -> tuple[Answer, LlmhostError | None]:
        try:
            return await self._asked(review_id, call, deferral), None
        except HeldForReview as again:
            await self._hold(again.review_id, call)
            return Answer(again.status, self._error_body(call.path, again)), None
        except LlmhostError as error:
            return Answer(error.status, self._error_body(call.path, error)), error
        except Exception:  # boundary: one call's bug is that call's end
            log.exception("review.call_bug review=%s", review_id)
            if deferral.has_entry:
                deferral.waive()
            return Answer(500, self._error_body(call.path, INTERNAL)), None

    async def _asked(self, review_id: str, call: Call, deferral: Deferral) -> Answer:
        route, caller = self._routes[call.path], self._caller_of(call.caller)
        given = (call.body, request_id_of(review_id), None)
        is_large = len(call.body) > INLINE_BYTES
        read = await asyncio.to_thread(route.parse, *given) if is_large else route.parse(*given)
        request, beside = read
        if route.prepare is not None:
            request, beside = await route.prepare(request, beside, caller)
        request = replace(request, stream=False, can_be_held=True)
        headers = dict(call.wish)
        if call.run_id is not None:
            headers[RUN_HEADER] = call.run_id
        exchange = await self._processor.open(
            request, None, headers, caller=caller, deferral=deferral
        )
        try:
            body = await route.answer(exchange, beside)
            return await self._answered(call.path, exchange, body)
        finally:
            exchange.leave()

    async def _answered(self, path: str, exchange: Exchange, body: bytes) -> Answer:
        """The answer; or, where that is for a reviewer now, what to ask for next."""
        held_by = exchange.context.held_by
        if held_by is None:
            return Answer(200, body)
        await self.keep_answer(held_by, body)
        again = HeldForReview(held_by)
        return Answer(again.status, self._error_body(path, again))

    async def _keep(self, review_id: str, answer: Answer, deferral: Deferral) -> None:
        sealed = self.queue.seal.close(review_id, ANSWER, answer.body)
        entry = encode_entry(deferral.entry) if deferral.has_entry else None
        event = Event(at_ns=self._clock.utc_ns(), event=ANSWERED, who=TIME)
        await self._calls.keep_answer(review_id, answer.status, sealed, entry, event)
        if entry is not None:
            # In one turn with nothing in between: whoever is cancelled now has booked it, or not begun to.
            await asyncio.shield(deferral.book())
            await self._calls.booked(review_id)
        await self.queue.tell_answered(review_id, event)
        log_event(log, "review.answered", review=review_id, status=answer.status)


def request_id_of(review_id: str) -> str:
    """Of the call that was held, however often it is tried."""
    return f"req_{review_id.removeprefix(ID_PREFIX)}"


def _why_not(route: LineRoute, call: Call) -> str | None:
    try:
        route.parse(call.body, "req_", None)
    except BadRequest as error:
        return f"A call with {error.param!r}"
    return None
