"""`Idempotency-Key`: the same call, made again, is not run again; whoever makes it gets the first one's answer.

The first call becomes a performance of its own, which no connection owns, and whose answer is recorded. Its client
reads that recording like everybody who makes the call again. Whole answers are kept before their last byte is shown,
so that who has one will always get it again. Refusals and failures are not kept: made again, the call runs anew.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b

import msgspec
from litestar.types import (
    HTTPReceiveMessage,
    HTTPResponseStartEvent,
    HTTPScope,
    Message,
    Receive,
    Send,
)

from llmhost.api.door import Wire
from llmhost.api.errors import known_error
from llmhost.api.loose import read_body
from llmhost.api.recording import Head, Playback, Recording
from llmhost.config.schema.state import IdempotencySettings
from llmhost.core.caller import Caller
from llmhost.core.errors import (
    BadRequest,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    InvalidValue,
    LlmhostError,
)
from llmhost.observe.logs import log_event
from llmhost.storage.answers import Answer, Answers, Headers
from llmhost.storage.keyed_calls import Call

log = logging.getLogger("llmhost.idempotency")

HEADER = "idempotency-key"
REPLAYED = "idempotent-replayed"
ORIGINAL = "x-llmhost-original-request-id"

BUSY_RETRY_S = 5.0
"""When to come back for an answer that is too large to share: nobody knows when it ends."""
CLOSING_S = 5.0
"""How long recordings may take to end when all that they record has ended."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_OF_ONE_CALL = re.compile(
    rb"request-id|x-request-id|x-client-request-id|openai-processing-ms|x-ratelimit-.*|x-llmhost-budget-remaining-usd|connection",
    re.DOTALL,
)
"""Headers that say something of the call that was run, and not of its answer."""


Perform = Callable[[Receive, Send, Wire], Awaitable[bool]]
"""Runs a call to its end, and says whether what it has sent is the answer, and no refusal or failure."""


def call_of(scope: HTTPScope, caller: Caller, body_hash: bytes, request_id: str) -> Call:
    """Raises InvalidValue for a key that can't be one."""
    facts = (scope["method"], scope["path"], _key_of(scope), caller.scope("key"))
    name = "\0".join(facts).encode("utf-8", "surrogatepass")
    return Call(digest(name), body_hash, request_id)


def _key_of(scope: HTTPScope) -> str:
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == HEADER.encode()]
    if len(sent) != 1 or not _KEY.fullmatch(sent[0]):
        raise InvalidValue(
            "The header Idempotency-Key may come once, and hold 1 to 255 printable ASCII characters without spaces.",
            param="Idempotency-Key",
        )
    return sent[0]


class _Named(msgspec.Struct, frozen=True):
    model: str | None = None


def looked_at(raw: bytes) -> tuple[bytes, str | None]:
    """A body's hash, and the model that it names; what is wrong with a body is its route's to say."""
    try:
        named = read_body(raw, _Named)
    except BadRequest:
        named = _Named()
    return digest(raw), named.model


def digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=32).digest()


class Idempotency:
    """All calls with a key: those that run, in memory, and those that were answered, in a file."""

    def __init__(
        self, answers: Answers, settings: IdempotencySettings, count: Callable[[str], None]
    ) -> None:
        """`count` hears how each repeated call came to its answer: `attached` or `replayed`."""
        self._answers = answers
        self._settings = settings
        self._count = count
        self._live: dict[bytes, _Stage] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, call: Call, raw: bytes, perform: Perform, wire: Wire | None) -> Playback:
        """A reader of the call's answer, to be closed. `perform` runs it, on its body, if this is the first to make it.

        Raises IdempotencyKeyReused for another body, IdempotencyKeyInUse where the answer can't be shared, and
        StorageFailed when nobody can say whether there is one.
        """
        stage = self._live.get(call.name)
        if stage is None:
            stage = self._live[call.name] = _Stage(self._recording(call), raw)
            task = asyncio.create_task(self._answer(call, perform, stage))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif stage.recording.is_too_large:
            raise _refusal(stage.recording, call)
        playback = stage.recording.reader(wire)
        try:
            await playback.check(call.body_hash)
        except BaseException:
            playback.close()
            raise
        return playback

    def note(self, playback: Playback, call: Call, caller: Caller) -> None:
        """Count and log a call that was answered without being run; one that was is the pipeline's to tell of."""
        recording = playback.recording
        if recording.request_id == call.request_id:
            return
        how = "replayed" if recording.is_stored else "attached"
        self._count(how)
        log_event(
            log,
            "request.repeated",
            request=call.request_id,
            original=recording.request_id,
            how=how,
            org=caller.org,
            key=caller.key_id,
        )

    async def close(self) -> None:
        """Nothing runs any more: let recordings end, and end those that don't."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSING_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _recording(self, call: Call) -> Recording:
        return Recording(
            most_bytes=self._settings.max_answer_bytes,
            grace_s=self._settings.grace_s,
            on_abandoned=lambda: self._live.pop(call.name).leave(),
        )

    async def _answer(self, call: Call, perform: Perform, stage: "_Stage") -> None:
        recording, error = stage.recording, None
        try:
            answer = await self._answers.find(call.name)
            if answer is not None:
                stage.replay(answer)
            else:
                recording.identify(call.body_hash, call.request_id)
                is_answer = await perform(stage.receive, stage.send, stage)
                if is_answer and self._live.get(call.name) is stage:
                    await self._keep(call, recording)
        except Exception as failure:  # boundary: nobody may wait for ever
            # A file that can't be read may have the answer, and running twice is what the key was to prevent.
            error = known_error(failure)
            if error is not failure:
                log.error("answer.bug request=%s", call.request_id, exc_info=failure)
        finally:
            if self._live.get(call.name) is stage:
                del self._live[call.name]
            recording.end(error)

    async def _keep(self, call: Call, recording: Recording) -> None:
        """An answer that can't be kept has been made and billed all the same, so its readers get it."""
        head, body = recording.head, recording.whole
        if head is None or body is None or head.status != 200:
            return
        answer = Answer(
            body_hash=call.body_hash,
            request_id=call.request_id,
            status=head.status,
            headers=lasting(head),
            body=body,
        )
        try:
            await self._answers.keep(call.name, answer)
        except LlmhostError as error:
            log.warning("answer.not_kept request=%s error=%s", call.request_id, error)


