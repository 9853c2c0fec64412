"""OpenAI's answer shapes: whole bodies, and server-sent events rendered once per request around each delta.

A stream's envelope is the same for every piece of one answer, so it is encoded once; a piece costs one JSON string.
Requests that want more than text are framed with their `Report`, and others pay nothing for it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llmhost.api.bill_facts import bill_comment
from llmhost.api.calls import calls_of
from llmhost.api.door import Line
from llmhost.api.report import Report
from llmhost.api.tokens import Placed
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.reading import Reading
from llmhost.pipeline.stream import Piece, Take, Writing

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


def usage_object(
    usage: Usage, cost: dict[str, Any] | None = None, *, has_prediction: bool = False
) -> dict[str, Any]:
    """OpenAI's object; `cost` is ours, for those who ask."""
    shown: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    if has_prediction:
        shown["completion_tokens_details"] |= {
            "accepted_prediction_tokens": usage.right_guesses,
            "rejected_prediction_tokens": usage.wrong_guesses,
        }
    return shown if cost is None else {**shown, "cost": cost}


def answer_id(request: GenerationRequest) -> str:
    prefix = "chatcmpl" if request.kind is Kind.CHAT else "cmpl"
    return f"{prefix}-{request.request_id.removeprefix('req_')}"


def _envelope(request: GenerationRequest, kind: str, created_s: int) -> dict[str, Any]:
    """What every piece of an answer has; the tier is the one that it got, not the one that was asked for."""
    return {
        "id": answer_id(request),
        "object": kind,
        "created": created_s,
        "model": request.model,
        "service_tier": "flex" if request.is_flex else "default",
        "system_fingerprint": None,
    }


