"""What one call is answered, as bytes, for everybody who makes that call: from its beginning, and then as it comes.

One call writes. Whoever reads does so at a pace of its own, and nobody waits for it. All of it happens on the HTTP
loop, so nothing is locked. What is said, and whether it is worth keeping, is not known here.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from llmhost.api.door import Wire
from llmhost.core.errors import IdempotencyKeyReused, LlmhostError, Overloaded

PIECE_BYTES = 256 * 1024
"""Most that a reader is handed at once: what waits in a socket's buffer is memory, too, for each of them."""
LEAST_PAUSE_S = 0.001
"""The loop's timers know no shorter time."""


class Head(NamedTuple):
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


class Recording:
    """Bytes that grow until `end`. `on_abandoned` is called once, when for `grace_s` nobody has read them.

    Beyond `most_bytes` only those who read already go on, what all of them have is dropped, and nobody can join.
    """

    def __init__(
        self, *, most_bytes: int, grace_s: float, on_abandoned: Callable[[], None]
    ) -> None:
        self.body_hash: bytes | None = None
        """Of the call that is answered here; None until that is known."""
        self.request_id: str | None = None
        """Of the call that was run for it."""
        self.head: Head | None = None
        self.is_stored = False
        """It is an answer from before."""
        self.is_ended = False
        self.is_too_large = False
        self._most_bytes = most_bytes
        self._grace_s = grace_s
        self._on_abandoned = on_abandoned
        self._body = bytearray()
        self._dropped = 0
        """Bytes that are no longer at the beginning of `_body`."""
        self._last: bytes | None = None
        """The end, held back until `end`."""
        self._error: LlmhostError | None = None
        self._readers: set[Playback] = set()
        self._alarm: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ writing

    def identify(self, body_hash: bytes, request_id: str) -> None:
        """Say which call is answered here. Until then readers wait."""
        self.body_hash, self.request_id = body_hash, request_id
        self._wake_all()

    def open(self, head: Head) -> None:
        self.head = head
        self._wake_all()

    def write(self, piece: bytes) -> None:
        self._body += piece
        if self._dropped + len(self._body) > self._most_bytes:
            self.is_too_large = True
        for reader in self._readers:
            reader._hear(piece)
        if self.is_too_large:
            self._trim()

    def hold(self, last: bytes) -> None:
        """Take the last piece, and let nobody see it before `end`. From now on nothing is lost by having no reader."""
        self._last = last
        self._stop_alarm()

    @property
    def whole(self) -> bytes | None:
        """All of it, the last piece included; None when that has not come, or it is too large to be kept."""
        if self._last is None or self.is_too_large:
            return None
        whole = bytes(self._body) + self._last
        return whole if len(whole) <= self._most_bytes else None

    def end(self, error: LlmhostError | None = None) -> None:
        """Nothing more comes; `error` says why where that is not what readers expect. Idempotent."""
        if self.is_ended:
            return
        if self._last is not None:
            self.write(self._last)
        elif error is None and self._readers:
            error = Overloaded("The answer was cut off by this server's end.", retry_after_s=1)
        self.is_ended, self._error = True, error
        self._stop_alarm()
        self._wake_all()

    # ------------------------------------------------------------ reading

    def reader(self, wire: Wire | None = None) -> "Playback":
        """A reader from the beginning. Not for one that is too large."""
        assert not self.is_too_large, "its beginning may be gone"
        self._stop_alarm()
        reader = Playback(self, wire)
        self._readers.add(reader)
        return reader

    @property
    def _end(self) -> int:
        return self._dropped + len(self._body)

    def _from(self, cursor: int) -> bytes:
        start = cursor - self._dropped
        return bytes(self._body[start : start + PIECE_BYTES])

    def _leave(self, reader: "Playback") -> None:
        self._readers.discard(reader)
        if self.is_too_large:
            self._trim()
        if self._readers or self.is_ended or self._last is not None:
            return
        if self.is_too_large:
            self._abandon()  # nobody could come
        else:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(self._grace_s, self._abandon)

    def _abandon(self) -> None:
        self._stop_alarm()
        self._on_abandoned()

    def _trim(self) -> None:
        passed = min((reader.cursor for reader in self._readers), default=self._end)
        del self._body[: passed - self._dropped]
        self._dropped = passed

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _wake_all(self) -> None:
        for reader in self._readers:
            reader._wake()


class Playback:
    """One reader of a recording. Read by one task at a time, and left by `close`.

    What comes while it waits goes straight to its `wire`, if it has one that is free, and the task sleeps on.
    """

    __slots__ = ("_alarm", "_heard_s", "_is_closed", "_waiter", "_wire", "cursor", "recording")

    def __init__(self, recording: Recording, wire: Wire | None) -> None:
        self.recording = recording
        self.cursor = 0
        """Bytes that lie behind."""
        self._wire = wire
        self._waiter: asyncio.Future[bool] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._heard_s = 0.0
        """When something last went straight to the wire, or the wait began."""
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def is_at_end(self) -> bool:
        recording = self.recording
        return recording.is_ended and recording._error is None and self.cursor == recording._end

    async def check(self, body_hash: bytes) -> None:
        """Wait until it is known which call is answered here.

        Raises IdempotencyKeyReused when it is not this one, and what kept it from becoming known.
        """
        recording = self.recording
        while recording.body_hash is None and not recording.is_ended and not self._is_closed:
            await self._woken(None)
        if recording.body_hash is None and recording._error is not None:
            raise recording._error.with_traceback(None)
        if recording.body_hash not in (None, body_hash):
            raise IdempotencyKeyReused

    async def begun(self) -> Head | None:
        """Wait for status and headers; None after `close`. Raises why there are none."""
        recording = self.recording
        while recording.head is None and not recording.is_ended and not self._is_closed:
            await self._woken(None)
        if recording.head is None and recording._error is not None:
            raise recording._error.with_traceback(None)
        return recording.head

    async def next(self, silence_s: float | None = None) -> bytes | None:
        """What follows; None when nothing came for `silence_s`, and nothing at the end and after `close`.

        Raises what broke the answer off.
        """
        recording = self.recording
        while not self._is_closed:
            if fresh := recording._from(self.cursor):
                self.cursor += len(fresh)
                if recording.is_too_large:
                    recording._trim()
                return fresh
            if recording.is_ended:
                if recording._error is not None:
                    raise recording._error.with_traceback(None)
                break
            if not await self._woken(silence_s):
                return None
        return b""

    def close(self) -> None:
        """Leave. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._wake()
            self.recording._leave(self)

    async def _woken(self, silence_s: float | None) -> bool:
        """Wait for a wake-up, and say whether it came before `silence_s` without a sound."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter, self._heard_s = waiter, time.monotonic()
        if silence_s is not None:
            self._alarm = loop.call_later(silence_s, self._look, waiter, silence_s)
        try:
            return await waiter
        finally:
            self._waiter = None
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    def _look(self, waiter: "asyncio.Future[bool]", silence_s: float) -> None:
        left_s = self._heard_s + silence_s - time.monotonic()
        if left_s >= LEAST_PAUSE_S:
            self._alarm = asyncio.get_running_loop().call_later(
                left_s, self._look, waiter, silence_s
            )
        elif not waiter.done():
            waiter.set_result(False)

    def _hear(self, piece: bytes) -> None:
        """Something was written, which is all that this one lacks if it waits."""
        wire, waiter = self._wire, self._waiter
        if wire is None or waiter is None or waiter.done() or not wire.is_free():
            self._wake()
        elif piece:
            wire.write(piece)
            self.cursor += len(piece)
            self._heard_s = time.monotonic()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)
