"""Stage 10: say what happened, once: the log line, metrics, the analytics row, observers."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from llmhost.core.events import RequestEnded
from llmhost.core.output import Outcome
from llmhost.observe.logs import alone_for, log_facts, request_id, text_of
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.context import RequestContext

log = logging.getLogger("llmhost.request")

MANY_MS = 99_999.0
"""Of so many `:g` shows no tenths."""

Observer = Callable[[RequestEnded], None]
One = TypeVar("One")


class Log:
    """Tells everybody who listens. Nothing here may fail a request."""

    def __init__(self, metrics: Metrics, observers: tuple[Observer, ...]) -> None:
        self._metrics = metrics
        self._observers = observers

    def __call__(self, context: RequestContext) -> None:
        event = context.event()
        self._count(context)
        _write(event)
        for observer in self._observers:
            observer(event)

    def all(self, contexts: Sequence[RequestContext]) -> None:
        """As calling it for each, one listener after the other. What fails for one is said, and is no other's loss."""
        tell_of_each(self._count, contexts, _id_of)
        events = [context.event() for context in contexts]
        _write_all(events)
        for observer in self._observers:
            tell_of_each(observer, events, _name_of)

    def _count(self, context: RequestContext) -> None:
        self._metrics.request_ended(context.event(), is_resolved=context.deployment is not None)


def tell_of_each(
    tell: Callable[[One], None], ended: Iterable[One], name: Callable[[One], str]
) -> None:
    """Tell of each request; `name` says which one it is."""
    for one in ended:
        try:
            tell(one)
        except Exception:  # boundary: nothing that is told may cost another request its telling
            request_id.set(name(one))
            log.exception("request.not_told")


def _id_of(context: RequestContext) -> str:
    return context.request.request_id


def _name_of(event: RequestEnded) -> str:
    return event.request_id


def _write_all(events: Sequence[RequestEnded]) -> None:
    alone = alone_for(log) if log.isEnabledFor(logging.INFO) else None
    if alone is None:
        tell_of_each(_write, events, _name_of)
        return
    lines: list[str] = []

    def take(event: RequestEnded) -> None:
        if event.outcome is Outcome.FAILED:
            alone.say_all(logging.INFO, lines)  # in the order in which they ended
            lines.clear()
            _write(event)
        else:
            lines.append(f"request.{event.outcome}{_text(event)}")

    tell_of_each(take, events, _name_of)
    alone.say_all(logging.INFO, lines)


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
        event.finish_reason and str(event.finish_reason),  # of another type its hash is a call
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
