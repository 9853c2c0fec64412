"""One request over HTTP: send it, note when each piece of its streamed answer comes, keep the rest cheap.

Events are cut out of the bytes by hand and decoded into typed structs: a load generator that spends longer on a
piece than the server does measures itself.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import msgspec

from llmhost.cli.bench.figures import Record

DONE = b"[DONE]"


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Piece(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None

    @property
    def says_something(self) -> bool:
        return bool(self.content or self.reasoning or self.reasoning_content or self.tool_calls)


class Choice(msgspec.Struct):
    delta: Piece | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def says_something(self) -> bool:
        return bool(self.text) or (self.delta is not None and self.delta.says_something)


class Failure(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None
    type: str | None = None


class Event(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Failure | str | None = None


_decode = msgspec.json.Decoder(Event).decode


async def ask(
    client: httpx.AsyncClient, path: str, body: bytes, record: Record, now: Callable[[], float]
) -> None:
    """Fill in `record`. Failures are noted there and not raised. `now` gives seconds since the run began."""
    reading = Reading(record)
    try:
        async with client.stream("POST", path, content=body) as answer:
            if answer.status_code != 200:
                _note_refusal(record, answer.status_code, await answer.aread())
            else:
                async for data in answer.aiter_bytes():
                    reading.take(data, now())
                reading.close()
    except httpx.ConnectError as error:
        _note(record, "no connection", str(error) or "The server does not answer.")
    except httpx.TimeoutException:
        _note(record, "timeout", "The server did not answer in time.")
    except httpx.HTTPError as error:
        _note(record, "broken", str(error) or type(error).__name__)
    record.ended_s = now()


class Reading:
    """One answer as it comes in."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._rest = b""
        self._has_ended = False

    def take(self, data: bytes, at_s: float) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for payload in _payloads(lines):
            if payload == DONE:
                self._has_ended = True
            else:
                self._event(payload, at_s)

    def close(self) -> None:
        """The server has closed the stream."""
        record = self._record
        if record.error is None and not self._has_ended:
            _note(record, "broken", "The server closed the stream before its end.")
        if not record.has_usage:
            record.output_tokens = record.pieces

    def _event(self, payload: bytes, at_s: float) -> None:
        try:
            event = _decode(payload)
        except msgspec.MsgspecError:
            _note(self._record, "not OpenAI's API", "An event of the stream can't be read.")
            return
        if event.error is not None:
            _note(self._record, *_failure(event.error))
        for choice in event.choices or ():
            # An answer may end before it said anything visible: it has had its first token by then.
            if choice.says_something or (choice.finish_reason and self._record.first_s is None):
                self._piece(at_s)
        if event.usage is not None:
            self._usage(event.usage)

    def _piece(self, at_s: float) -> None:
        record = self._record
        if record.first_s is None:
            record.first_s = at_s
        else:
            record.gaps_s.append(at_s - record.last_s)
        record.last_s = at_s

    def _usage(self, usage: Usage) -> None:
        record = self._record
        record.has_usage = True
        record.prompt_tokens = usage.prompt_tokens or 0
        record.output_tokens = usage.completion_tokens or 0
        record.cached_tokens = (usage.prompt_tokens_details or Details()).cached_tokens or 0


def _payloads(lines: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _note(record: Record, code: str, message: str) -> None:
    """The first thing that went wrong is why the request failed."""
    if record.error is None:
        record.error, record.message = code, message


def _note_refusal(record: Record, status: int, raw: bytes) -> None:
    error = None
    with suppress(msgspec.MsgspecError):
        error = _decode(raw).error
    code, message = _failure(error) if error is not None else ("", "")
    _note(record, f"{status} {code}".strip(), message or raw[:200].decode(errors="replace"))


def _failure(error: Failure | str) -> tuple[str, str]:
    if isinstance(error, str):
        return "error", error
    return str(error.code or error.type or "error"), error.message or ""
