"""Stage 10: say what happened, once: the log line, metrics, the analytics row, observers."""

import logging
from collections.abc import Callable

from llmhost.core.events import RequestEnded
from llmhost.core.output import Outcome
from llmhost.observe.logs import log_event
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.context import RequestContext

log = logging.getLogger("llmhost.request")

Observer = Callable[[RequestEnded], None]


class Log:
    """Tells everybody who listens. Nothing here may fail a request."""

    def __init__(self, metrics: Metrics, observers: tuple[Observer, ...]) -> None:
        self._metrics = metrics
        self._observers = observers

    def __call__(self, context: RequestContext) -> None:
        event = _event(context)
        self._metrics.request_ended(event)
        _write(event)
        for observer in self._observers:
            observer(event)


def _ms(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None else (end_ns - start_ns) / 1e6


def _event(context: RequestContext) -> RequestEnded:
    request, error = context.request, context.error
    assert context.outcome is not None and context.ended_ns is not None
    return RequestEnded(
        request_id=request.request_id,
        client_request_id=request.client_request_id,
        utc_ns=context.arrived_utc_ns,
        kind=request.kind.value,
        model=context.model,
        caller=context.caller,
        outcome=context.outcome,
        status=200 if error is None else error.status,
        code=None if error is None else error.code or type(error).__name__,
        finish_reason=context.finish_reason,
        usage=context.usage,
        amount_nano=context.amount_nano,
        queue_ms=_ms(context.arrived_ns, context.submitted_ns) or 0.0,
        ttft_ms=_ms(context.arrived_ns, context.first_token_ns),
        total_ms=_ms(context.arrived_ns, context.ended_ns) or 0.0,
        stream=request.stream,
    )


def _write(event: RequestEnded) -> None:
    log_event(
        log,
        f"request.{event.outcome.value}",
        level=logging.WARNING if event.outcome is Outcome.FAILED else logging.INFO,
        request=event.request_id,
        client_request=event.client_request_id,
        kind=event.kind,
        model=event.model,
        org=event.caller.org if event.caller else None,
        key=event.caller.key_id if event.caller else None,
        status=event.status,
        code=event.code,
        finish=event.finish_reason,
        prompt_tokens=event.usage.prompt_tokens,
        output_tokens=event.usage.completion_tokens,
        ttft_ms=event.ttft_ms and round(event.ttft_ms, 1),
        total_ms=round(event.total_ms, 1),
        amount_nano=event.amount_nano,
    )
