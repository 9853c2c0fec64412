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
from llmhost.api.frames import whole_answer
from llmhost.api.gatekeeper import Mark
from llmhost.api.limit_headers import limit_headers
from llmhost.api.safety_headers import safety_headers
from llmhost.core.errors import LlmhostError
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.processor import Exchange
from llmhost.pipeline.short_run import KnownRun, ShortRuns

log = logging.getLogger("llmhost.api")


@dataclass(slots=True)
class RepeatedRun:
    """What is remembered of it."""

    known: KnownRun
    mark: Mark
    """The address and the key, as the gatekeeper knows them."""
    client_id: str | None
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
        try:
            exchange = runs.run(self.known, request_id)
        except Exception as error:  # noqa: BLE001 - boundary: as around a route
            told = self._refused(error, request_id, began_s)
            count(len(told[2]))
            return told
        if exchange is None:
            return None

        def end() -> None:
            told = self._answered(exchange, began_s)
            count(len(told[2]))
            tell(told)

        exchange.on_end(end)
        return exchange.leave

    def _answered(self, exchange: Exchange, began_s: float) -> Told:
        context = exchange.context
        request = context.request
        try:
            deltas = exchange.whole()
            created_s = context.arrived_utc_ns // 1_000_000_000
            body = whole_answer(request, created_s, deltas, context.usage)
            headers = self._headers(context, request.request_id, began_s)
            headers.update(bill_headers(context))
        except Exception as error:  # noqa: BLE001 - boundary: as around a route
            return self._refused(error, request.request_id, began_s, context)
        finally:
            exchange.leave()
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
        if context is not None:
            headers.update(limit_headers(context.allowances))
            headers.update(safety_headers(context))
            headers.update(cache_headers(context.cache))
        return headers


def names(request_id: str, client_id: str | None, began_s: float) -> dict[str, str]:
    """The headers that each answer has."""
    took_ms = int((time.perf_counter() - began_s) * 1000)
    headers = {"x-request-id": request_id, "openai-processing-ms": str(took_ms)}
    if client_id is not None:
        headers["x-client-request-id"] = client_id
    return headers