def whole_answer(
    request: GenerationRequest,
    created_s: int,
    deltas: Iterable[Delta],
    usage: Usage,
    report: Report | None = None,
    cost: dict[str, Any] | None = None,
    reading: Reading | None = None,
) -> bytes:
    """The body of an answer that is not streamed."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str] = {}
    tokens: dict[int, list[Placed]] = {}
    for delta in deltas:
        texts.setdefault(delta.index, []).append(delta.text)
        if delta.finish_reason is not None:
            reasons[delta.index] = delta.finish_reason.value
        if report is not None:
            report.note(delta)
            tokens.setdefault(delta.index, []).extend(report.fresh(delta))
    is_chat = request.kind is Kind.CHAT
    choice = _chat_choice if is_chat else _text_choice
    if (calls := calls_of(request, reading)) is not None:
        choice = calls.choice
    choices = [choice(i, "".join(texts[i]), reasons.get(i)) for i in sorted(texts)]
    if request.opening:
        for each in choices:
            each["message"]["content"] = request.opening + (each["message"]["content"] or "")
    body = {
        **_envelope(request, "chat.completion" if is_chat else "text_completion", created_s),
        "choices": choices,
        "usage": usage_object(usage, cost, has_prediction=request.prediction is not None),
    }
    if report is not None:
        for each in choices:
            report.complete(each, tokens[each["index"]])
        if is_chat:
            body |= report.of_prompt(0)
    return _encode(body)


def plain_facts(
    deltas: Sequence[Delta], usage: Usage
) -> tuple[bytes, bytes, int, int, int, int, int]:
    """What `PLAIN_CHAT` and `PLAIN_TEXT` are filled with."""
    if len(deltas) == 1:
        text, reason = deltas[0].text, deltas[0].finish_reason
    else:
        text = "".join([delta.text for delta in deltas])
        reason = next((d.finish_reason for d in reversed(deltas) if d.finish_reason), None)
    prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
    return (
        _encode(text),
        _REASONS[reason or FinishReason.STOP],
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )


_REASONS = {reason: reason.value.encode() for reason in FinishReason}
_PLAIN_END = (
    b'"logprobs":null,"finish_reason":"%b"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d},"completion_tokens_details":{"reasoning_tokens":%d}}}'
)
PLAIN_CHAT = (
    b'"choices":[{"index":0,"message":{"role":"assistant","content":%b,"refusal":null,"annotations":[]},'
    + _PLAIN_END
)
"""The body of an answer from `choices` on, of one choice that is text alone."""
PLAIN_TEXT = b'"choices":[{"index":0,"text":%b,' + _PLAIN_END


def _chat_choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": [],
    }
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _text_choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def frames_of(
    request: GenerationRequest,
    created_s: int,
    *,
    include_usage: bool,
    report: Report | None = None,
    prompt_tokens: int | None = None,
    reading: Reading | None = None,
) -> "Frames":
    """With `prompt_tokens` every event has the usage so far."""
    if report is None:
        frames = Frames(request, created_s, include_usage=include_usage, reading=reading)
    else:
        frames = ReportingFrames(
            request, created_s, report, include_usage=include_usage, reading=reading
        )
    if prompt_tokens is not None:
        frames.count_from(prompt_tokens)
    return frames


class Frames:
    """Renders one request's stream. `include_usage` adds usage to every event, null until the last."""

    def __init__(
        self,
        request: GenerationRequest,
        created_s: int,
        *,
        include_usage: bool,
        reading: Reading | None = None,
    ) -> None:
        self._is_chat = request.kind is Kind.CHAT
        self._opening = request.opening
        self._has_prediction = request.prediction is not None
        self._include_usage = include_usage
        self._quotes = (b'"delta":{"content":', b"}") if self._is_chat else (b'"text":', b"")
        self._introduced: set[int] = set()
        self._calls = calls_of(request, reading)
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        envelope = _envelope(request, kind, created_s)
        self._head = b"data: " + _encode(envelope)[:-1] + b',"choices":['
        self._tail = (b',"usage":null' if include_usage else b"") + b"}\n\n"
        self._so_far: Usage | None = None
        self._around: dict[int, tuple[bytes, bytes]] = {}
        """What stands before and behind a piece of text, of choices that have nothing else to say."""

    def count_from(self, prompt_tokens: int) -> None:
        """Say in every event how many tokens there were by then; the last one has the usage that is billed."""
        self._include_usage = True
        self._so_far = Usage(prompt_tokens)

    def is_large(self, deltas: Sequence[Delta]) -> bool:
        """Writing the events of these takes so long that others should not wait for it."""
        return False

    def taking(self, line: Line, otherwise: Take) -> Take:
        """What writes to `line` as `otherwise` does, and a piece of text alone, which is nearly all, in fewer calls."""
        pens: dict[int, Piece] = {}

        def take(deltas: list[Delta]) -> bool:
            is_taken = otherwise(deltas)
            if len(pens) < len(self._around):
                for index, (before, behind) in self._around.items():
                    if (pen := line.pen(before, behind, _encode)) is not None:
                        pens[index] = pen
            return is_taken

        return Writing(pens, line.write_raw, take)

    def events(self, deltas: Sequence[Delta]) -> bytes:
        """What came since the last write; pieces of one choice that piled up become one event."""
        if self._so_far is not None:
            self._count(self._so_far, deltas)
        out: list[bytes] = []
        pending: dict[int, list[str]] = {}
        for delta in deltas:
            if delta.text:
                pending.setdefault(delta.index, []).append(delta.text)
            if delta.finish_reason is not None:
                self._piece(out, delta.index, pending.pop(delta.index, []))
                self._end(out, delta.index, delta.finish_reason.value)
        for index, texts in pending.items():
            self._piece(out, index, texts)
        return b"".join(out)

    def _count(self, before: Usage, deltas: Sequence[Delta]) -> None:
        fresh = sum(len(delta.tokens) for delta in deltas)
        self._so_far = before + Usage(completion_tokens=fresh)
        self._tail = b',"usage":' + _encode(usage_object(self._so_far)) + b"}\n\n"

    def last(
        self,
        usage: Usage,
        cost: dict[str, Any] | None = None,
        facts: dict[str, str] | None = None,
    ) -> bytes:
        """The end of the stream, with the `facts` of what is paid for it."""
        if not self._include_usage:
            return bill_comment(facts or {}) + DONE
        shown = usage_object(usage, cost, has_prediction=self._has_prediction)
        if facts:
            shown["llmhost"] = facts
        return self._head + b'],"usage":' + _encode(shown) + b"}\n\n" + DONE

    def _piece(self, out: list[bytes], index: int, texts: list[str]) -> None:
        if index not in self._introduced:
            self._introduce(out, index)
        if texts:
            for body in self._said(index, "".join(texts)):
                self._event(out, index, body, b"null")

    def _said(self, index: int, text: str) -> list[bytes]:
        if self._calls is not None:
            return self._calls.deltas(index, text)
        written = _encode(text)
        return [self._quotes[0] + written + self._quotes[1]]

    def _introduce(self, out: list[bytes], index: int) -> None:
        self._introduced.add(index)
        if self._calls is None and self._so_far is None:
            before, behind = self._quotes
            closing = b',"logprobs":null,"finish_reason":null}]'
            self._around[index] = (
                self._head + b'{"index":%d,' % index + before,
                behind + closing + self._tail,
            )
        if self._is_chat:
            content = b'""' if self._calls is None else self._calls.first_content
            first = b'"delta":{"role":"assistant","content":%s,"refusal":null}' % content
            self._event(out, index, first, b"null")
            if self._opening:
                self._event(out, index, b'"delta":' + _encode({"content": self._opening}), b"null")

    def _end(self, out: list[bytes], index: int, reason: str) -> None:
        if self._calls is not None:
            for body in self._calls.rest(index):
                self._event(out, index, body, b"null")
            reason = self._calls.reason(index, reason)
        body = b'"delta":{}' if self._is_chat else b'"text":""'
        self._event(out, index, body, _encode(reason))

    def _event(
        self,
        out: list[bytes],
        index: int,
        body: bytes,
        reason: bytes,
        logprobs: bytes = b"null",
    ) -> None:
        choice = b'{"index":%d,%s,"logprobs":%s,"finish_reason":%s}]'
        out.append(self._head + choice % (index, body, logprobs, reason) + self._tail)


