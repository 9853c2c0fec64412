"""One call of a route, from the connection's side: its ids and headers, and how it is told what went wrong."""

import asyncio
import logging
import re
import time
from copy import copy
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from litestar.types import HTTPScope, Receive, Send

from llmhost.api.cache_headers import cache_headers
from llmhost.api.dialect import dialect_of
from llmhost.api.door import Wire, bearer, client_id, header, line_of, send_last, send_whole
from llmhost.api.errors import error_headers, known_error
from llmhost.api.limit_headers import limit_headers
from llmhost.api.safety_headers import safety_headers
from llmhost.core.errors import InvalidValue, LlmhostError, RequestTimeout
from llmhost.core.ids import new_request_id
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.exchange import Exchange
from llmhost.tenants.refusals import Allowances, LimitReached

log = logging.getLogger("llmhost.api")

_NUMBER = re.compile(r"[0-9]{1,7}")


PRIORITY = "x-vllm-priority"
MOST_PRIORITY = 1_000_000


class Visit:
    """One call of a route, from the connection's side."""

    def __init__(self, scope: HTTPScope) -> None:
        self.scope = scope
        self.started = time.perf_counter()
        self.request_id = new_request_id()
        self.client_id = client_id(scope)
        self.dialect = dialect_of(scope)
        self.secret = bearer(scope)
        self.line = line_of(scope)
        self.wire: Wire | None = self.line
        self.wants_cost = header(scope, b"x-llmhost-cost") == "breakdown"
        self.priority = header(scope, PRIORITY.encode())
        self.org: str | None = None
        """Who asks, once that is known."""
        self.raw = b""
        """Its body, where it may have to wait for a reviewer."""
        self.exchange: Exchange | None = None
        self.opening: asyncio.Task[Any] | None = None
        """The visit's own task, while it waits to be let in."""
        self.is_gone = False
        self.has_started = False
        self.has_failed = False
        self.is_recorded = False
        """Its answer goes to a recording, which every reader plays with silences and heartbeats of its own."""

    def blank(self, kind: Kind) -> GenerationRequest:
        return GenerationRequest(
            request_id=self.request_id, kind=kind, model="-", client_request_id=self.client_id
        )

    def wished(self, request: GenerationRequest) -> GenerationRequest:
        """The request, with what its headers ask for. What the body says of its priority goes before.

        Raises InvalidValue.
        """
        if self.wants_cost:
            request = replace(request, include_cost=True)
        if self.priority is None:
            return request
        if not _NUMBER.fullmatch(self.priority) or int(self.priority) > MOST_PRIORITY:
            raise InvalidValue(
                f"The header {PRIORITY} is a whole number from 0 to {MOST_PRIORITY}.",
                param=PRIORITY,
            )
        if request.has_priority:
            return request
        return replace(request, priority=request.priority + int(self.priority))

    def recorded_by(self, wire: Wire) -> "Visit":
        """The same call, as it is made on nobody's connection."""
        twin = copy(self)
        twin.wire, twin.line, twin.is_recorded = wire, None, True
        return twin

    def leave(self) -> None:
        """The client is gone: nothing more is done for it. Idempotent."""
        self.is_gone = True
        if self.opening is not None:
            self.opening.cancel()
            self.opening = None
        self.end()

    def end(self) -> None:
        """The client has got everything, or is gone. Idempotent."""
        if self.exchange is not None:
            self.exchange.leave()

    def headers(self) -> dict[str, str]:
        elapsed_ms = int((time.perf_counter() - self.started) * 1000)
        headers = {"x-request-id": self.request_id, "openai-processing-ms": str(elapsed_ms)}
        if self.dialect.id_header is not None:
            headers[self.dialect.id_header] = self.request_id
        if self.client_id is not None:
            headers["x-client-request-id"] = self.client_id
        if self.dialect.org_header is not None and self.org is not None:
            headers[self.dialect.org_header] = quote(self.org)
        if self.exchange is not None:
            context = self.exchange.context
            headers.update(self.limit_headers(context.allowances))
            headers.update(safety_headers(context))
            headers.update(cache_headers(context.cache))
        return headers

    def limit_headers(self, allowances: Allowances) -> dict[str, str]:
        headers = limit_headers(allowances)
        if self.dialect.limits is not None:
            headers.update(self.dialect.limits(allowances))
        return headers

    async def fail(self, send: Send, error: Exception) -> None:
        """Say what went wrong: as a body, or, once a stream has begun, as its last event."""
        known = known_error(error)
        self.has_failed = True
        if not isinstance(error, LlmhostError):
            log.error("api.failed request=%s", self.request_id, exc_info=error)
        if self.has_started:
            event = self.dialect.error_event(known, self.request_id)
            await send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            headers = {**self.headers(), **error_headers(known)}
            if isinstance(known, RequestTimeout):
                headers["connection"] = "close"  # the rest of its body may never come
            if isinstance(known, LimitReached):
                headers.update(self.limit_headers(known.allowances))
            body = self.dialect.error_body(known, self.request_id)
            await send_whole(send, known.status, body, headers)

    async def dismiss(
        self, send: Send, receive: Receive, error: LlmhostError, *, is_small: bool
    ) -> None:
        """Refuse a request whose body was not read. A large one costs the client its connection."""
        if is_small:
            await self.fail(send, error)
            return
        headers = {**self.headers(), **error_headers(error)}
        body = self.dialect.error_body(error, self.request_id)
        await send_last(send, receive, error.status, body, headers)
