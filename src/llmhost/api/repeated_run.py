"""One request that comes again word for word and runs, from its client's side: what its answer is made of."""

import logging
import time
from dataclasses import dataclass, field, replace

from llmhost.api.bill_facts import bill_lines
from llmhost.api.cache_headers import cache_headers
from llmhost.api.dialect import OPENAI
from llmhost.api.door import Lines, Told
from llmhost.api.errors import error_headers, forget_frames, known_error
from llmhost.api.frames import PLAIN_CHAT, PLAIN_TEXT, plain_facts, whole_answer
from llmhost.api.gatekeeper import Mark
from llmhost.api.limit_headers import limit_lines
from llmhost.api.safety_headers import safety_headers
from llmhost.core.errors import LlmhostError
from llmhost.core.output import Delta
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.generation import Generation
from llmhost.pipeline.short_run import KnownRun

log = logging.getLogger("llmhost.api")

CLIENT_ID = "x-client-request-id"


@dataclass(slots=True)
class RepeatedRun:
    """What is remembered of it."""

    known: KnownRun
    mark: Mark
    """The address and the key, as the gatekeeper knows them."""
    client_id: str | None
    body: bytes
    """Of an answer: what is put in are the digits of its id, its time, and `plain_facts`."""
    size_bytes: int
    client: str = field(init=False)
    """The line that answers have of their client's own id."""

    def __post_init__(self) -> None:
        self.client = client_line(self.client_id)

    def of(self, known: KnownRun) -> "RepeatedRun":
        """The same of other requests."""
        return replace(self, known=known)

    def told(self, names: str, request_id: str, ran: Generation | Exception) -> Told:
        """The answer of what ran and has ended, or why it was refused; `names` are the lines that each answer has."""
        try:
            if isinstance(ran, Exception):
                return self._refused(ran, names, request_id)
            return self._answered(ran, names)
        except Exception as error:  # noqa: BLE001 - boundary: others are told together with this one
            return self._refused(error, names, request_id)

    def _answered(self, generation: Generation, names: str) -> Told:
        context = generation.context
        try:
            body = self._body(context, generation.stream.whole())
            text = self._lines(context, names) + bill_lines(context)
        except Exception as error:  # noqa: BLE001 - boundary: as around a route
            return self._refused(error, names, context.request.request_id, context)
        return 200, Lines(text), body

    def _body(self, context: RequestContext, deltas: list[Delta]) -> bytes:
        created_s = context.arrived_utc_ns // 1_000_000_000
        if context.reading is not None:
            facts = context.request, created_s, deltas, context.usage
            return whole_answer(*facts, reading=context.reading)
        return self.body % (
            context.request.request_id.removeprefix("req_").encode(),
            created_s,
            *plain_facts(deltas, context.usage),
        )

    def _refused(
        self,
        error: Exception,
        names: str,
        request_id: str,
        context: RequestContext | None = None,
    ) -> Told:
        known = known_error(error)
        if not isinstance(error, LlmhostError):
            log.error("api.failed request=%s", request_id, exc_info=error)
        headers = dict(Lines(self._lines(context, names)).items())
        headers.update(error_headers(known))
        body = OPENAI.error_body(known, request_id)
        forget_frames(error)
        return known.status, Lines.of(headers), body

    def _lines(self, context: RequestContext | None, names: str) -> str:
        if context is None:
            return names
        text = names + limit_lines(context.allowances)
        if context.screening is not None:
            text += Lines.of(safety_headers(context)).text
        if context.cache is not None:
            text += Lines.of(cache_headers(context.cache)).text
        return text


def body_of(is_chat: bool, head: bytes, middle: bytes, envelope: bytes) -> bytes:
    """Of one run, for those that come again: `head` is the body up to the digits of its id, `middle` up to its time,
    and `envelope` up to its choices."""
    head, middle, envelope = (part.replace(b"%", b"%%") for part in (head, middle, envelope))
    return b"%b%%b%b%%d%b" % (head, middle, envelope) + (PLAIN_CHAT if is_chat else PLAIN_TEXT)


def client_line(client_id: str | None) -> str:
    return "" if client_id is None else f"{CLIENT_ID}: {client_id}\r\n"


def names(request_id: str, began_s: float) -> str:
    """The headers that each answer has, but for its client's own id."""
    took_ms = int((time.perf_counter() - began_s) * 1000)
    return f"x-request-id: {request_id}\r\nopenai-processing-ms: {took_ms}\r\n"
