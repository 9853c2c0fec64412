"""Anthropic's answers: whole messages, and events of streams, both made of the same blocks.

A message is blocks of thoughts, text and calls in the order in which they came. Its usage tells what was computed from
what a cache had, so the two add up to the prompt.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from llmhost.api.calls import Calls, joined
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.request import GenerationRequest
from llmhost.text.calls.pieces import Piece

TEXT, THINKING, TOOL_USE = "text", "thinking", "tool_use"

_encode = msgspec.json.encode


def whole_message(
    request: GenerationRequest,
    deltas: Iterable[Delta],
    usage: Usage,
    calls: Calls | None,
    *,
    is_cramped: bool = False,
    cost: dict[str, Any] | None = None,
) -> bytes:
    """The body of an answer that is not streamed. `is_cramped`: it had less room than `max_tokens`."""
    known = list(deltas)
    text = "".join(delta.text for delta in known)
    pieces = [Piece(text)] if calls is None and text else []
    if calls is not None:
        pieces = [*calls.pieces(0, text), *calls.last_pieces(0)]
    last = next((delta for delta in known if delta.finish_reason is not None), None)
    content = _blocks(request, pieces)
    stop = stop_of(
        last, is_called=calls is not None and calls.is_complete(0), is_cramped=is_cramped
    )
    return _encode({**_message(request, content), **stop, "usage": usage_object(usage, cost)})


def _message(request: GenerationRequest, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{request.request_id.removeprefix('req_')}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": content,
    }


def usage_object(usage: Usage, cost: dict[str, Any] | None = None) -> dict[str, Any]:
    """Unlike OpenAI's, `input_tokens` are without what a cache had."""
    shown: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "service_tier": "standard",
    }
    if usage.reasoning_tokens:
        shown["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return shown if cost is None else {**shown, "cost": cost}


def stop_of(last: Delta | None, *, is_called: bool, is_cramped: bool) -> dict[str, Any]:
    """Why an answer ended; `last` is its last delta."""
    reason = None if last is None else last.finish_reason
    match reason:
        case FinishReason.STOP:
            stop = None if last is None else last.stop
            named = TOOL_USE if is_called else "end_turn" if stop is None else "stop_sequence"
            return _stop(named, None if is_called else stop)
        case FinishReason.LENGTH:
            return _stop("model_context_window_exceeded" if is_cramped else "max_tokens")
        case FinishReason.CONTENT_FILTER:
            details = {"type": "refusal", "category": None, "explanation": None}
            return {**_stop("refusal"), "stop_details": details}
    return _stop(None)


def _stop(reason: str | None, sequence: str | None = None) -> dict[str, Any]:
    return {"stop_reason": reason, "stop_sequence": sequence}


def _blocks(request: GenerationRequest, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """All blocks of a whole answer."""
    blocks: list[dict[str, Any]] = []
    texts: list[str] = []
    block: tuple[str, int | None] | None = None
    for piece in pieces:
        if (place := _block_of(piece)) != block:
            _fill(blocks, texts)
            block, texts = place, []
            blocks.append(_opening(request, len(blocks), piece))
        texts.append(piece.text)
    _fill(blocks, texts)
    for at, made in enumerate(blocks):
        if made["type"] == THINKING:
            made["signature"] = _signature(request, at)
    return blocks


def _fill(blocks: list[dict[str, Any]], texts: list[str]) -> None:
    if not blocks:
        return
    text, block = "".join(texts), blocks[-1]
    if block["type"] == TOOL_USE:
        block["input"] = _object(text)
    else:
        block[block["type"]] = text


def _object(text: str) -> dict[str, Any]:
    """What is no object, because it was cut or a model wrote something else, is an empty one: clients take no other."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return {}


def _block_of(piece: Piece) -> tuple[str, int | None]:
    """What tells the block that a piece belongs to from its neighbours."""
    if piece.is_thought:
        return THINKING, None
    return (TEXT, None) if piece.call is None else (TOOL_USE, piece.call)


def _opening(request: GenerationRequest, place: int, piece: Piece) -> dict[str, Any]:
    """A block with nothing in it."""
    match _block_of(piece)[0]:
        case "thinking":
            return {"type": THINKING, "thinking": "", "signature": ""}
        case "text":
            return {"type": TEXT, "text": ""}
    name = _digest(request, place)
    return {"type": TOOL_USE, "id": f"toolu_{name}", "name": piece.name, "input": {}}


def _signature(request: GenerationRequest, place: int) -> str:
    """Clients give back no thoughts without one. Nothing here depends on it."""
    return _digest(request, place)


def _digest(request: GenerationRequest, place: int) -> str:
    return blake2b(f"{request.request_id}/{place}".encode(), digest_size=12).hexdigest()


_DELTAS = {
    TEXT: ("text_delta", "text"),
    THINKING: ("thinking_delta", "thinking"),
    TOOL_USE: ("input_json_delta", "partial_json"),
}


class MessageFrames:
    """Renders one request's stream."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt_tokens: int,
        calls: Calls | None,
        *,
        is_cramped: bool = False,
    ) -> None:
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._calls = calls
        self._is_cramped = is_cramped
        self._block: tuple[str, int | None] | None = None
        """The one that is open."""
        self._place = 0
        self._head = b""
        """What stands before a piece of the open block."""
        self._last: Delta | None = None

    def beginning(self) -> bytes:
        """The prompt's tokens are known by now, and which of them a cache had is not."""
        usage = usage_object(Usage(self._prompt_tokens))
        return _event(
            {
                "type": "message_start",
                "message": {**_message(self._request, []), **_stop(None), "usage": usage},
            }
        )

    def is_large(self, deltas: Sequence[Delta]) -> bool:
        """Writing the events of these takes so long that others should not wait for it."""
        return False

    def events(self, deltas: Sequence[Delta]) -> bytes:
        """What came since the last write; pieces of one block that piled up become one event."""
        if len(deltas) == 1 and self._calls is None and self._block is not None:  # as most are
            only = deltas[0]
            if only.finish_reason is None:
                return self._head + _encode(only.text) + b"}}\n\n" if only.text else b""
        out: list[bytes] = []
        if text := "".join(delta.text for delta in deltas):
            pieces = [Piece(text)] if self._calls is None else self._calls.pieces(0, text)
            self._say(out, pieces)
        for delta in deltas:
            if delta.finish_reason is not None:
                self._last = delta
                if self._calls is not None:
                    self._say(out, self._calls.last_pieces(0))
                self._close(out)
        return b"".join(out)

    def last(
        self,
        usage: Usage,
        cost: dict[str, Any] | None = None,
        facts: dict[str, str] | None = None,
    ) -> bytes:
        """The end of the stream, with the `facts` of what is paid for it."""
        is_called = self._calls is not None and self._calls.is_complete(0)
        stop = stop_of(self._last, is_called=is_called, is_cramped=self._is_cramped)
        shown = usage_object(usage, cost)
        del shown["service_tier"]  # known from the beginning
        if facts:
            shown["llmhost"] = facts
        told = {"type": "message_delta", "delta": stop, "usage": shown}
        return _event(told) + _event({"type": "message_stop"})

    def _say(self, out: list[bytes], pieces: list[Piece]) -> None:
        for piece in joined(pieces):
            if _block_of(piece) != self._block:
                self._close(out)
                self._open(out, piece)
            if piece.text:
                out.append(self._head + _encode(piece.text) + b"}}\n\n")

    def _open(self, out: list[bytes], piece: Piece) -> None:
        self._block = _block_of(piece)
        opening = _opening(self._request, self._place, piece)
        out.append(
            _event({"type": "content_block_start", "index": self._place, "content_block": opening})
        )
        kind, member = _DELTAS[self._block[0]]
        self._head = self._delta(kind, member)

    def _close(self, out: list[bytes]) -> None:
        if self._block is None:
            return
        if self._block[0] == THINKING:
            signature = _encode(_signature(self._request, self._place))
            out.append(self._delta("signature_delta", "signature") + signature + b"}}\n\n")
        out.append(_event({"type": "content_block_stop", "index": self._place}))
        self._block = None
        self._place += 1

    def _delta(self, kind: str, member: str) -> bytes:
        said = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
        )
        return said % self._place + b'{"type":"%s","%s":' % (kind.encode(), member.encode())


def _event(content: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (content["type"].encode(), _encode(content))
