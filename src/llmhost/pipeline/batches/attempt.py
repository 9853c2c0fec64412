"""One line of a batch, run to its end: asked, kept, booked, and only then counted.

The answer is on disk, with its entry beside it, before the ledger is given the entry. So a process that is killed has
either left nothing of a line, and the line is run again under the same request id; or it has left its answer, and the
entry is booked by the next one, unless the ledger has it. Nothing is done twice that anybody sees or pays for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from llmhost.core.caller import Caller
from llmhost.core.errors import (
    BadRequest,
    EngineFailed,
    LlmhostError,
    ModelUnavailable,
    Overloaded,
    PluginFailed,
    RateLimited,
)
from llmhost.core.output import Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.cost.entries import Entry
from llmhost.pipeline.authenticate import RUN_HEADER
from llmhost.pipeline.batches.lines import Line, answered, request_id_of
from llmhost.pipeline.batches.record import Batch
from llmhost.pipeline.deferral import Deferral
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.processor import Processor
from llmhost.storage.batches import Batches, LineResult
from llmhost.storage.connect import StorageFailed

log = logging.getLogger("llmhost.batches")

INLINE_BYTES = 64 * 1024
"""Larger bodies are parsed in a thread: nobody waits for a line, and others do for the loop."""
MOST_TRIES = 3
"""Of what may heal and need not."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

INTERNAL = LlmhostError("The server failed while it ran this line. Its log has the reason.")

encode_entry = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(Entry).decode


@dataclass(frozen=True, slots=True)
class LineRoute:
    """What a batch knows of one route. `parse` is told body and request id, `prepare` joins that with what is kept
    here, and `answer` is told what those gave beside."""

    kind: Kind
    parse: Callable[[bytes, str, str | None], tuple[GenerationRequest, Any]]
    answer: Callable[[Exchange, Any], Awaitable[bytes]]
    prepare: (
        Callable[[GenerationRequest, Any, Caller], Awaitable[tuple[GenerationRequest, Any]]] | None
    ) = None
    error_body: Callable[[LlmhostError, str], bytes] | None = None
    """How it tells an error of the request with this id; None where it does as OpenAI does."""


class Run(Protocol):
    """The batch that a line is of, while it runs."""

    @property
    def batch(self) -> Batch: ...

    async def pause(self, seconds: float) -> bool:
        """False, and at once, when the batch does not go on."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a line's request ended."""

    status: int
    body: bytes
    usage: Usage = field(default_factory=Usage)
    error: LlmhostError | None = None


def pause_s(error: LlmhostError, tries: int) -> float | None:
    """How long to wait before a line is tried again that failed so often; None where that is its end."""
    is_ours = isinstance(error, (Overloaded, StorageFailed))
    may_heal = isinstance(error, (RateLimited, ModelUnavailable, PluginFailed, EngineFailed))
    if not is_ours and not (may_heal and tries < MOST_TRIES):
        return None
    pause: float = min(FIRST_PAUSE_S * 2 ** min(tries - 1, 10), LONGEST_PAUSE_S)
    return max(pause, min(error.retry_after_s or 0.0, LONGEST_PAUSE_S))