class ReportingFrames(Frames):
    """A stream whose pieces say more than their text. A choice waits until all is known that comes before it."""

    def __init__(
        self,
        request: GenerationRequest,
        created_s: int,
        report: Report,
        *,
        include_usage: bool,
        reading: Reading | None = None,
    ) -> None:
        super().__init__(request, created_s, include_usage=include_usage, reading=reading)
        self._report = report
        self._waiting: list[Delta] = []

    def is_large(self, deltas: Sequence[Delta]) -> bool:
        return self._report.is_large(deltas)

    def events(self, deltas: Sequence[Delta]) -> bytes:
        if self._so_far is not None:
            self._count(self._so_far, deltas)
        out: list[bytes] = []
        pending: dict[int, tuple[list[str], list[Placed]]] = {}
        for delta in self._ready(deltas):
            texts, tokens = pending.setdefault(delta.index, ([], []))
            texts.append(delta.text)
            tokens += self._report.fresh(delta)
            if delta.finish_reason is not None:
                self._told(out, delta.index, *pending.pop(delta.index))
                self._end(out, delta.index, delta.finish_reason.value)
        for index, (texts, tokens) in pending.items():
            self._told(out, index, texts, tokens)
        return b"".join(out)

    def _ready(self, deltas: Sequence[Delta]) -> list[Delta]:
        for delta in deltas:
            self._report.note(delta)
        known = [*self._waiting, *deltas]
        self._waiting = [delta for delta in known if not self._report.is_ready(delta.index)]
        if not self._waiting:
            return known
        return [delta for delta in known if self._report.is_ready(delta.index)]

    def _told(self, out: list[bytes], index: int, texts: list[str], tokens: list[Placed]) -> None:
        text = "".join(texts)
        if index not in self._introduced:
            self._introduce(out, index)
        if text or tokens:
            logprobs = self._report.logprobs(index, tokens) if tokens else None
            self._tell(out, index, text, logprobs, self._report.ids(tokens))

    def _introduce(self, out: list[bytes], index: int) -> None:
        of_prompt = self._report.of_prompt(index)
        if self._is_chat:
            super()._introduce(out, index)
            out[-1] = out[-1][: -len(self._tail)] + _members(of_prompt) + self._tail
            return
        self._introduced.add(index)
        if self._report.echoes or of_prompt:
            text, before = self._report.echo(index)
            logprobs = self._report.logprobs(index, (), before)
            self._tell(out, index, text, logprobs, of_prompt)

    def _tell(
        self, out: list[bytes], index: int, text: str, logprobs: Any, extras: dict[str, Any]
    ) -> None:
        *others, body = self._said(index, text) or [b'"delta":{}']
        for other in others:
            self._event(out, index, other, b"null")
        self._event(out, index, body + _members(extras), b"null", _encode(logprobs))


def _members(table: dict[str, Any]) -> bytes:
    """Further members of an object."""
    return b"," + _encode(table)[1:-1] if table else b""
