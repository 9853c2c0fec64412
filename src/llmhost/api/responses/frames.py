"""One response, from what its engine says to what its caller reads: events as it comes, and the object at its end."""

from collections.abc import Sequence
from typing import Any

from llmhost.api.bill_facts import bill_facts
from llmhost.api.calls import calls_of
from llmhost.api.openai import shown_cost
from llmhost.api.report import Report, report_of
from llmhost.api.responses.events import DONE, Events
from llmhost.api.responses.items import Items, Seal
from llmhost.api.responses.resource import (
    CANCELLED,
    INCOMPLETE,
    QUEUED,
    Resource,
    beginning,
    ended,
    failed,
    usage_object,
)
from llmhost.api.responses.wire import Asked
from llmhost.core.errors import DeadlineExceeded, LlmhostError
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.pipeline.context import RequestContext


class ResponseFrames:
    """Implements Framing. `events` may be silent, for an answer that is told at once."""

    def __init__(
        self, asked: Asked, context: RequestContext, events: Events, seal: Seal | None = None
    ) -> None:
        self._context = context
        self._events = events
        self._report = _report(context)
        request = context.request
        self.begun = beginning(asked, context.arrived_utc_ns // 10**9)
        self.resource: Resource = self.begun
        """What it is by now."""
        self._items = Items(
            request.request_id,
            calls_of(request, context.reading),
            events,
            seal,
            request.custom_tools,
            asked.spaces,
        )
        self._says = not asked.request.warms
        self._reason: FinishReason | None = None
        self._out = 0
        """Characters of the answer's text so far, where tokens are told of."""

    def begin(self) -> None:
        say = self._events.say
        if self.begun["background"]:
            queued = {**self.begun, "status": QUEUED}
            say("response.created", response=queued)
            say("response.queued", response=queued)
        else:
            say("response.created", response=self.begun)
        say("response.in_progress", response=self.begun)

    def beginning(self) -> bytes:
        self.begin()
        return b"".join(self._events.take())

    def fresh(self) -> list[bytes]:
        """Events since the last time, one by one."""
        return self._events.take()

    def extras(self, *, with_facts: bool = True) -> dict[str, Any]:
        """What a usage says of money."""
        cost, facts = shown_cost(self._context), bill_facts(self._context)
        extras: dict[str, Any] = {} if cost is None else {"cost": cost}
        return {**extras, "llmhost": facts} if with_facts and facts else extras

    def is_large(self, deltas: Sequence[Delta]) -> bool:
        """Writing the events of these takes so long that others should not wait for it."""
        return self._report is not None and self._report.is_large(deltas)

    def events(self, deltas: Sequence[Delta]) -> bytes:
        self.take(deltas)
        return b"".join(self._events.take())

    def take(self, deltas: Sequence[Delta]) -> None:
        """What came since the last time."""
        if not self._says:
            return
        if self._report is None:
            self._items.push("".join([delta.text for delta in deltas]))
        else:
            for delta in deltas:
                self._take_tokens(delta, self._report)
        for delta in deltas:
            if delta.finish_reason is not None:
                self._reason = delta.finish_reason
                self._items.finish(is_cut=delta.finish_reason is not FinishReason.STOP)

    def _take_tokens(self, delta: Delta, report: Report) -> None:
        """One by one, so that how many come at once changes nothing of what is told of each."""
        text, at = delta.text, 0
        for token, told in report.entries(report.fresh(delta)):
            end = min(max(token.end - self._out, at), len(text))
            self._items.push(text[at:end], [(token.end - token.start, told)])
            at = end
        self._items.push(text[at:])
        self._out += len(text)

    def end(self, usage: Usage, extras: dict[str, Any]) -> Resource:
        """The response at its end. `extras` are said in its usage."""
        context = self._context
        assert context.ended_ns is not None, "it has ended"
        completed_ns = context.arrived_utc_ns + context.ended_ns - context.arrived_ns
        self.resource = ended(
            self.begun, self._reason, self._items.output, usage, completed_ns // 10**9, extras
        )
        return self.resource

    def fail(self, error: LlmhostError) -> Resource:
        self._items.break_off()
        used = self._used(self._context.usage) if isinstance(error, DeadlineExceeded) else None
        self.resource = failed(self.begun, error, self._items.output, used)
        return self.resource

    def cancel(self, usage: Usage | None) -> Resource:
        """`usage` is None where it is not known yet."""
        self._items.break_off()
        used = None if usage is None else self._used(usage)
        self.resource = {
            **self.begun,
            "status": CANCELLED,
            "output": self._items.output,
            "usage": used,
        }
        return self.resource

    def _used(self, usage: Usage) -> dict[str, Any]:
        """Of an answer that did not come to its end, and is billed."""
        return {**usage_object(usage), **self.extras()}

    def say_end(self) -> None:
        status = self.resource["status"]
        name = INCOMPLETE if status == CANCELLED else status  # for which there is no event
        self._events.say(f"response.{name}", response=self.resource)

    def say_error(self, error: LlmhostError) -> None:
        """In OpenAI's shape and in that of Open Responses; clients read one or the other."""
        facts = {"code": error.code or error.type, "message": error.message, "param": error.param}
        self._events.say("error", **facts, error={"type": error.type, **facts})

    def last(
        self,
        usage: Usage,
        cost: dict[str, Any] | None = None,
        facts: dict[str, str] | None = None,
    ) -> bytes:
        self.say_end()
        return b"".join(self._events.take()) + DONE

    def broken_off(self, error: LlmhostError) -> bytes:
        """The end of a stream that fails."""
        self.say_error(error)
        self.fail(error)
        self.say_end()
        return b"".join(self._events.take()) + DONE


def _report(context: RequestContext) -> Report | None:
    assert context.tokenizer is not None, "a request that runs was resolved"
    shown = () if context.reading is None else context.reading.shown
    return report_of(context.request, context.known_terms, context.tokenizer, shown)
