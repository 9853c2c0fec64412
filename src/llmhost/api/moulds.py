"""Requests of one mould: their bytes are the same, but for what they say, how long that is, and who counts them how.

Most programs send such ones, with other words each time. What is around the words is compared byte for byte, and the
words are read as the whole body is: by the same decoder, and into the same messages. JSON's values don't know what is
around them, so the body around other words means what it meant around those that were learnt from. A mould is for words
alone: messages with calls, files or other extras take the long way. Of the head the client's own id is told apart, and
what traces are followed by, which nobody reads here: proxies make both anew for each request.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import msgspec
from litestar.types import HTTPScope, Scope
from msgspec.structs import replace

from llmhost.api.bodies import ChatBody, CompletionBody, WireMessage
from llmhost.api.chat_messages import is_bare, message_of
from llmhost.api.door import Begun
from llmhost.api.door import client_id as client_id_of
from llmhost.api.repeated_run import RepeatedRun
from llmhost.core.attached import has_marks
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.short_run import Read
from llmhost.pipeline.terms import INLINE_CHARS

LARGEST_BYTES = 16 * 1024
"""Of a body, where no server takes less: larger ones are read in a thread, or nearly so."""
LARGEST_HEAD_BYTES, MOST_HEADERS = 4 * 1024, 64
"""Of a request: nobody has shown a key yet when it is taken apart, and what clients send is well below."""
MOST_MOULDS = 1_000
MOST_SIGNS = 2_048
"""Of what stands around the texts among words: those that may be short are read to find out."""

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,6})\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"
_NOTED = "llmhost.repeat"
_CHATS = "/v1/chat/"
_CHAT_LINE = b"POST /v1/chat/"
_ID_HEADER = b"x-request-id"
_CLIENT_IDS = re.compile(rb"\r\nx-request-id:", re.IGNORECASE)
_CLIENT_ID = re.compile(rb"\r\nx-request-id: ?([\x21-\x7e]{1,128})\r\n", re.IGNORECASE)
_TRACES = re.compile(
    rb"(\r\n(?:traceparent|tracestate|x-amzn-trace-id|x-cloud-trace-context|x-b3-[a-z]+|b3):)[\t\x20-\x7e]*(?=\r\n)",
    re.IGNORECASE,
)
_encode = msgspec.msgpack.Encoder().encode


M = TypeVar("M")


class _Chat(msgspec.Struct):
    messages: msgspec.Raw


class _Completion(msgspec.Struct):
    prompt: msgspec.Raw


_chat = msgspec.json.Decoder(_Chat).decode
_completion = msgspec.json.Decoder(_Completion).decode
_messages = msgspec.json.Decoder(list[WireMessage]).decode
_prompt = msgspec.json.Decoder(str).decode


class Cast(msgspec.Struct, frozen=True):
    """A request, taken apart."""

    key: bytes
    """Of its mould."""
    before: bytes
    """Of the body, up to its words."""
    words: bytes
    behind: bytes
    client_id: str | None
    """What its client calls it."""


class Noted(msgspec.Struct, frozen=True):
    """What is known of a request that takes its usual way, on which it may be learnt."""

    key: bytes
    """Of all its bytes."""
    generation: int
    """The world's, when it came."""
    cast: Cast | None


def note(state: dict[str, Any], came: Noted) -> None:
    """In a scope's state."""
    state[_NOTED] = came


def noted(scope: Scope) -> Noted | None:
    came: Noted | None = scope.get("state", {}).get(_NOTED)
    return came


@dataclass(frozen=True, slots=True)
class Words:
    """How requests of one mould are read."""

    bare: GenerationRequest
    """One of them that says nothing."""
    is_chat: bool

    def reader(self, cast: Cast, request_id: str) -> Read:
        """Reads one of them when it is called. Raises what msgspec does for words that can't be read."""
        return partial(self._chat if self.is_chat else self._completion, cast, request_id)

    def _chat(self, cast: Cast, request_id: str) -> GenerationRequest | None:
        messages = _messages(cast.words)
        if not messages or not all(map(is_bare, messages)):
            return None
        said = tuple([message_of(message, place) for place, message in enumerate(messages)])
        if any(has_marks(message["content"]) for message in said):
            return None
        return self.bare.saying(request_id, cast.client_id, messages=said)

    def _completion(self, cast: Cast, request_id: str) -> GenerationRequest:
        return self.bare.saying(request_id, cast.client_id, prompts=(_prompt(cast.words),))


@dataclass(frozen=True, slots=True)
class Mould:
    """What is known of all requests of one."""

    run: RepeatedRun
    words: Words


