"""Bringing a repository's files here, all of them or none.

Files arrive in a staging folder, which becomes a version of its own once all are right; the folder that is served from
is a link to the newest. So nothing half arrived is ever loaded, and who loads while a newer version comes gets all of
one. What a cut fetch left is taken up again, by this process or another: after Ctrl-C,
`kill -9` or a full disk the next fetch goes on. One process at a time fetches into a folder, by a kernel lock; others
wait for it and then find its work done.
"""

import errno
import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from llmhost.config.sources import HubSource
from llmhost.core.errors import ModelUnavailable
from llmhost.core.units import show_bytes
from llmhost.deploy.hub import HubFile, Listing, list_files
from llmhost.deploy.transfer import Meter, Progress, Report, all_of, bring, is_right, part_path

COMPLETE = ".llmhost-complete"
"""In a folder whose files have all arrived: what they are."""

KEPT_FREE_BYTES = 256 * 2**20
"""A fetch leaves so much of the disk to the ledger, which lies on the same one."""

WAIT_S = 0.2
"""Between two looks at another process's fetch."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch came to."""

    folder: Path
    commit: str
    files: int
    total_bytes: int
    arrived_bytes: int
    """Of these, so many came over the network just now."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `COMPLETE`; an empty one is from a version that wrote none."""

    commit: str
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source's files belong: the folder that is served from, what it points to, and where they arrive."""

    folder: Path
    versions: Path
    staging: Path

    @classmethod
    def of(cls, source: HubSource, models_dir: Path) -> "Place":
        repository = models_dir / source.repository.replace("/", "--")
        pick = f":{source.pick.replace('/', '--')}" if source.pick else ""
        flat = source.revision.replace("/", "--") + pick
        return cls(
            repository / (source.revision + pick),
            repository / ".versions" / flat,
            repository / ".fetching" / flat,
        )

    @property
    def lock(self) -> Path:
        return self.staging.with_name(f"{self.staging.name}.lock")

    @property
    def version(self) -> Path | None:
        """The folder of the newest version, if all of its files are here at their sizes. Reads no contents."""
        folder = self.folder.resolve()
        mark = folder / COMPLETE
        manifest = read_manifest(mark)
        if manifest is None:
            return folder if mark.is_file() and not mark.stat().st_size else None
        sizes = manifest.sizes.items()
        return folder if all(_size(folder / path) == size for path, size in sizes) else None

    def point_to(self, version: Path) -> None:
        """Serve this version from now on, and forget the others. Whoever reads their files reads on."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.folder.is_dir() and not self.folder.is_symlink():  # as an earlier llmhost left it
            self.folder.rename(self.versions / "before")
        link = self.staging.with_name(f"{self.staging.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(version, self.folder.parent), target_is_directory=True)
        link.replace(self.folder)
        for other in self.orphans():
            shutil.rmtree(other, ignore_errors=True)

    def orphans(self) -> list[Path]:
        """Versions that are not served: older ones, and one whose process was killed just before it was."""
        served = self.folder.resolve()
        there = self.versions.iterdir() if self.versions.is_dir() else ()
        return [version for version in there if version.resolve() != served]

    @property
    def is_begun(self) -> bool:
        """A fetch has left something to go on with."""
        return any(path.is_file() for path in self.staging.rglob("*"))


def read_manifest(mark: Path) -> Manifest | None:
    try:
        return msgspec.json.decode(mark.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def fetch(source: HubSource, models_dir: Path, report: Report, *, check: bool = True) -> Fetched:
    """Make the files of `source` be here as the hub has them now, and say what that took. Blocks.

    `check` reads all of a folder that is complete already, and fetches anew what is not as it should be.
    Raises ModelUnavailable in plain words.
    """
    place = Place.of(source, models_dir)
    listing = list_files(source)
    with _disk_errors(source, place):
        place.staging.mkdir(parents=True, exist_ok=True)
        with _alone(place, listing, report):
            if not check and place.version is not None and _is_as_listed(place, listing):
                return _outcome(place, listing, 0)
            return _Fetch(place, listing, report).run()


class _Fetch:
    """One fetch, by the holder of the lock."""

    def __init__(self, place: Place, listing: Listing, report: Report) -> None:
        self._place = place
        self._listing = listing
        self._meter = Meter(listing.total_bytes, report)
        self._stop = threading.Event()
        self._missing: list[HubFile] = []
        self._is_moved = not _is_as_listed(place, listing)
        """The folder has another version, or none."""

    def run(self) -> Fetched:
        place, listing = self._place, self._listing
        for orphan in [] if place.is_begun else place.orphans()[:1]:
            shutil.rmtree(place.staging, ignore_errors=True)
            orphan.rename(place.staging)
        place.staging.mkdir(parents=True, exist_ok=True)  # whoever was waited for has moved it away
        all_of([partial(self._find, file) for file in listing.files], self._stop)
        if self._missing or self._is_moved:
            self._check_room()
            # Small files first: a repository that may not be fetched says so at once.
            self._missing.sort(key=lambda file: file.size_bytes)
            all_of([partial(self._bring, file) for file in self._missing], self._stop)
            self._seal()
            self._publish()
        shutil.rmtree(place.staging, ignore_errors=True)
        return _outcome(place, listing, self._meter.arrived_bytes)

    def _find(self, file: HubFile) -> None:
        """Take a file that is here already, from an earlier try or an earlier version."""
        staged, served = self._place.staging / file.path, self._place.folder / file.path
        if is_right(staged, file, self._meter, self._stop):
            return
        staged.unlink(missing_ok=True)
        if is_right(served, file, self._meter, self._stop):
            _link(served, staged)
        else:
            self._missing.append(file)

    def _check_room(self) -> None:
        """Raises ModelUnavailable when what is missing won't fit on the disk."""
        staging = self._place.staging
        here = sum(_size(part_path(staging / file.path, file)) or 0 for file in self._missing)
        needed = sum(file.size_bytes for file in self._missing) - here
        free = shutil.disk_usage(staging).free
        if needed > free - KEPT_FREE_BYTES:
            raise ModelUnavailable(
                f"{self._listing.source} needs {show_bytes(needed)} more on disk, and {self._place.folder.parent}"
                f" has {show_bytes(free)} free, of which {show_bytes(KEPT_FREE_BYTES)} stay with the ledger."
                " Free some, or choose another --data-dir."
            )

    def _bring(self, file: HubFile) -> None:
        staged = self._place.staging / file.path
        bring(self._listing, file, staged, self._meter, self._stop)

    def _seal(self) -> None:
        """Leave in the staging folder what was listed and nothing else, and say what that is."""
        staging, listed = self._place.staging, {file.path for file in self._listing.files}
        for path in [path for path in staging.rglob("*") if path.is_file()]:
            if str(path.relative_to(staging)) not in listed:
                path.unlink()
        sizes = {file.path: file.size_bytes for file in self._listing.files}
        manifest = Manifest(commit=self._listing.commit, sizes=sizes)
        (staging / COMPLETE).write_bytes(msgspec.json.encode(manifest))

    def _publish(self) -> None:
        """Make a version of the staging folder, and serve that."""
        place, commit = self._place, self._listing.commit
        place.versions.mkdir(parents=True, exist_ok=True)
        version = place.versions / f"{commit[:12]}-{secrets.token_hex(4)}"
        place.staging.rename(version)
        place.point_to(version)


