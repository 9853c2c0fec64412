"""Bytes from files into tensors, as fast as the page cache and the way to the device allow.

Several threads read slabs of a file into page-locked memory, from where they are copied on a stream of each thread's
own while it fills its next slab. Into host memory they read in place. It knows nothing of models.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

GIB = 2**30
SLAB_BYTES = 16 * 2**20
"""Large enough for the full rate of a copy, small enough that locking the pages takes no time."""
READERS = 8
"""One core copies a few GiB/s out of the page cache; PCIe takes ten times that."""
HOST_READERS = 2
SLABS = 2
"""Of each reader: one is filled while the other is on its way."""
PROGRESS_S = 3.0


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor to be read: contiguous bytes of a file that become all elements of `target`, which is contiguous."""

    path: Path
    offset: int
    size: int
    """Bytes in the file."""
    kind: torch.dtype
    """Of the elements in the file. Where the target has another one they are converted."""
    target: Tensor


class Part(NamedTuple):
    """Bytes of one tensor within a slab."""

    read: Read
    at: int
    """In the slab."""
    first: int
    """In the tensor as it is stored."""
    size: int


@dataclass(slots=True)
class Slab:
    """Contiguous bytes of a file that are read at once."""

    path: Path
    offset: int
    size: int = 0
    parts: list[Part] = field(default_factory=list)

    def take(self, read: Read, first: int, most: int) -> int:
        """How many bytes of `read`, from `first` on, come in here too; whole elements only."""
        is_next = (self.path, self.offset + self.size) == (read.path, read.offset + first)
        size = min(read.size - first, most - self.size) if is_next else 0
        size -= size % read.kind.itemsize
        if size > 0:
            self.parts.append(Part(read, self.size, first, size))
            self.size += size
        return max(size, 0)


def cut(reads: Sequence[Read], slab_bytes: int) -> Iterator[Slab]:
    """All bytes of `reads` in slabs, file by file and from front to back."""
    slab: Slab | None = None
    for read in sorted(reads, key=lambda read: (read.path, read.offset)):
        first = 0
        while first < read.size:
            taken = 0 if slab is None else slab.take(read, first, slab_bytes)
            first += taken
            if not taken:
                if slab is not None:
                    yield slab
                slab = Slab(read.path, read.offset + first)
    if slab is not None:
        yield slab


def read_all(
    reads: Sequence[Read],
    *,
    device: torch.device,
    slab_bytes: int = SLAB_BYTES,
    readers: int | None = None,
) -> float:
    """Fill the targets of `reads`, which are all on `device`; seconds that it took. Long reads log how far they are.

    Raises OSError when a file can't be read.
    """
    began_s = time.perf_counter()
    work = _Work(list(cut(reads, slab_bytes)))
    count = readers or (READERS if device.type == "cuda" else HOST_READERS)
    files = {path: os.open(path, os.O_RDONLY) for path in {read.path for read in reads}}
    ready = torch.cuda.current_stream(device) if device.type == "cuda" else None
    threads = [
        threading.Thread(
            target=_carry_all,
            args=(work, files, device, slab_bytes, ready),
            name="weights",
            daemon=True,  # the end of the process waits for no load
        )
        for _ in range(min(count, len(work.slabs)))
    ]
    try:
        for thread in threads:
            thread.start()
        _watch(threads, work, began_s)
    finally:
        work.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        for file in files.values():
            os.close(file)
        if device.type == "cuda" and any(read.kind != read.target.dtype for read in reads):
            torch.cuda.empty_cache()  # of the readers' streams, on which nobody allocates again
    if work.error is not None:
        raise work.error
    return time.perf_counter() - began_s


class _Work:
    """What is left to read; the readers share it."""

    def __init__(self, slabs: Sequence[Slab]) -> None:
        self.slabs = slabs
        self.total_bytes = sum(slab.size for slab in slabs)
        self.done_bytes = 0
        self.error: BaseException | None = None
        self._left = iter(slabs)
        self._is_stopped = False
        self._lock = threading.Lock()

    def next(self) -> Slab | None:
        with self._lock:
            return None if self._is_stopped else next(self._left, None)

    def done(self, slab: Slab) -> None:
        with self._lock:
            self.done_bytes += slab.size

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
            self._is_stopped = True

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True