class Moulds(Generic[M]):
    """What is known, by the keys of moulds. The one that was not used for longest goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, M] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> M | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, mould: M) -> None:
        self._kept[key] = mould
        if len(self._kept) > MOST_MOULDS:
            self._kept.popitem(last=False)

    def drop(self, key: bytes) -> None:
        self._kept.pop(key, None)

    def clear(self) -> None:
        self._kept.clear()


def cast_of(begun: Begun, data: bytes, most_bytes: int = LARGEST_BYTES) -> Cast | None:
    """A request as it came, if it is whole and has words, and a body of no more bytes."""
    end = data.find(_END, 0, LARGEST_HEAD_BYTES)
    found = None if end < 0 else _LENGTH.search(data, 0, end + 2)
    if found is None or int(found[1]) != len(data) - end - len(_END):
        return None
    if int(found[1]) > most_bytes:
        return None
    head = data[: found.start(1)] + data[found.end(1) : end + 2]
    named, client_id = _CLIENT_ID.search(head), None
    if named is not None:
        if len(_CLIENT_IDS.findall(head)) > 1:
            return None
        client_id = named[1].decode()
        head = head[: named.start(1)] + head[named.end(1) :]
    around, is_chat = _TRACES.sub(rb"\1", head), data.startswith(_CHAT_LINE)
    return _cast(begun, around, data[end + len(_END) :], is_chat, client_id)


def cast_of_parts(
    begun: Begun,
    scope: HTTPScope,
    around: object,
    body: bytes,
    most_bytes: int = LARGEST_BYTES,
) -> Cast | None:
    """The same of what was made of it; `around` is all else that it is made of, but its headers."""
    if len(body) > most_bytes:
        return None
    own, client_id = client_id_of(scope), None
    headers = []
    for name, value in scope["headers"]:
        if name == _ID_HEADER and own is not None:
            value, client_id = b"", own
        if name != b"content-length":
            headers.append((name, b"" if _is_of_traces(name) else value))
    if len(headers) > MOST_HEADERS or sum(name == _ID_HEADER for name, _ in headers) > 1:
        return None
    return _cast(begun, (headers, around), body, scope["path"].startswith(_CHATS), client_id)


def _cast(
    begun: Begun, around: object, body: bytes, is_chat: bool, client_id: str | None
) -> Cast | None:
    try:
        words = bytes(_chat(body).messages if is_chat else _completion(body).prompt)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if _are_long(words):
        return None
    before, _, behind = body.partition(words)
    made = begun.copy()
    made.update(_encode((around, is_chat, before, behind)))
    return Cast(made.digest(), before, words, behind, client_id)


def _are_long(words: bytes) -> bool:
    """Whether they are so long that a thread reads them: they would be read here first, and in vain."""
    most = INLINE_CHARS + MOST_SIGNS
    return len(words) > most and words.isascii() and b"\\u" not in words


@lru_cache(256)
def _is_of_traces(name: bytes) -> bool:
    return _TRACES.match(b"\r\n%b: \r\n" % name) is not None


def mould_of(cast: Cast, run: RepeatedRun) -> Mould | None:
    """What is learnt from a request that ran; None where others that look like it may mean something else."""
    words = words_of(cast, run.known.context.request)
    return None if words is None else Mould(run.of(run.known.without_words()), words)


def words_of(cast: Cast, request: GenerationRequest) -> Words | None:
    """How what was cast as this is read; None where that is not this request, or may not be another one's."""
    is_chat = request.kind is Kind.CHAT
    words = Words(request.without_words(), is_chat)
    try:
        is_alone = _is_chat_around(cast) if is_chat else _is_completion_around(cast)
        is_read = is_alone and words.reader(cast, request.request_id)() == request
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return words if is_read else None


def _is_chat_around(cast: Cast) -> bool:
    """Whether what is around the words says nothing of them, nor has other words."""
    whole = msgspec.json.decode(cast.before + cast.words + cast.behind, type=ChatBody)
    empty = msgspec.json.decode(cast.before + b"[]" + cast.behind, type=ChatBody)
    return empty.messages == [] and replace(whole, messages=[]) == empty and not whole.echo


def _is_completion_around(cast: Cast) -> bool:
    whole = msgspec.json.decode(cast.before + cast.words + cast.behind, type=CompletionBody)
    empty = msgspec.json.decode(cast.before + b'""' + cast.behind, type=CompletionBody)
    return empty.prompt == "" and replace(whole, prompt="") == empty
