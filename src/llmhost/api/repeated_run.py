"""One request that comes again word for word and runs, from its client's side: begun, and told of when it has ended."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from llmhost.api.bill_facts import bill_headers
from llmhost.api.cache_headers import cache_headers
from llmhost.api.dialect import OPENAI
from llmhost.api.door import Leave, Told
from llmhost.api.errors import error_headers, forget_frames, known_error
from llmhost.api.frames import plain_answer
from llmhost.api.gatekeeper import Mark
from llmhost.api.limit_headers import limit_headers
from llmhost.api.safety_headers import safety_headers
from llmhost.core.errors import LlmhostError
from llmhost.core.request import Kind
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.generation import Generation
from llmhost.pipeline.short_run import KnownRun, ShortRuns

log = logging.getLogger("llmhost.api")


@dataclass(slots=True)
class RepeatedRun:
    """What is remembered of it."""

    known: KnownRun
    mark: Mark
    """The address and the key, as the gatekeeper knows them."""
    client_id: str | None
    head: bytes
    """Of the answer's body, up to the digits of its id; then up to its time; and up to its choices."""
    middle: bytes
    envelope: bytes
    size_bytes: int

    def begin(
        self,
        runs: ShortRuns,
        request_id: str,
        tell: Callable[[Told], None],
        count: Callable[[int], None],
    ) -> Leave | Told | None:
        """What ends it, while `tell` and `count`, which gets the bytes of its body, wait for its end. Or why it is
        refused; or None where it has to take the long way."""
        began_s = time.perf_counter()

        def end(generation: Generation) -> None:
            told = self._answered(generation, began_s)
            count(len(told[2]))
            tell(told)

        try:
            generation = runs.run(self.known, request_id, end)
        except Exception as error:  # noqa: BLE001 - boundary: as around a route
            told = self._refused(error, request_id, began_s)
            count(len(told[2]))
            return told
        return None if generation is None else generation.leave

    def _answered(self, generation: Generation, began_s: float) -> Told:
        context = generation.context
        request_id = context.request.request_id
        try:
            body = b"%b%b%b%d%b%b" % (
                self.head,
                request_id.removeprefix("req_").encode(),
                self.middle,
                context.arrived_utc_ns // 1_000_000_000,
                self.envelope,
                plain_answer(
                    context.request.kind is Kind.CHAT, generation.stream.whole(), context.usage
                ),
            )
            headers = self._headers(context, request_id, began_s)
            headers.update(bill_headers(context))
        except Exception as error:  # noqa: BLE001 - boundary: as around a route
            return self._refused(error, request_id, began_s, context)
        return 200, headers, body

    def _refused(
        self,
        error: Exception,
        request_id: str,
        began_s: float,
        context: RequestContext | None = None,
    ) -> Told:
        known = known_error(error)
        if not isinstance(error, LlmhostError):
            log.error("api.failed request=%s", request_id, exc_info=error)
        headers = self._headers(context, request_id, began_s)
        headers.update(error_headers(known))
        body = OPENAI.error_body(known, request_id)
        forget_frames(error)
        return known.status, headers, body

    def _headers(
        self, context: RequestContext | None, request_id: str, began_s: float
    ) -> dict[str, str]:
        headers = names(request_id, self.client_id, began_s)
        if context is None:
            return headers
        headers |= limit_headers(context.allowances)
        if context.screening is not None:
            headers |= safety_headers(context)
        return headers if context.cache is None else headers | cache_headers(context.cache)


def names(request_id: str, client_id: str | None, began_s: float) -> dict[str, str]:
    """The headers that each answer has."""
    took_ms = int((time.perf_counter() - began_s) * 1000)
    headers = {"x-request-id": request_id, "openai-processing-ms": str(took_ms)}
    if client_id is not None:
        headers["x-client-request-id"] = client_id
    return headers
