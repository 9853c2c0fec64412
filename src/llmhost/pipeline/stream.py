"""One answer as it grows, read by any number of readers, each from the place it wants.

Slow readers, identical requests in flight, idempotent duplicates and background responses are all readers of one
stream. Everything happens on the HTTP loop, so nothing is locked, and what was pushed is kept until the stream is
dropped. A reader that falls behind gets more at once; nobody waits for it.

To wake a task for every token costs more than all else that is done with one. So a read may bring a `take`: while it
waits, what comes is given to that, from one callback for all readers, and the task sleeps on.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from llmhost.core.errors import LlmhostError
from llmhost.core.output import Delta

SLICE_S = 0.001
"""How long readers are served before the loop may do something else."""
WRITTEN_TOGETHER = 32
LEAST_PAUSE_S = 0.001
"""The loop's timers know no shorter time."""

Take = Callable[[list[Delta]], bool]
"""Takes what came since the last call, or says that it can't now; then the read that brought it returns it."""


Piece = Callable[[str], bytes | None]
"""The bytes of a piece of text; None where it can't be written now."""


class Writing:
    """A take in two parts: the pieces of many readers are made, and then written one after the other. Either goes
    quicker where the other does not come in between."""

    __slots__ = ("otherwise", "pieces", "write")

    def __init__(
        self, pieces: Mapping[int, Piece], write: Callable[[bytes], None], otherwise: Take
    ) -> None:
        """`pieces` is by choice, and may become more; `otherwise` takes what is more than one piece of text."""
        self.pieces = pieces
        self.write = write
        self.otherwise = otherwise

    def __call__(self, deltas: list[Delta]) -> bool:
        return self.otherwise(deltas)


