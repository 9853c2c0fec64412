"""One file that is being written, in a folder of files.

It has another name until all of it is on disk, so that whoever finds the name finds the whole. Rows are not known here.
"""

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from llmhost.storage.connect import StorageFailed

_PART = ".part"


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


class Draft:
    """A file that is being written. Its methods block."""

    def __init__(self, folder: Path, file_id: str, *, keep_free_bytes: int) -> None:
        """`keep_free_bytes` of the disk are left to others. Raises StorageFailed."""
        self.id = file_id
        self.bytes = 0
        self.path = folder / f".{file_id}{_PART}"
        self._folder = folder
        self._keep_free_bytes = keep_free_bytes
        self._checked_bytes = -1
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageFailed(self.path, error) from error
        self._file = os.fdopen(fd, "wb")

    def write(self, piece: bytes) -> None:
        """Raises StorageFailed when the disk is full, or as full as it may be."""
        try:
            self._check_room()
            self._file.write(piece)
        except OSError as error:
            raise StorageFailed(self._folder, error) from error
        self.bytes += len(piece)

    def finish(self) -> Path:
        """Force it to disk under its name. Without a row it is still nobody's. Raises StorageFailed."""
        target = self._folder / self.id
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self.path.rename(target)
            _force(self._folder)
        except OSError as error:
            raise StorageFailed(self._folder, error) from error
        return target

    def discard(self) -> None:
        """It is not wanted, or was not finished. Idempotent."""
        with suppress(OSError):  # what could not be written is not wanted
            self._file.close()
        for path in (self.path, self._folder / self.id):
            path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        """Every 16 MiB: asking costs a system call."""
        if 0 <= self.bytes < self._checked_bytes:
            return
        self._checked_bytes = self.bytes + (16 << 20)
        if shutil.disk_usage(self._folder).free < self._keep_free_bytes:
            raise OSError(
                f"less than {self._keep_free_bytes} bytes are free, which files may not take"
            )


def _force(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
