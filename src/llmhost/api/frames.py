"""OpenAI's answer shapes: whole bodies, and server-sent events rendered once per request around each delta.

A stream's envelope is the same for every piece of one answer, so it is encoded once; a piece costs one JSON string.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llmhost.core.output import Delta, Usage
from llmhost.core.request import GenerationRequest, Kind

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": keep-alive\n\n"

_encode = msgspec.json.encode


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def answer_id(request: GenerationRequest) -> str:
    prefix = "chatcmpl" if request.kind is Kind.CHAT else "cmpl"
    return f"{prefix}-{request.request_id.removeprefix('req_')}"


def whole_answer(
    request: GenerationRequest, created_s: int, deltas: Iterable[Delta], usage: Usage
) -> bytes:
    """The body of an answer that is not streamed."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str] = {}
    for delta in deltas:
        texts.setdefault(delta.index, []).append(delta.text)
        if delta.finish_reason is not None:
            reasons[delta.index] = delta.finish_reason.value
    choice = _chat_choice if request.kind is Kind.CHAT else _text_choice
    return _encode(
        {
            "id": answer_id(request),
            "object": "chat.completion" if request.kind is Kind.CHAT else "text_completion",
            "created": created_s,
            "model": request.model,
            "choices": [choice(i, "".join(texts[i]), reasons.get(i)) for i in sorted(texts)],
            "usage": usage_object(usage),
            "system_fingerprint": None,
        }
    )


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


class Frames:
    """Renders one request's stream. `include_usage` adds usage to every event, null until the last."""

    def __init__(self, request: GenerationRequest, created_s: int, *, include_usage: bool) -> None:
        self._is_chat = request.kind is Kind.CHAT
        self._include_usage = include_usage
        self._introduced: set[int] = set()
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        envelope = {
            "id": answer_id(request),
            "object": kind,
            "created": created_s,
            "model": request.model,
            "system_fingerprint": None,
        }
        self._head = b"data: " + _encode(envelope)[:-1] + b',"choices":['
        self._tail = (b',"usage":null' if include_usage else b"") + b"}\n\n"

    def events(self, deltas: Sequence[Delta]) -> bytes:
        """What came since the last write; pieces of one choice that piled up become one event."""
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

    def last(self, usage: Usage) -> bytes:
        """The end of the stream."""
        if not self._include_usage:
            return DONE
        return self._head + b'],"usage":' + _encode(usage_object(usage)) + b"}\n\n" + DONE

    def _piece(self, out: list[bytes], index: int, texts: list[str]) -> None:
        self._introduce(out, index)
        if texts:
            text = _encode("".join(texts))
            if self._is_chat:
                self._event(out, index, b'"delta":{"content":' + text + b"}", b"null")
            else:
                self._event(out, index, b'"text":' + text, b"null")

    def _introduce(self, out: list[bytes], index: int) -> None:
        if self._is_chat and index not in self._introduced:
            self._introduced.add(index)
            first = b'"delta":{"role":"assistant","content":"","refusal":null}'
            self._event(out, index, first, b"null")

    def _end(self, out: list[bytes], index: int, reason: str) -> None:
        body = b'"delta":{}' if self._is_chat else b'"text":""'
        self._event(out, index, body, _encode(reason))

    def _event(self, out: list[bytes], index: int, body: bytes, reason: bytes) -> None:
        choice = b'{"index":%d,%s,"logprobs":null,"finish_reason":%s}]' % (index, body, reason)
        out.append(self._head + choice + self._tail)
