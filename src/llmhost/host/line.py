"""The shortcut of `door.Line` on one of uvicorn's connections: pieces and whole answers go to its transport at once."""

import weakref
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from llmhost.api.door import Outflow
from llmhost.pipeline.stream import Piece

_CHUNK_HEADS = tuple(b"%x\r\n" % size for size in range(1024))


class Line:
    """The shortcut of `door.Line` past ASGI's `send` and `receive`, which make messages and await for every piece."""

    __slots__ = ("_cycle", "_flow", "_leave", "_write", "is_over", "write_raw")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = weakref.ref(cycle)  # it has the scope that has this
        self._flow = cycle.flow
        self._write = self.write_raw = cycle.transport.write
        self._leave: Callable[[], None] | None = None
        self.is_over = False
        """The answer is complete, or its client has left."""

    def is_free(self) -> bool:
        cycle = self._cycle()
        return not (
            cycle is None
            or self._flow.write_paused
            or cycle.disconnected
            or cycle.response_complete
            or not cycle.response_started
            or not cycle.chunked_encoding
        )

    def write(self, body: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(body), body))

    def offer(self, body: bytes) -> bool:
        cycle = self._cycle()
        if (
            cycle is None
            or self._flow.write_paused
            or cycle.disconnected
            or cycle.response_complete
            or not cycle.response_started
            or not cycle.chunked_encoding
        ):
            return False
        size = len(body)
        head = _CHUNK_HEADS[size] if size < len(_CHUNK_HEADS) else b"%x\r\n" % size
        self._write(b"".join((head, body, b"\r\n")))
        return True

    def pen(
        self,
        before: bytes,
        behind: bytes,
        encode: Callable[[str], bytes],
        tally: Outflow | None = None,
    ) -> Piece | None:
        cycle = self._cycle()
        if cycle is None or not cycle.response_started or not cycle.chunked_encoding:
            return None
        flow, join, heads = self._flow, b"".join, _CHUNK_HEADS
        tally = tally or Outflow()
        around, behind = len(before) + len(behind), behind + b"\r\n"

        def piece(text: str) -> bytes | None:
            if flow.write_paused or self.is_over:
                return None
            if not text:
                return b""
            body = encode(text)
            size = around + len(body)
            tally.sent_bytes += size
            head = heads[size] if size < len(heads) else b"%x\r\n" % size
            return join((head, before, body, behind))

        return piece

    def take_body(self) -> bytes | None:
        cycle = self._cycle()
        if cycle is None or cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        self._flow.resume_reading()
        return body

    def peek_body(self) -> bytes | None:
        cycle = self._cycle()
        if cycle is None or cycle.more_body or cycle.disconnected:
            return None
        return bytes(cycle.body)

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        cycle = self._cycle()
        if (
            cycle is None
            or self._flow.write_paused
            or cycle.disconnected
            or cycle.response_started
            or not cycle.keep_alive
        ):
            return False
        lines = [b"%b: %b\r\n" % each for each in (*cycle.default_headers, *headers)]
        self._write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return True

    def on_gone(self, leave: Callable[[], None] | None) -> bool:
        self._leave = leave
        # A large body's last piece may have paused the reading, and a paused connection is never seen to close.
        self._flow.resume_reading()
        cycle = self._cycle()
        return cycle is not None and not cycle.disconnected

    def tell_gone(self) -> None:
        self.is_over = True
        if self._leave is not None:
            self._leave()