class _Stage:
    """What a performance has for a connection, its wire included: what it says is recorded."""

    def __init__(self, recording: Recording, raw: bytes) -> None:
        self.recording = recording
        self._raw: bytes | None = raw
        self._left = asyncio.Event()

    def replay(self, answer: Answer) -> None:
        """Record what was said before."""
        recording = self.recording
        recording.is_stored = True
        recording.identify(answer.body_hash, answer.request_id)
        recording.open(Head(answer.status, answer.headers))
        recording.hold(answer.body)

    def leave(self) -> None:
        """Nobody listens."""
        self._left.set()

    async def receive(self) -> HTTPReceiveMessage:
        raw, self._raw = self._raw, None
        if raw is not None:
            return {"type": "http.request", "body": raw, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.recording.open(Head(message["status"], tuple(message["headers"])))
        elif message["type"] == "http.response.body":
            keep = self.recording.write if message["more_body"] else self.recording.hold
            keep(message["body"])

    def is_free(self) -> bool:
        return self.recording.head is not None

    def write(self, body: bytes) -> None:
        self.recording.write(body)

    def offer(self, body: bytes) -> bool:
        if is_free := self.is_free():
            self.recording.write(body)
        return is_free


def start_of(playback: Playback, call: Call, own: Mapping[str, str]) -> HTTPResponseStartEvent:
    """The beginning of the answer to this call. `own` are its own headers, for one that was not run itself."""
    recording = playback.recording
    head, original = recording.head, recording.request_id
    assert head is not None and original is not None, "it has not begun"
    headers = head.headers
    if original != call.request_id:
        facts = {**own, REPLAYED: "true", ORIGINAL: original}
        mine = (
            (name.encode(), value.encode("latin-1", "replace")) for name, value in facts.items()
        )
        headers = (*lasting(head), *mine)
    return {"type": "http.response.start", "status": head.status, "headers": headers}


async def pour(playback: Playback, send: Send, heartbeat_s: float, heartbeat: bytes) -> None:
    """Send a recording's body, which has begun, to one client; a stream's silence is filled with `heartbeat`."""
    assert playback.recording.head is not None
    silence_s = heartbeat_s if _is_stream(playback.recording.head) else None
    while True:
        piece = await playback.next(silence_s)
        if playback.is_closed:
            return
        is_last = piece is not None and playback.is_at_end
        body = heartbeat if piece is None else piece
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})
        if is_last:
            return


def _is_stream(head: Head) -> bool:
    kind = next((value for name, value in head.headers if name == b"content-type"), b"")
    return kind.startswith((b"text/event-stream", b"application/x-ndjson"))


def lasting(head: Head) -> Headers:
    """Headers that are as true of the answer when it is repeated."""
    return tuple(pair for pair in head.headers if not _OF_ONE_CALL.fullmatch(pair[0]))


def _refusal(recording: Recording, call: Call) -> LlmhostError:
    """Of a call whose answer can't be shared any more."""
    if recording.body_hash != call.body_hash:
        return IdempotencyKeyReused()
    return IdempotencyKeyInUse(retry_after_s=BUSY_RETRY_S)