def _watch(threads: Sequence[threading.Thread], work: _Work, began_s: float) -> None:
    """Wait until all are done, and say every few seconds how far they are."""
    told_s = began_s
    for thread in threads:
        while thread.is_alive():
            thread.join(PROGRESS_S)
            now_s = time.perf_counter()
            if thread.is_alive() and now_s - told_s >= PROGRESS_S:
                told_s = now_s
                log_event(log, "weights.reading", **progress(work.done_bytes, now_s - began_s),
                          of_gib=round(work.total_bytes / GIB, 2))  # fmt: skip


def progress(done_bytes: int, took_s: float) -> dict[str, Any]:
    """For the log: how much was read, and how fast."""
    gib = done_bytes / GIB
    return {"gib": round(gib, 2), "gib_per_s": round(gib / max(took_s, 1e-9), 2)}


def _carry_all(
    work: _Work,
    files: dict[Path, int],
    device: torch.device,
    slab_bytes: int,
    ready: "torch.cuda.Stream | None",
) -> None:
    """One reader's thread."""
    try:
        lane: _Lane = (
            _HostLane(slab_bytes) if ready is None else _DeviceLane(device, slab_bytes, ready)
        )
        try:
            while (slab := work.next()) is not None:
                lane.carry(files[slab.path], slab)
                work.done(slab)
        finally:
            lane.finish()
    except BaseException as error:  # noqa: BLE001 - raised by whoever waits for the readers
        work.fail(error)


class _Lane(Protocol):
    """One reader's way from a file to the targets."""

    def carry(self, file: int, slab: Slab) -> None: ...

    def finish(self) -> None:
        """Come back once everything is there."""
        ...


class _HostLane:
    """Reads in place what needs no conversion."""

    def __init__(self, slab_bytes: int) -> None:
        self._room = torch.empty(slab_bytes, dtype=torch.uint8)

    def carry(self, file: int, slab: Slab) -> None:
        for part in slab.parts:
            is_same = part.read.kind == part.read.target.dtype
            place = _bytes(part) if is_same else self._room[: part.size]
            _fill(file, _memory(place), slab.offset + part.at, slab.path)
            if not is_same:
                _elements(part).copy_(place.view(part.read.kind))

    def finish(self) -> None:
        pass


class _DeviceLane:
    """Reads into page-locked slabs, and copies from there beside the reading of the next one."""

    def __init__(self, device: torch.device, slab_bytes: int, ready: "torch.cuda.Stream") -> None:
        torch.cuda.set_device(device)  # of this thread
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(ready)  # the targets' memory may be in use until then
        self._slabs = [
            torch.empty(slab_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(SLABS)
        ]
        self._gone = [_event() for _ in range(SLABS)]
        self._turn = 0
        self._staged: Tensor | None = None

    def carry(self, file: int, slab: Slab) -> None:
        self._turn = (self._turn + 1) % SLABS
        room, gone = self._slabs[self._turn], self._gone[self._turn]
        gone.synchronize()
        _fill(file, _memory(room)[: slab.size], slab.offset, slab.path)
        with torch.cuda.stream(self._stream):
            for part in slab.parts:
                self._copy(room[part.at : part.at + part.size], part)
            gone.record(self._stream)

    def _copy(self, source: Tensor, part: Part) -> None:
        target = part.read.target
        if part.read.kind == target.dtype:
            _bytes(part).copy_(source, non_blocking=True)
            return
        if self._staged is None:  # made on this stream, and used on no other
            self._staged = torch.empty_like(self._slabs[0], device=target.device)
        staged = self._staged[: part.size]
        staged.copy_(source, non_blocking=True)
        _elements(part).copy_(staged.view(part.read.kind))

    def finish(self) -> None:
        self._stream.synchronize()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


def _memory(room: Tensor) -> memoryview:
    """Its bytes, valid while it lives. Not by way of numpy, after which its storage could never be given back."""
    return memoryview((ctypes.c_char * room.nbytes).from_address(room.data_ptr())).cast("B")


def _bytes(part: Part) -> Tensor:
    """Where a part goes, in a target of the type that is stored."""
    flat = part.read.target.view(-1).view(torch.uint8)
    return flat[part.first : part.first + part.size]


def _elements(part: Part) -> Tensor:
    item = part.read.kind.itemsize
    return part.read.target.view(-1)[part.first // item : (part.first + part.size) // item]


def _fill(file: int, room: memoryview, offset: int, path: Path) -> None:
    """Read until `room` is full. Other threads run meanwhile."""
    done = 0
    while done < len(room):
        count = os.preadv(file, [room[done:]], offset + done)
        if count == 0:
            raise OSError(f"{path} ends before its last tensor")
        done += count
