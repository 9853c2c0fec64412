"""One file of a hub, brought to the end: taken up where it broke off, and believed only with the hub's hash."""

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.hub import HubFile, Interrupted, Listing, endpoint, open_file

AT_ONCE = 4
"""Files that are worked on at the same time."""

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each new try of a transfer that breaks without having brought anything."""

REPORT_EVERY_S = 0.1
READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is."""

    total_bytes: int
    done_bytes: int
    """Here, whether they arrived now or before."""
    is_waiting: bool = False
    """Another process or thread fetches the same files."""


Report = Callable[[Progress], None]
"""Called often, from any thread, one call at a time."""


class Meter:
    """Adds up how far the files are, and reports it now and then."""

    def __init__(self, total_bytes: int, report: Report) -> None:
        self.total_bytes = total_bytes
        self.arrived_bytes = 0
        """Over the network."""
        self._report = report
        self._lock = threading.Lock()
        self._by_file: dict[str, int] = {}
        self._reported_s = 0.0

    def here(self, path: str, size_bytes: int) -> None:
        """So much of the file is on disk."""
        with self._lock:
            self._by_file[path] = size_bytes
            done_bytes = sum(self._by_file.values())
            now_s = time.monotonic()
            if done_bytes < self.total_bytes and now_s - self._reported_s < REPORT_EVERY_S:
                return
            self._reported_s = now_s
            self._report(Progress(self.total_bytes, done_bytes))

    def arrived(self, count_bytes: int) -> None:
        with self._lock:
            self.arrived_bytes += count_bytes


class Digest:
    """The hash by which the hub knows a file's contents: SHA-256, or git's for small files."""

    def __init__(self, file: HubFile) -> None:
        self._wanted = file
        self.seen_bytes = 0
        if len(file.digest) == 64:
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)

    def add(self, piece: bytes) -> None:
        self._hash.update(piece)
        self.seen_bytes += len(piece)

    @property
    def is_right(self) -> bool:
        wanted = self._wanted
        return self.seen_bytes == wanted.size_bytes and self._hash.hexdigest() == wanted.digest


def part_path(staged: Path, file: HubFile) -> Path:
    """Where a file arrives: contents that changed at the hub begin anew, under another name."""
    return staged.with_name(f"{staged.name}.{file.digest[:16]}.part")


def is_right(path: Path, file: HubFile, meter: Meter, stop: threading.Event) -> bool:
    """Whether a file that is here has the contents that it should have. Reads all of it."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    digest = Digest(file)
    with path.open("rb") as content:
        while piece := content.read(READ_BYTES):
            _check(stop)
            digest.add(piece)
            meter.here(file.path, digest.seen_bytes)
    if not digest.is_right:
        meter.here(file.path, 0)
    return digest.is_right


def bring(
    listing: Listing, file: HubFile, staged: Path, meter: Meter, stop: threading.Event
) -> None:
    """Make `staged` be the file. Raises ModelUnavailable, and OSError where it can't be written.

    Breaks are taken in one's stride as long as each try brings something.
    """
    part = part_path(staged, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    failures, is_distrusted = 0, False
    while True:
        _check(stop)
        before_bytes = part.stat().st_size if part.exists() else 0
        try:
            if _transfer(listing, file, part, meter, stop):
                part.rename(staged)
                return
            if is_distrusted:
                raise _wrong_contents(listing, file)
            is_distrusted = True
        except Interrupted as error:
            failures = 0 if part.stat().st_size > before_bytes else failures + 1
            if failures > len(PAUSES_S):
                raise _broke_off(listing, file, error) from error
            stop.wait(PAUSES_S[failures - 1] if failures else 0)


def all_of(acts: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Carry out `acts`, a few at a time. The first that fails sets `stop` for the others, and is raised.

    In daemon threads: a node that ends waits for no download. Whoever is interrupted here (Ctrl-C) waits for them.
    """
    waiting = queue.SimpleQueue[Callable[[], None]]()
    failures: list[BaseException] = []
    for act in acts:
        waiting.put(act)

    def work() -> None:
        with suppress(queue.Empty):
            while not stop.is_set():
                act = waiting.get_nowait()
                try:
                    act()
                except BaseException as error:  # noqa: BLE001 - raised by whoever waits
                    failures.append(error)
                    stop.set()

    threads = [threading.Thread(target=work, name="fetch", daemon=True) for _ in range(AT_ONCE)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]


def _transfer(
    listing: Listing, file: HubFile, part: Path, meter: Meter, stop: threading.Event
) -> bool:
    """Bring the rest of a file; whether its contents are right. What is wrong is gone afterwards."""
    with part.open("a+b", buffering=0) as out:
        digest = _reread(out, file)
        meter.here(file.path, digest.seen_bytes)
        if digest.seen_bytes < file.size_bytes:
            with open_file(listing, file, digest.seen_bytes) as (start, pieces):
                if start != digest.seen_bytes:
                    digest = _begin_anew(out, file)
                for piece in pieces:
                    _check(stop)
                    _write(out, piece)
                    digest.add(piece)
                    meter.arrived(len(piece))
                    meter.here(file.path, min(digest.seen_bytes, file.size_bytes))
            if digest.seen_bytes < file.size_bytes:
                raise Interrupted("the connection closed early")
        if digest.is_right:
            os.fsync(out.fileno())
            return True
        _begin_anew(out, file)
        meter.here(file.path, 0)
        return False


def _reread(out: FileIO, file: HubFile) -> Digest:
    """What an earlier try left: the hash of the whole needs it."""
    digest = Digest(file)
    out.seek(0)
    while piece := out.read(READ_BYTES):
        digest.add(piece)
    return digest


def _write(out: FileIO, piece: bytes) -> None:
    """All of it: an unbuffered file may take a part, as where the disk ends."""
    rest = memoryview(piece)
    while rest:
        rest = rest[out.write(rest) :]


def _begin_anew(out: FileIO, file: HubFile) -> Digest:
    out.seek(0)
    out.truncate()
    return Digest(file)


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise ModelUnavailable("The fetch was stopped. What has arrived is kept.")


def _wrong_contents(listing: Listing, file: HubFile) -> ModelUnavailable:
    return ModelUnavailable(
        f"{endpoint()} twice sent a {file.path} of {listing.source} that is not what it says it is (its hash should"
        f" be {file.digest}), so it is not used. A proxy or mirror on the way may be broken; try again later."
    )


def _broke_off(listing: Listing, file: HubFile, error: Exception) -> ModelUnavailable:
    return ModelUnavailable(
        f"The transfer of {file.path} of {listing.source} broke off {len(PAUSES_S) + 1} times ({error}). What has"
        " arrived is kept: fetch again to go on from there."
    )
