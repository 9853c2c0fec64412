"""Bytes that may wait in memory for a disk: taken on the event loop, given back on any thread."""

import asyncio
import threading
from contextlib import suppress


class Room:
    """One queue's. Who finds it full may wait until somebody gives back."""

    def __init__(self) -> None:
        self._taken_bytes = 0
        self._lock = threading.Lock()
        self._freed: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        """What those wait for who have found it full since somebody gave back."""

    def has(self, size: int, most_bytes: int) -> bool:
        """Whether so much more would be within `most_bytes`."""
        return self._taken_bytes + size <= most_bytes

    def take(self, size: int) -> None:
        with self._lock:
            self._taken_bytes += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self._taken_bytes -= size
            freed, self._freed = self._freed, None
        if freed is not None:
            with suppress(RuntimeError):  # the loop has ended, and they with it
                freed[0].call_soon_threadsafe(freed[1].set)

    async def wait(self, size: int, most_bytes: int, timeout_s: float) -> bool:
        """Until there is room, which is not taken; False when there is none in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (freed := self._full(size, most_bytes)) is not None:
                    await freed.wait()
        return self.has(size, most_bytes)

    def _full(self, size: int, most_bytes: int) -> asyncio.Event | None:
        """None where there is room; else what is set when some is given back."""
        with self._lock:  # or it would be given back between the look and the wait
            if self.has(size, most_bytes):
                return None
            if self._freed is None:
                self._freed = asyncio.get_running_loop(), asyncio.Event()
            return self._freed[1]
