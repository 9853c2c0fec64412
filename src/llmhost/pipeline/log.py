"""Stage 10: say what happened, once: the log line, metrics, the analytics row, observers."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from llmhost.core.events import RequestEnded
from llmhost.core.output import Outcome
from llmhost.observe.logs import alone_for, log_facts, text_of
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.context import RequestContext

log = logging.getLogger("llmhost.request")

MANY_MS = 99_999.0
"""Of so many `:g` shows no tenths."""

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
    alone = alone_for(log)
    if alone is None:
        facts = {**_ids(event), **dict(zip(_TERMS, _terms(event), strict=True)), **_figures(event)}
        log_facts(log, f"request.{event.outcome}", facts, level=level)
    else:
        alone.say(level, f"request.{event.outcome}", _text(event), request=event.request_id)


def _ids(event: RequestEnded) -> dict[str, Any]:
    return {"request": event.request_id, "client_request": event.client_request_id}


_TERMS = ("kind", "model", "adapter", "org", "key", "run", "status", "code", "finish")


def _terms(event: RequestEnded) -> tuple[Any, ...]:
    """What many requests have in common."""
    caller = event.caller
    org, key = (None, None) if caller is None else (caller.org, caller.key_id)
    return (
        event.kind,
        event.model,
        event.adapter,
        org,
        key,
        event.run_id,
        event.status,
        event.code,
        event.finish_reason,
    )


def _figures(event: RequestEnded) -> dict[str, Any]:
    usage = event.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "ttft_ms": event.ttft_ms and round(event.ttft_ms, 1),
        "total_ms": round(event.total_ms, 1),
        "amount_nano": event.amount_nano,
    }


def _text(event: RequestEnded) -> str:
    """As it stands in a line for people, written at once: each answer has one."""
    usage, ttft_ms, client = event.usage, event.ttft_ms, event.client_request_id
    # Names that callers make up may be long, and new each time: what is said of answers alone is kept.
    terms = _terms(event)
    middle = _text_again(terms) if event.outcome is Outcome.ANSWERED else _text_of(terms)
    return (
        f" request={event.request_id}{'' if client is None else text_of({'client_request': client})}{middle}"
        f" prompt_tokens={usage.prompt_tokens} output_tokens={usage.completion_tokens}"
        f"{'' if ttft_ms is None else f' ttft_ms={_tenths(ttft_ms)}'} total_ms={_tenths(event.total_ms)}"
        f" amount_nano={event.amount_nano}"
    )


def _tenths(ms: float) -> str:
    """Rounded to one place, as `:g` shows it."""
    if ms >= MANY_MS:
        return f"{round(ms, 1):g}"
    text = f"{ms:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _text_of(terms: tuple[Any, ...]) -> str:
    return text_of(dict(zip(_TERMS, terms, strict=True)))


_text_again = lru_cache(1024)(_text_of)
