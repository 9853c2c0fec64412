"""Ollama's answers: one JSON object, or one a line while the answer comes.

A call is told when all of it is there. Durations are measured, in nanoseconds: until the model was at hand and the
request with it, until the first token, and from there on.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from llmhost.api.calls import Calls, joined
from llmhost.api.ollama.wire import Asked
from llmhost.api.tokens import Placed, Spelling, Trail
from llmhost.core.output import Delta, Usage
from llmhost.pipeline.context import RequestContext
from llmhost.text.calls.json_value import ValueScan
from llmhost.text.calls.pieces import Piece

LOADED = "load"
"""Why an answer ended that had nothing to say."""

_encode = msgspec.json.encode
Table = dict[str, Any]


def iso(utc_ns: int) -> str:
    """A time as Ollama writes it."""
    seconds, rest = divmod(utc_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def durations(context: RequestContext) -> Table:
    """Nanoseconds. What has not come yet took none."""
    ended = context.ended_ns or context.arrived_ns
    submitted = ended if context.submitted_ns is None else context.submitted_ns
    first = ended if context.first_token_ns is None else context.first_token_ns
    return {
        "total_duration": ended - context.arrived_ns,
        "load_duration": submitted - context.arrived_ns,
        "prompt_eval_duration": first - submitted,
        "eval_duration": ended - first,
    }


class Thoughts:
    """Log probabilities of one answer's tokens, each told when its text is."""

    def __init__(self, context: RequestContext) -> None:
        tokenizer = context.tokenizer
        assert tokenizer is not None, "a request that runs was resolved"
        shown = () if context.reading is None else context.reading.shown
        self._count = context.request.sampling.logprobs or 0
        self._spelling = Spelling(tokenizer)
        ends = tokenizer.eos_ids | context.known_terms.stop_ids
        self._trail = Trail(tokenizer.watch((), shown), ends)

    def of(self, deltas: Iterable[Delta]) -> list[msgspec.Raw]:
        placed = [each for delta in deltas for each in self._trail.take(delta)]
        return [msgspec.Raw(self._entry(each)) for each in placed if each.logprobs is not None]

    def _entry(self, placed: Placed) -> bytes:
        assert placed.logprobs is not None
        return self._spelling.chat_entry(placed.logprobs, self._count)


