"""Stage 10: say what happened, once: the log line, metrics, the analytics row, observers."""

import logging
from collections.abc import Callable

from llmhost.core.events import RequestEnded
from llmhost.core.output import Outcome
from llmhost.observe.logs import log_facts
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
        event = context.event()
        self._metrics.request_ended(event, is_resolved=context.deployment is not None)
        _write(event)
        for observer in self._observers:
            observer(event)


def _write(event: RequestEnded) -> None:
    level = logging.WARNING if event.outcome is Outcome.FAILED else logging.INFO
    if not log.isEnabledFor(level):
        return
    caller, usage = event.caller, event.usage
    facts = {
        "request": event.request_id,
        "client_request": event.client_request_id,
        "kind": event.kind,
        "model": event.model,
        "adapter": event.adapter,
        "org": caller.org if caller else None,
        "key": caller.key_id if caller else None,
        "run": event.run_id,
        "status": event.status,
        "code": event.code,
        "finish": event.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "ttft_ms": event.ttft_ms and round(event.ttft_ms, 1),
        "total_ms": round(event.total_ms, 1),
        "amount_nano": event.amount_nano,
    }
    log_facts(log, f"request.{event.outcome}", facts, level=level)
