"""What is under way, in a file that is memory: what was written there outlives `kill -9` at the cost of a store.

Each thing under way has a slot of one page: a note that is written once, and a few counters that change. The kernel
keeps the pages of a process that died; `flush` forces them to disk, for the day when the power fails. What the notes
say is not known here.

A slot's state is written last, in one aligned word, so a slot that is cut off in the middle of being written is free.
"""

import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmhost.storage.connect import StorageFailed

SLOT_BYTES = 4096
COUNTERS = 4
NOTE_BYTES = SLOT_BYTES - 8 * (2 + COUNTERS)
"""The longest note."""

_MAGIC = b"llmhost-journal-1"
_WORDS = SLOT_BYTES // 8
_STATE, _SEAL, _COUNTERS, _NOTE = 0, 1, 2, 2 + COUNTERS
_FREE, _OPEN = 0, 1
_FIRST_SLOTS = 256


class Slot:
    """One thing under way. It belongs to whoever opened it."""

    __slots__ = ("_at", "_journal")

    def __init__(self, journal: "Journal", at: int) -> None:
        self._journal: Journal | None = journal
        self._at = at

    def count(self, counter: int, value: int) -> None:
        """Set one of the counters. Nothing after `close`."""
        if self._journal is not None:
            self._journal._words[self._at + _COUNTERS + counter] = value

    def add(self, counter: int, more: int) -> None:
        """Count so many more. Nothing after `close`."""
        if self._journal is not None:
            self._journal._words[self._at + _COUNTERS + counter] += more

    def write(self, note: bytes) -> None:
        """Say something else. Cut off in between, the slot says nothing any more."""
        _check(note)
        if self._journal is not None:
            self._journal._write(self._at, note)

    def close(self) -> None:
        """It is over: nothing of it is left. Idempotent, and nothing once the journal is closed."""
        journal, self._journal = self._journal, None
        if journal is not None and journal._fd >= 0:
            journal._words[self._at + _STATE] = _FREE
            journal._free.append(self._at)


def count_one_more(slots: Iterable[Slot], counter: int) -> None:
    """One more in a counter of each: for what is counted with every token. Of those that are closed nothing."""
    place = _COUNTERS + counter
    for slot in slots:
        if (journal := slot._journal) is not None:
            journal._words[slot._at + place] += 1


def close_all(slots: Iterable[Slot | None]) -> None:
    """Each of them that there is: as `close`, without a call."""
    for slot in slots:
        if slot is not None:
            journal, slot._journal = slot._journal, None
            if journal is not None and journal._fd >= 0:
                journal._words[slot._at + _STATE] = _FREE
                journal._free.append(slot._at)


class Journal:
    """The slots of one process, which owns the file. Used from one thread, but for `flush`.

    Raises StorageFailed when the file can't be made, or is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = mmap.mmap(-1, SLOT_BYTES)
        self._words = memoryview(self._map).cast("q")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageFailed(path, error) from error
        try:
            self._map_all(max(os.fstat(self._fd).st_size // SLOT_BYTES, 1 + _FIRST_SLOTS))
            self._check_magic()
        except (OSError, ValueError) as error:
            os.close(self._fd)
            raise StorageFailed(path, error) from error
        self._left = {at for at in self._all_slots() if self._words[at + _STATE] != _FREE}
        self._free = [at for at in reversed(self._all_slots()) if at not in self._left]

    @property
    def open_slots(self) -> int:
        return len(self._all_slots()) - len(self._free)

    def open(self, note: bytes) -> Slot:
        """A slot of its own, with counters at 0. One without a note has left nothing behind until it is written.

        Raises StorageFailed when the disk has no room for more slots."""
        _check(note)
        if not self._free:
            self._grow()
        at = self._free.pop()
        self._words[at + _COUNTERS : at + _NOTE] = _NO_COUNTS
        if note:
            self._write(at, note)
        return Slot(self, at)

    def left_open(self) -> Iterator[tuple[Slot, bytes, tuple[int, ...]]]:
        """What a process before this one did not live to close: each slot with its note and its counters.

        Whoever takes one closes it. A damaged one says nothing, and is freed.
        """
        for at in sorted(self._left):
            self._left.discard(at)
            slot = Slot(self, at)
            note = self._note(at)
            if note is None:
                slot.close()
            else:
                yield slot, note, tuple(self._words[at + _COUNTERS : at + _NOTE])

    def flush(self) -> None:
        """Force everything to disk. Blocks. Raises StorageFailed."""
        try:
            os.fsync(
                self._fd
            )  # of a file that is mapped, the pages that were written through the map as well
        except OSError as error:
            raise StorageFailed(self.path, error) from error

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            self._words.release()
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def _write(self, at: int, note: bytes) -> None:
        words, begin = self._words, (at + _NOTE) * 8
        words[at + _STATE] = _FREE
        self._map[begin : begin + len(note)] = note
        words[at + _SEAL] = zlib.crc32(note) << 16 | len(note)
        words[at + _STATE] = _OPEN

    def _note(self, at: int) -> bytes | None:
        seal, begin = self._words[at + _SEAL], (at + _NOTE) * 8
        length = seal & 0xFFFF
        note = self._map[begin : begin + length] if length <= NOTE_BYTES else b""
        is_whole = self._words[at + _STATE] == _OPEN and zlib.crc32(note) == seal >> 16
        return note if is_whole and note else None

    def _all_slots(self) -> range:
        """Where each begins, in words; the first page is the file's own."""
        return range(_WORDS, len(self._words), _WORDS)

    def _grow(self) -> None:
        before = len(self._words)
        slots = before // _WORDS
        try:
            self._map_all(2 * slots)
        except OSError as error:
            raise StorageFailed(self.path, error) from error
        self._free = list(reversed(range(before, len(self._words), _WORDS)))

    def _map_all(self, pages: int) -> None:
        # Room is taken before it is needed: writing to a page that the disk has no room for would end the process.
        os.posix_fallocate(self._fd, 0, pages * SLOT_BYTES)
        mapped = mmap.mmap(self._fd, pages * SLOT_BYTES)
        self._words.release()
        self._map.close()
        self._map = mapped
        self._words = memoryview(mapped).cast("q")

    def _check_magic(self) -> None:
        found = self._map[: len(_MAGIC)]
        if found == bytes(len(_MAGIC)):
            self._map[: len(_MAGIC)] = _MAGIC
        elif found != _MAGIC:
            raise ValueError("it is not a journal of this program")


def _check(note: bytes) -> None:
    if len(note) > NOTE_BYTES:
        raise ValueError(f"a note of {len(note)} bytes; {NOTE_BYTES} fit")


_NO_COUNTS = memoryview(bytes(8 * COUNTERS)).cast("q")