@contextmanager
def _alone(place: Place, listing: Listing, report: Report) -> Iterator[None]:
    """Hold the lock of a place, waiting for whoever holds it and telling how far they are."""
    fd = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(Progress(listing.total_bytes, _used(place.staging), is_waiting=True))
                time.sleep(WAIT_S)
        yield
    finally:
        os.close(fd)


@contextmanager
def _disk_errors(source: HubSource, place: Place) -> Iterator[None]:
    """What the disk says no to, in plain words."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise ModelUnavailable(
                f"The disk is full ({error.strerror}): {source} did not fit into {place.folder.parent}. What has"
                " arrived is kept: free some space and fetch again to go on from there."
            ) from error
        raise ModelUnavailable(
            f"Could not write {source} into {place.folder.parent}: {error.strerror or error}."
            " Check the folder's owner and the disk, or choose another --data-dir."
        ) from error


def _is_as_listed(place: Place, listing: Listing) -> bool:
    """The folder was made of this very commit and these files."""
    manifest = read_manifest(place.folder / COMPLETE)
    sizes = {file.path: file.size_bytes for file in listing.files}
    return manifest is not None and manifest == Manifest(commit=listing.commit, sizes=sizes)


def _outcome(place: Place, listing: Listing, arrived_bytes: int) -> Fetched:
    files = len(listing.files)
    return Fetched(place.folder, listing.commit, files, listing.total_bytes, arrived_bytes)


def _link(served: Path, staged: Path) -> None:
    """The same contents under a second name; a copy where the disk knows no such thing."""
    staged.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(served, staged)
    except OSError:
        shutil.copyfile(served, staged)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _used(folder: Path) -> int:
    """Bytes of the files in a folder that others write to and may move away."""
    sizes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            sizes += path.stat().st_size if path.is_file() else 0
    return sizes
