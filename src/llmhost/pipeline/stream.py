"""One answer as it grows, read by any number of readers, each from the place it wants.

Slow readers, identical requests in flight, idempotent duplicates and background responses are all readers of one
stream. Everything happens on the HTTP loop, so nothing is locked, and what was pushed is kept until the stream is
dropped. A reader that falls behind gets more at once; nobody waits for it.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from llmhost.core.errors import LlmhostError
from llmhost.core.output import Delta


class ReplayStream:
    """A buffer of deltas that ends once, by `close` or `fail`; what is pushed after the end is ignored.

    `on_abandoned` is called once, when the last reader leaves before the end; with `keep` it never is, because
    somebody else (a background response's store) wants the whole.
    """

    def __init__(
        self, *, keep: bool = False, on_abandoned: Callable[[], None] | None = None
    ) -> None:
        self.is_ended = False
        self.is_abandoned = False
        """The last reader left: whoever fills the stream was told to stop, so a newcomer needs a stream of its own."""
        self._keep = keep
        self._on_abandoned = on_abandoned
        self._deltas: list[Delta] = []
        self._error: LlmhostError | None = None
        self._readers: set[StreamReader] = set()
        self._waiting: set[StreamReader] = set()

    def __len__(self) -> int:
        """How many deltas there are: the cursor of a reader that wants only what is new."""
        return len(self._deltas)

    def push(self, delta: Delta) -> None:
        """Never blocks."""
        if not self.is_ended:
            self._deltas.append(delta)
            self._wake_readers()

    def close(self) -> None:
        if not self.is_ended:
            self.is_ended = True
            self._wake_readers()

    def fail(self, error: LlmhostError) -> None:
        """End it with `error`, which every reader gets raised after the deltas that came before."""
        if not self.is_ended:
            self._error = error
            self.close()

    def reader(self, cursor: int = 0) -> "StreamReader":
        """A reader that starts at the delta numbered `cursor`; 0 replays everything."""
        if cursor < 0:
            raise ValueError(f"a cursor counts from 0, and this one is {cursor}")
        reader = StreamReader(self, cursor)
        self._readers.add(reader)
        return reader

    def _wake_readers(self) -> None:
        for reader in self._waiting:
            reader._wake()

    def _leave(self, reader: "StreamReader") -> None:
        self._readers.discard(reader)
        if self._readers or self.is_ended or self.is_abandoned or self._keep:
            return
        self.is_abandoned = True
        if self._on_abandoned is not None:
            self._on_abandoned()


class StreamReader:
    """Iterate for lists of everything that arrived since the last one. Read by one task at a time.

    Leave it by `close` or `async with`: a reader that is merely dropped keeps the stream from being abandoned.
    """

    def __init__(self, stream: ReplayStream, cursor: int) -> None:
        self._stream = stream
        self._cursor = cursor
        self._waiter: asyncio.Future[bool] | None = None
        self._is_closed = False

    @property
    def cursor(self) -> int:
        """How many deltas of the stream lie behind: where another reader may go on."""
        return self._cursor

    async def next(self, timeout_s: float | None = None) -> list[Delta] | None:
        """Everything that is new; None when nothing came in `timeout_s`; an empty list at the end.

        Raises the stream's error once all deltas before it are read.
        """
        while not self._is_closed:
            if fresh := self._stream._deltas[self._cursor :]:
                self._cursor += len(fresh)
                return fresh
            if self._stream.is_ended:
                if self._stream._error is not None:
                    # Shared by all readers, so one's frames must not pile up on it.
                    raise self._stream._error.with_traceback(None)
                break
            if not await self._woken(timeout_s):
                return None
        return []

    def close(self) -> None:
        """Leave. A read that is waiting ends; the stream is abandoned when this was its last reader."""
        if not self._is_closed:
            self._is_closed = True
            self._wake()
            self._stream._leave(self)

    def __aiter__(self) -> "StreamReader":
        return self

    async def __anext__(self) -> list[Delta]:
        if fresh := await self.next():
            return fresh
        raise StopAsyncIteration

    async def __aenter__(self) -> "StreamReader":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _woken(self, timeout_s: float | None) -> bool:
        """Wait for a wake-up, and say whether it came. What it was for is for the caller to look up."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read one StreamReader; give each its own")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        # A bare timer: this runs once per token and reader, and asyncio.timeout costs several times as much.
        timer = None if timeout_s is None else loop.call_later(timeout_s, _resolve, waiter, False)
        self._stream._waiting.add(self)
        try:
            return await waiter
        finally:
            self._stream._waiting.discard(self)
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None:
            _resolve(self._waiter, True)


def _resolve(waiter: "asyncio.Future[bool]", is_wake: bool) -> None:
    if not waiter.done():
        waiter.set_result(is_wake)