class Outbox:
    """Readers with a `take` to whom something came, in that order. One for all streams of a loop.

    They are served in rounds; what comes to a reader before its turn is joined to what it gets. `share` is the part of
    a core that serving them may take. Where it would be more, rounds are fewer and bring more each: the engine's thread
    needs the interpreter, too, and a write costs the same whatever it brings.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._due: deque[StreamReader] = deque()
        self._left = 0
        """Of `_due`, how many belong to this round."""
        self._is_called = False
        self._began_s = 0.0
        self._spent_s = 0.0
        """CPU time of this round."""
        self._pause_ends_s = 0.0

    def _call(self) -> None:
        self._is_called = True
        loop, pause_s = asyncio.get_running_loop(), self._pause_ends_s - time.monotonic()
        if pause_s < LEAST_PAUSE_S:
            loop.call_soon(self._serve)
        else:
            loop.call_later(pause_s, self._serve)

    def _serve(self) -> None:
        now_s, cpu_s = time.monotonic(), time.thread_time()
        if not self._left:
            self._left, self._began_s, self._spent_s = len(self._due), now_s, 0.0
        end_s = now_s + SLICE_S
        while self._left:
            self._serve_some(now_s)
            if time.monotonic() >= end_s:
                break
        self._spent_s += time.thread_time() - cpu_s
        self._pause_ends_s = 0.0 if self._left else self._began_s + self._spent_s / self._share
        if self._due:
            self._call()
        else:
            self._is_called = False

    def _serve_some(self, now_s: float) -> None:
        """The next readers: a few whose pieces are made first and then written, until one comes that takes itself."""
        due = self._due
        made: list[tuple[StreamReader, Writing, bytes]] = []
        for _ in range(min(self._left, WRITTEN_TOGETHER)):
            self._left -= 1
            reader = due.popleft()
            reader._is_due = False
            writing, deltas, cursor = reader._writing, reader._stream._deltas, reader._cursor
            # Whoever reads has been woken else, and finds it there.
            if writing is not None and len(deltas) == cursor + 1 and not reader._waiter.done():  # type: ignore[union-attr]
                delta = deltas[cursor]
                piece_of = writing.pieces.get(delta.index)
                if delta.finish_reason is None and piece_of is not None:
                    try:
                        piece = piece_of(delta.text)
                    except Exception as error:  # noqa: BLE001 - boundary: raised by the read
                        reader._fail(error)
                        continue
                    if piece is not None:
                        reader._cursor = cursor + 1
                        reader._taken_s = now_s
                        made.append((reader, writing, piece))
                        continue
            reader._offer(now_s)
            break
        for reader, writing, piece in made:
            try:
                if piece:
                    writing.write(piece)
            except Exception as error:  # noqa: BLE001 - boundary: raised by the read
                reader._fail(error)


_NOBODY: "set[StreamReader]" = set()
"""Nobody is ever added to this one."""


class ReplayStream:
    """A buffer of deltas that ends once, by `close` or `fail`; what is pushed after the end is ignored.

    `on_abandoned` is called once, when the last reader leaves before the end; with `keep` it never is, because
    somebody else (a background response's store) wants the whole.
    """

    __slots__ = (
        *("_deltas", "_error", "_keep", "_on_abandoned", "_readers", "_waiting"),
        *("__weakref__", "is_abandoned", "is_ended"),
    )

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
        self._readers = self._waiting = _NOBODY  # many an answer is taken whole, and read by nobody

    def __len__(self) -> int:
        """How many deltas there are: the cursor of a reader that wants only what is new."""
        return len(self._deltas)

    def so_far(self) -> list[Delta]:
        """Everything that was pushed until now."""
        return list(self._deltas)

    def whole(self) -> list[Delta]:
        """Everything, of a stream that has ended. Raises its error."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._deltas

    def push(self, delta: Delta) -> None:
        """Never blocks."""
        if not self.is_ended:
            self._deltas.append(delta)
            for reader in self._waiting:
                if not reader._is_due or reader._take is None:
                    reader._hear()

    def close(self) -> None:
        self.end(())

    def fail(self, error: LlmhostError) -> None:
        """End it with `error`, which every reader gets raised after the deltas that came before."""
        self.end((), error)

    def end(self, deltas: Iterable[Delta], error: LlmhostError | None = None) -> None:
        """Push the last ones, and close it, or fail."""
        if not self.is_ended:
            self._deltas += deltas
            self._error = error
            self.is_ended = True
            self._on_abandoned = None  # it refers to whoever fills the stream, who refers to it
            for reader in self._waiting:
                reader._wake()

    def reader(self, cursor: int = 0, *, outbox: Outbox | None = None) -> "StreamReader":
        """A reader that starts at the delta numbered `cursor`; 0 replays everything. `outbox` serves its `take`s."""
        if cursor < 0:
            raise ValueError(f"a cursor counts from 0, and this one is {cursor}")
        reader = StreamReader(self, cursor, outbox)
        if self._readers is _NOBODY:
            self._readers, self._waiting = set(), set()
        self._readers.add(reader)
        return reader

    def _leave(self, reader: "StreamReader") -> None:
        self._readers.discard(reader)
        if not (self._readers or self._keep):
            self.abandon()

    def abandon(self) -> None:
        """Nobody wants any more of it."""
        if self.is_ended or self.is_abandoned:
            return
        self.is_abandoned = True
        if self._on_abandoned is not None:
            self._on_abandoned()


def push_all(streams: Sequence[ReplayStream], deltas: Sequence[Delta]) -> None:
    """`push` to each stream what is for it, in one loop: this is done for every token of every answer."""
    for stream, delta in zip(streams, deltas, strict=True):
        if stream.is_ended:
            continue
        stream._deltas.append(delta)
        for reader in stream._waiting:
            take, outbox = reader._take, reader._outbox
            if take is None or outbox is None or not reader._cursor:
                reader._hear()
            elif not reader._is_due and take is not _leave_it:
                reader._is_due = True
                outbox._due.append(reader)
                if not outbox._is_called:
                    outbox._call()


class StreamReader:
    """Iterate for lists of everything that arrived since the last one. Read by one task at a time.

    Leave it by `close` or `async with`: a reader that is merely dropped keeps the stream from being abandoned.
    """

    __slots__ = (
        *("_cursor", "_is_closed", "_is_due", "_outbox", "_stream"),
        *("_take", "_taken_s", "_timer", "_waiter", "_writing"),
    )

    def __init__(self, stream: ReplayStream, cursor: int, outbox: Outbox | None = None) -> None:
        self._stream = stream
        self._cursor = cursor
        self._outbox = outbox
        self._waiter: asyncio.Future[bool] | None = None
        self._is_closed = False
        self._take: Take | None = None
        self._writing: Writing | None = None
        """The same, while it is one of that kind."""
        self._taken_s = 0.0
        """When `_take` last took something."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        """It is in the outbox."""

    @property
    def cursor(self) -> int:
        """How many deltas of the stream lie behind: where another reader may go on."""
        return self._cursor

    async def next(
        self, timeout_s: float | None = None, take: Take | None = None
    ) -> list[Delta] | None:
        """Everything that is new; None when nothing came in `timeout_s`; an empty list at the end.

        While it waits, all but the end is offered to `take` first. Raises the stream's error once all deltas before
        it are read, and what `take` raises.
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
            if not await self._woken(timeout_s, take):
                return None
        return []

    async def rest(self) -> list[Delta]:
        """All that is left, once the stream has ended: nobody is woken before. Raises the stream's error.

        After `close` it is what there was.
        """
        if not self._stream.is_ended and not self._is_closed:
            await self._woken(None, _leave_it)
        if self._stream._error is not None and not self._is_closed:
            raise self._stream._error.with_traceback(None)
        fresh = self._stream._deltas[self._cursor :]
        self._cursor += len(fresh)
        return fresh

    def told(self) -> list[Delta]:
        """Everything up to the cursor, again."""
        return self._stream._deltas[: self._cursor]

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

    async def _woken(self, timeout_s: float | None, take: Take | None) -> bool:
        """Wait for a wake-up, and say whether it came. What it was for is for the caller to look up."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read one StreamReader; give each its own")
        is_served = take in (None, _leave_it) or self._outbox is not None
        assert is_served, "nobody serves this reader's takes"
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        self._take, self._taken_s = take, time.monotonic()
        self._writing = take if type(take) is Writing else None
        # A bare timer: this may run once per token and reader, and asyncio.timeout costs several times as much.
        if timeout_s is not None:
            self._timer = loop.call_later(timeout_s, self._look, waiter, timeout_s)
        self._stream._waiting.add(self)
        try:
            return await waiter
        finally:
            self._stream._waiting.discard(self)
            self._waiter = self._take = self._writing = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self, waiter: "asyncio.Future[bool]", timeout_s: float) -> None:
        """The time is over, unless something was taken meanwhile: then it began anew."""
        left_s = self._taken_s + timeout_s - time.monotonic()
        if left_s < LEAST_PAUSE_S:
            _resolve(waiter, False)
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(left_s, self._look, waiter, timeout_s)

    def _offer(self, now_s: float) -> None:
        """Have `_take` take what came, or end the read."""
        waiter, take = self._waiter, self._take
        if waiter is None or take is None or waiter.done():
            return
        fresh = self._stream._deltas[self._cursor :]
        try:
            if not fresh:
                pass
            elif take(fresh):
                self._cursor += len(fresh)
                self._taken_s = now_s
            else:
                waiter.set_result(True)
        except Exception as error:  # noqa: BLE001 - boundary: raised by the read, which is whose bug it is
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _wake(self) -> None:
        """Something came, or nothing comes any more."""
        if self._waiter is not None:
            _resolve(self._waiter, True)

    def _hear(self) -> None:
        """Something came. The very first of it waits for no round."""
        if self._take is _leave_it:
            return
        if self._take is None or not self._cursor:
            self._wake()
        else:
            self._is_due, outbox = True, self._outbox
            assert outbox is not None
            outbox._due.append(self)
            if not outbox._is_called:
                outbox._call()


def _leave_it(_: list[Delta]) -> bool:
    """The `take` of those who want everything at the end: it is never called."""
    return True


def _resolve(waiter: "asyncio.Future[bool]", is_wake: bool) -> None:
    if not waiter.done():
        waiter.set_result(is_wake)