class LineRunner:
    """Runs lines as their caller. Owns nothing."""

    def __init__(
        self,
        processor: Processor,
        store: Batches,
        routes: Mapping[str, LineRoute],
        *,
        error_body: Callable[[LlmhostError], bytes],
        priority: int,
        caller_of: Callable[[Caller], Caller],
    ) -> None:
        """`caller_of` says who made a batch, as that is now, and raises Unauthenticated when the key has ended."""
        self._processor = processor
        self._store = store
        self._routes = routes
        self._error_body = error_body
        self._priority = priority
        self.caller_of = caller_of

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self._routes)

    async def run(self, run: Run, line: Line, caller: Caller) -> LineResult | None:
        """Its result, kept and booked. None where the batch stopped before it had one, or its booking failed: then
        whoever finishes the batch finds it."""
        tries = 0
        while True:
            tries += 1
            deferral = Deferral()
            try:
                ended = await self._ask(run.batch, line, caller, deferral)
                pause = None if ended.error is None else pause_s(ended.error, tries)
                if pause is None:
                    return await self._keep(run, line, ended, deferral)
            finally:
                deferral.drop()
            if not await run.pause(pause):
                return None

    async def _ask(self, batch: Batch, line: Line, caller: Caller, deferral: Deferral) -> Ended:
        route = self._routes[batch.endpoint]
        request, beside, fault = await self._parsed(route, batch, line, caller)
        headers = {RUN_HEADER: batch.run_id}
        try:
            exchange = await self._processor.open(
                request, None, headers, caller=caller, fault=fault, deferral=deferral
            )
            try:
                body = await route.answer(exchange, beside)
                return Ended(200, body, exchange.context.usage)
            finally:
                exchange.leave()
        except LlmhostError as error:
            return Ended(error.status, self._told(error, route, request), error=error)
        except Exception:  # boundary: one line's bug is that line's end
            log.exception("batch.line_bug batch=%s line=%d", batch.id, line.number)
            deferral.waive()
            return Ended(500, self._told(INTERNAL, route, request), error=INTERNAL)

    def _told(self, error: LlmhostError, route: LineRoute, request: GenerationRequest) -> bytes:
        if route.error_body is None:
            return self._error_body(error)
        return route.error_body(error, request.request_id)

    async def _parsed(
        self, route: LineRoute, batch: Batch, line: Line, caller: Caller
    ) -> tuple[GenerationRequest, Any, LlmhostError | None]:
        """The request; or what is wrong with it, and a blank one to meter that by."""
        request_id = request_id_of(batch.id, line.number)
        try:
            given = (line.body, request_id, None)
            is_large = len(line.body) > INLINE_BYTES
            read = await asyncio.to_thread(route.parse, *given) if is_large else route.parse(*given)
            request, beside = read
            fault: LlmhostError | None = None
            if request.stream:
                fault = BadRequest("The line of a batch can't be streamed.", param="stream")
            elif route.prepare is not None:
                request, beside = await route.prepare(request, beside, caller)
        except Exception as error:  # boundary: as below
            if not isinstance(error, LlmhostError):
                log.exception("batch.line_bug batch=%s line=%d", batch.id, line.number)
            request = GenerationRequest(request_id=request_id, kind=route.kind, model="-")
            beside, fault = None, error if isinstance(error, LlmhostError) else INTERNAL
        return replace(request, batch=batch.id, priority=self._priority), beside, fault

    async def _keep(
        self, run: Run, line: Line, ended: Ended, deferral: Deferral
    ) -> LineResult | None:
        batch, usage = run.batch, ended.usage
        result = LineResult(
            batch=batch.id,
            line=line.number,
            is_error=ended.error is not None,
            input_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            text=answered(batch.id, line, ended.status, ended.body),
            entry=encode_entry(deferral.entry),
        )
        is_told = False
        while True:
            try:
                await self._store.keep(result)
                break
            except LlmhostError as error:
                if not is_told:  # a disk may be full for hours, and the log may be on it
                    is_told = True
                    log.error(
                        "batch.line_unkept batch=%s line=%d error=%s", batch.id, line.number, error
                    )
                if not await run.pause(pause_s(error, 1) or FIRST_PAUSE_S):
                    return None
        return result if await self._book(batch, line, deferral) else None

    async def _book(self, batch: Batch, line: Line, deferral: Deferral) -> bool:
        try:
            # In one turn with nothing in between: whoever is cancelled now has booked it, or not begun to.
            await asyncio.shield(deferral.book())
            await self._store.booked(batch.id, line.number)
        except LlmhostError as error:
            log.error("batch.line_unbooked batch=%s line=%d error=%s", batch.id, line.number, error)
            return False
        return True