class OllamaFrames:
    """Renders one request, whole or as lines."""

    def __init__(self, asked: Asked, context: RequestContext, calls: Calls | None) -> None:
        self._is_chat = asked.is_chat
        self._context = context
        self._calls = calls
        self._thoughts = None if context.request.sampling.logprobs is None else Thoughts(context)
        self._envelope = {"model": asked.model, "created_at": iso(context.arrived_utc_ns)}
        self._reason = LOADED if context.request.only_loads else "stop"
        self._argued: dict[int, list[str]] = {}
        self._scans: dict[int, ValueScan] = {}
        """Of the arguments of each call: where they end."""
        self._names: dict[int, str] = {}
        head = _encode(self._envelope)[:-1]
        said = b',"message":{"role":"assistant","content":' if self._is_chat else b',"response":'
        self._head, self._tail = head + said, (b"}" if self._is_chat else b"") + b',"done":false}\n'

    def is_large(self, deltas: Sequence[Delta]) -> bool:
        """Writing the lines of these takes so long that others should not wait for it."""
        return False

    def events(self, deltas: Sequence[Delta]) -> bytes:
        """What came since the last write, as lines."""
        text = self._note(deltas)
        if self._calls is None and self._thoughts is None:  # as most are
            return self._head + _encode(text) + self._tail if text else b""
        pieces = self._pieces(text, is_over=any(d.finish_reason is not None for d in deltas))
        members = [self._members(piece) for piece in joined(pieces)]
        members += [self._called(call) for call in self._ended_calls(pieces)]
        told = [member for member in members if member]
        logprobs = [] if self._thoughts is None else self._thoughts.of(deltas)
        if logprobs and not told:
            told.append({"content": ""})
        lines = [self._line(member) for member in told]
        if logprobs:
            lines[-1]["logprobs"] = logprobs
        return b"".join(_encode({**line, "done": False}) + b"\n" for line in lines)

    def last(
        self, usage: Usage, cost: Table | None = None, facts: dict[str, str] | None = None
    ) -> bytes:
        """The last line, with what the answer took and the `facts` of what is paid for it."""
        end = self._end(usage, cost)
        return _encode({**self._line({"content": ""}), **end, **_bill(facts)}) + b"\n"

    def whole(self, deltas: Sequence[Delta], usage: Usage, cost: Table | None) -> bytes:
        """The body of an answer that is not streamed."""
        text = self._note(deltas)
        pieces = self._pieces(text, is_over=True)
        content = "".join(p.text for p in pieces if p.call is None and not p.is_thought)
        thinking = "".join(p.text for p in pieces if p.is_thought)
        calls = [self._call(call) for call in self._ended_calls(pieces)]
        said: Table = {"content": content}
        if thinking:
            said["thinking"] = thinking
        if calls:
            said["tool_calls"] = calls
        logprobs = {} if self._thoughts is None else {"logprobs": self._thoughts.of(deltas)}
        return _encode({**self._line(said), **logprobs, **self._end(usage, cost)})

    def _note(self, deltas: Sequence[Delta]) -> str:
        """Their text; why the answer ended is kept."""
        for delta in deltas:
            if delta.finish_reason is not None and not self._context.request.only_loads:
                self._reason = delta.finish_reason.value
        return "".join(delta.text for delta in deltas)

    def _pieces(self, text: str, *, is_over: bool) -> list[Piece]:
        if self._calls is None:
            return [Piece(text)] if text else []
        pieces = self._calls.pieces(0, text) if text else []
        return [*pieces, *self._calls.last_pieces(0)] if is_over else pieces

    def _members(self, piece: Piece) -> Table:
        if piece.call is not None or not piece.text:
            return {}
        return (
            {"content": "", "thinking": piece.text} if piece.is_thought else {"content": piece.text}
        )

    def _ended_calls(self, pieces: Sequence[Piece]) -> list[int]:
        """Take what pieces say of calls; those of them that have their end by now."""
        ended: list[int] = []
        for piece in pieces:
            if (call := piece.call) is None:
                continue
            if piece.name is not None:
                self._names[call] = piece.name
            if self._ends(call, piece.text) and _object("".join(self._argued[call])) is not None:
                ended.append(call)
        return ended

    def _ends(self, call: int, text: str) -> bool:
        """Whether these arguments end a call. To read all that came each time would take the square of its length."""
        scan = self._scans.setdefault(call, ValueScan())
        argued = self._argued.setdefault(call, [])
        text = text if argued else text.lstrip()
        if scan.is_over or not text:
            return False
        argued.append(text)
        scan.take(text)
        return scan.is_over

    def _called(self, call: int) -> Table:
        return {"content": "", "tool_calls": [self._call(call)]}

    def _call(self, call: int) -> Table:
        arguments = _object("".join(self._argued.pop(call)))
        return {"function": {"index": call, "name": self._names.pop(call), "arguments": arguments}}

    def _line(self, said: Table) -> Table:
        if self._is_chat:
            return {**self._envelope, "message": {"role": "assistant", **said}}
        content = said.pop("content")
        return {**self._envelope, "response": content, **said}

    def _end(self, usage: Usage, cost: Table | None) -> Table:
        counts = {} if self._context.request.only_loads else _counts(usage)
        shown = {} if cost is None else {"cost": cost}
        took = durations(self._context)
        return {"done": True, "done_reason": self._reason, **took, **counts, **shown}


def _counts(usage: Usage) -> Table:
    return {"prompt_eval_count": usage.prompt_tokens, "eval_count": usage.completion_tokens}


def _bill(facts: dict[str, str] | None) -> Table:
    return {"llmhost": facts} if facts else {}


def _object(text: str) -> Table | None:
    """Arguments, once all of them are there."""
    try:
        return msgspec.json.decode(text, type=Table)
    except (msgspec.MsgspecError, RecursionError):
        return None
